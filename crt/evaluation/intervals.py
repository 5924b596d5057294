"""Confidence statements about shares of test images."""

from scipy.stats import beta, binom


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided confidence interval of a binomial probability (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def failures_subtracted(successes: int, trials: int, alpha: float, rho: float = 0.001) -> float:
    """Share of the `trials` images that is right with probability 1 - rho, although each certificate may fail.

    Each of the `trials` certificates fails with probability alpha at most, independently, so that the number of failures
    is stochastically below Binomial(trials, alpha); its (1 - rho)-quantile is subtracted (idea: Cohen et al. 2019,
    appendix; here exact).
    """
    failures = int(binom.ppf(1 - rho, trials, alpha))
    return max(0, successes - failures) / trials
