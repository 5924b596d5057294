import numpy as np
import pytest
from certificate_tables import abstained, certified, from_votes, misclassified, write_table
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial, norm

from crt.errors import UserError
from crt.evaluation.certificates import read_certificates
from crt.evaluation.paired import (
    Discordance,
    check_comparable,
    discordance,
    mcnemar,
    mean_interval,
    score_interval,
)


def tables(tmp_path, first, second, **settings):
    return (
        read_certificates(write_table(tmp_path / "first.tsv", first)),
        read_certificates(write_table(tmp_path / "second.tsv", second, **settings)),
    )


def test_discordance_by_hand(tmp_path):
    first = [certified(0, 0.6), certified(1, 0.3), certified(2, 0.3), misclassified(3)]
    second = [certified(0, 0.6), certified(1, 0.1), abstained(2), certified(3, 0.3)]
    first, second = tables(tmp_path, first, second)
    assert discordance(first, second, 0.0) == Discordance(4, gained=1, lost=1)
    assert discordance(first, second, 0.25) == Discordance(4, gained=2, lost=1)
    assert discordance(first, second, 0.5) == Discordance(4, gained=0, lost=0)
    assert discordance(first, second, 0.25).difference == 0.25


@pytest.mark.parametrize("older", [0, 1])
def test_certificates_of_an_older_kind_are_not_compared(tmp_path, older):
    rows, noise = [certified(0, 0.6), certified(1, 0.3)], {"kind": "integer", "bits": "Philox4x64-10"}
    pair = [
        read_certificates(
            write_table(tmp_path / f"{place}.tsv", rows, **({} if place == older else {"noise": noise}))
        )
        for place in range(2)
    ]
    said = f"{older}.tsv is of an older kind, with other noise; certify that model again"
    with pytest.raises(UserError, match=f"cannot be compared: .*{said}$"):
        check_comparable(*pair)
    check_comparable(pair[0], pair[0])
    check_comparable(pair[1], pair[1])


def test_mcnemar_by_hand():
    assert mcnemar(Discordance(100, 0, 0)) == 1.0
    assert mcnemar(Discordance(100, 1, 5)) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(Discordance(100, 4, 4)) == 1.0


def likelihood_statistic(counts: Discordance, delta: float) -> float:
    """Tango's statistic with the nuisance parameter found by numerical maximisation of the likelihood."""

    def minus_log(q):
        cells = [q + delta, q, 1 - 2 * q - delta]
        counted = [counts.gained, counts.lost, counts.images - counts.gained - counts.lost]
        return -sum(n * np.log(max(p, 1e-300)) for n, p in zip(counted, cells, strict=True) if n)

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    q = minimize_scalar(minus_log, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = 2 * q + delta - delta**2
    return (counts.difference - delta) / np.sqrt(variance / counts.images)


@pytest.mark.parametrize(
    "counts", [(44, 0, 1), (100, 20, 10), (50, 0, 0), (360, 7, 19), (30, 25, 2), (1000, 3, 0)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_score_interval_ends_where_the_score_test_turns(counts, confidence):
    counts = Discordance(*counts)
    z = norm.ppf((1 + confidence) / 2)
    low, high = score_interval(counts, confidence)
    assert likelihood_statistic(counts, low) == pytest.approx(z, rel=1e-3)
    assert likelihood_statistic(counts, high) == pytest.approx(-z, rel=1e-3)


def test_the_score_interval_without_discordant_images_has_a_closed_form():
    z2 = norm.ppf(0.975) ** 2
    assert score_interval(Discordance(200, 0, 0), 0.95) == pytest.approx((-z2 / (200 + z2), z2 / (200 + z2)))


@given(st.integers(1, 200), st.data())
def test_properties_of_the_score_interval(images, data):
    gained = data.draw(st.integers(0, images))
    lost = data.draw(st.integers(0, images - gained))
    low, high = score_interval(Discordance(images, gained, lost), 0.95)
    difference = (gained - lost) / images
    assert -1 <= low <= difference <= high <= 1
    # The other way round it is the mirror image, and more confidence means a wider interval.
    assert score_interval(Discordance(images, lost, gained), 0.95) == pytest.approx((-high, -low), abs=1e-9)
    wide = score_interval(Discordance(images, gained, lost), 0.99)
    assert wide[0] <= low + 1e-9
    assert high <= wide[1] + 1e-9


def cells(images):
    return [(g, k) for g in range(images + 1) for k in range(images + 1 - g)]


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.02, 0.06), (0.15, 0.1), (0.01, 0.01)])
def test_coverage_of_the_score_interval_is_close_to_nominal(gain, loss):
    # Exact: sum of the probabilities of all tables of 60 images whose interval holds the true difference.
    images, covered = 60, 0.0
    for gained, lost in cells(images):
        probability = multinomial.pmf(
            [gained, lost, images - gained - lost], images, [gain, loss, 1 - gain - loss]
        )
        if probability < 1e-7:
            continue
        low, high = score_interval(Discordance(images, gained, lost), 0.95)
        covered += probability * (low <= gain - loss <= high)
    assert 0.93 <= covered <= 0.9999


