"""CERTIFY and PREDICT on classifiers of known class probabilities: how often do they claim too much?"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import binom, norm

from crt.certification import bounds
from crt.certification.certificate import ABSTAIN, Certificate
from crt.certification.procedures import (
    Draws,
    Procedure,
    Selected,
    Stage,
    certify,
    estimate_adaptive,
    estimate_exact,
    predict,
    select,
    select_clear,
)
from crt.certification.stopping import StoppingTable, stopping_table

SIGMA, N0, N, ALPHA = 0.25, 20, 1_000, 0.05
RADII = (0.0, 0.25, 0.5, 0.75)
FIXED = partial(select, N0)
P_A = [
    0.4,
    0.5,
    0.55,
    0.7,
    norm.cdf(1) - 1e-3,
    norm.cdf(1),
    0.9,
    norm.cdf(2),
    0.99,
    norm.cdf(3),
    0.9999,
    0.99999,
]


def drive(procedure: Procedure, vote: Callable[[Draws], list[int]]) -> Certificate | int:
    """Run a procedure; `vote` answers each request."""
    draws = next(procedure)
    while True:
        try:
            draws = procedure.send(vote(draws))
        except StopIteration as end:
            return end.value


def multinomial(p: list[float], rng: np.random.Generator) -> Callable[[Draws], list[int]]:
    return lambda draws: rng.multinomial(draws.stop - draws.start, p).tolist()


def true_radius(p: float) -> float:
    """Of a class of probability p among two, where the boundary is a hyperplane (the tight case)."""
    return SIGMA * norm.ppf(p)


def false_claims(procedure: Callable[[], Procedure], p: list[float], runs: int) -> int:
    """How many certificates name a class whose probability does not carry the radius."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(runs):
        result = drive(procedure(), multinomial(p, rng))
        wrong += result.predict != ABSTAIN and result.radius > true_radius(p[result.predict]) + 1e-12
    return wrong


def adaptive(futile: str = "as built") -> Callable[[Selected], Procedure]:
    table = stopping_table(RADII, SIGMA, N, ALPHA)
    if futile == "never":
        table = replace(table, futile=tuple(tuple(-1 for _ in table.looks) for _ in RADII))
    if futile == "unless ahead":  # stops whenever the votes do not already run ahead of what the radius needs
        ahead = tuple(tuple(int(p * n) for n in table.looks) for p in table.p_lower)
        table = replace(table, futile=ahead)
    if futile == "at random":
        rng = np.random.default_rng(1)
        table = replace(table, futile=tuple(tuple(rng.integers(-1, n) for n in table.looks) for _ in RADII))
    return partial(estimate_adaptive, table)


ESTIMATES = {
    "exact": partial(estimate_exact, N, ALPHA, SIGMA, 0.0),
    **{
        f"adaptive, futile {how}": adaptive(how) for how in ("as built", "never", "unless ahead", "at random")
    },
}


@pytest.mark.parametrize("mode", list(ESTIMATES))
@pytest.mark.parametrize("p", P_A)
def test_coverage(mode: str, p: float) -> None:
    runs = 1_000
    wrong = false_claims(lambda: certify(FIXED, ESTIMATES[mode], None), [p, 1 - p], runs)
    assert wrong <= binom.ppf(1 - 1e-5, runs, ALPHA)


@pytest.mark.parametrize("mode", ["exact", "adaptive, futile never"])
def test_the_coverage_test_has_power(mode: str) -> None:
    """At the boundary certificates do fail, nearly as often as alpha allows; ten times more is noticed."""
    wrong = false_claims(
        lambda: certify(FIXED, ESTIMATES[mode], None), [norm.cdf(1) - 1e-9, 1 - norm.cdf(1) + 1e-9], 2_000
    )
    assert wrong > 0.5 * ALPHA * 2_000


