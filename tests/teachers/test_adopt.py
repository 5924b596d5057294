"""From a reference to the pipeline's teacher: what is told, asked for, refused, recorded and written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_folders import make_model, make_network
from published_files import Front, digits_teacher, prepared_digits, save_cohen
from safetensors.torch import save_file
from torch import nn

from crt.config import Config, FetchedTeacher
from crt.errors import UserError
from crt.models.checkpoint import load_model, save_model
from crt.project import Project
from crt.references.fetch import sha256_of
from crt.spec import ImageSpec
from crt.teachers.adopt import adopt

ROOT = Path(__file__).resolve().parents[2]
MNIST = ((0.1307,), (0.3081,))
IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base() -> Config:
    return Project(ROOT).composed(["teacher=fetch", "data=digits", "teacher.ref=path:a.pth"])[1]


@pytest.fixture(scope="module")
def source() -> nn.Sequential:
    return digits_teacher(*MNIST)


class Bench:
    """A prepared drop, a root with checkpoints in it, and adopt's outputs."""

    def __init__(self, base: Config, tmp_path: Path):
        self.base, self.root = base, tmp_path
        self.drop = prepared_digits(tmp_path / "drop")
        self.folder, self.results = (tmp_path / "out" / name for name in ("model", "results.json"))

    def pin(self, name: str) -> str:
        return f"path:{name}#sha256={sha256_of(self.root / name)}"

    def adopt(self, **settings) -> dict:
        values = {**self.base.teacher.model_dump(), "sigma": 0.25, "ref": None, **settings}
        teacher = FetchedTeacher.model_validate(values)
        places = {"folder": self.folder, "results": self.results}
        work = self.root / "work"
        adopt(teacher, self.base, self.drop, self.root, work, torch.device("cpu"), **places)
        return json.loads(self.results.read_text())

    def refused(self, said: str, **settings) -> str:
        with pytest.raises(UserError, match=said) as error:
            self.adopt(**settings)
        assert "\n" not in str(error.value)
        assert not (self.root / "out").exists()
        return str(error.value)


@pytest.fixture
def bench(base, source, tmp_path) -> Bench:
    save_cohen(tmp_path / "a.pth", source)
    return Bench(base, tmp_path)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)[0](IMAGES)


def expected(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGES)


@pytest.mark.slow
def test_a_published_teacher(bench, source, capsys):
    results = bench.adopt(ref=bench.pin("a.pth"))
    assert torch.allclose(logits(bench.folder), expected(source), atol=1e-5)
    assert results["noisy_accuracy"] > 0.5
    assert results["normalization"] == "normalize, MNIST"
    assert results["mean"] == pytest.approx([0.1307])
    assert set(results["evidence"]) >= {
        "identity",
        "center, MNIST",
        "normalize, MNIST",
        "normalize, this data",
    }
    assert results["noisy_images"] == 600
    said = capsys.readouterr().err
    for part in (
        "recognized cifar_resnet20",
        "prefix '1.'",
        "sigma 0.25",
        "normalize, MNIST",
        "data/classes.txt",
    ):
        assert part in said
    info = load_model(bench.folder)[1]
    assert (info.method, info.seed, info.data_fingerprint, info.versions) == (
        "published",
        None,
        "unknown",
        {},
    )
    assert info.source == {
        "ref": "path:a.pth", "sha256": sha256_of(bench.root / "a.pth"),
        "layout": "entry 'state_dict', prefix '1.'", "epoch": "90", "normalization": "normalize, MNIST",
    }  # fmt: skip


def test_the_accuracy_is_that_of_the_noisy_training_images(bench, source):
    results = bench.adopt(ref=bench.pin("a.pth"))
    images, labels = (torch.from_numpy(a) for a in _arrays(bench.drop))
    noisy = images + 0.25 * torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        other_draw = (source(noisy).argmax(1) == labels).double().mean().item()
    assert results["noisy_accuracy"] == pytest.approx(other_draw, abs=0.05)


def _arrays(drop: Path):
    import numpy as np

    images = np.load(drop / "images.npy").transpose(0, 3, 1, 2).astype("float32") / 255
    return images, np.load(drop / "labels.npy")


def test_what_the_file_does_not_tell_is_asked_for(bench):
    bench.refused(
        r"set teacher\.sigma \(its first BatchNorm's statistics fit 0\.25 best\)",
        ref=bench.pin("a.pth"),
        sigma=None,
    )
    bench.refused(f"its SHA-256 is {sha256_of(bench.root / 'a.pth')} now", ref="path:a.pth")
    bench.refused(f"instead of {'0' * 64}", ref="path:a.pth", sha256="0" * 64)


