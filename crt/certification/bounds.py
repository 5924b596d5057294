"""The statistics of randomized smoothing: confidence bounds, the radius, stopping tables, PREDICT's test. No torch, no I/O.

What is claimed is rounded down, and what must be reached is rounded up, by more than the functions used here can be wrong.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

FIRST_LOOK, GROWTH = 64, 1.05  # looks at the votes, and how much further on the next one is
SLACK = 1e-6  # share of alpha that pays for the error of SciPy's beta quantile (measured: 6e-10)
ULPS = 1e-14  # relative error, far above that of SciPy's normal distribution and its inverse
LEAST_ADAPTIVE_ALPHA = 1e-12  # below it, rounding within the tables would count
FUTILITY = 0.01  # chance, at each look, to give up a radius that the last look would just have certified


def lower_bound(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: P(lower_bound(K, n, alpha) > p) <= alpha for K ~ Binomial(n, p). Rounded down."""
    return math.nextafter(float(beta.ppf(alpha * (1 - SLACK), k, n - k + 1)), 0) if k > 0 else 0.0


def radius(p_lower: float, sigma: float) -> float:
    """l2 radius in which a class of probability >= p_lower stays on top (Cohen et al. 2019, theorem 1, p_B = 1 - p_A).

    p_lower >= 1/2. Rounded down, to 0 at least.
    """
    return max(float(sigma * ndtri(p_lower)) * (1 - ULPS), 0.0)


def probability_at(r: float, sigma: float) -> float:
    """The class probability that certifies l2 radius r: the inverse of `radius`. Rounded up."""
    return 0.5 if r == 0 else min(float(ndtr(r / sigma)) * (1 + ULPS), 1.0)


def leads(first: int, second: int, alpha: float) -> bool:
    """Whether `first` votes beat the runner-up's: PREDICT's two-sided binomial test (Cohen et al. 2019, section 3.2.1).

    The doubled tail covers that the leader is chosen from the same votes (Hung and Fithian 2019).
    """
    return bool(2 * binom.sf(first - 1, first + second, 0.5) <= alpha)


def least_draws(alpha: float) -> int:
    """Fewest draws that can certify anything: the smallest n with lower_bound(n, n, alpha) > 1/2."""
    return math.floor(math.log(alpha * (1 - SLACK)) / math.log(0.5)) + 1


@dataclass(frozen=True)
class StoppingTable:
    """When to stop drawing: after `looks[i]` draws, `enough[j][i]` votes certify radii[j], `futile[j][i]` give it up.

    The radii ascend from 0. A radius counts as certified only after all smaller ones, so a false certificate needs the
    smallest untrue radius to be certified: that one test, at level alpha, is the level of all of them together.
    """

    radii: tuple[float, ...]
    p_lower: tuple[float, ...]  # the class probability that each radius needs
    looks: tuple[int, ...]
    enough: tuple[tuple[int, ...], ...]
    futile: tuple[tuple[int, ...], ...]


@functools.lru_cache(maxsize=32)
def stopping_table(
    radii: tuple[float, ...], sigma: float, n: int, alpha: float, charge: float = 0.0
) -> StoppingTable:
    """The table for l2 radii to report (0, the bare class, is added), with at most n draws.

    charge: what the class probability under the noise as drawn may exceed that under Gaussian noise by.
    """
    ladder = (0.0, *sorted(set(radii) - {0.0}))
    needed = tuple(probability_at(r, sigma) for r in ladder)
    schedule = looks(n)
    enough = tuple(enough_votes(min(p + charge, 1.0), schedule, alpha) for p in needed)
    futile = tuple(futile_votes(votes[-1], schedule) for votes in enough)
    return StoppingTable(ladder, needed, schedule, enough, futile)


def looks(n: int) -> tuple[int, ...]:
    """Multiples of FIRST_LOOK that grow by GROWTH, up to n."""
    sizes, size = {n}, float(FIRST_LOOK)
    while size < n:
        sizes.add(min(round(size / FIRST_LOOK) * FIRST_LOOK, n))
        size *= GROWTH
    return tuple(sorted(sizes))


def enough_votes(p: float, looks: Sequence[int], alpha: float) -> tuple[int, ...]:
    """Votes at each look that refute "the class probability is p or less"; looks[i] + 1 or more: none do.

    A class of probability p ever gets so many with probability <= alpha, whatever stops the draws: after N of n draws at
    most alpha N/n is spent (alpha spending, Lan and DeMets 1983), with the exact distribution of the votes of runs not yet
    certified instead of a union bound. A smaller probability gets there less often.
    """
    alive, least = np.ones(1), 0  # alive[i] = P(not certified yet, least + i votes)
    drawn, spent, counts = 0, 0.0, list[int]()
    for look in looks:
        fresh = binom.pmf(np.arange(look - drawn + 1), look - drawn, p)
        alive, drawn = fftconvolve(alive, fresh).clip(0), look
        spent_from = (
            spent + alive[::-1].cumsum()[::-1]
        )  # spent, if the runs with least + i votes or more are certified
        k = int((spent_from > alpha * look / looks[-1]).sum())
        counts.append(least + k)
        spent = float(np.append(spent_from, spent)[k])
        alive = alive[:k]
        rare = int(
            (alive.cumsum() < 1e-12 * alpha).sum()
        )  # left out below, and counted as false certificates
        spent += float(alive[:rare].sum())
        alive, least = alive[rare:], least + rare
    return tuple(counts)


def futile_votes(enough_at_last: int, looks: Sequence[int]) -> tuple[int, ...]:
    """Votes at each look at or below which a radius is given up: they would be rare (FUTILITY) even for a class that gets
    just enough votes at the last look. Saves draws, costs a little power, and cannot cost soundness."""
    n = looks[-1]
    if enough_at_last > n:
        return tuple(looks)
    return tuple(int(binom.ppf(FUTILITY, look, enough_at_last / n)) - 1 for look in looks)
