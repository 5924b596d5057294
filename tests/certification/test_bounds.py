"""The statistics, against definitions, exact enumeration and dynamic programming."""

from functools import cache, partial

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from crt.certification import bounds

ALPHAS = st.floats(1e-6, 0.4)


@st.composite
def votes(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 5_000))
    return draw(st.integers(0, n)), n


@given(votes(), ALPHAS)
def test_lower_bound_is_where_so_many_votes_get_rare(kn: tuple[int, int], alpha: float) -> None:
    k, n = kn
    p = bounds.lower_bound(k, n, alpha)
    assert 0 <= p < 1
    if k == 0:
        assert p == 0
    else:
        assert alpha * (1 - 2 * bounds.SLACK) <= binom.sf(k - 1, n, p) <= alpha
        reference = binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, "exact").low
        assert p == pytest.approx(reference, rel=1e-5)
        assert p <= reference


@given(votes(), ALPHAS, ALPHAS)
def test_lower_bound_is_monotone(kn: tuple[int, int], alpha: float, other: float) -> None:
    k, n = kn
    p = bounds.lower_bound(k, n, alpha)
    assert bounds.lower_bound(k + 1, n + 1, alpha) > p  # one more vote
    assert bounds.lower_bound(k, n + 1, alpha) <= p  # one more miss
    if k < n:
        assert bounds.lower_bound(k + 1, n, alpha) > p
    if alpha < other:
        assert p <= bounds.lower_bound(k, n, other)


@given(st.integers(1, 100_000), ALPHAS)
def test_all_votes(n: int, alpha: float) -> None:
    assert bounds.lower_bound(n, n, alpha) == pytest.approx(alpha ** (1 / n), rel=2e-6)
    assert bounds.lower_bound(n, n, alpha) <= alpha ** (1 / n)


@given(ALPHAS)
def test_least_draws(alpha: float) -> None:
    n = bounds.least_draws(alpha)
    assert bounds.lower_bound(n, n, alpha) > 0.5
    assert n == 1 or bounds.lower_bound(n - 1, n - 1, alpha) <= 0.5


def test_published_numbers() -> None:
    """Largest radii and fewest votes at alpha = 0.001 (Cohen et al. 2019, section 3.2.2 and figure 3)."""
    assert bounds.radius(bounds.lower_bound(100_000, 100_000, 0.001), 1.0) == pytest.approx(3.811, abs=1e-3)
    assert bounds.radius(bounds.lower_bound(10_000, 10_000, 0.001), 1.0) == pytest.approx(3.199, abs=1e-3)
    assert bounds.lower_bound(50_490, 100_000, 0.001) >= 0.5 > bounds.lower_bound(50_489, 100_000, 0.001)


@given(st.floats(0, 3), st.floats(0.05, 2))
def test_radius_inverts_probability(r: float, sigma: float) -> None:
    p = bounds.probability_at(r, sigma)
    assert p == pytest.approx(norm.cdf(r, scale=sigma), abs=1e-12)
    if p < 0.9999:
        assert bounds.radius(p, sigma) == pytest.approx(r, abs=1e-9)


@given(st.floats(0.5, 1, exclude_max=True), st.floats(0.002, 10))
def test_what_is_claimed_is_rounded_down_and_what_is_needed_up(p: float, sigma: float) -> None:
    """Against 40 digits: no radius above sigma * Phi^-1(p), no needed probability below Phi(r / sigma)."""
    with mpmath.workdps(40):
        r = bounds.radius(p, sigma)
        assert mpmath.ncdf(mpmath.mpf(r) / mpmath.mpf(sigma)) <= mpmath.mpf(p)
        assert r == pytest.approx(sigma * norm.ppf(p), rel=1e-9, abs=1e-12)
        assert mpmath.mpf(bounds.probability_at(r, sigma)) >= mpmath.ncdf(mpmath.mpf(r) / mpmath.mpf(sigma))


@given(votes(), ALPHAS)
def test_the_lower_bound_is_rounded_down(kn: tuple[int, int], alpha: float) -> None:
    """P(k or more of n votes) at the bound, summed with 40 digits, is at most alpha."""
    k, n = kn
    k = max(k, n - 30)  # few terms
    if k == 0:
        return
    with mpmath.workdps(40):
        p = mpmath.mpf(bounds.lower_bound(k, n, alpha))
        tail = mpmath.fsum(mpmath.binomial(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
        assert tail <= mpmath.mpf(alpha)


# PREDICT


@given(votes(), ALPHAS)
def test_predict_is_the_two_sided_binomial_test(kn: tuple[int, int], alpha: float) -> None:
    k, n = kn
    first, second = max(k, n - k), min(k, n - k)
    p_value = binomtest(first, n, 0.5).pvalue
    if abs(p_value / alpha - 1) > 2 * bounds.SLACK:
        assert bounds.leads(first, second, alpha) == (p_value <= alpha)


def test_predict_error_of_two_classes_by_enumeration() -> None:
    """At a tie of two classes either answer errs with at most alpha; beyond it, the wrong one is rarer."""
    n, alpha = 1_000, 0.001
    answers = [bounds.leads(max(a, n - a), min(a, n - a), alpha) for a in range(n + 1)]
    first_wins = np.array([answer and a > n - a for a, answer in enumerate(answers)])
    for p in (0.3, 0.45, 0.499, 0.5):
        assert binom.pmf(np.arange(n + 1), n, p)[first_wins].sum() <= alpha
    assert binom.pmf(np.arange(n + 1), n, 0.7)[first_wins].sum() > 0.999


def test_predict_error_of_three_near_tied_classes() -> None:
    rng, alpha, runs, wrong = np.random.default_rng(0), 0.05, 20_000, 0
    leads = cache(partial(bounds.leads, alpha=alpha))
    for counts in rng.multinomial(300, [0.335, 0.3325, 0.3325], size=runs).tolist():
        _, second, first = sorted(counts)
        wrong += counts[0] < first and leads(first, second)
    assert wrong <= binom.ppf(1 - 1e-6, runs, alpha)
    assert wrong > 0


def test_predict_needs_a_leader() -> None:
    assert not bounds.leads(50, 50, 0.99)
    assert not bounds.leads(3, 0, 0.001)
    assert bounds.leads(12, 0, 0.001)