def test_a_timm_network_without_batchnorm_needs_name_and_normalization(bench):
    import timm

    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=8, patch_size=4)
    save_file(network.state_dict(), bench.root / "vit.safetensors")
    ref = bench.pin("vit.safetensors")
    bench.refused(r"set teacher\.arch to its timm name", ref=ref)
    arch = {"arch": "vit_tiny_patch16_224", "arch_args": {"img_size": 8, "patch_size": 4}}
    bench.refused("has no BatchNorm.*set teacher.mean and teacher.std", ref=ref, **arch)


def test_another_number_of_classes(bench):
    save_cohen(
        bench.root / "b.pth",
        nn.Sequential(Front((0.0,), (1.0,)), make_network(spec=ImageSpec.numbered(7, 8, 1)).network),
    )
    bench.refused("has 7 outputs and data/classes.txt has 10", ref=bench.pin("b.pth"))


def test_a_wrong_normalization_fails_with_its_name(bench):
    said = bench.refused(
        "the likely cause is the normalization", ref=bench.pin("a.pth"), mean=[0.9], std=[0.05]
    )
    assert "mean [0.1307], std [0.3081]" in said


def test_another_class_order_fails_and_is_mended_by_what_it_says(bench, source, tmp_path):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    head = source[1].fc
    network = make_model()[0].network
    network.load_state_dict(
        {**source[1].state_dict(), "fc.weight": head.weight[order], "fc.bias": head.bias[order]}
    )
    save_cohen(bench.root / "c.pth", nn.Sequential(Front(*MNIST), network))
    names = [str(digit) for digit in order]
    said = bench.refused("the likely cause is the class order", ref=bench.pin("c.pth"))
    assert f"[{', '.join(names)}]" in said
    bench.refused("name different classes", ref=bench.pin("c.pth"), classes=[*names[:9], "cat"])
    bench.adopt(ref=bench.pin("c.pth"), classes=names)
    assert torch.allclose(logits(bench.folder), expected(source), atol=1e-5)
    assert load_model(bench.folder)[1].spec.classes == tuple(sorted(names))


@pytest.mark.slow
def test_an_ensemble_of_references(bench, source):
    other = digits_teacher((0.0,), (1.0,), seed=1)
    torch.save({"net": other[1].state_dict(), "epoch": 440}, bench.root / "macer.pth")
    results = bench.adopt(refs=[bench.pin("a.pth"), bench.pin("macer.pth")])
    assert torch.allclose(logits(bench.folder), (expected(source) + expected(other)) / 2, atol=1e-5)
    assert [member["normalization"] for member in results["members"]] == ["normalize, MNIST", "identity"]
    assert results["noisy_accuracy"] > 0.5
    assert load_model(bench.folder)[1].arch == "ensemble"


def test_our_own_model_folder(bench, source):
    bench.adopt(ref=bench.pin("a.pth"))
    bench.folder.rename(bench.root / "released")
    bench.results.unlink()
    (bench.root / "out").rmdir()
    weights = sha256_of(bench.root / "released/model.safetensors")
    bench.refused(f"its SHA-256 is {weights} now", ref="path:released")
    bench.adopt(ref="path:released", sha256=weights, sigma=None)
    assert torch.allclose(logits(bench.folder), expected(source), atol=1e-5)
    assert load_model(bench.folder)[1].sigma == 0.25


def test_our_own_model_of_other_data(bench):
    bench.adopt(ref=bench.pin("a.pth"))
    model, info = load_model(bench.folder)
    spec = replace(info.spec, classes=tuple(f"c{n}" for n in range(10)))
    save_model(bench.root / "other", model, replace(info, spec=spec))
    said = r"other and .*drop differ in class 0 \('c0' and '0'\): take a teacher of this data"
    with pytest.raises(UserError, match=said):
        bench.adopt(ref=bench.pin("other/model.safetensors").replace("/model.safetensors", ""))


def test_a_teacher_of_another_noise(bench):
    bench.refused(
        r"trained with sigma 0\.5 and is to be used at 0\.25: set sigma to 0\.5",
        ref=bench.pin("a.pth"),
        sigma=0.5,
    )


def test_unlabeled_images_cannot_check_a_teacher(bench):
    import numpy as np

    np.save(bench.drop / "labels.npy", np.full(600, -1))
    bench.refused("no labeled images", ref=bench.pin("a.pth"))