def test_selection_draws_are_not_reused() -> None:
    """Reused, they would bias the estimate of a class that was chosen for doing well on them."""
    for name, estimate in ESTIMATES.items():
        asked: list[Draws] = []

        def vote(draws: Draws, asked: list[Draws] = asked) -> list[int]:
            asked.append(draws)
            return [draws.stop - draws.start, 0]

        result = drive(certify(FIXED, estimate, None), vote)
        assert asked[0] == Draws(Stage.SELECTION, 0, N0), name
        assert all(draws.stage == Stage.ESTIMATION for draws in asked[1:])
        assert [draws.start for draws in asked[1:]] == [0, *(draws.stop for draws in asked[1:-1])]
        assert asked[-1].stop == result.n == result.n_a


@pytest.mark.parametrize("k", [1_000, 999, 800, 530, 526, 525, 500, 0])
def test_exact_radius_is_the_formula(k: int) -> None:
    votes = iter([[0, 20], [N - k, k]])
    result = drive(certify(FIXED, ESTIMATES["exact"], None), lambda _: next(votes))
    p_lower = bounds.lower_bound(k, N, ALPHA)
    if p_lower < 0.5:
        assert result == Certificate(ABSTAIN, 0.0, k, N, N0, result.p_lower, "abstained")
    else:
        assert result.predict == 1
        assert result.radius == pytest.approx(SIGMA * norm.ppf(p_lower), abs=1e-9)


def test_the_most_frequent_class_is_selected_the_lowest_among_equals() -> None:
    votes = iter([[5, 7, 7, 1], [0, N, 0, 0]])
    assert drive(certify(FIXED, ESTIMATES["exact"], None), lambda _: next(votes)).predict == 1


def test_misclassified_images_are_not_estimated() -> None:
    for estimate in ESTIMATES.values():
        votes = iter([[5, 15]])
        result = drive(certify(FIXED, estimate, label=0), lambda _, votes=votes: next(votes))
        assert result == Certificate(1, None, 0, 0, N0, None, "misclassified")
        rng = np.random.default_rng(0)
        labeled = drive(certify(FIXED, estimate, label=1), multinomial([0.1, 0.9], np.random.default_rng(0)))
        assert labeled == drive(certify(FIXED, estimate, label=None), multinomial([0.1, 0.9], rng))


def test_a_radius_counts_only_after_all_smaller_ones() -> None:
    """Tables of single radii may cross each other, so certifying must go step by step."""
    table = StoppingTable((0.0, 0.25), (0.5, 0.84), (10, 20), ((20, 20), (5, 5)), ((-1, -1), (-1, -1)))
    votes = iter([[10, 0], [5, 0], [5, 0]])
    result = drive(
        certify(partial(select, 10), partial(estimate_adaptive, table), None), lambda _: next(votes)
    )
    assert (result.status, result.n_a, result.n) == ("abstained", 10, 20)


def test_adaptive_finds_the_place_among_the_radii_with_fewer_draws() -> None:
    table = stopping_table(RADII, SIGMA, 100_000, 0.001)
    rng = np.random.default_rng(0)
    spent = []
    for p, radius in [(0.7, 0.0), (0.93, 0.25), (0.99, 0.5), (0.99999, 0.75), (0.3, None)]:
        results = [
            drive(
                certify(partial(select, 100), partial(estimate_adaptive, table), None),
                multinomial([p, 1 - p], rng),
            )
            for _ in range(20)
        ]
        if radius is not None:
            assert sum(r.predict == 0 and r.radius == radius for r in results) >= 19
            assert all(r.p_lower == pytest.approx(norm.cdf(r.radius / SIGMA), rel=1e-12) for r in results)
        spent.append(np.mean([r.n for r in results]))
    assert max(spent) < 10_000


@pytest.mark.parametrize(
    ("p", "most"), [([0.5, 0.5], ALPHA), ([0.34, 0.33, 0.33], ALPHA), ([0.6, 0.4], 0.0005)]
)
def test_predict_is_wrong_with_probability_alpha_at_most(p: list[float], most: float) -> None:
    rng, runs = np.random.default_rng(0), 3_000
    answers = [drive(predict(200, ALPHA, 0.0), multinomial(p, rng)) for _ in range(runs)]
    wrong = sum(answer not in (ABSTAIN, 0) for answer in answers)
    assert wrong <= binom.ppf(1 - 1e-5, runs, most)


