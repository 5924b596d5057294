"""Training, resume, precision, the bank and certification on a CUDA device. Skipped without one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from prepared_drops import write_prepared
from published_files import digits

from crt.bank import record
from crt.certification.run import certify_store
from crt.config import Config
from crt.data.store import open_store
from crt.models.checkpoint import load_model, model_fingerprint
from crt.project import Project
from crt.training import loop
from crt.training.fit import Files, fit, student_job, teacher_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda"
PRECISIONS = ["float32", "bfloat16"]


def settings(*overrides: str) -> Config:
    short = ["teacher.epochs=20", "student.epochs=20", "teacher.warmup_epochs=0", "student.warmup_epochs=0"]
    return Project(ROOT).composed([f"runtime.device={DEVICE}", *short, *overrides])[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as two drops and a test set, prepared."""
    root = tmp_path_factory.mktemp("gpu")
    images, labels = digits()
    pixels = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    for name, rows in {"one": slice(0, 700), "two": slice(700, 1400), "test": slice(1400, 1720)}.items():
        write_prepared(root / name, pixels[rows], labels[rows].tolist())
    return root


def files(root: Path, name: str) -> Files:
    return Files.of(name, root / ".work" / name, root)


@pytest.fixture(scope="module")
def teacher(root: Path) -> Path:
    fit(teacher_job(settings(), root / "one"), files(root, "teacher"))
    return root / "models" / "teacher"


def train(
    root: Path, teacher: Path, name: str, *overrides: str, banks: list[Path] | None = None, **how
) -> Path:
    job = student_job(settings(*overrides), [root / "one", root / "two"], teacher, banks=banks)
    fit(job, files(root, name), **how)
    return root / "models" / name


def certify(
    root: Path, model: Path, device: str = DEVICE, precision: str = "float32", n: int = 1000
) -> pd.DataFrame:
    options = settings(f"certify.precision={precision}", f"certify.n={n}").certify
    out = root / "certificates" / f"{model.name}-{device}-{precision}.tsv"
    network, info = load_model(model)
    certify_store(
        network,
        info,
        model_fingerprint(model),
        open_store(root / "test"),
        options,
        out,
        root / ".work" / "certificates",
        sigma=0.25,
        device=device,
    )
    return pd.read_csv(out, sep="\t")


def acr(certificates: pd.DataFrame) -> float:
    return float((certificates["radius"] * certificates["correct"]).mean())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_student_learns_and_is_certified(root, teacher, precision):
    model = train(root, teacher, f"student-{precision}", f"runtime.precision={precision}")
    results = json.loads((root / "results" / f"student-{precision}.json").read_text())
    assert results["precision"] == precision
    times = json.loads((root / "times" / f"student-{precision}.json").read_text())
    assert times["device"].startswith(DEVICE)
    assert all(value.dtype == torch.float32 for value in load_model(model)[0].parameters())
    found = certify(root, model, precision=precision)
    assert (found["predict"] == found["label"]).mean() > 0.85
    assert acr(found) > 0.85 * acr(certify(root, teacher, precision=precision))


def test_automatic_precision_is_bfloat16_where_the_gpu_has_units_for_it(root, teacher):
    train(root, teacher, "auto", "student.epochs=1")
    expected = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    assert json.loads((root / "results" / "auto.json").read_text())["precision"] == expected


class Killed(Exception):
    """A kill that a test can aim."""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_killed_training_continues_from_its_checkpoint(root, teacher, precision, monkeypatch):
    """A GPU's fastest kernels add in any order: equal bytes are no promise; finished epochs are kept."""
    name, save = f"killed-{precision}", loop.save_state

    def die(*state):
        save(*state)
        raise Killed

    settings = ["student.epochs=6", f"runtime.precision={precision}"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", die)
        with pytest.raises(Killed):
            train(root, teacher, name, *settings, checkpoint_seconds=0)
    log = root / "results" / name / "training.tsv"
    before = pd.read_csv(log, sep="\t")
    assert len(before) == 1
    resumed = load_model(train(root, teacher, name, *settings))[0]
    after = pd.read_csv(log, sep="\t")
    assert len(after) == 6
    pd.testing.assert_frame_equal(after.head(1), before)
    through = load_model(train(root, teacher, f"through-{precision}", *settings))[0]
    images = torch.from_numpy(open_store(root / "test").images[:]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        same = resumed.eval()(images).argmax(1) == through.eval()(images).argmax(1)
    assert same.float().mean() > 0.9


def test_a_bank_holds_the_same_logits_on_both_kinds_of_device_and_teaches(root, teacher):
    banked = ["bank=logits", "bank.views=4"]
    for drop in ("one", "two"):
        for device in (DEVICE, "cpu"):
            record(
                settings(*banked, f"runtime.device={device}"),
                root / drop,
                teacher,
                root / "banks" / device / drop,
                root / ".work",
            )
        here, there = (
            np.load(root / "banks" / device / drop / "view-0003.npy") for device in (DEVICE, "cpu")
        )
        np.testing.assert_allclose(here, there, atol=0.02 * np.abs(there).max())
    model = train(
        root, teacher, "banked", *banked, banks=[root / "banks" / DEVICE / d for d in ("one", "two")]
    )
    assert json.loads((root / "results" / "banked.json").read_text())["bank_views"] == 4
    assert acr(certify(root, model)) > 0.85 * acr(certify(root, teacher))


def test_both_kinds_of_device_give_the_same_certificates(root, teacher):
    """Noise has the same bits everywhere; logits differ by rounding, which turns a vote only at a tie."""
    here, there = certify(root, teacher), certify(root, teacher, "cpu")
    assert (here["predict"] == there["predict"]).mean() > 0.99
    assert (here["n_a"] - there["n_a"]).abs().mean() < 2
    assert acr(here) == pytest.approx(acr(there), abs=0.002)
    facts = json.loads((root / "certificates" / f"teacher-{DEVICE}-float32.json").read_text())
    assert facts["device"].startswith(DEVICE)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_certification_continues_with_the_rows_that_a_kill_left(root, teacher, precision):
    whole = certify(root, teacher, precision=precision, n=2000)
    (newest,) = max(
        (folder for folder in (root / ".work" / "certificates").iterdir()),
        key=lambda path: path.stat().st_mtime,
    ).glob("rows-*.jsonl")
    lines = newest.read_text().splitlines(keepends=True)
    newest.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:10])  # the last line is torn
    again = certify(root, teacher, precision=precision, n=2000)
    kept = (again["time"] == whole["time"]).mean()
    assert 0.3 < kept < 0.7
    assert (again["predict"] == whole["predict"]).mean() > 0.99
    assert (again["n_a"] - whole["n_a"]).abs().mean() < 2
