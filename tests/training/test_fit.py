"""From prepared drops to a model folder, with the parameters that conf/ gives."""

import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import make_network
from prepared_drops import spec_of, write_prepared

from crt.bank import record
from crt.config import Config
from crt.errors import UserError
from crt.files import same_tree
from crt.models.checkpoint import load_model, model_fingerprint
from crt.project import Project
from crt.spec import ImageSpec
from crt.training import fit as fit_module
from crt.training import loop
from crt.training.fit import Files, fit, frozen_teacher, student_job, teacher_job

ROOT = Path(__file__).resolve().parents[2]
NET = ["arch=resnet18", "arch_args={layers: [1,1,1,1], channels: [8,8,8,8]}", "epochs=2", "batch_size=16"]


def drop(folder: Path, count: int = 40, classes: int = 10, size: int = 8, unlabeled: int = 0) -> Path:
    rng = np.random.default_rng([count, *folder.name.encode()])
    labels = np.arange(count) % classes
    labels[:unlabeled] = -1
    images = rng.integers(0, 256, (count, size, size, 1), dtype=np.uint8)
    return write_prepared(folder, images, labels, spec_of(images, classes))


@dataclass(frozen=True)
class Place:
    root: Path
    drops: list[Path]

    def files(self, name: str) -> Files:
        return Files.of(name, self.root / ".work" / name, self.root)

    def teacher(self, *overrides: str, name: str = "teacher") -> Path:
        files = self.files(name)
        fit(teacher_job(parameters(*overrides), self.drops[0]), files)
        return files.model

    def student(
        self,
        *overrides: str,
        teacher: Path | None = None,
        name: str = "student",
        drops=None,
        init: Path | None = None,
        banks: list[Path] | None = None,
        **how: float,
    ) -> Path:
        files = self.files(name)
        drops = self.drops if drops is None else drops
        fit(student_job(parameters(*overrides), drops, teacher, init, banks), files, **how)
        return files.model

    def results(self, name: str) -> dict[str, Any]:
        return json.loads((self.root / "results" / f"{name}.json").read_text())


def parameters(*overrides: str) -> Config:
    small = [f"++{role}.{value}" for role in ("teacher", "student") for value in NET]
    _, config = Project(ROOT).composed(
        ["runtime.device=cpu", *small, "teacher.warmup_epochs=0", "student.warmup_epochs=0", *overrides]
    )
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("fit")
    place = Place(root, [drop(root / "a"), drop(root / "b", count=50)])
    place.teacher()
    return place


@pytest.fixture(scope="module")
def teacher(place) -> Path:
    return place.files("teacher").model


def test_a_teacher(place, teacher):
    model, info = load_model(teacher)
    assert info.arch == "resnet18"
    assert info.method == "consistency"
    assert info.teacher_fingerprint is None
    assert (info.sigma, info.seed) == (0.25, 0)
    assert info.spec == ImageSpec.numbered(10, 8, 1)
    pixels = np.load(place.drops[0] / "images.npy") / 255
    np.testing.assert_allclose(info.mean, pixels.mean(), rtol=1e-12)
    np.testing.assert_allclose(model.normalize.std.numpy(), pixels.std(), rtol=1e-6)
    assert model.network.bn1.num_batches_tracked == 2 * 2
    results = place.results("teacher")
    assert {"loss", "cross_entropy", "noisy_accuracy"} <= set(results)
    assert results["epochs"] == 2
    assert results["precision"] == "float32", "a network this small gains nothing from bfloat16"
    assert results["parameters"] == sum(p.numel() for p in model.parameters())
    assert not any(place.files("teacher").work.iterdir())


