import json

import numpy as np
import pytest
from certificate_tables import abstained, certified, from_votes, misclassified, write_table
from scipy.stats import beta, binom, norm

from crt.errors import UserError
from crt.evaluation.betting import decidable_margins
from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.changed import changed_images
from crt.evaluation.classes import images_needed
from crt.evaluation.gate import Margins, compare, decide
from crt.evaluation.paired import pair
from crt.evaluation.verdict import judge, rounded_up

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
    worse = decide(simulated(tmp_path, "worse", -1.0, seed=3), baseline, teacher, MARGINS, 0.95)
    assert worse["verdict"] == "fail"
    assert "ACR" in worse["sentences"][0]
    assert worse["vs_teacher"]["acr_share"] < 1


def test_rows_by_hand(tmp_path):
    student = [certified(0, 0.6), certified(1, 0.3), certified(2, 0.3), misclassified(3)]
    baseline = [certified(0, 0.5), certified(1, 0.1), abstained(2), certified(3, 0.3)]
    student = read_certificates(write_table(tmp_path / "student.tsv", student))
    baseline = read_certificates(write_table(tmp_path / "baseline.tsv", baseline))
    acr, at_zero, at_quarter, at_half = compare(pair(student, baseline), "baseline", 0.95, MARGINS)
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
    few, many = simulated(tmp_path, "few", 0.0, images=100), simulated(tmp_path, "many", 0.0, images=400)
    result = decide(few, few, few, MARGINS, 0.95)
    assert result["verdict"] == "undecided"
    assert "add test images, or accept wider margins" in result["sentences"][0]
    assert decide(many, many, many, MARGINS, 0.95)["verdict"] == "pass"


def test_the_smallest_margins_that_the_images_can_decide_are_told(tmp_path):
    student, baseline = simulated(tmp_path, "student", 0.0), simulated(tmp_path, "baseline", 0.0, seed=1)
    result = decide(student, baseline, baseline, MARGINS, 0.95)
    acr, *accuracy = [row for row in result["comparisons"] if row["against"] == "baseline"]
    widest = max(row["decidable"]["0.8"] for row in accuracy)
    assert f"{rounded_up(widest)} in certified accuracy with 80 % chance" in result["sentences"][1]
    assert f"{rounded_up(acr['decidable']['0.8'])} in ACR with 80 % chance" in result["sentences"][1]
    # Margins as wide as the smallest decidable ones: the same student passes, or is not far from it.
    margins = Margins(1.5 * widest, {}, 1.5 * acr["decidable"]["0.95"])
    assert decide(student, baseline, baseline, margins, 0.95)["verdict"] == "pass"


def test_lost_certificates_are_bounded_by_an_exact_test(tmp_path):
    """Of 300 certificates of the baseline 6 are lost, which 6 % lost would show with probability 0.0008."""
    baseline = [certified(i, 0.3) for i in range(300)] + [abstained(i) for i in range(300, 400)]
    student = [abstained(i) if i < 6 else certified(i, 0.3) for i in range(400)]
    student = read_certificates(write_table(tmp_path / "student.tsv", student))
    baseline = read_certificates(write_table(tmp_path / "baseline.tsv", baseline))
    wide = Margins(1.0, {}, 1.0, lost=0.06)
    result = decide(student, baseline, baseline, wide, 0.95)
    kept = [row for row in result["comparisons"] if row["quantity"] == "certificates_kept"]
    assert [row["radius"] for row in kept] == [0.0, 0.25]  # nobody has a certificate at 0.5
    assert all(row["lost"] == 6 and row["student"] == pytest.approx(294 / 300) for row in kept)
    assert all(binom.cdf(6, 300, -row["interval"][0]) < 0.025 for row in kept)
    assert result["verdict"] == "pass"
    narrow = Margins(1.0, {}, 1.0, lost=0.03)
    undecided = decide(student, baseline, baseline, narrow, 0.95)
    assert undecided["verdict"] == "undecided"
    assert "certificates of the baseline that it keeps at 0.0, 0.25" in undecided["sentences"][0]
    assert decide(student, baseline, baseline, Margins(1.0, {}, 1.0, lost=0.001), 0.95)["verdict"] == "fail"


