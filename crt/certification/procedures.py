"""CERTIFY and PREDICT for one image, as generators that know neither networks nor noise.

A procedure yields the `Draws` that it needs next and is sent their votes per class, a list [K] of counts
(draws without a class are in none of them); its return value is the answer. Whoever runs procedures may serve
many at once, in any order and in any batches: `votes.run_procedures` does, tests send votes from a die. In
short:

    draws = next(procedure)
    while True:
        draws = procedure.send(votes_of(draws))  # ends with StopIteration(answer)
"""

from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Any, NamedTuple

from crt.certification import bounds
from crt.certification.certificate import ABSTAIN, Certificate
from crt.certification.stopping import StoppingTable

SELECTION_LOOKS = (32, 64, 128, 256, 512, 1024)
CLEAR = 1e-3  # level at which the leader among the selection draws counts as clear


class Stage(IntEnum):
    """What draws are for. The two stages share none: the estimate must not depend on the selection."""

    SELECTION = 0
    ESTIMATION = 1


class Draws(NamedTuple):
    """The draws start..stop-1 of one stage of an image."""

    stage: Stage
    start: int
    stop: int


Procedure = Generator[Draws, list[int], Any]


class Selected(NamedTuple):
    """The class that is worth estimating, and the draws that chose it."""

    c: int
    n0: int


def select(n0: int) -> Procedure:
    """The most frequent class of n0 draws, as published: a `Selected`."""
    return Selected(top_class((yield Draws(Stage.SELECTION, 0, n0))), n0)


def select_clear() -> Procedure:
    """The most frequent class, after as few draws as make it clear: a `Selected`.

    However a class is selected, a certificate errs with probability alpha at most, since it is estimated on
    other draws.
    """
    votes, n0 = list[int](), 0
    for look in SELECTION_LOOKS:
        fresh = yield Draws(Stage.SELECTION, n0, look)
        votes, n0 = [a + b for a, b in zip(votes or [0] * len(fresh), fresh, strict=True)], look
        second, first = sorted(votes)[-2:]
        if bounds.leads(first, second, CLEAR):
            break
    return Selected(top_class(votes), n0)


def certify(
    selection: Callable[[], Procedure], estimate: Callable[[Selected], Procedure], label: int | None
) -> Procedure:
    """CERTIFY (Cohen et al. 2019, section 3.2.2): select a class, estimate its probability on fresh draws.

    With a `label`, an image whose selected class misses it is not estimated: it cannot count as certified.
    """
    selected: Selected = yield from selection()
    if label is not None and selected.c != label:
        return Certificate(selected.c, None, 0, 0, selected.n0, None, "misclassified")
    return (yield from estimate(selected))


def estimate_exact(n: int, alpha: float, sigma: float, charge: float, selected: Selected) -> Procedure:
    """The radius of the selected class from n draws, as published.

    charge: what its probability under the noise as drawn may exceed that under Gaussian noise by.
    """
    n_a = (yield Draws(Stage.ESTIMATION, 0, n))[selected.c]
    p_lower = max(bounds.lower_bound(n_a, n, alpha) - charge, 0.0) * (1 - bounds.ULPS)
    if p_lower < 0.5:
        return Certificate(ABSTAIN, 0.0, n_a, n, selected.n0, p_lower, "abstained")
    return Certificate(selected.c, bounds.radius(p_lower, sigma), n_a, n, selected.n0, p_lower, "certified")


def estimate_adaptive(table: StoppingTable, selected: Selected) -> Procedure:
    """The largest of the table's radii that holds for the class, drawing only until that is decided."""
    certified = n_a = n = 0  # radii, votes, draws
    for i, look in enumerate(table.looks):
        n_a += (yield Draws(Stage.ESTIMATION, n, look))[selected.c]
        n = look
        while certified < len(table.radii) and n_a >= table.enough[certified][i]:
            certified += 1
        if certified == len(table.radii) or n_a <= table.futile[certified][i]:
            break
    if certified == 0:
        return Certificate(ABSTAIN, 0.0, n_a, n, selected.n0, 0.0, "abstained")
    radius, p_lower = table.radii[certified - 1], table.p_lower[certified - 1]
    return Certificate(selected.c, radius, n_a, n, selected.n0, p_lower, "certified")


def predict(n: int, alpha: float, charge: float) -> Procedure:
    """PREDICT (Cohen et al. 2019, section 3.2.1): g(x), or ABSTAIN; wrong with probability <= alpha.

    charge: total variation of a draw between the noise as drawn and Gaussian noise, so n * charge of all
        draws.
    """
    votes = yield Draws(Stage.SELECTION, 0, n)
    c = top_class(votes)
    runner_up = max(votes[:c] + votes[c + 1 :])
    return c if bounds.leads(votes[c], runner_up, alpha - n * charge) else ABSTAIN


def top_class(votes: list[int]) -> int:
    """The most frequent class, the lowest among equals."""
    return votes.index(max(votes))
