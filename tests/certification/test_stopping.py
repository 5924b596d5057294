"""Stopping tables: their exact level, by dynamic programming that shares no code with what builds them."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crt.certification import bounds, stopping


def error_by_single_draws(p: float, looks: Sequence[int], enough: Sequence[int]) -> float:
    """P(votes reach `enough` at some look) for a class of probability p, by single draws; an upper bound.

    At each look, probabilities below 1e-30 at either end count as errors, so that few numbers of votes are
    left.
    """
    alive, least, error, last = np.ones(1), 0, 0.0, 0
    for look, needed in zip(looks, enough, strict=True):
        for _ in range(look - last):
            alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        last = look
        error += alive[max(needed - least, 0) :].sum()
        alive = alive[: max(needed - least, 0)]
        common = np.flatnonzero(alive > 1e-30)
        first, stop = common[0], common[-1] + 1
        error += alive[:first].sum() + alive[stop:].sum()
        alive, least = alive[first:stop], least + int(first)
    return float(error)


GRIDS = {0.25: (0.25, 0.5, 0.75), 0.5: (0.5, 1.0, 1.5, 1.75), 1.0: (0.5, 1.0, 2.0, 3.0, 3.75)}


def check_level(sigma: float, n: int, alpha: float, charge: float = 0.0) -> None:
    """Each radius of a table errs with probability alpha at most, at the boundary and below.

    And the budget is used.
    """
    table = stopping.stopping_table(GRIDS[sigma], sigma, n, alpha, charge)
    assert table.radii == (0.0, *GRIDS[sigma])
    for p, enough in zip(table.p_lower, table.enough, strict=True):
        error = error_by_single_draws(p + charge, table.looks, enough)
        assert error <= alpha
        for factor in (0.999, 0.8):
            assert (
                error_by_single_draws((p + charge) * factor, table.looks, enough)
                <= error * (1 + 1e-9) + 1e-25
            )
        if p == 0.5 and n >= 1_000:
            assert error > 0.8 * alpha


@pytest.mark.parametrize(("n", "alpha"), [(10, 0.001), (100, 0.05), (1_000, 0.001), (2_000, 1e-4)])
def test_exact_error_of_every_table(n: int, alpha: float) -> None:
    check_level(0.25, n, alpha)


@pytest.mark.nightly
@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6, stopping.LEAST_ADAPTIVE_ALPHA])
@pytest.mark.parametrize("n", [10, 100, 1_000, 3_000, 5_000, 10_000])
@pytest.mark.parametrize("sigma", list(GRIDS))
def test_exact_error_of_every_table_up_to_10000_draws(sigma: float, n: int, alpha: float) -> None:
    """n = 100,000: benchmarks/stopping_tables.py."""
    check_level(sigma, n, alpha)
    check_level(sigma, n, alpha, charge=1e-11)  # of an image of ImageNet's size


@pytest.mark.slow
def test_exact_error_with_20000_draws() -> None:
    looks = stopping.looks(20_000)
    for p in (0.5, 0.8413, 0.99865):
        error = error_by_single_draws(p, looks, stopping.enough_votes(p, looks, 0.001))
        assert 0.9 * 0.001 < error <= 0.001


@pytest.mark.parametrize("alpha", [stopping.LEAST_ADAPTIVE_ALPHA, 1e-9])
def test_exact_error_at_the_least_alpha(alpha: float) -> None:
    looks = stopping.looks(2_000)
    for p in (0.5, 0.9, 0.9999):
        assert error_by_single_draws(p, looks, stopping.enough_votes(p, looks, alpha)) <= alpha


def test_the_charge_for_noise_as_drawn_raises_what_is_needed() -> None:
    plain = stopping.stopping_table((0.25,), 0.25, 10_000, 0.001)
    charged = stopping.stopping_table((0.25,), 0.25, 10_000, 0.001, 0.01)
    assert charged.p_lower == plain.p_lower  # what is claimed
    assert charged.enough == tuple(stopping.enough_votes(p + 0.01, plain.looks, 0.001) for p in plain.p_lower)


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 800), st.floats(0.5, 0.9999), st.floats(1e-5, 0.2))
def test_exact_error_of_any_table(n: int, p: float, alpha: float) -> None:
    looks = stopping.looks(n)
    assert error_by_single_draws(p, looks, stopping.enough_votes(p, looks, alpha)) <= alpha


@given(st.integers(1, 200_000))
def test_looks_end_at_n(n: int) -> None:
    looks = stopping.looks(n)
    assert looks[-1] == n
    assert all(a < b for a, b in itertools.pairwise(looks))
    assert all(look % stopping.FIRST_LOOK == 0 for look in looks[:-1])
    assert len(looks) < 150


def test_the_last_look_costs_little() -> None:
    """Certifying at the last look needs hardly more votes than exact mode: early looks cost little alpha."""
    table = stopping.stopping_table((0.25, 0.5, 0.75), 0.25, 100_000, 0.001)
    for p, enough in zip(table.p_lower, table.enough, strict=True):
        exact = next(
            k for k in range(int(p * 100_000), 100_001) if bounds.lower_bound(k, 100_000, 0.001) >= p
        )
        spread = np.sqrt(100_000 * p * (1 - p))
        assert exact <= enough[-1] <= exact + 0.6 * spread


@pytest.mark.parametrize(("n", "alpha"), [(1_000, 0.001), (10_000, 0.05), (100_000, 0.001)])
def test_the_fewest_draws_are_those_of_the_table(n: int, alpha: float) -> None:
    table = stopping.stopping_table((0.25, 0.5, 0.75, 0.9, 1.2), 0.25, n, alpha)
    for p, enough in zip(table.p_lower, table.enough, strict=True):
        reached = [look for look, votes in zip(table.looks, enough, strict=True) if votes <= look]
        assert stopping.fewest_draws(p, n, alpha) == (reached[0] if reached else None)


def test_radii_that_cost_most_of_the_draws_are_named() -> None:
    assert stopping.costly_radii([0.0, 0.25, 0.5, 0.75], 0.25, 100_000, 0.001) == []
    assert stopping.costly_radii([0.0, 0.25, 0.5], 0.25, 1_000, 0.001) == []
    near, beyond = stopping.costly_radii([0.5, 0.875, 1.0], 0.25, 100_000, 0.001)
    assert near.startswith("radius 0.875 takes at least 34,624 of n=100,000 draws for each image")
    assert beyond.startswith("radius 1 is beyond what n=100,000 draws certify at sigma 0.25")
