"""The statistics of randomized smoothing: confidence bounds, the radius, the test behind PREDICT. No torch, no I/O."""

from scipy.special import ndtr, ndtri
from scipy.stats import beta, binomtest


def lower_bound(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: P(lower_bound(K, n, alpha) > p) <= alpha for K ~ Binomial(n, p)."""
    return float(beta.ppf(alpha, k, n - k + 1)) if k > 0 else 0.0


def upper_bound(k: int, n: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: P(upper_bound(K, n, alpha) < p) <= alpha for K ~ Binomial(n, p)."""
    return float(beta.ppf(1 - alpha, k + 1, n - k)) if k < n else 1.0


def radius(p_lower: float, sigma: float) -> float:
    """l2 radius within which a class of probability >= p_lower stays on top (Cohen et al. 2019, theorem 1, p_B = 1 - p_A)."""
    return float(sigma * ndtri(p_lower))


def probability_at(r: float, sigma: float) -> float:
    """The class probability that certifies l2 radius r: the inverse of `radius`."""
    return float(ndtr(r / sigma))


def leads(first: int, second: int, alpha: float) -> bool:
    """Whether the most frequent class beats the runner-up: PREDICT's two-sided test (Cohen et al. 2019, section 3.2.1).

    The two-sided level covers that the leader is chosen from the same votes (Hung and Fithian 2019).
    """
    return bool(first + second > 0 and binomtest(first, first + second, 0.5).pvalue <= alpha)


def least_draws(alpha: float) -> int:
    """Fewest draws that can certify anything: the smallest n with lower_bound(n, n, alpha) = alpha^(1/n) > 1/2."""
    n = 1
    while alpha ** (1 / n) <= 0.5:
        n += 1
    return n
