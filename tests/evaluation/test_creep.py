"""The anchor: small losses do not add up; what cannot be compared begins a chain, and says so."""

import json

import numpy as np
import pytest
from certificate_tables import certified, image, misclassified, write_table

from crt.errors import DamagedFileError
from crt.evaluation.anchor import Anchor, apart, compared
from crt.evaluation.certificates import read_certificates
from crt.evaluation.chain import candidate, continued, entry, read_model
from crt.evaluation.gate import Margins, decide
from crt.history import parse_history

MODEL = {"arch": "resnet18", "classes": ["a", "b"], "image_size": 8, "channels": 1, "sigma": 0.25}
MARGINS = Margins(0.02, {}, 0.01, anchor_factor=1.5)
NOISE = {"kind": "exact"}


def table(folder, name: str, right: np.ndarray, first: int = 0, **settings):
    """Certificates of radius 0.3 for the images that are right [N]; images are numbered from `first`."""
    rows = [certified(idx, 0.3) if hit else misclassified(idx) for idx, hit in enumerate(right)]
    for number, row in enumerate(rows, start=first):
        row[-1] = image(number)
    return read_certificates(write_table(folder / f"{name}.tsv", rows, noise=NOISE, **settings))


def held(folder, student, anchor, **changed) -> Anchor:
    return compared("v1.0.0", None, student, MODEL | changed, anchor, MODEL)


def test_a_chain_that_loses_a_little_at_each_release_is_stopped(tmp_path):
    """Deliberate creep: each student passes against the release before it, until the anchor stops one."""
    images, step, releases = 2000, 16, 5  # 0.8 % of the images are lost by each student
    losing = np.random.default_rng(0).permutation(images)
    right = np.ones(images, bool)
    first = before = table(tmp_path, "v1.0.0", right)
    verdicts = []
    for release in range(1, releases + 1):
        right = right.copy()
        right[losing[: release * step]] = False
        student = table(tmp_path, f"student{release}", right)
        anchor = held(tmp_path, student, first)
        result = decide(student, before, first, MARGINS, 0.95, anchor=anchor)
        alone = [row["verdict"] for row in result["comparisons"] if row["against"] == "baseline"]
        assert set(alone) == {"pass"}, "the comparison with the last release alone sees nothing"
        assert result["vs_anchor"]["certified_accuracy"]["0.25"] == pytest.approx(-release * step / images)
        verdicts.append(result["verdict"])
        before = student
    assert verdicts == ["pass"] * 2 + ["undecided"] * 3, "stopped before 3 % are lost"
    assert (
        "more than the margin against the anchor in ACR and certified accuracy at 0.0, 0.25"
        in result["sentences"][0]
    )
    assert (
        "Since the anchor v1.0.0 (the first of its chain) ACR has changed by -0.0120"
        in result["sentences"][1]
    )
    assert "-4.0 at 0.0, -4.0 at 0.25" in result["sentences"][1]


def test_the_margins_against_the_anchor_are_multiples(tmp_path):
    right = np.arange(400) % 9 > 0
    student = table(tmp_path, "student", right)
    margins = Margins(0.02, {"0.25": 0.01}, 0.01, lost=0.5, anchor_factor=3.0)
    anchor = held(tmp_path, student, student)
    rows = decide(student, student, student, margins, 0.95, anchor=anchor)["comparisons"]
    of_anchor = [row for row in rows if row["against"] == "anchor"]
    assert [row["margin"] for row in of_anchor] == pytest.approx([0.03, 0.06, 0.03, 0.06])
    assert {row["quantity"] for row in of_anchor} == {"acr", "certified_accuracy"}


def test_the_images_in_common_are_compared_when_the_test_set_has_grown(tmp_path):
    anchor = table(tmp_path, "anchor", np.arange(100) % 2 == 0)
    student = table(
        tmp_path, "student", np.arange(150) % 2 == 0, first=50, stride=1, data_fingerprint="c" * 64
    )
    found = held(tmp_path, student, anchor)
    assert found.begins is None
    assert len(found.both) == 50
    result = decide(student, student, student, MARGINS, 0.95, anchor=found)
    assert result["anchor"] == {"version": "v1.0.0", "reason": None, "images": 50, "begins": None}
    assert result["vs_anchor"]["acr"] == 0.0
    assert "on the 50 images that both were certified on" in result["sentences"][1]


