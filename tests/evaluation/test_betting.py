"""The gate's intervals against known truths: how often they err, how often an equal student passes."""

from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from crt.evaluation.betting import (
    BETS,
    decidable_margins,
    log_capital,
    mean_interval,
    mean_lower_bound,
)

RISK = 0.025
THREE = np.array([-1.0, 0.0, 1.0])


def three_valued(lost: int, equal: int, gained: int) -> np.ndarray:
    return np.repeat(THREE, [lost, equal, gained])


def pass_chance(images: int, lost: float, gained: float, margin: float) -> float:
    """Exact probability that the lower end meets the margin, for shares `lost` and `gained` of the images."""
    reach = [
        range(int(binom.ppf(1e-9, images, p)), int(binom.ppf(1 - 1e-9, images, p)) + 1)
        for p in (lost, gained)
    ]
    counts = np.array([(k, images - k - g, g) for k in reach[0] for g in reach[1] if k + g <= images])
    passed = log_capital(THREE, counts, -margin) >= log(1 / RISK)
    return float(multinomial.pmf(counts[passed], images, [lost, 1 - lost - gained, gained]).sum())


def test_the_capital_is_the_average_of_the_products():
    values, mean = np.array([0.3, -0.2, 0.0, 1.0, -0.9]), -0.1
    products = [np.prod([1 + c * ((1 + x) / (1 + mean) - 1) for x in values]) for c in BETS]
    assert log_capital(values, np.ones(5, np.int64), mean) == pytest.approx(log(np.mean(products)))


def test_the_ends_are_where_the_capital_reaches_the_inverse_of_the_risk():
    values = three_valued(9, 340, 11)
    low, high = mean_interval(values, 0.95)
    for end, side in ((low, values), (-high, -values)):
        counts = np.array([(side == value).sum() for value in THREE])
        assert log_capital(THREE, counts, end) == pytest.approx(log(40))


@settings(max_examples=50)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.sampled_from([0.8, 0.95, 0.99]))
def test_properties_of_the_interval(values, confidence):
    values = np.array(values)
    low, high = mean_interval(values, confidence)
    assert -1 <= low <= values.mean() + 1e-9
    assert values.mean() - 1e-9 <= high <= 1
    assert mean_interval(-values, confidence) == pytest.approx((-high, -low), abs=1e-9)
    assert mean_interval(values[::-1], confidence) == pytest.approx((low, high), abs=1e-9)  # in any order
    wide = mean_interval(values, (1 + confidence) / 2)
    assert wide[0] <= low + 1e-9
    assert high <= wide[1] + 1e-9


def test_a_better_value_raises_the_bound():
    values = np.linspace(-0.5, 0.5, 40)
    better = values.copy()
    better[3] += 0.1
    assert mean_lower_bound(better, RISK) > mean_lower_bound(values, RISK)


def test_no_difference_is_no_proof_of_none():
    """360 images without a difference leave a loss of 1.4 points possible: none of 360 may show it."""
    low, high = mean_interval(np.zeros(360), 0.95)
    assert low == -high
    assert (1 + low) ** 360 < RISK
    assert low > -0.015


def test_nothing_but_losses_leaves_everything_possible():
    assert mean_lower_bound(-np.ones(50), RISK) == -1.0
    assert mean_lower_bound(np.zeros(50), RISK, least=0.0) == 0.0


def test_a_narrower_range_gives_a_narrower_interval():
    kept = np.repeat([-1.0, 0.0], [5, 295])
    (low, high), wide = mean_interval(kept, 0.95, -1.0, 0.0), mean_interval(kept, 0.95)
    assert low == wide[0]  # only the other end can be sharper
    assert wide[1] > 0 > high > -5 / 300
    assert binom.sf(4, 300, -high) < RISK


# The chance of a wrong pass beside that of a right one, both exact.
@pytest.mark.parametrize("images", [20, 60, 190])
@pytest.mark.parametrize("discordant", [0.02, 0.1])
def test_a_loss_of_the_margin_passes_rarely_and_an_equal_student_often(images, discordant):
    margin = decidable_margins(_spread(discordant), 0.95, images)["0.8"]
    lost = max((discordant + margin) / 2, margin)
    wrong = pass_chance(images, lost, lost - margin, margin)
    right = pass_chance(images, discordant / 2, discordant / 2, margin)
    assert wrong <= RISK
    assert right >= 0.77
    assert pass_chance(images, discordant / 2, discordant / 2, 0.9 * margin) < 0.8


def _spread(discordant: float) -> np.ndarray:
    count = round(10_000 * discordant)
    return np.repeat([1.0, 0.0], [count, 10_000 - count])


