"""Drift is found where there is some, and as often as the tests promise where there is none."""

import numpy as np
import pytest

from crt.datasets.drift import SIZE, Sample, class_drift, pixel_drift, value_drift

NAMES = ["cat", "dog", "owl"]


def test_a_sample_is_fair():
    """Each of 3 * SIZE images is kept with probability 1/3: the kept numbers are uniform."""
    sample = Sample()
    for number in range(3 * SIZE):
        sample.add(np.array([number]), 0)
    kept = np.array(sample.images).ravel()
    assert len(kept) == len(set(kept)) == SIZE
    assert sample.seen == len(sample.labels) == 3 * SIZE
    thirds = np.bincount(kept // SIZE, minlength=3)
    assert np.abs(thirds - SIZE / 3).max() < 5 * (SIZE * 2 / 9) ** 0.5


def test_the_class_that_changed_is_named():
    found = class_drift([0] * 50 + [1] * 50, [0] * 90 + [1] * 10, NAMES)
    assert found.quantity in ("share of class cat", "share of class dog")
    assert {found.before, found.now} <= {"50.0%", "90.0%", "10.0%"}
    assert found.unlikely


def test_a_new_class_is_drift_and_unlabeled_images_are_not():
    assert class_drift([0] * 50 + [1] * 50, [0] * 50 + [2] * 50, NAMES).unlikely
    assert class_drift([0] * 50 + [1] * 50, [-1] * 50, NAMES) is None
    assert class_drift([0] * 50, [0] * 50, NAMES) is None
    same = class_drift([0] * 50 + [1] * 50, [-1] * 99 + [0] * 25 + [1] * 25, NAMES)
    assert not same.unlikely


@pytest.mark.parametrize(("shift", "stretch", "quantity"), [(20, 1.0, "brightness"), (0, 0.5, "contrast")])
def test_other_pixels_are_found(shift, stretch, quantity):
    rng = np.random.default_rng(0)
    before = rng.integers(50, 150, (200, 8, 8, 3)).astype(np.uint8)
    now = (100 + stretch * (rng.integers(50, 150, (200, 8, 8, 3)) - 100.0) + shift).astype(np.uint8)
    findings = {f.quantity: f for f in pixel_drift(before, now)}
    assert findings[quantity].unlikely
    assert float(findings["brightness"].now) == pytest.approx((100 + shift) / 255, abs=0.01)


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(0)
    p = np.array([value_drift("x", rng.normal(size=300), rng.normal(size=200)).p for _ in range(2000)])
    # The p of a two-sample test is no smaller than uniform, up to four standard errors.
    for level in (0.01, 0.05, 0.2):
        assert (p < level).mean() < level + 4 * (level * (1 - level) / len(p)) ** 0.5
    assert (p < 0.05).mean() > 0.02, "the test could not find anything"
