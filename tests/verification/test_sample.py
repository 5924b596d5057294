"""The statistics of `crt verify` beside simulations and their definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

from crt.verification.sample import (
    FEWEST_DRAWS,
    REFUTED,
    ROWS,
    Plan,
    largest_unseen,
    make_plan,
    refuting_votes,
    smallest_share,
)


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.99, 0.9931, 0.999999])
@pytest.mark.parametrize("draws", [1, 30, 200, 1000, 100_000])
def test_so_many_votes_refute_and_one_more_does_not(p, draws):
    votes = refuting_votes(p, draws)
    assert votes < 0 or binom.cdf(votes, draws, p) < REFUTED
    assert binom.cdf(votes + 1, draws, p) >= REFUTED


def test_nothing_refutes_a_claim_of_nothing():
    assert refuting_votes(0.0, 1000) == -1


def test_three_hundred_rows_find_one_in_a_hundred():
    assert smallest_share(1_000_000, 300) == pytest.approx(0.01, rel=0.01)
    assert smallest_share(100, 100) == 0.01  # every row was looked at
    assert smallest_share(100, 0) > 1
    assert smallest_share(100, 1, seen=0.9) > 1


def test_the_share_is_found_as_often_as_said():
    rng = np.random.default_rng(0)
    rows, checked, seen = 500, 120, 0.99
    false = round(rows * smallest_share(rows, checked, seen))
    found = []
    for few in (false, false - 2):
        hits = np.array([(rng.permutation(rows)[:checked] < few).sum() for _ in range(20_000)])
        found.append(np.mean(rng.random(len(hits)) < 1 - (1 - seen) ** hits))
    assert found[0] >= 0.95 > found[1]


def table(radii, n=1000, sigma=0.25):
    radii = np.array(radii)
    return SimpleNamespace(
        settings={"sigma": sigma, "n": n},
        radius=radii,
        p_lower=ndtr(radii / sigma),
        n=np.full(len(radii), n),
        status=np.array(["certified"] * len(radii)),
    )


def test_a_radius_that_is_too_large_by_what_is_said_is_seen():
    certificates = table([0.3])
    plan = Plan([0], [0], 2000)
    unseen = largest_unseen(certificates, plan)
    assert 0.01 < unseen < 0.1
    true = ndtr((0.3 - unseen) / 0.25)
    votes = np.random.default_rng(0).binomial(2000, true, 200_000)
    seen = np.mean(votes <= refuting_votes(float(certificates.p_lower[0]), 2000))
    assert seen == pytest.approx(0.99, abs=0.002)
    assert ndtri(true) > 0


def test_the_plan_keeps_to_the_time():
    certificates = table(np.linspace(0.01, 0.6, 5000))
    order = np.random.default_rng(0).permutation(5000).tolist()
    for passes in (1e5, 1e6, 1e7):
        plan = make_plan(certificates, order, passes, 100)
        spent = len(plan.repeated) * 1100 + len(plan.asked) * plan.draws
        assert spent <= 1.01 * passes
        assert spent > 0.5 * passes or plan.draws == 1000  # not more draws of a claim than n
        assert len(plan.asked) <= ROWS
        assert plan.draws >= FEWEST_DRAWS
        assert plan.repeated == order[: len(plan.repeated)]
    everything = make_plan(certificates, order, 1e12, 100)
    assert len(everything.repeated) == 5000
    least = make_plan(certificates, order, 1.0, 100)
    assert (len(least.repeated), len(least.asked), least.draws) == (0, 1, FEWEST_DRAWS)


def test_honest_claims_of_few_draws_are_not_refuted_by_many():
    """Each claim of an exact release is false with probability alpha, and by a little."""
    n, alpha, p = 1000, 0.001, 0.9
    plan = make_plan(table(np.full(1000, 0.3), n), list(range(1000)), 1e9, 100)
    n_a = np.arange(n + 1)
    chance = binom.pmf(n_a, n, p)
    bound = beta.ppf(alpha, n_a, n - n_a + 1)
    refuted = sum(
        c * binom.cdf(refuting_votes(low, plan.draws), plan.draws, p)
        for c, low in zip(chance, bound, strict=True)
        if c > 1e-15 and low > 0
    )
    assert 300 * refuted < 1e-4
