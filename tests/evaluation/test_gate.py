import json

import numpy as np
import pytest
from certificate_tables import abstained, certified, from_votes, misclassified, write_table
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm

from crt.errors import UserError
from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.gate import Margins, compare, decide, images_to_decide, judge
from crt.evaluation.paired import Discordance, score_interval

MARGINS = Margins(accuracy=0.02, accuracy_at={"0.5": 0.1}, acr=0.01)


def simulated(folder, name: str, quality: float, images: int = 400, seed: int = 0) -> Certificates:
    """Votes of a classifier on shared images; `quality` shifts all of them."""
    difficulty = np.random.default_rng(7).normal(size=images)
    own = np.random.default_rng(seed).normal(scale=0.1, size=images)
    p = 1 / (1 + np.exp(-(2 + quality + 1.5 * difficulty + own)))
    rows = [from_votes(i, round(1000 * p[i])) for i in range(images)]
    return read_certificates(write_table(folder / f"{name}.tsv", rows))


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.01, 0.03), "pass"),
        ((-0.02, 0.03), "pass"),  # losing exactly the margin is acceptable
        ((0.01, 0.03), "pass"),
        ((-0.03, -0.021), "fail"),
        ((-0.03, -0.02), "undecided"),
        ((-0.03, 0.5), "undecided"),
    ],
)
def test_judge(interval, verdict):
    assert judge(interval, 0.02) == verdict


def test_a_better_student_passes_and_a_worse_one_fails(tmp_path):
    baseline = simulated(tmp_path, "baseline", 0.0)
    teacher = simulated(tmp_path, "teacher", 0.2, seed=1)
    better = decide(simulated(tmp_path, "better", 0.5, seed=2), baseline, teacher, MARGINS, 0.95)
    assert better["verdict"] == "pass"
    assert better["vs_baseline"]["acr"] > 0
    assert better["images_to_decide"] is None
    worse = decide(simulated(tmp_path, "worse", -1.0, seed=3), baseline, teacher, MARGINS, 0.95)
    assert worse["verdict"] == "fail"
    assert "ACR" in worse["sentences"][0]
    assert worse["vs_teacher"]["acr_share"] < 1


def test_rows_by_hand(tmp_path):
    student = [certified(0, 0.6), certified(1, 0.3), certified(2, 0.3), misclassified(3)]
    baseline = [certified(0, 0.5), certified(1, 0.1), abstained(2), certified(3, 0.3)]
    student = read_certificates(write_table(tmp_path / "student.tsv", student))
    baseline = read_certificates(write_table(tmp_path / "baseline.tsv", baseline))
    acr, at_zero, at_quarter, at_half = compare(student, baseline, "baseline", 0.95, MARGINS)
    assert (acr["student"], acr["other"]) == (pytest.approx(0.3), pytest.approx(0.225))
    assert acr["difference"] == pytest.approx(0.075)
    assert acr["margin"] == 0.01
    assert (at_zero["student"], at_zero["other"], at_zero["difference"]) == (0.75, 0.75, 0.0)
    assert (at_quarter["gained"], at_quarter["lost"]) == (2, 1)
    assert at_quarter["margin"] == 0.02
    assert at_half["margin"] == 0.1
    assert [row["verdict"] for row in (at_zero, at_quarter, at_half)] == ["undecided"] * 3


def test_without_a_baseline(tmp_path):
    student, teacher = simulated(tmp_path, "student", 0.0), simulated(tmp_path, "teacher", 0.0, seed=1)
    result = decide(student, None, teacher, MARGINS, 0.95)
    assert result["verdict"] == "no baseline"
    assert "vs_baseline" not in result
    assert {row["against"] for row in result["comparisons"]} == {"teacher"}
    assert result["vs_teacher"]["acr_share"] == pytest.approx(
        student.right_radius.mean() / teacher.right_radius.mean()
    )
    json.dumps(result, allow_nan=False)


def test_a_teacher_without_any_certificate_has_no_share(tmp_path):
    student = read_certificates(write_table(tmp_path / "s.tsv", [certified(0, 0.5), abstained(1)]))
    teacher = read_certificates(write_table(tmp_path / "t.tsv", [abstained(0), abstained(1)]))
    assert decide(student, None, teacher, MARGINS, 0.95)["vs_teacher"]["acr_share"] is None


def test_a_student_equal_to_the_baseline_is_undecided_on_few_images_and_passes_on_many(tmp_path):
    few = simulated(tmp_path, "few", 0.0, images=100)
    result = decide(few, few, few, MARGINS, 0.95)
    assert result["verdict"] == "undecided"
    needed = result["images_to_decide"]
    assert 100 < needed < 400
    assert f"{needed:,} test images" in result["sentences"][0]
    many = simulated(tmp_path, "many", 0.0, images=needed)
    assert decide(many, many, many, MARGINS, 0.95)["verdict"] == "pass"


@given(st.integers(20, 2000), st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0.001, 0.1))
def test_images_to_decide_is_the_smallest_number_that_does(images, gain, loss, margin):
    counts = Discordance(images, round(gain * images), round(loss * images))
    if judge(score_interval(counts, 0.95), margin) != "undecided":
        return
    needed = images_to_decide(counts, margin, 0.95)
    if needed is None:
        assert counts.difference == pytest.approx(-margin, abs=1e-4)
        return
    assert needed > images

    def verdict(number):
        scaled = Discordance(number, counts.gained * number / images, counts.lost * number / images)
        return judge(score_interval(scaled, 0.95), margin)

    assert verdict(needed) != "undecided"
    assert verdict(needed - 1) == "undecided"


def test_no_test_set_decides_a_difference_that_is_the_margin():
    assert images_to_decide(Discordance(100, 3, 5), 0.02, 0.95) is None


def test_a_true_loss_of_the_margin_passes_no_more_often_than_promised():
    # 2.5 % of 1000 is 25; more than 41 has probability 0.001.
    rng = np.random.default_rng(0)
    gained, lost, _ = rng.multinomial(600, [0.04, 0.06, 0.9], size=1000).T
    passes = sum(
        judge(score_interval(Discordance(600, g, k), 0.95), 0.02) == "pass"
        for g, k in zip(gained, lost, strict=True)
    )
    assert passes <= 41


def test_other_images_are_refused(tmp_path):
    student, teacher = simulated(tmp_path, "student", 0.0), simulated(tmp_path, "teacher", 0.0, images=399)
    with pytest.raises(UserError, match="cannot be compared"):
        decide(student, None, teacher, MARGINS, 0.95)


def test_radii_out_of_reach_do_not_count(tmp_path):
    # 1000 draws at alpha 0.001 certify 0.25 * 2.46 = 0.616 at most, so that 0.75 tells nothing of either.
    rows = [from_votes(i, 990) for i in range(50)]
    table = read_certificates(write_table(tmp_path / "a.tsv", rows, radii=[0.0, 0.5, 0.75]))
    assert table.largest_radius == pytest.approx(0.25 * norm.ppf(beta.ppf(0.001, 1000, 1)))
    assert [row.get("radius") for row in compare(table, table, "teacher", 0.95)] == [None, 0.0, 0.5]


def test_fail_outweighs_undecided(tmp_path):
    teacher = simulated(tmp_path, "teacher", 0.2, images=60)
    result = decide(simulated(tmp_path, "s", -3.0, images=60), teacher, teacher, MARGINS, 0.95)
    verdicts = {row["verdict"] for row in result["comparisons"] if row["against"] == "baseline"}
    assert "fail" in verdicts
    assert result["verdict"] == "fail"
    assert result["images_to_decide"] is None