@pytest.mark.parametrize(
    ("changed", "settings", "first", "said"),
    [
        ({"classes": ["a", "b", "yak"]}, {}, 0, "the classes are not those of v1.0.0"),
        ({"image_size": 16}, {}, 0, "the image size is 16, and 8 in v1.0.0"),
        ({"channels": 3}, {}, 0, "the number of channels is 3, and 1 in v1.0.0"),
        ({"sigma": 0.5}, {}, 0, "sigma is 0.5, and 0.25 in v1.0.0"),
        ({}, {"n": 2000}, 0, "n of the certification is 2000, and 1000 in v1.0.0"),
        ({}, {"mode": "adaptive"}, 0, "mode of the certification is adaptive, and exact in v1.0.0"),
        ({}, {"noise": {"kind": "another"}}, 0, "the certificates of v1.0.0 are of another kind of noise"),
        ({}, {}, 39, "the test images of v1.0.0 are no longer in the test set"),
    ],
)
def test_what_cannot_be_compared_begins_a_chain(tmp_path, changed, settings, first, said):
    right = np.arange(40) % 3 > 0
    anchor = table(tmp_path, "anchor", right)
    student = read_certificates(
        write_table(
            tmp_path / "student.tsv",
            [[*certified(idx, 0.3)[:-1], image(first + idx)] for idx in range(40)],
            **({"noise": NOISE} | settings),
        )
    )
    found = compared("v1.0.0", "the best", student, MODEL | changed, anchor, MODEL)
    assert (found.both, found.begins) == (None, said)
    result = decide(student, student, student, MARGINS, 0.95, anchor=found)
    assert "vs_anchor" not in result
    assert result["anchor"]["begins"] == said
    assert result["sentences"][1] == (
        "The chain of releases begins again with this student, which cannot be compared with the anchor "
        f"v1.0.0 (the best): {said}."
    )
    last = candidate(student, MODEL, ["2025-01"], result, "v1.1.0")
    assert (last.begins, last.anchor, last.since_anchor) == (said, None, None)
    assert last.change.acr == 0.0


def test_other_radii_are_no_difference_in_exact_mode(tmp_path):
    right = np.arange(40) % 3 > 0
    anchor = table(tmp_path, "anchor", right)
    student = table(tmp_path, "student", right, radii=[0.0, 0.1])
    assert held(tmp_path, student, anchor).both.radii == [0.0, 0.1]
    adaptive = table(tmp_path, "anchor", right, mode="adaptive")
    student = table(tmp_path, "student", right, radii=[0.0, 0.1], mode="adaptive")
    assert held(tmp_path, student, adaptive).begins.startswith(
        "radii of the certification is [0.0, 0.1], and [0.0, 0.25, 0.5]"
    )


def test_a_baseline_that_is_the_anchor_is_compared_once(tmp_path):
    first = table(tmp_path, "v1.0.0", np.ones(400, bool))
    student = table(tmp_path, "student", np.arange(400) > 1)
    result = decide(student, first, first, MARGINS, 0.95, anchor=Anchor("v1.0.0", None))
    assert {row["against"] for row in result["comparisons"]} == {"baseline", "teacher"}
    assert result["vs_anchor"] == result["vs_baseline"]
    assert result["sentences"][1] == "The baseline is itself the anchor, v1.0.0 (the first of its chain)."
    last = candidate(student, MODEL, ["2025-01"], result, "v1.0.0")
    assert (last.anchor, last.begins, last.since_anchor) == ("v1.0.0", None, last.change)


def test_a_history_grows_by_the_student(tmp_path):
    student = table(tmp_path, "student", np.arange(400) > 99)
    alone = candidate(student, MODEL, ["2025-01"], decide(student, None, student, MARGINS, 0.95), None)
    assert (alone.version, alone.date, alone.verdict) == (None, None, "no baseline")
    assert alone.certified_accuracy == {"0.0": 0.75, "0.25": 0.75, "0.5": 0.0}
    assert alone.acr == pytest.approx(0.75 * 0.3)
    assert alone.begins == "no release was pinned"
    unanchored = decide(student, student, student, MARGINS, 0.95)
    assert candidate(student, MODEL, [], unanchored, "path:x").begins == "the baseline has no anchor"
    before = continued(None, alone)
    after = continued(before, alone)
    assert after.releases == [alone, alone]
    assert parse_history(after.model_dump_json().encode()) == after


def test_a_fetched_model_is_checked(tmp_path):
    student = table(tmp_path, "student", np.arange(40) > 9)
    with pytest.raises(DamagedFileError, match="arch of this model cannot stand in a history"):
        entry(student, MODEL | {"arch": "x\n# y"})
    for content in ("[", "[]", '{"arch": "x"}'):
        (tmp_path / "model.json").write_text(content)
        with pytest.raises(
            DamagedFileError, match=r"model\.json (is not JSON|lacks one of) .*: get the model again"
        ):
            read_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    assert apart(read_model(tmp_path), MODEL, "v1.0.0") is None
