"""`import crt` as a library: what it gives, what it needs, and what it says."""

import ast
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
        "Certificate", "ImageSpec", "Method", "SmoothedClassifier", "__version__", "build_model",
        "load_model",
    }  # fmt: skip
    for name in crt.__all__:
        assert getattr(crt, name) is not None
    for name in set(crt.__all__) - {"__version__"}:
        assert ">>>" in inspect.getdoc(getattr(crt, name)), name
    with pytest.raises(AttributeError, match="module 'crt' has no attribute 'train'"):
        crt.train  # noqa: B018


def test_the_version_is_the_projects():
    assert crt.__version__ == PROJECT["version"]


@pytest.mark.parametrize("name", ["crt", *sorted(set(crt._PLACES.values()))])
def test_the_examples_of_the_public_names_run(name, tmp_path, monkeypatch):
    from model_folders import GRAY8, write_model

    write_model(tmp_path / "models/student", GRAY8)
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


def test_a_default_is_the_same_everywhere():
    from crt import cli
    from crt.commands.predict import predict

    smoothed, function, command = (
        {name: parameter.default for name, parameter in inspect.signature(thing).parameters.items()}
        for thing in (crt.SmoothedClassifier, predict, cli.predict)
    )
    for name in ("n0", "n", "alpha", "seed", "device", "precision", "compile", "batch_size"):
        assert smoothed[name] == function[name] == command[name], name
    assert (smoothed["n"], smoothed["device"]) == (10_000, "auto")


def test_wrong_arguments_are_value_and_type_errors():
    model = crt.build_model("cifar_resnet20", crt.ImageSpec(("a", "b"), size=8, channels=1))
    with pytest.raises(ValueError, match="sigma is -1"):
        crt.SmoothedClassifier(model, sigma=-1)
    smoothed = crt.SmoothedClassifier(model, sigma=0.5, n=100)
    with pytest.raises(ValueError, match=r"values from .* to 2: give pixels in \[0,1\]"):
        smoothed.certify(torch.full((1, 1, 8, 8), 2.0))
    with pytest.raises(TypeError, match="images are a list: give a torch tensor"):
        smoothed.certify([[0.5]])
    with pytest.raises(TypeError, match="give float images"):
        smoothed.certify(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="did you mean"):
        crt.build_model("resnett18", crt.ImageSpec(("a",), size=8, channels=1))
    with pytest.raises(ValueError, match="name a model folder"):
        crt.load_model("no/such/folder")


# The project's own layer, what belongs to it (datasets: what get-data and ingest are given), and the
# module whose subject is DVC.
ABOVE = ("crt/commands/", "crt/cli.py", "crt/project/", "crt/config.py", "crt/datasets/", "crt/references/")
WORDS = (
    "dvc ", "DVC", "crt compose", "crt ingest", "crt get-data", "crt pin", "params.yaml", "conf/", "dvc.yaml",
    "runtime.", "certify.",
    "student.arch", "student.epochs", "student.init", "student.lr", "data.skip", "data.resize", "stage",
)  # fmt: skip


def _said(tree: ast.AST) -> list[ast.expr]:
    """The strings of a module that are no docstrings."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


def test_messages_of_the_library_know_no_pipeline():
    found = []
    for file in sorted((ROOT / "crt").rglob("*.py")):
        place = file.relative_to(ROOT).as_posix()
        if place.startswith(ABOVE):
            continue
        for node in _said(ast.parse(file.read_text())):
            found += [f"{place}:{node.lineno}: {node.value!r}" for word in WORDS if word in node.value][:1]
    assert not found, "\n".join(found)
