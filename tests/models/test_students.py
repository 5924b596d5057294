"""Every option of conf/student/, as conf/network/ builds it, but `timm`, which leaves the network open."""

from pathlib import Path

import pytest
import torch
import yaml
from model_folders import make_model

from crt.models.build import BaseClassifier
from crt.models.checkpoint import ModelInfo, load_model, save_model
from crt.models.small_images import last_map
from crt.spec import ImageSpec

CONF = Path(__file__).resolve().parents[2] / "conf"
STUDENTS = sorted({file.stem for file in (CONF / "student").glob("[!_]*.yaml")} - {"timm"})
SCALES = {
    folder.name: {file.stem: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    for folder in (CONF / "network").iterdir()
}


def make(scale: str, student: str, size: int, channels: int) -> tuple[BaseClassifier, ModelInfo]:
    network = SCALES[scale][student]
    spec = ImageSpec.numbered(10, size, channels)
    return make_model(spec, arch=network["arch"], arch_args=network["arch_args"])


@pytest.mark.parametrize("scale", SCALES)
def test_every_student_has_a_network_at_every_scale(scale):
    assert sorted(SCALES[scale].keys() - {"timm"}) == STUDENTS


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize(("scale", "size", "channels"), [("tiny", 8, 1), ("small", 32, 3)])
def test_every_student_learns_and_comes_back_bit_by_bit(scale, size, channels, student, tmp_path):
    model, info = make(scale, student, size, channels)
    images = torch.rand(2, channels, size, size)
    model(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert last_map(model.network, images[:1]) >= (3 if size > 12 else 2)
    model.eval()
    save_model(tmp_path / "model", model, info)
    loaded, _ = load_model(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_fits_other_images_too(student):
    for size, channels in ((28, 1), (64, 3), (224, 3)):
        scale = "large" if size == 224 else "small"
        model = make(scale, student, size, channels)[0].eval()
        with torch.no_grad():
            assert model(torch.rand(1, channels, size, size)).shape == (1, 10)
            assert last_map(model.network, torch.rand(1, channels, size, size)) >= 3