@pytest.mark.slow
def test_the_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        differences = np.where(rng.random(150) < 0.3, rng.normal(0.02, 0.2, size=150), 0.0)
        low, high = mean_interval(differences, 0.95)
        hits += low <= 0.3 * 0.02 <= high
    # 95 % of 200 is 190; below 181 has probability 0.003 under exact coverage.
    assert hits >= 181


def test_the_bootstrap_interval_is_near_the_normal_one_and_repeatable():
    differences = np.random.default_rng(0).normal(0.1, 1.0, size=2000)
    low, high = mean_interval(differences, 0.95)
    half = 1.96 * differences.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx(
        (differences.mean() - half, differences.mean() + half), abs=0.1 * half
    )
    assert mean_interval(differences, 0.95) == (low, high)


def test_equal_classifiers_differ_by_nothing():
    assert mean_interval(np.zeros(10), 0.95) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sigma": 0.5}, "sigma is 0.25 in one and 0.5 in the other"),
        ({"alpha": 0.01}, "alpha is"),
        ({"n": 999}, "n is"),
        ({"n0": 99}, "n0 is"),
        ({"mode": "adaptive"}, "mode is"),
        ({"stride": 2}, "stride is"),
        ({"max_images": 5}, "max_images is"),
        ({"data_fingerprint": "c"}, "data_fingerprint is"),
    ],
)
def test_other_settings_are_refused(tmp_path, settings, says):
    rows = [certified(0, 0.6), certified(1, 0.6)]
    with pytest.raises(UserError, match=says) as error:
        check_comparable(*tables(tmp_path, rows, rows, **settings))
    assert "first.tsv" in str(error.value)
    assert "second.tsv" in str(error.value)


def test_other_images_are_refused(tmp_path):
    first = [certified(0, 0.6), certified(1, 0.6), certified(2, 0.6)]
    with pytest.raises(UserError, match=r"2 image\(s\) are in one alone"):
        check_comparable(*tables(tmp_path, first, [*first[:2], certified(7, 0.6)]))
    with pytest.raises(UserError, match="other names or labels"):
        check_comparable(*tables(tmp_path, first, [*first[:2], abstained(2, label=5)]))
    with pytest.raises(UserError, match="certify more"):
        check_comparable(*tables(tmp_path, first[:1], first[:1]))


def test_another_model_seed_or_shortcut_is_allowed(tmp_path):
    rows = [from_votes(0, 990), from_votes(1, 400)]
    check_comparable(
        *tables(tmp_path, rows, rows, model_fingerprint="c", seed=1, skip_misclassified=False, seconds=1.0)
    )
