"""Students that become teachers: three generations on the digits, and what each loses."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_drops import write_prepared
from sklearn.datasets import load_digits

from crt.certification.smoothing import SmoothedClassifier
from crt.models.checkpoint import load_info, load_model, model_fingerprint
from crt.project import Project
from crt.spec import to_unit
from crt.training.fit import Files, fit, student_job, teacher_job

pytestmark = pytest.mark.nightly  # over a minute

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ["runtime.device=cpu", "student.epochs=10"]
TEACHER = [
    "teacher.epochs=10",
    "teacher.arch=resnet18",
    "++teacher.arch_args={layers: [1,1,1,1], channels: [16,32,64,128]}",
]
GENERATIONS = ["resnet", "regnet", "convnext"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A prepared drop of 1,500 digits; the others' images, float [N, 1, 8, 8] in [0,1], and labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    folder = tmp_path_factory.mktemp("digits") / "drop"
    write_prepared(folder, images[:1500], labels[:1500])
    rest = to_unit(images[1500:1580])
    return folder, rest, torch.from_numpy(labels[1500:1580])


def acr(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean of the certified radius, 0 where the prediction is wrong."""
    certificates = SmoothedClassifier(load_model(folder)[0], sigma=0.25, n0=20, n=200).certify(images)
    right = [
        (c.radius or 0.0) * (c.predict == label)
        for c, label in zip(certificates, labels.tolist(), strict=True)
    ]
    return sum(right) / len(right)


def test_three_generations(digits, tmp_path, capsys):
    drop, images, labels = digits

    def train(name: str, overrides: list[str], teacher: Path | None) -> Path:
        config = Project(ROOT).composed([*RECIPE, *TEACHER, *overrides])[1]
        files = Files.of(name, tmp_path / "work", tmp_path)
        fit(teacher_job(config, drop) if teacher is None else student_job(config, [drop], teacher), files)
        return files.model

    model = train("teacher", [], None)
    found = {"teacher": acr(model, images, labels)}
    for student in GENERATIONS:
        before = model
        model = train(student, [f"student={student}"], before)
        assert load_info(model).teacher_fingerprint == model_fingerprint(before)
        found[student] = acr(model, images, labels)
    with capsys.disabled():
        print("\nACR by generation: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    assert found["teacher"] > 0.15
    values = list(found.values())
    for before, now in pairwise(values):
        assert now > 0.75 * before, found
