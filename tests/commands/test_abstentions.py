"""The warning that the images asked about are not like the test set's."""

import json

import numpy as np
import pytest
from certificate_tables import abstained, certified, from_votes, image, misclassified, write_table
from model_folders import write_model
from scipy.stats import beta, binom

from crt.commands.abstentions import LAST, expected, judged, warning
from crt.evaluation.certificates import read_certificates
from crt.models.checkpoint import model_fingerprint
from crt.spec import ImageSpec


def table(tmp_path, rows, **settings):
    return read_certificates(write_table(tmp_path / "student.tsv", rows, **settings))


def undecided(idx, votes):
    """A row of an image that abstained with so many of 1,000 votes."""
    row = abstained(idx)
    return [*row[:7], str(votes), *row[8:]]


def test_the_test_set_is_expected_to_abstain_as_it_did(tmp_path):
    """With as many draws: sure rows stay what they were; a wrong class was not drawn, so it may be either."""
    rows = [*(from_votes(i, 990) for i in range(90)), *(undecided(i, 400) for i in range(90, 97))]
    rows += [misclassified(i) for i in range(97, 100)]
    rows.append([*undecided(100, 400)[:-1], image(0)])  # the same image again
    least, most, images = expected(table(tmp_path, rows), 1000, 0.001)
    assert (least, most, images) == (pytest.approx(7), pytest.approx(10), 100)


def test_more_draws_abstain_less(tmp_path):
    """530 of 1,000 votes abstain at 1,000 draws; of 100,000 they are a clear majority, of 100 nothing is."""
    tested = table(tmp_path, [undecided(i, 530) for i in range(50)])
    assert [expected(tested, n, 0.001)[0] / 50 for n in (100, 1000, 100_000)] == pytest.approx(
        [0.99, 0.81, 0.06], abs=0.02
    )
    # Known truth: with p from its posterior, what certification would do.
    rng = np.random.default_rng(0)
    votes = rng.binomial(10_000, rng.beta(531, 471, 20_000))
    share = np.mean(beta.ppf(0.001, votes, 10_000 - votes + 1) <= 0.5)
    assert expected(tested, 10_000, 0.001)[0] / 50 == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_images_like_the_test_set_are_not_warned_of(rate):
    rng = np.random.default_rng(1)
    warned = sum(
        judged(int(x), 1000, int(y), int(y), 400) is not None for x, y in _pairs(rng, rate, rate, 300)
    )
    assert warned <= binom.ppf(0.999, 300, 2e-4)


@pytest.mark.parametrize(("rate", "other"), [(0.05, 0.2), (0.3, 0.1)])
def test_other_images_are_warned_of(rate, other):
    rng = np.random.default_rng(2)
    warned = [judged(int(x), 1000, int(y), int(y), 400) for x, y in _pairs(rng, other, rate, 100)]
    assert sum(said is not None for said in warned) >= 95


def _pairs(rng, asked, tested, count):
    return zip(rng.binomial(1000, asked, count), rng.binomial(400, tested, count), strict=True)


def test_between_the_bounds_nothing_is_said():
    assert judged(120, 1000, fewest=20, most=60, tested=400) is None
    assert "20.0% of the last 1,000 different images" in str(judged(250 - 50, 1000, 10, 20, 400))


def test_calls_are_remembered_and_images_count_once(tmp_path):
    model = tmp_path / "models" / "student"
    write_model(model, ImageSpec(("a", "b"), 8, channels=3, resize="crop"))
    rows = [certified(i, 0.3) for i in range(380)] + [abstained(i) for i in range(380, 400)]
    write_table(tmp_path / "certificates/student.tsv", rows, model_fingerprint=model_fingerprint(model))
    for _ in range(3):  # the same image again and again is one image
        assert warning(model, {image(0): True}, 1000, 0.001) is None
    for start in (0, 30):
        said = warning(model, {image(i): True for i in range(start, start + 30)}, 1000, 0.001)
    assert "100.0% of the last 60 different images abstained" in str(said)
    said = warning(model, {image(i): i % 20 == 0 for i in range(60, 60 + LAST)}, 1000, 0.001)
    assert said is None  # the first 60 are forgotten
    (kept,) = (tmp_path / ".work/requests").iterdir()
    assert len(json.loads(kept.read_text())) == LAST


@pytest.mark.parametrize("fingerprint", [None, "f" * 64])
def test_without_certificates_of_the_model_nothing_is_kept(tmp_path, fingerprint):
    model = tmp_path / "models" / "student"
    write_model(model, ImageSpec(("a", "b"), 8, channels=3, resize="crop"))
    if fingerprint:
        write_table(tmp_path / "certificates/student.tsv", [certified(0, 0.3)], model_fingerprint=fingerprint)
    assert warning(model, {image(i): True for i in range(100)}, 1000, 0.001) is None
    assert not (tmp_path / ".work").exists()
