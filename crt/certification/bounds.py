"""The statistics of randomized smoothing: confidence bounds, the radius, PREDICT's test. No torch, no I/O.

What is claimed is rounded down, and what must be reached is rounded up, by more than the functions used here
can be wrong.
"""

import math

from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

# Share of alpha that pays for the error of computing it (measured for SciPy's beta quantile: 6e-10).
SLACK = 1e-6
LEAST_ALPHA = 1e-50  # below it that quantile is wrong
ULPS = 1e-14  # relative error, far above that of SciPy's normal distribution and its inverse


def lower_bound(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound.

    P(lower_bound(K, n, alpha) > p) <= alpha for K ~ Binomial(n, p). Rounded down.
    """
    return math.nextafter(float(beta.ppf(alpha * (1 - SLACK), k, n - k + 1)), 0) if k > 0 else 0.0


def radius(p_lower: float, sigma: float) -> float:
    """l2 radius in which a class of probability >= p_lower stays on top.

    Cohen et al. 2019, theorem 1, with p_B = 1 - p_A; p_lower >= 1/2. Rounded down, to 0 at least.
    """
    return max(float(sigma * ndtri(p_lower)) * (1 - ULPS), 0.0)


def probability_at(r: float, sigma: float) -> float:
    """The class probability that certifies l2 radius r: the inverse of `radius`. Rounded up."""
    return 0.5 if r == 0 else min(float(ndtr(r / sigma)) * (1 + ULPS), 1.0)


def leads(first: int, second: int, alpha: float) -> bool:
    """Whether `first` votes beat the runner-up's `second`.

    This is PREDICT's two-sided binomial test (Cohen et al. 2019, section 3.2.1). The doubled tail covers that
    the leader is chosen from the same votes (Hung and Fithian 2019).
    """
    return bool(2 * binom.sf(first - 1, first + second, 0.5) <= alpha * (1 - SLACK))


def least_draws(alpha: float) -> int:
    """Fewest draws that can certify anything: the smallest n with lower_bound(n, n, alpha) > 1/2."""
    return math.floor(math.log(alpha * (1 - SLACK)) / math.log(0.5)) + 1
