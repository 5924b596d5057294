"""CERTIFY and PREDICT for one image, as generators: they yield the draws that they need and receive their votes per class."""

from collections.abc import Callable, Generator
from enum import IntEnum
from typing import Any, NamedTuple

from crt.certification import bounds
from crt.certification.certificate import ABSTAIN, Certificate


class Stage(IntEnum):
    """What draws are for. The two stages never share a draw: the estimate must not depend on the selection."""

    SELECTION = 0
    ESTIMATION = 1


class Draws(NamedTuple):
    """The draws start..stop-1 of one stage of an image."""

    stage: Stage
    start: int
    stop: int


Procedure = Generator[Draws, list[int], Any]


def certify(n0: int, estimate: Callable[[int], Procedure], label: int | None) -> Procedure:
    """CERTIFY (Cohen et al. 2019, section 3.2.2): select a class on n0 draws, estimate its probability on fresh ones.

    With a `label`, an image whose selected class misses it is not estimated: it cannot count as certified.
    """
    c = top_class((yield Draws(Stage.SELECTION, 0, n0)))
    if label is not None and c != label:
        return Certificate(c, None, 0, 0, None, "misclassified")
    return (yield from estimate(c))


def estimate_exact(n: int, alpha: float, sigma: float, c: int) -> Procedure:
    """The radius of class c from n draws, as published."""
    n_a = (yield Draws(Stage.ESTIMATION, 0, n))[c]
    p_lower = bounds.lower_bound(n_a, n, alpha)
    if p_lower < 0.5:
        return Certificate(ABSTAIN, 0.0, n_a, n, p_lower, "abstained")
    return Certificate(c, bounds.radius(p_lower, sigma), n_a, n, p_lower, "certified")


def estimate_adaptive(table: bounds.StoppingTable, c: int) -> Procedure:
    """The largest of the table's radii that class c is certified for, drawing only until that is decided."""
    certified = n_a = n = 0  # radii, votes, draws
    for i, look in enumerate(table.looks):
        n_a += (yield Draws(Stage.ESTIMATION, n, look))[c]
        n = look
        while certified < len(table.radii) and n_a >= table.enough[certified][i]:
            certified += 1
        if certified == len(table.radii) or n_a <= table.futile[certified][i]:
            break
    if certified == 0:
        return Certificate(ABSTAIN, 0.0, n_a, n, 0.0, "abstained")
    return Certificate(c, table.radii[certified - 1], n_a, n, table.p_lower[certified - 1], "certified")


def predict(n: int, alpha: float) -> Procedure:
    """PREDICT (Cohen et al. 2019, section 3.2.1): g(x), or ABSTAIN; wrong with probability <= alpha."""
    votes = yield Draws(Stage.SELECTION, 0, n)
    c = top_class(votes)
    runner_up = max(votes[:c] + votes[c + 1 :])
    return c if bounds.leads(votes[c], runner_up, alpha) else ABSTAIN


def top_class(votes: list[int]) -> int:
    """The most frequent class, the lowest among equals."""
    return votes.index(max(votes))
