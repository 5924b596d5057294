"""Confidence statements about shares of test images."""

from scipy.stats import binom, binomtest


def exact_interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact two-sided 95 % confidence interval of a binomial probability (Clopper and Pearson 1934)."""
    low, high = binomtest(successes, trials).proportion_ci(0.95, "exact")
    return float(low), float(high)


def failures_subtracted(successes: int, trials: int, alpha: float, rho: float = 0.001) -> float:
    """Share of the `trials` images that is right with probability 1 - rho, though each certificate may fail.

    Each of the `trials` certificates fails with probability alpha at most, independently, so that the number
    of failures is stochastically below Binomial(trials, alpha); its (1 - rho)-quantile is subtracted (idea:
    Cohen et al. 2019, appendix; here exact).
    """
    failures = int(binom.ppf(1 - rho, trials, alpha))
    return max(0, successes - failures) / trials
