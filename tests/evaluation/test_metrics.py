import json

import numpy as np
import pytest
from certificate_tables import (
    SETTINGS,
    abstained,
    certified,
    from_votes,
    misclassified,
    write_table,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.intervals import exact_interval, failures_subtracted
from crt.evaluation.metrics import (
    MetricFiles,
    compute_metrics,
    curve_of,
    ecdf_of,
    short_metrics,
    subset_rule,
    write_metrics,
)


def test_metrics_of_a_table_by_hand(tmp_path):
    rows = [
        certified(0, 0.25),  # right, reaches 0.25 exactly
        certified(1, 0.6),
        certified(2, 0.6, predict=4),  # a certificate for the wrong class
        abstained(3),
        misclassified(4),
    ]
    metrics = compute_metrics(read_certificates(write_table(tmp_path / "a.tsv", rows)))
    assert metrics["images"] == 5
    assert metrics["smoothed_accuracy"] == 2 / 5
    assert metrics["certified_accuracy"] == {"0.0": 2 / 5, "0.25": 2 / 5, "0.5": 1 / 5}
    assert metrics["acr"] == pytest.approx((0.25 + 0.6) / 5, abs=1e-15)
    assert metrics["acr_is_lower_bound"] is False
    assert metrics["median_radius"] == 0.0
    assert metrics["abstention_rate"] == 1 / 4  # of the estimated images
    assert metrics["forward_passes"] == 5000
    assert metrics["subset"] == "every test image"
    interval = binomtest(2, 5).proportion_ci(0.95, method="exact")
    assert metrics["interval"]["smoothed_accuracy"] == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert metrics["interval"]["certified_accuracy"]["0.25"] == pytest.approx(
        (interval.low, interval.high), abs=1e-12
    )


def test_the_shortcut_changes_the_abstention_rate_only(tmp_path):
    shared = [certified(0, 0.25), certified(1, 0.6), abstained(2)]
    short = compute_metrics(read_certificates(write_table(tmp_path / "a.tsv", [*shared, misclassified(3)])))
    full = compute_metrics(
        read_certificates(write_table(tmp_path / "b.tsv", [*shared, certified(3, 0.4, predict=4)]))
    )
    assert (short.pop("abstention_rate"), full.pop("abstention_rate")) == (1 / 3, 1 / 4)
    assert short == full


def test_adaptive_acr_is_called_a_lower_bound(tmp_path):
    tsv = write_table(tmp_path / "a.tsv", [certified(0, 0.25)], mode="adaptive")
    assert compute_metrics(read_certificates(tsv))["acr_is_lower_bound"] is True


@pytest.mark.parametrize(
    ("stride", "max_images", "rule"),
    [
        (1, None, "every test image"),
        (1, 32, "every test image, at most 32, chosen by their hashes"),
        (20, None, "every 20th test image from the first"),
        (20, 500, "every 20th test image from the first, at most 500, chosen by their hashes"),
    ],
)
def test_subset_rule(stride, max_images, rule):
    assert subset_rule(stride, max_images) == rule


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 7), (700, 1000), (1, 1), (0, 1)])
def test_the_exact_interval_inverts_the_binomial_tests(k, n):
    low, high = exact_interval(k, n)
    assert (low == 0.0) if k == 0 else binom.sf(k - 1, n, low) == pytest.approx(0.025)
    assert (high == 1.0) if k == n else binom.cdf(k, n, high) == pytest.approx(0.025)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1e-4, 0.2))
def test_subtracted_failures_are_exceeded_with_probability_rho_at_most(trials, share, alpha):
    successes = round(share * trials)
    bound = failures_subtracted(successes, trials, alpha, rho=0.01)
    assert 0 <= bound <= successes / trials
    if bound > 0:
        assert binom.sf(successes - round(bound * trials), trials, alpha) <= 0.01


def test_subtracted_failures_at_the_usual_setting():
    # Binomial(10,000, 0.001) exceeds 21 with probability 0.0007 and 20 with probability 0.0016.
    assert failures_subtracted(7000, 10_000, 0.001) == pytest.approx((7000 - 21) / 10_000)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Certificates:
    rng = np.random.default_rng(0)
    votes = rng.binomial(1000, rng.beta(5, 1, size=300))
    rows = [from_votes(i, int(k), predict=3 if rng.random() < 0.9 else 4) for i, k in enumerate(votes)]
    return read_certificates(write_table(tmp_path_factory.mktemp("metrics") / "a.tsv", rows))


def test_the_curve_falls_and_its_integral_is_the_acr(digits):
    curve = curve_of(digits)
    assert curve[0].tolist() == [0.0, digits.correct.mean()]
    assert (np.diff(curve[:, 1]) <= 0).all()
    assert curve[-1, 0] == pytest.approx(0.25 * norm.ppf(0.001 ** (1 / 1000)))
    # A falling step function lies between its left and right Riemann sums.
    step = np.diff(curve[:, 0])
    acr = digits.right_radius.mean()
    assert (step * curve[1:, 1]).sum() <= acr <= (step * curve[:-1, 1]).sum()