def test_a_student_of_all_drops(place, teacher):
    folder = place.student(teacher=teacher)
    model, info = load_model(folder)
    assert info.method == "crt"
    assert info.teacher_fingerprint == model_fingerprint(teacher)
    prints = [json.loads((d / "meta.json").read_text())["fingerprint"] for d in place.drops]
    assert info.data_fingerprint == hashlib.sha256("".join(prints).encode()).hexdigest()
    assert model.network.bn1.num_batches_tracked == 2 * (90 // 16)
    results = place.results("student")
    assert {"transfer", "agreement", "noisy_accuracy"} <= set(results)
    with (place.root / "results/student/training.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 2
    assert float(rows[-1]["transfer"]) == pytest.approx(results["transfer"], rel=1e-5)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_bytes(place, teacher):
    """Of the model folder, the log and the results: no time of day, no seconds."""
    before = weights(teacher)
    one, two = (place.student(teacher=teacher, name=name) for name in ("one", "two"))
    assert same_tree(one, two)
    results = place.root / "results"
    for file in ("{}.json", "{}/training.tsv"):
        assert (results / file.format("one")).read_bytes() == (results / file.format("two")).read_bytes()
    assert weights(place.student("seed=1", teacher=teacher, name="three")) != weights(one)
    assert weights(teacher) == before


def test_times_stand_apart(place, teacher):
    times = json.loads((place.root / "times/teacher.json").read_text())
    assert times["seconds"] > 0
    assert times["images_per_second"] == pytest.approx(2 * 32 / times["seconds"])
    assert times["device"] == "cpu"


class Killed(Exception):
    """A kill that a test can aim."""


def killed_after_an_epoch(place: Place, monkeypatch, *overrides: str, **training) -> None:
    """Killed right after the first checkpoint, which is written at the first epoch's end."""
    original = loop.save_state

    def die(work, state):
        original(work, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", die)
        with pytest.raises(Killed):
            place.student(*overrides, **training, checkpoint_seconds=0)


def test_a_run_continues_from_its_checkpoint_to_the_same_bytes(place, teacher, monkeypatch):
    whole = place.student(teacher=teacher, name="whole")
    killed_after_an_epoch(place, monkeypatch, teacher=teacher, name="resumed")
    assert not place.files("resumed").model.exists()
    (file,) = place.files("resumed").work.glob("student-*/state.pt")
    state = torch.load(file, weights_only=True)
    (row,) = state["rows"]
    row["loss"] = 1234.0  # stands in the log only if the first epoch does not run again
    torch.save(state, file)
    assert same_tree(place.student(teacher=teacher, name="resumed"), whole)
    with place.files("resumed").log.open() as log:
        assert [float(row["loss"]) == 1234 for row in csv.DictReader(log, delimiter="\t")] == [True, False]
    assert not any(place.files("resumed").work.iterdir())


def test_a_checkpoint_of_other_settings_is_not_continued_and_said(place, teacher, monkeypatch, capsys):
    killed_after_an_epoch(place, monkeypatch, teacher=teacher, name="left")
    (left,) = place.files("left").work.glob("student-*")
    capsys.readouterr()
    model = place.student("seed=1", teacher=teacher, name="left")
    said = [line for line in capsys.readouterr().err.splitlines() if str(left) in line]
    assert len(said) == 1
    assert "other settings, data or code" in said[0]
    assert (left / "state.pt").is_file()
    assert weights(model) == weights(place.student("seed=1", teacher=teacher, name="left-whole"))


@pytest.mark.slow
def test_the_key_of_resume_files_covers_the_code_that_training_imports(tmp_path):
    """A checkpoint of other code is never continued; code that changes no value is no part of the key."""
    code = (
        "import sys, crt.training.fit, crt.methods.shared.attacks; "
        "print(*(m for m in sys.modules if m.startswith('crt')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {importlib.util.find_spec(module).origin for module in done.stdout.split()}
    neutral = {"__init__", "config", "errors", "files", "devices", "processes"}
    missing = []
    for file in imported:
        path = Path(file).relative_to(ROOT / "crt")
        listed = any(path.is_relative_to(part) for part in fit_module.CODE)
        if Path(file).stat().st_size and not listed and path.as_posix() not in {f"{n}.py" for n in neutral}:
            missing.append(path)
    assert missing == []
    assert all((ROOT / "crt" / part).exists() for part in fit_module.CODE)


def test_direct_training_needs_no_teacher_and_names_none(place, teacher):
    folder = place.student("method=gaussian", teacher=teacher, name="direct")
    _, info = load_model(folder)
    assert info.teacher_fingerprint is None
    assert weights(place.student("method=gaussian", name="alone")) == weights(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": 9}, r"differ in the number of classes \(10 and 9\)"),
        ({"size": 12}, r"differ in image size \(8 and 12\)"),
    ],
)
def test_a_teacher_for_other_data_is_refused(place, teacher, tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        place.student(teacher=teacher, name="other", drops=[drop(tmp_path / "d", **change)])
    assert not place.files("other").model.exists()


def test_a_frozen_teacher_is_the_same_function_in_fewer_parts():
    torch.manual_seed(0)
    model = make_network(spec=ImageSpec.numbered(10, 16, 3))
    model(torch.rand(64, 3, 16, 16))  # BatchNorm's statistics are no longer 0 and 1
    frozen = frozen_teacher(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())
    images = torch.rand(9, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(frozen(images), model.eval()(images), rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())  # it is left as it was


def test_a_teacher_for_another_sigma_is_refused(place, teacher):
    with pytest.raises(UserError, match=r"teacher .* differ in sigma \(0\.25 and 0\.5\)"):
        place.student("sigma=0.5", teacher=teacher, name="other")


def test_a_missing_teacher(place, tmp_path):
    with pytest.raises(UserError, match=r"models/teacher is missing: train or fetch the teacher first"):
        place.student(teacher=tmp_path / "models" / "teacher", name="other")
    with pytest.raises(UserError, match=r"needs a teacher"):
        place.student(teacher=None, name="other")


def test_a_missing_drop(place, tmp_path):
    with pytest.raises(UserError, match=r"nothing/meta\.json is missing: prepare the drop again"):
        place.student(teacher=None, name="other", drops=[tmp_path / "nothing"])


def test_drops_that_differ_are_refused(place, teacher, tmp_path):
    with pytest.raises(UserError, match=r"differ in image size \(12 and 8\)"):
        place.student(teacher=teacher, name="other", drops=[*place.drops, drop(tmp_path / "d", size=12)])


@pytest.mark.slow
def test_images_without_labels_teach_by_transfer_alone(place, teacher, tmp_path):
    half = drop(tmp_path / "half", count=64, unlabeled=32)
    model, _ = load_model(place.student(teacher=teacher, name="half", drops=[half]))
    assert model.network.bn1.num_batches_tracked == 2 * (64 // 16)
    model, _ = load_model(place.student("method=gaussian", name="labeled", drops=[half]))
    assert model.network.bn1.num_batches_tracked == 2 * (32 // 16)
    for name, images, left_out in (("half", 64, 0), ("labeled", 32, 32)):
        results = place.results(name)
        assert (results["images"], results["unlabelled_left_out"]) == (images, left_out)
    none = drop(tmp_path / "none", count=64, unlabeled=64)
    place.student(teacher=teacher, name="none", drops=[none])
    with pytest.raises(UserError, match="0 labeled training images"):
        place.student("method=gaussian", name="other", drops=[none])


def some_classes(folder: Path, labels: list[int], validation: tuple[int, ...] = ()) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)
    return write_prepared(folder, images, labels, spec_of(images, 3), validation)


def test_a_drop_of_one_class_teaches_nothing(tmp_path):
    # The only image of another class is set aside for validation.
    place = Place(tmp_path, [some_classes(tmp_path / "cats", [1] * 20 + [2], validation=(20,))])
    with pytest.raises(
        UserError, match=r"cats has labeled images of the class 1 alone, so the teacher would learn nothing"
    ):
        place.teacher()
    assert not (tmp_path / "models").exists()


def test_a_class_without_an_image_is_said(tmp_path, capsys, place, teacher):
    two = Place(tmp_path, [some_classes(tmp_path / "two", [1, 2] * 20)])
    two.teacher("teacher.epochs=1")
    assert "the teacher cannot learn the class 0: " in capsys.readouterr().err
    assert two.results("teacher")["classes_without_images"] == ["0"]
    assert "classes_without_images" not in place.results("teacher")


@pytest.mark.slow
def test_compiling_without_a_compiler_ends_in_a_sentence(tmp_path):
    """In a process of its own: torch remembers what was compiled."""
    script = (
        "import torch; from crt.devices import compiled; from crt.errors import UserError\n"
        "try: compiled(torch.nn.Linear(2, 2), torch.device('cpu'))\n"
        "except UserError as error: print(error)"
    )
    environment = os.environ | {"CXX": "/nonexistent/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("the network cannot be compiled here (")
    assert "or set compile to false" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_device_that_is_not_there(place):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"no GPU 0 here: set the device to auto or cpu"):
        place.teacher("runtime.device=cuda", name="other")


def test_a_warm_start_goes_on_from_the_releases_weights(place, teacher):
    release = place.student(teacher=teacher, name="release", drops=place.drops[:1])
    # A learning rate of (nearly) nothing leaves the weights where they started.
    still = ["student.init_epochs=1", "student.init_lr=1e-30"]
    folder = place.student(*still, teacher=teacher, name="warm", init=release)
    before, after = load_model(release), load_model(folder)
    for (name, a), (_, b) in zip(before[0].named_parameters(), after[0].named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert after[1].mean == before[1].mean, "its first layer is a part of the function"
    assert after[1].init_fingerprint == model_fingerprint(release)
    assert before[1].init_fingerprint is None
    results = place.results("warm")
    assert (results["warm_start"], results["epochs"]) == (True, 1)
    assert place.results("release")["warm_start"] is False


def test_a_warm_start_holds_on_to_the_release(place, teacher, tmp_path):
    """A release that is the teacher too is right on all unlabeled images, and as far away as the teacher."""
    unlabeled = [drop(tmp_path / "unlabelled", unlabeled=40)]
    settings = ["student.init_epochs=1", "method.keep=0.5"]
    place.student(*settings, teacher=teacher, init=teacher, drops=unlabeled, name="update")
    results = place.results("update")
    assert results["release_right"] == 1
    assert results["drift"] == results["transfer"] > 0
    assert results["loss"] == pytest.approx(1.5 * results["transfer"])
    place.student("method.keep=0.5", teacher=teacher, drops=unlabeled, name="first")
    assert "drift" not in place.results("first")


@pytest.mark.slow
def test_a_warm_start_is_resumed_to_the_same_bytes(place, teacher, monkeypatch):
    release = place.student(teacher=teacher, name="release-2", drops=place.drops[:1])
    settings = ["student.init_epochs=3", "student.init_lr=0.01"]
    whole = weights(place.student(*settings, teacher=teacher, name="warm-whole", init=release))
    killed_after_an_epoch(place, monkeypatch, *settings, teacher=teacher, name="warm-killed", init=release)
    assert weights(place.student(*settings, teacher=teacher, name="warm-killed", init=release)) == whole


@pytest.mark.slow
def test_a_release_of_another_architecture_is_no_start(place, teacher, capsys):
    release = place.student(teacher=teacher, name="release-3", drops=place.drops[:1])
    other = ["student.args_for=null", "student.arch_args={layers: [1,1,1,1], channels: [16,8,8,8]}"]
    cold = weights(place.student(*other, teacher=teacher, name="cold"))
    capsys.readouterr()
    folder = place.student(*other, teacher=teacher, name="cold-too", init=release)
    assert "random weights, for 2 epochs" in capsys.readouterr().err
    assert weights(folder) == cold
    assert load_model(folder)[1].init_fingerprint is None
    assert place.results("cold-too")["warm_start"] is False


def test_a_release_of_other_classes_is_refused(place, teacher, tmp_path):
    fewer = [drop(tmp_path / "five", classes=5)]
    release = place.student("method=gaussian", name="release-5", drops=fewer)
    with pytest.raises(UserError, match=r"classes.* start from another model, or from none"):
        place.student(teacher=teacher, init=release, name="refused")


BANK = ["bank=logits", "bank.views=2"]


@pytest.fixture(scope="module")
def banks(place, teacher) -> list[Path]:
    folders = [place.root / "banks" / drop.name for drop in place.drops]
    for folder, one in zip(folders, place.drops, strict=True):
        record(parameters(*BANK), one, teacher, folder, place.root / ".work" / "bank")
    assert not any((place.root / ".work" / "bank").iterdir())
    return folders


def test_a_student_of_banks_is_resumed_to_the_same_bytes(place, teacher, banks, monkeypatch):
    whole = place.student(*BANK, teacher=teacher, banks=banks, name="banked")
    assert place.results("banked")["bank_views"] == 2
    assert load_model(whole)[1].teacher_fingerprint == model_fingerprint(teacher)
    killed_after_an_epoch(place, monkeypatch, *BANK, teacher=teacher, banks=banks, name="banked-killed")
    assert same_tree(place.student(*BANK, teacher=teacher, banks=banks, name="banked-killed"), whole)
    assert weights(whole) != weights(place.student(teacher=teacher, name="live"))


def test_banks_are_left_alone_by_a_method_that_needs_no_logits(place, banks):
    plain = place.student("method=gaussian", name="plain")
    assert weights(place.student("method=gaussian", banks=banks, name="plain-banked")) == weights(plain)
    assert place.results("plain-banked")["bank_views"] == 0


def test_banks_of_another_teacher_are_refused(place, banks):
    other = place.teacher("seed=5", name="teacher-5")
    with pytest.raises(UserError, match="does not hold this teacher's logits"):
        place.student(*BANK, teacher=other, banks=banks, name="refused-bank")
