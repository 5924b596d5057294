import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from prepared_drops import store_of
from results_folder import CLASSES, DROPS, ROLES, make_results

import crt.report
from crt.errors import UserError
from crt.evaluation.gate import Margins
from crt.history import Entry, History
from crt.report import formats
from crt.report.write import write_report

TEST_SET = store_of(np.random.default_rng(0).integers(0, 256, (360, 8, 8, 1), np.uint8))
TEMPLATES = Path(crt.report.__file__).parent
VOID = {"meta", "path", "circle", "rect", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects tags, attributes and texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = make_results(tmp_path_factory.mktemp("results"))
    write_report(root, "digits", DROPS, ROLES, root / "report", TEST_SET)
    return root


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page((written / "report/index.html").read_text())


def test_the_verdict_comes_first(written, page):
    gate = json.loads((written / "results/gate/details.json").read_text())
    assert gate["sentences"][0] in page.text
    assert page.text.index(gate["sentences"][0]) < page.text.index("Side by side")


def test_the_table_shows_the_metrics_of_all_three(written, page):
    for role in ("teacher", "student", "baseline"):
        metrics = json.loads((written / f"results/certify/details/{role}.json").read_text())
        low, high = metrics["interval"]["certified_accuracy"]["0.25"]
        assert (
            f"{100 * metrics['certified_accuracy']['0.25']:.1f} % {formats.percent_range((low, high))}"
            in page.text
        )
        assert formats.radius(metrics["acr"]) in page.text
    assert "11,170,000" in page.text
    assert "1 min 23 s" in page.text
    assert "every test image (360 images)" in page.text


def test_nothing_is_loaded_from_anywhere(written, page):
    html = re.sub(r'"data:image/png;base64,[^"]*"', '""', (written / "report/index.html").read_text())
    assert not re.search(r"https?:|url\(|@import|//", html)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        assert not {"href", "xlink:href", "srcset", "action"} & set(attributes)
        assert ("src" in attributes) == (tag == "img")
        assert not any(name.startswith("on") for name in attributes)


def test_every_figure_has_a_title_and_a_description(page):
    charts = [
        attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "chart"
    ]
    assert len(charts) == 7  # accuracy, p_A, against baseline and teacher, noisy accuracy, two losses
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for attributes in charts:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= ids
    assert len(ids) == sum("id" in attributes for _, attributes in page.tags)  # none twice


def test_every_table_has_headers(page):
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(attributes.get("scope") in {"col", "row", "rowgroup"} for attributes in headers)


def test_the_same_results_give_the_same_bytes(written, tmp_path):
    write_report(written, "digits", DROPS, ROLES, tmp_path, TEST_SET)
    for name in ("index.html", "MODEL_CARD.md"):
        assert (tmp_path / name).read_bytes() == (written / "report" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MODEL_CARD.md", "index.html"]


def test_names_from_files_are_escaped(tmp_path):
    evil = ['<script>alert("1")</script>', "a|b", "*bold* & `code`", *CLASSES[3:]]
    root = make_results(tmp_path, classes=evil)
    write_report(root, "digits", DROPS, ROLES, root / "report")
    html = (root / "report/index.html").read_text()
    assert "<script" not in html
    assert evil[0] in Page(html).text
    card = (root / "report/MODEL_CARD.md").read_text()
    assert "<script" not in card
    assert "a\\|b" in card


def test_without_a_baseline(tmp_path):
    root = make_results(tmp_path, baseline=None)
    write_report(root, "digits", DROPS, ROLES[:2], root / "report")
    text = Page((root / "report/index.html").read_text()).text
    assert "no baseline" in text
    assert "Student against teacher" in text
    assert "Student against baseline" not in text
    assert "| | teacher | student |" in (root / "report/MODEL_CARD.md").read_text()


def test_undecided_says_which_margin_could_be_decided(tmp_path):
    root = make_results(tmp_path, student=1.9)
    write_report(root, "digits", DROPS, ROLES, root / "report")
    gate = json.loads((root / "results/gate/details.json").read_text())
    assert gate["verdict"] == "undecided"
    text = Page((root / "report/index.html").read_text()).text
    assert gate["sentences"][1] in text
    widest = max(row["decidable"]["0.8"] for row in gate["comparisons"][1:4])
    assert f"decidable: {math.ceil(1000 * widest) / 10:.1f}" in text


def test_lost_certificates_and_classes_are_shown(tmp_path):
    margins = Margins(0.02, {}, 0.01, lost=0.1, classes=0.2)
    root = make_results(tmp_path, student=1.5, margins=margins)
    write_report(root, "digits", DROPS, ROLES, root / "report")
    text = Page((root / "report/index.html").read_text()).text
    header, *changed = (root / "certificates/changed.tsv").read_text().splitlines()
    lost = [line.split("\t") for line in changed if line.split("\t")[header.split("\t").index("lost_at")]]
    assert f"{len(lost)} images lost a certificate" in text
    assert lost[0][1] in text
    assert "kept at 0.25" in text
    gate = json.loads((root / "results/gate/details.json").read_text())
    worst = min(gate["classes"]["rows"], key=lambda row: row["student"])
    assert text.index("Classes, student against baseline") < text.index(
        f"{worst['class']} {worst['images']} "
    )


def pictures(html: str) -> dict[str, np.ndarray]:
    """The pictures of a page by what stands beside them, gray."""
    found = {}
    for tag, attributes in Page(html).tags:
        if tag == "img":
            content = base64.b64decode(attributes["src"].split(",")[1])
            found[attributes["alt"]] = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    return found


def test_the_images_that_certificates_speak_of_are_shown(written):
    shown = pictures((written / "report/index.html").read_text())
    table = pd.read_csv(written / "certificates/student.tsv", sep="\t")
    right = table[table.correct == 1].sort_values("radius", ascending=False)
    wrong, abstained = table[table.status == "misclassified"], table[table.status == "abstained"]
    changed = pd.read_csv(written / "certificates/changed.tsv", sep="\t")
    for number in [
        *right.idx[:8],
        *right.idx[-8:],
        *wrong.idx[:8],
        *abstained.idx[:8],
        changed.image.iloc[0],
    ]:
        label = CLASSES[table.label[number]]
        assert (shown[f"Test image {number}, {label}"] == TEST_SET.images[number, :, :, 0]).all()
    text = Page((written / "report/index.html").read_text()).text
    assert f"as {CLASSES[wrong.predict.iloc[0]]}" in text


def test_a_report_without_images(written, tmp_path):
    write_report(written, "digits", DROPS, ROLES, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<img" not in page
    assert "Test images" not in Page(page).text
    assert "Certificates lost and gained" in Page(page).text


def test_photos_are_shown_small(written, tmp_path):
    photos = store_of(np.random.default_rng(0).integers(0, 256, (360, 224, 224, 3), np.uint8))
    write_report(written, "digits", DROPS, ROLES, tmp_path, photos)
    page = tmp_path / "index.html"
    assert {picture.shape for picture in pictures(page.read_text()).values()} == {(96, 96)}
    assert page.stat().st_size < 2_000_000


def test_the_history_shows_what_all_releases_changed(tmp_path):
    known = dict.fromkeys(Entry.model_fields) | {
        "arch": "resnet18", "sigma": 0.25, "acr": 0.4, "certified_accuracy": {"0.25": 0.8}, "verdict": "pass",
    }  # fmt: skip
    change = {"acr": -0.004, "certified_accuracy": {"0.25": -0.013}}
    entries = [
        known | {"version": "v1.0.0", "date": "2025-01-06", "drops": ["2024-12"], "begins": "a <new> class"},
        known | {"version": "v1.1.0", "date": "2025-02-03", "drops": ["2024-12", "2025-01"]}
        | {"baseline": "v1.0.0", "change": change, "anchor": "v1.0.0", "since_anchor": change}
        | {"candidates": 3},
    ]  # fmt: skip
    past = History.model_validate({"format": 1, "releases": entries})
    root = make_results(tmp_path, past=past)
    write_report(root, "digits", DROPS, ROLES, root / "report")
    page = (root / "report/index.html").read_text()
    text = Page(page).text
    section = text[text.index("History") : text.index("Training loss")]
    places = [
        section.index(version) for version in ("this student", "v1.1.0 2025-02-03", "v1.0.0 2025-01-06")
    ]
    assert places == sorted(places)
    assert "−0.004, −1.3 v1.0.0 −0.004, −1.3 v1.0.0 pass candidate 3" in section
    assert "The chain begins with v1.0.0: a <new> class." in section
    assert "<new>" not in page
    assert "The drop 2024-12 is no longer in use; v1.0.0, v1.1.0 were trained on it." in section
    gate = json.loads((root / "results/gate/details.json").read_text())
    assert f"{gate['vs_anchor']['acr']:+.3f}".replace("-", "−") in section
    assert "The baseline is itself the anchor, v1.0.0 (the <best>)." in text
    assert "<best>" not in (root / "report/MODEL_CARD.md").read_text()


def test_adaptive_mode_and_warnings_are_said(tmp_path):
    root = make_results(tmp_path, mode="adaptive", warnings=["the model was trained with sigma 0.5"])
    write_report(root, "digits", DROPS, ROLES, root / "report")
    text = Page((root / "report/index.html").read_text()).text
    assert "ACR), a lower bound" in text
    assert "student: the model was trained with sigma 0.5" in text
    assert (
        "Warning, student: the model was trained with sigma 0.5"
        in (root / "report/MODEL_CARD.md").read_text()
    )


def test_the_settings_say_what_noise_was_and_what_another_batch_would_change(tmp_path):
    root = make_results(tmp_path / "exact")
    write_report(root, "digits", DROPS, ROLES, root / "report")
    text = Page((root / "report/index.html").read_text()).text
    assert "integer, from Philox4x64-10, fixed by model_fingerprint, pixels" in text
    assert "64; with 32, 1 of 128 made-up images change their class" in text
    assert "n0 = 100, n = 1,000," in (root / "report/MODEL_CARD.md").read_text()
    root = make_results(tmp_path / "adaptive", mode="adaptive")
    write_report(root, "digits", DROPS, ROLES, root / "report")
    card = (root / "report/MODEL_CARD.md").read_text()
    assert "n0 = as few as make the class clear, n = 1,000 at most," in card


def test_a_fetched_teacher_has_no_training_log(tmp_path):
    root = make_results(tmp_path)
    (root / "results/teacher.json").write_text('{"parameters": 271000}')
    model = json.loads((root / "models/teacher/model.json").read_text())
    (root / "models/teacher/model.json").write_text(
        json.dumps(model | {"source": {"ref": "path:teacher.pth"}})
    )
    (root / "results/teacher/training.tsv").unlink()
    (root / "times/teacher.json").unlink()
    write_report(root, "digits", DROPS, ROLES, root / "report")
    text = Page((root / "report/index.html").read_text()).text
    assert "teacher: –" in text
    assert "Training loss of the teacher" not in text


def test_results_of_a_removed_drop_are_left_out(tmp_path):
    root = make_results(tmp_path, trained_on=DROPS[:2])
    write_report(root, "digits", DROPS[:2], ROLES, root / "report")
    assert DROPS[2] not in (root / "report/index.html").read_text()


def test_radii_out_of_reach_are_marked(tmp_path):
    root = make_results(tmp_path, radii=[0.0, 0.25, 0.75])
    write_report(root, "digits", DROPS, ROLES, root / "report")
    text = Page((root / "report/index.html").read_text()).text
    assert "Certified accuracy at 0.75 out of reach: n draws certify 0.616 at most" in text
    assert text.count("out of reach") == 1


def test_many_classes(tmp_path):
    root = make_results(tmp_path, classes=[f"class {i}" for i in range(200)])
    write_report(root, "digits", DROPS, ROLES, root / "report")
    assert "and 190 more" in (root / "report/MODEL_CARD.md").read_text()


def test_the_model_card_has_all_sections(written):
    card = (written / "report/MODEL_CARD.md").read_text()
    titles = re.findall(r"^## (.*)", card, re.M)
    assert titles == ["Model", "Intended use", "Data", "Training", "Certificates", "Limits", "License"]
    assert "Not stated." in card
    for table in re.findall(r"(?:^\|.*\n)+", card, re.M):
        assert len({row.count("|") for row in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("results/gate/details.json", None, "is missing"),
        ("results/student.json", "{", r"is damaged \(Expecting"),
        ("results/certify/details/student.json", "[]", "holds no JSON object"),
        ("results/certify/details/student.json", "{}", "lacks abstention_rate, acr, "),
        ("results/gate/details.json", "{}", "lacks comparisons, "),
        ("certificates/teacher.json", "{}", "lacks alpha, "),
        ("models/student/model.json", "{}", "lacks arch, "),
        ("results/prepare/test.json", "{}", "lacks classes, "),
        ("results/student/training.tsv", "epoch\tloss\n1\tx\n", "is damaged"),
        ("results/student/training.tsv", "epoch\tloss\n1\n", "is damaged"),
        ("results/prepare/2025-02.json", None, "is missing"),
        ("certificates/changed.tsv", None, "is missing"),
        ("certificates/student.tsv", "idx\tlabel\n0\t1\n", "lacks correct, "),
        ("certificates/changed.tsv", "image\tname\n0\n", "is damaged"),
        ("results/gate/history.json", None, "is missing"),
        ("results/gate/history.json", '{"format": 2}', "is no history of releases"),
    ],
)
def test_missing_and_damaged_results(tmp_path, path, content, says):
    root = make_results(tmp_path)
    (root / path).unlink() if content is None else (root / path).write_text(content)
    with pytest.raises(UserError, match=says) as error:
        write_report(root, "digits", DROPS, ROLES, root / "report")
    assert Path(path).name in str(error.value)
    assert not (root / "report").exists()


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colors_have_the_contrast_that_wcag_asks_for(scheme):
    style = (TEMPLATES / "style.css.j2").read_text()
    block = re.findall(r":root \{(.*?)\}", style, re.S)[scheme]
    colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for name in ("text", "soft", "pass", "fail", "undecided", "neutral"):
        assert contrast(colors[name], colors["panel"]) >= 4.5
        assert contrast(colors[name], colors["back"]) >= 4.5
    for name in ("teacher", "student", "baseline"):
        assert contrast(colors[name], colors["back"]) >= 3


def test_the_report_needs_no_torch(written):
    script = (
        "import sys, pathlib; from crt.report.write import write_report;"
        f"write_report(pathlib.Path({str(written)!r}), 'digits', {DROPS!r}, {ROLES!r}, "
        f"pathlib.Path({str(written / 'again')!r}));"
        "import crt.evaluation.gate; assert not {'torch', 'timm', 'dvc', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