def test_predict_answers_when_the_vote_is_clear() -> None:
    assert drive(predict(200, 0.001, 0.0), lambda _: [30, 150, 20]) == 1
    assert drive(predict(200, 0.001, 0.0), lambda _: [95, 105, 0]) == ABSTAIN


def test_predict_pays_for_the_noise_as_drawn() -> None:
    """123 of 200 votes have a p-value of 0.0014; all draws may differ with probability 200 * charge."""
    assert drive(predict(200, 0.002, 0.0), lambda _: [77, 123, 0]) == 1
    assert drive(predict(200, 0.002, 2e-6), lambda _: [77, 123, 0]) == 1
    assert drive(predict(200, 0.002, 4e-6), lambda _: [77, 123, 0]) == ABSTAIN
    assert drive(predict(200, 0.002, 1.0), lambda _: [0, 200, 0]) == ABSTAIN


# selection in adaptive mode


def test_a_clear_class_is_selected_by_few_draws() -> None:
    votes = iter([[1, 31, 0]])
    assert drive(select_clear(), lambda _: next(votes)) == Selected(1, 32)


def test_an_unclear_class_gets_more_draws_which_add_up() -> None:
    asked: list[Draws] = []

    def tied(draws: Draws) -> list[int]:
        asked.append(draws)
        size = draws.stop - draws.start
        return [size // 2, size - size // 2, 0] if len(asked) % 2 else [size - size // 2, size // 2, 0]

    assert drive(select_clear(), tied) == Selected(0, 1024)
    assert [draws.start for draws in asked] == [0, *(draws.stop for draws in asked[:-1])]
    assert {draws.stage for draws in asked} == {Stage.SELECTION}


def test_selection_by_clarity_misses_the_top_class_less_often_with_fewer_draws() -> None:
    rng, runs = np.random.default_rng(0), 2_000
    missed = dict.fromkeys(("clear", "fixed"), 0)
    for p in (0.55, 0.6, 0.7, 0.9, 0.99, 0.999):
        for name, selection in (("clear", select_clear), ("fixed", partial(select, 100))):
            for _ in range(runs // 10):
                result = drive(selection(), multinomial([p, 1 - p], rng))
                missed[name] += result.c != 0
    assert missed["clear"] < missed["fixed"] / 3


@pytest.mark.parametrize("mode", ["exact", "adaptive, futile as built"])
def test_coverage_with_selection_by_clarity(mode: str) -> None:
    runs = 500
    for p in (0.5, norm.cdf(1), norm.cdf(2)):
        wrong = false_claims(lambda: certify(select_clear, ESTIMATES[mode], None), [p, 1 - p], runs)
        assert wrong <= binom.ppf(1 - 1e-5, runs, ALPHA)


def test_draws_without_a_class_count_against_a_certificate() -> None:
    """Of 1,000 draws 600 vote for class 0 and the rest for none."""
    votes = iter([[20, 0], [600, 0]])
    result = drive(certify(FIXED, ESTIMATES["exact"], None), lambda _: next(votes))
    assert (result.n_a, result.n) == (600, N)
    assert result.radius < SIGMA * norm.ppf(0.6)
    assert drive(predict(200, 0.001, 0.0), lambda _: [0, 0]) == ABSTAIN


def test_the_charge_lowers_the_bound() -> None:
    results = []
    for charge in (0.0, 0.01):
        votes = iter([[20, 0], [900, 100]])
        estimate = partial(estimate_exact, N, ALPHA, SIGMA, charge)
        results.append(drive(certify(FIXED, estimate, None), lambda _, v=votes: next(v)))
    assert results[1].p_lower == pytest.approx(results[0].p_lower - 0.01, abs=1e-12)
    assert results[1].radius < results[0].radius