def test_a_class_that_is_lost_is_named_and_never_decides(tmp_path):
    """200 images in four classes, the third of which the student loses; one class has five images."""
    labels = [0] * 65 + [1] * 65 + [2] * 65 + [3] * 5
    rows = [certified(i, 0.3, label, label) for i, label in enumerate(labels)]
    worse = [
        abstained(i, 2) if label == 2 and i % 2 else row
        for i, (label, row) in enumerate(zip(labels, rows, strict=True))
    ]
    student = read_certificates(write_table(tmp_path / "student.tsv", worse))
    baseline = read_certificates(write_table(tmp_path / "baseline.tsv", rows))
    margins = Margins(1.0, {}, 1.0, classes=0.2)
    result = decide(student, baseline, baseline, margins, 0.95, ["ant", "bee", "cat", "dog"])
    assert result["verdict"] == "pass"
    verdicts = {row["class"]: row["verdict"] for row in result["classes"]["rows"]}
    assert verdicts == {"ant": "pass", "bee": "pass", "cat": "fail", "dog": "undecided"}
    said = " ".join(result["sentences"])
    assert "certified worst at radius 0.25 is cat: 50.8 % (baseline: 100.0 %)" in said
    assert "loses more than 0.2 in the class cat." in said
    needed = result["classes"]["images_needed"]
    assert f"in the class dog: about {needed} test images of each would decide it" in said
    assert 5 < needed < 400


def test_images_needed_are_the_fewest_that_decide():
    differences = np.repeat([1.0, 0.0], [5, 95])
    needed = images_needed(differences, 0.1, 0.995)
    assert decidable_margins(differences, 0.995, needed)["0.8"] <= 0.1
    assert decidable_margins(differences, 0.995, round(0.9 * needed))["0.8"] > 0.1
    assert images_needed(differences, 0.0, 0.995) is None


def test_changed_images_are_listed_with_their_radii(tmp_path):
    student = [certified(0, 0.6), certified(1, 0.3), certified(2, 0.3), misclassified(3), certified(4, 0.1)]
    baseline = [certified(0, 0.5), certified(1, 0.1), abstained(2), certified(3, 0.3), certified(4, 0.1)]
    both = pair(
        read_certificates(write_table(tmp_path / "student.tsv", student)),
        read_certificates(write_table(tmp_path / "baseline.tsv", baseline)),
    )
    table = changed_images(both)
    assert list(table.itertuples(index=False, name=None)) == [
        (3, "image3.png", 3, "0.0 0.25", "", 0.0, 0.3),
        (1, "image1.png", 3, "", "0.25", 0.3, 0.1),
        (2, "image2.png", 3, "", "0.0 0.25", 0.3, 0.0),
    ]
    assert list(changed_images(None).columns) == list(table.columns)


def test_other_images_are_refused(tmp_path):
    student, teacher = simulated(tmp_path, "student", 0.0), simulated(tmp_path, "teacher", 0.0, images=399)
    with pytest.raises(UserError, match="cannot be compared"):
        decide(student, None, teacher, MARGINS, 0.95)


def test_radii_out_of_reach_do_not_count(tmp_path):
    # 1000 draws at alpha 0.001 certify 0.25 * 2.46 = 0.616 at most, so that 0.75 tells nothing of either.
    rows = [from_votes(i, 990) for i in range(50)]
    table = read_certificates(write_table(tmp_path / "a.tsv", rows, radii=[0.0, 0.5, 0.75]))
    assert table.largest_radius == pytest.approx(0.25 * norm.ppf(beta.ppf(0.001, 1000, 1)))
    assert [row.get("radius") for row in compare(pair(table, table), "teacher", 0.95)] == [None, 0.0, 0.5]


def test_fail_outweighs_undecided(tmp_path):
    teacher = simulated(tmp_path, "teacher", 0.2, images=60)
    result = decide(simulated(tmp_path, "s", -3.0, images=60), teacher, teacher, MARGINS, 0.95)
    verdicts = {row["verdict"] for row in result["comparisons"] if row["against"] == "baseline"}
    assert "fail" in verdicts
    assert result["verdict"] == "fail"
