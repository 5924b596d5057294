"""`import crt` as a library: what it gives, what it needs, and what it says."""

import doctest
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import crt

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What only the extra `pipeline` installs. timm itself brings huggingface_hub, and that its own dependencies.
PIPELINE = {
    "dvc": "dvc",
    "gto": "gto",
    "hydra-core": "hydra",
    "jinja2": "jinja2",
    "lightning-fabric": "lightning_fabric",
    "omegaconf": "omegaconf",
    "pydantic": "pydantic",
    "scikit-learn": "sklearn",
    "typer": "typer",
}
WITH_TIMM = {"huggingface-hub", "pyyaml", "requests"}


def run(code: str, *arguments: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_cheap_and_lists_what_there_is():
    code = """
import sys
import crt
assert crt.__version__
assert sorted(crt.__all__) == dir(crt), dir(crt)
assert crt.ImageSpec(("a",), size=8, channels=1).shape == (1, 8, 8)
assert not {"torch", "timm", "numpy.testing", "pandas"} & set(sys.modules)
crt.build_model
assert "torch" in sys.modules
"""
    run(code)


def test_every_public_name_is_there_and_has_an_example():
    assert set(crt.__all__) == {
        "Certificate", "ImageSpec", "Method", "SmoothedClassifier", "__version__", "build_model", "load_model",
    }  # fmt: skip
    for name in crt.__all__:
        assert getattr(crt, name) is not None
    for name in set(crt.__all__) - {
        "__version__",
        "Method",
    }:  # Method is a type alias: its module has the example
        assert ">>>" in inspect.getdoc(getattr(crt, name)), name
    with pytest.raises(AttributeError, match="module 'crt' has no attribute 'train'"):
        crt.train  # noqa: B018


def test_the_version_is_the_projects():
    assert crt.__version__ == PROJECT["version"]


@pytest.mark.parametrize("name", ["crt", *sorted(set(crt._PLACES.values()))])
def test_the_examples_of_the_public_names_run(name, tmp_path, monkeypatch):
    from model_folders import GREY8, write_model

    write_model(tmp_path / "models/student", GREY8)
    monkeypatch.chdir(tmp_path)  # the examples read models/student
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


ALONE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)

absent = set(sys.argv[2].split())
sys.meta_path[:] = map(Without, sys.meta_path)

import torch
import crt
for name in crt.__all__:
    getattr(crt, name)
model, info = crt.load_model(sys.argv[1])
smoothed = crt.SmoothedClassifier(model, info.sigma, n=200, device="cpu")
[certificate] = smoothed.certify(torch.randint(256, (1, *info.spec.shape)) / 255)
assert isinstance(certificate, crt.Certificate)
assert crt.build_model("resnet10t", info.spec)(torch.rand(2, *info.spec.shape)).shape == (2, 10)

import crt.certification.run, crt.data.store, crt.drops.prepare, crt.evaluation.gate, crt.evaluation.metrics
import crt.methods.smoothadv, crt.methods.crt
assert not absent & {name.partition(".")[0] for name in sys.modules}
"""


def test_it_works_without_what_the_pipeline_needs(tmp_path):
    from model_folders import write_model

    extra = {
        requirement.partition("=")[0].partition(">")[0]
        for requirement in PROJECT["optional-dependencies"]["pipeline"]
    }
    assert extra == PIPELINE.keys() | WITH_TIMM
    run(ALONE, write_model(tmp_path / "model"), " ".join(PIPELINE.values()), cwd=tmp_path)
