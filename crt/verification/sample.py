"""Which rows are checked in how many minutes, and which share of false ones that finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta, binom, hypergeom

from crt.evaluation.certificates import Certificates

REFUTED = 1e-6  # chance that fresh noise refutes a claim that holds
ROWS = 300  # claims that fresh noise asks about: enough to find one false row in a hundred with 95 %
FEWEST_DRAWS, MOST_DRAWS = 200, 100_000  # of a claim
FOUND, SEEN = 0.95, 0.99  # chance that a share of false rows is found; that a false row in the sample is seen


@dataclass(frozen=True)
class Plan:
    """What is checked.

    Attributes:
        repeated: Rows that are certified again on the same noise, places in the table.
        asked: Rows whose claim is checked on fresh noise, places in the table.
        draws: Fresh draws for each of them.
        most: Draws that the first check may take. It is far more than the table says, since the table may
            lie; rows that are not decided by then do not hold.
    """

    repeated: list[int]
    asked: list[int]
    draws: int
    most: float = inf


def make_plan(certificates: Certificates, order: Sequence[int], passes: float, n0: int) -> Plan:
    """Divide forward passes between the two checks, half for each.

    Where a single row takes more than all of them, no row is certified again. A claim is not asked for on
    more draws than n: of a small n, one claim in 1 / alpha is false by a little, and many more draws would
    refute it.

    Args:
        certificates: The table.
        order: Rows in random order, places in the table.
        passes: Forward passes that the time allows.
        n0: Draws that select a class.
    """
    claims = [row for row in order if certificates.status[row] == "certified"]
    asked = claims[: max(1, min(ROWS, int(passes / 2 / FEWEST_DRAWS)))]
    repeated, spent = list[int](), 0.0
    for row in order:
        cost = n0 + int(certificates.n[row])
        if spent + cost > (passes / 2 if repeated else passes):
            break
        repeated.append(row)
        spent += cost
    draws = int((passes - spent) / len(asked)) if asked else 0
    draws = max(min(draws, int(certificates.settings["n"]), MOST_DRAWS), FEWEST_DRAWS)
    return Plan(repeated, asked, draws, most=4 * spent + passes)


def refuting_votes(p_lower: float, draws: int) -> int:
    """Votes, so many or fewer, that refute a class probability of at least `p_lower`; -1: no number does."""
    votes = int(binom.ppf(REFUTED, draws, p_lower)) - 1
    while votes >= 0 and binom.cdf(votes, draws, p_lower) >= REFUTED:
        votes -= 1
    return votes


def smallest_share(rows: int, checked: int, seen: float = 1.0) -> float:
    """The smallest share of `rows` that, were it false, would have been found with chance `FOUND`.

    Args:
        rows: Rows of the table.
        checked: Rows of the sample.
        seen: Chance that a false row of the sample is seen as one.

    Returns:
        From 0 to 1; above 1: no share would.
    """
    if checked == 0:
        return 1.01
    false = np.arange(1, rows + 1)
    missed = hypergeom.pmf(0, rows, false, min(checked, rows))
    found: NDArray[np.bool_] = np.asarray((1 - missed) * seen >= FOUND)
    return float(false[found.argmax()] / rows) if found.any() else 1.01


def largest_unseen(certificates: Certificates, plan: Plan) -> float:
    """By how much a radius may be too large without being seen with chance `SEEN`, in any row of the sample.

    In [0,1] pixel units; a claim that is more false than that is refuted with that chance.
    """
    sigma, unseen = float(certificates.settings["sigma"]), 0.0
    for row in plan.asked:
        votes = refuting_votes(float(certificates.p_lower[row]), plan.draws)
        # So large may the class's probability be for as few votes to come with chance SEEN.
        true = float(beta.ppf(1 - SEEN, votes + 1, plan.draws - votes)) if votes >= 0 else 0.0
        radius = float(certificates.radius[row])
        unseen = max(unseen, radius - max(sigma * float(ndtri(true)), 0.0) if true > 0.5 else radius)
    return unseen


def summary(certificates: Certificates) -> dict[str, Any]:
    """What the table says, computed from its rows."""
    radii: NDArray[np.float64] = np.array(certificates.radii)
    return {
        "acr": float(certificates.right_radius.mean()),
        "certified_accuracy": {str(r): float(certificates.right_at(r).mean()) for r in radii},
    }