def test_the_curve_keeps_the_images_at_the_largest_radius(tmp_path):
    table = read_certificates(write_table(tmp_path / "a.tsv", [from_votes(0, 1000), from_votes(1, 900)]))
    assert curve_of(table)[-1, 1] == 0.5
    assert ecdf_of(table)[-2, 1] == 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.9), st.booleans()), min_size=1, max_size=30))
def test_certified_accuracy_never_rises_with_the_radius(tmp_path_factory, images):
    rows = [certified(i, radius, predict=3 if right else 4) for i, (radius, right) in enumerate(images)]
    radii = sorted({0.0, *(radius for radius, _ in images)})
    tsv = write_table(tmp_path_factory.mktemp("rows") / "a.tsv", rows, radii=radii)
    accuracy = list(compute_metrics(read_certificates(tsv))["certified_accuracy"].values())
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] == sum(right for _, right in images) / len(images)
    # The exact integral of the step function is the ACR.
    integral = sum((b - a) * share for a, b, share in zip(radii, radii[1:], accuracy[1:], strict=False))
    assert compute_metrics(read_certificates(tsv))["acr"] == pytest.approx(integral, abs=1e-12)


def test_the_ecdf_rises_to_one(digits):
    ecdf = ecdf_of(digits)
    assert ecdf[0].tolist() == [0.0, 1 - digits.correct.mean()]
    assert (np.diff(ecdf[:, 0]) > 0).all()
    assert (np.diff(ecdf[:, 1]) >= 0).all()
    assert ecdf[-1, 1] == 1.0
    for p, share in ecdf[1::40]:
        assert share == np.mean(np.where(digits.correct, digits.p_lower, 0) <= p)


def test_written_files(tmp_path, digits):
    outs = [tmp_path / name for name in ("m.json", "deep/d.json", "c.csv", "e.csv")]
    tsv = tmp_path / "a.tsv"
    write_table(tsv, [certified(0, 0.25), misclassified(1)])
    write_metrics(tsv, "student", MetricFiles(*outs))
    metrics, details = (json.loads(out.read_text()) for out in outs[:2])
    assert details["certified_accuracy"]["0.25"] == metrics["cert_0.25"] == 0.5
    assert details == json.loads(json.dumps(compute_metrics(read_certificates(tsv))))
    header, *lines = outs[2].read_text().splitlines()
    assert header == "radius,certified_accuracy"
    curve = [[float(cell) for cell in line.split(",")] for line in lines]
    assert np.array_equal(curve, curve_of(read_certificates(tsv)))
    first = [out.read_bytes() for out in outs]
    write_metrics(tsv, "student", MetricFiles(*outs))
    assert [out.read_bytes() for out in outs] == first
    assert not list(tmp_path.rglob("*.partial"))


def test_metrics_are_few_and_each_name_is_of_one_role(tmp_path):
    rows, radii = [certified(0, 0.25), misclassified(1)], [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]
    details = compute_metrics(read_certificates(write_table(tmp_path / "a.tsv", rows, radii=radii)))
    short = {role: short_metrics(role, details) for role in ("student", "teacher", "baseline")}
    assert list(short["student"]) == ["acr", "smoothed_acc", "cert_0.25", "cert_0.5", "cert_0.75", "cert_1"]
    assert [list(short[role]) for role in ("teacher", "baseline")] == [["teacher_acr"], ["baseline_acr"]]
    names = [name for metrics in short.values() for name in metrics]
    assert len(set(names)) == len(names) <= 9  # and the gate's verdict
    assert max(map(len, names)) <= 12
    assert short["teacher"]["teacher_acr"] == short["student"]["acr"] == details["acr"]


def test_settings_of_the_tests_are_what_the_formulas_above_assume():
    assert (SETTINGS["sigma"], SETTINGS["alpha"], SETTINGS["n"]) == (0.25, 0.001, 1000)


def test_warnings_appear_only_when_there_are_some(tmp_path):
    rows = [certified(0, 0.25)]
    quiet = read_certificates(write_table(tmp_path / "a.tsv", rows, warnings=[]))
    loud = read_certificates(write_table(tmp_path / "b.tsv", rows, warnings=["one", "two"]))
    assert "warnings" not in compute_metrics(quiet)
    assert compute_metrics(loud)["warnings"] == "one; two"


def test_an_image_that_stands_twice_counts_once_in_the_bounds(tmp_path):
    """Its certificates are one and the same, and fail together."""
    rows = [from_votes(i, 1000 if i % 3 else 400) for i in range(300)]
    twice = rows + [[str(300 + i), *row[1:]] for i, row in enumerate(rows)]
    once, doubled = (
        compute_metrics(read_certificates(write_table(tmp_path / name, table)))
        for name, table in (("a.tsv", rows), ("b.tsv", twice))
    )
    for key in ("certified_accuracy_lower_bound", "interval", "smoothed_accuracy"):
        assert doubled[key] == once[key]
    assert doubled["acr"] == pytest.approx(once["acr"])
    assert (once["images"], once["repeated_images"]) == (300, 0)
    assert (doubled["images"], doubled["repeated_images"]) == (600, 300)
