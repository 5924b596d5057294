"""The statistics, against definitions, exact enumeration and dynamic programming."""

import itertools
from collections.abc import Sequence
from functools import cache, partial

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
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
    if abs(p_value - alpha) > 1e-9:
        assert bounds.leads(first, second, alpha) == (p_value <= alpha)


def test_predict_error_of_two_classes_by_enumeration() -> None:
    """At a tie of two classes either answer is an error of at most alpha; beyond it, the wrong one is rarer."""
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


# stopping tables


def error_by_single_draws(p: float, looks: Sequence[int], enough: Sequence[int]) -> float:
    """P(votes reach `enough` at some look) for a class of probability p, one draw at a time."""
    alive, error, last = np.ones(1), 0.0, 0
    for look, needed in zip(looks, enough, strict=True):
        for _ in range(look - last):
            alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        error, last = error + alive[needed:].sum(), look
        alive[needed:] = 0
    return float(error)


@pytest.mark.parametrize(
    ("n", "alpha"), [(10, 0.001), (100, 0.05), (1_000, 0.001), (5_000, 1e-4), (5_000, 0.05)]
)
def test_exact_error_of_every_table(n: int, alpha: float) -> None:
    table = bounds.stopping_table((0.25, 0.5, 0.75), 0.25, n, alpha)
    assert table.radii == (0.0, 0.25, 0.5, 0.75)
    for p, enough in zip(table.p_lower, table.enough, strict=True):
        error = error_by_single_draws(p, table.looks, enough)
        assert error <= alpha * (1 + 1e-9)
        for factor in (0.999, 0.99, 0.8):
            assert error_by_single_draws(p * factor, table.looks, enough) <= error + 1e-12
        if p == 0.5 and n >= 1_000:  # the budget is used, not only kept
            assert error > 0.9 * alpha


@pytest.mark.slow
def test_exact_error_with_the_published_number_of_draws() -> None:
    looks = bounds.looks(20_000)
    for p in (0.5, 0.8413, 0.99865):
        error = error_by_single_draws(p, looks, bounds.enough_votes(p, looks, 0.001))
        assert 0.9 * 0.001 < error <= 0.001 * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [bounds.LEAST_ADAPTIVE_ALPHA, 1e-9])
def test_exact_error_at_the_least_alpha(alpha: float) -> None:
    looks = bounds.looks(2_000)
    for p in (0.5, 0.9, 0.9999):
        assert error_by_single_draws(p, looks, bounds.enough_votes(p, looks, alpha)) <= alpha * (1 + 1e-9)


def test_the_charge_for_noise_as_drawn_raises_what_is_needed() -> None:
    plain = bounds.stopping_table((0.25,), 0.25, 10_000, 0.001)
    charged = bounds.stopping_table((0.25,), 0.25, 10_000, 0.001, 0.01)
    assert charged.p_lower == plain.p_lower  # what is claimed
    assert charged.enough == tuple(bounds.enough_votes(p + 0.01, plain.looks, 0.001) for p in plain.p_lower)


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 800), st.floats(0.5, 0.9999), st.floats(1e-5, 0.2))
def test_exact_error_of_any_table(n: int, p: float, alpha: float) -> None:
    looks = bounds.looks(n)
    assert error_by_single_draws(p, looks, bounds.enough_votes(p, looks, alpha)) <= alpha * (1 + 1e-9)


@given(st.integers(1, 200_000))
def test_looks_end_at_n(n: int) -> None:
    looks = bounds.looks(n)
    assert looks[-1] == n
    assert all(a < b for a, b in itertools.pairwise(looks))
    assert all(look % bounds.FIRST_LOOK == 0 for look in looks[:-1])
    assert len(looks) < 150


def test_the_last_look_costs_little() -> None:
    """Certifying at the last look needs hardly more votes than exact mode: alpha is not squandered on early looks."""
    table = bounds.stopping_table((0.25, 0.5, 0.75), 0.25, 100_000, 0.001)
    for p, enough in zip(table.p_lower, table.enough, strict=True):
        exact = next(
            k for k in range(int(p * 100_000), 100_001) if bounds.lower_bound(k, 100_000, 0.001) >= p
        )
        spread = np.sqrt(100_000 * p * (1 - p))
        assert exact <= enough[-1] <= exact + 0.6 * spread


def test_futility_gives_up_only_what_is_rare() -> None:
    table = bounds.stopping_table((0.25, 0.5, 0.75), 0.25, 10_000, 0.001)
    for enough, futile in zip(table.enough, table.futile, strict=True):
        share = enough[-1] / 10_000
        chances = binom.cdf(futile, table.looks, share)
        assert np.all(chances <= bounds.FUTILITY)
        assert np.all(binom.cdf(np.array(futile) + 1, table.looks, share) >= bounds.FUTILITY)


def test_a_radius_out_of_reach_is_given_up_at_once() -> None:
    table = bounds.stopping_table((2.0,), 0.25, 1_000, 0.001)
    assert table.futile[1] == table.looks
    assert all(votes > look for votes, look in zip(table.enough[1], table.looks, strict=True))