@pytest.mark.nightly
@pytest.mark.parametrize("margin", [0.005, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("gained", [0.0, 0.01, 0.05])
def test_wrong_passes_at_every_size_from_20(margin, gained):
    for images in [*range(20, 200, 7), 360, 500, 1000]:
        assert pass_chance(images, gained + margin, gained, margin) <= RISK, images


@pytest.mark.parametrize("images", [190, 360, 500])
@pytest.mark.parametrize(("largest", "others"), [(4.0, 0.5), (1.0, 0.9)])
def test_a_rare_kind_of_image_that_is_lost_wholly(images, largest, others):
    """0.5 % of the images lose their whole radius, the others nothing: the mean loss is the margin.

    Exact, as the interval depends only on the number of such images in the test set.
    """
    share, loss = 0.005, others / largest
    passed = sum(
        binom.pmf(lost, images, share)
        for lost in range(30)
        if mean_lower_bound(np.repeat([-loss, 0.0], [lost, images - lost]), RISK) >= -share * loss
    )
    assert passed <= RISK


def jittered(rng: np.random.Generator, images: int) -> np.ndarray:
    """The same with a small difference at every image, as of another seed."""
    return np.where(rng.random(images) < 0.005, -0.5, rng.normal(0, 0.02, images))


@pytest.mark.parametrize(("images", "runs"), [(190, 300), pytest.param(360, 4000, marks=pytest.mark.nightly)])
def test_rare_losses_among_small_differences(images, runs):
    rng = np.random.default_rng(0)
    passed = sum(mean_lower_bound(jittered(rng, images), RISK) >= -0.0025 for _ in range(runs))
    assert passed <= binom.ppf(0.999, runs, RISK)


@pytest.mark.parametrize("runs", [400, pytest.param(20_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("shares", [(0.06, 0.9, 0.04), (0.02, 0.98, 0.0), (0.3, 0.45, 0.25)])
def test_looking_after_every_image_errs_no_more_often(runs, shares):
    """The share of test sets whose interval leaves out the true loss at any of the first 300 looks."""
    rng, mean = np.random.default_rng(1), shares[2] - shares[0]
    growth = np.log1p(np.multiply.outer((1 + THREE) / (1 + mean) - 1, BETS))
    erred = 0
    for _ in range(runs // 100):
        kinds = rng.choice(3, p=shares, size=(100, 300))
        capital = np.exp(growth[kinds].cumsum(axis=1)).mean(axis=2)
        erred += int((capital.max(axis=1) >= 1 / RISK).sum())
    assert erred <= binom.ppf(0.999, runs, RISK)
    # The bound is used, not only kept: an interval of double width would not err as often.
    if shares[1] < 0.95:
        assert erred >= binom.ppf(0.001, runs, RISK / 5)


@pytest.mark.parametrize("runs", [500, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_looking_again_at_a_grown_test_set(runs):
    """Exactly at the margin, with looks at 360 images, then at ever more until it passes."""
    rng, margin = np.random.default_rng(2), 0.02
    sizes = [360, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000]
    steps = np.diff([0, *sizes])
    counts = np.stack([rng.multinomial(step, [0.04, 0.94, 0.02], size=runs) for step in steps]).cumsum(axis=0)
    passed = (log_capital(THREE, counts, -margin) >= log(1 / RISK)).any(axis=0).sum()
    assert passed <= binom.ppf(0.999, runs, RISK)


def test_the_tables_of_the_docs_are_what_the_code_decides():
    root = Path(__file__).resolve().parents[2]
    results, docs = (
        {
            cells[0]: cells[1:]
            for line in (root / name).read_text().splitlines()
            if len(cells := _cells(line)) > 4
        }
        for name in ("benchmarks/results/gate.md", "docs/gate.md")
    )
    assert {size: results[size][1:5] for size in results} == {size: docs[size] for size in results}
    for place, discordant in ((1, 0.02), (2, 0.05), (3, 0.1), (4, 0.2)):
        found = decidable_margins(_spread(discordant), 0.95, 360)
        assert results["360"][place] == f"{100 * found['0.8']:.2g} ({100 * found['0.95']:.2g})"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


def test_decidable_margins_of_radii_count_their_size():
    small, large = np.full(400, 0.02), np.full(400, 0.2)
    assert decidable_margins(small, 0.95)["0.8"] < 0.5 * decidable_margins(large, 0.95)["0.8"]
    mixed = decidable_margins(np.linspace(0, 0.2, 400), 0.95)
    assert decidable_margins(small, 0.95)["0.8"] < mixed["0.8"] < decidable_margins(large, 0.95)["0.8"]
    assert mixed["0.8"] < mixed["0.95"]


def test_an_equal_student_passes_the_decidable_margin_of_acr_as_often_as_said():
    rng, ones = np.random.default_rng(3), np.ones(360, np.int64)
    margins = decidable_margins(rng.normal(0, 0.1, 360), 0.95)
    passed = dict.fromkeys(margins, 0)
    for _ in range(400):
        equal = rng.normal(0, 0.1, 360)
        for chance, margin in margins.items():
            passed[chance] += int(log_capital(equal, ones, -margin) >= log(1 / RISK))
    # The spread itself is measured, on 360 images: to 4 %, and with it the margin.
    assert binom.ppf(0.001, 400, 0.75) <= passed["0.8"] <= binom.ppf(0.999, 400, 0.85)
    assert binom.ppf(0.001, 400, 0.92) <= passed["0.95"] <= binom.ppf(0.999, 400, 0.98)
