"""The wheel, installed alone: what `pip install .` gives, in an environment without the extra `pipeline`."""

import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ["dvc", "gto", "hydra", "lightning_fabric", "omegaconf", "pydantic", "sklearn", "typer"]

pytestmark = pytest.mark.nightly


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> Path:
    """A wheel of the working tree, built beside it: setuptools leaves files where it builds."""
    source = folder / "source"
    shutil.copytree(ROOT / "crt", source / "crt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # torch brings setuptools, so that nothing need be downloaded.
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def needed(wheel: Path) -> list[Distribution]:
    """The distributions that the wheel brings when it is installed without extras, as they are here."""
    found: dict[tuple[str, frozenset[str]], Distribution] = {}

    def add(requirements: list[str] | None, extras: frozenset[str]) -> None:
        for text in requirements or []:
            wanted = Requirement(text)
            marker = wanted.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            key = canonicalize_name(wanted.name), frozenset(wanted.extras)
            if key not in found:
                found[key] = distribution(wanted.name)
                add(found[key].requires, key[1])

    unpacked = wheel.with_suffix("")
    shutil.unpack_archive(wheel, unpacked, "zip")
    (metadata,) = unpacked.glob("*.dist-info")
    add(PathDistribution(metadata).requires, frozenset())
    return list(found.values())


def link(installed: Distribution, site: Path) -> None:
    """Make a distribution of this environment one of the environment that has the folder `site`."""
    for file in installed.files or []:
        place = site / file
        if ".." in file.parts or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path(str(installed.locate_file(file))).resolve())


def environment(folder: Path) -> Path:
    """The Python of a new environment that has the wheel, what it needs, and nothing else."""
    wheel = build(folder)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    for installed in needed(wheel):
        link(installed, site)
    # It takes a requirement for met only where the distribution is in the environment.
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", wheel, cwd=folder)
    return python


CHECK = """
import importlib.util, pathlib, sys
import crt
print(pathlib.Path(crt.__file__).parent)
assert crt.__version__
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))
"""


def test_the_wheel_alone_gives_the_readmes_example(tmp_path):
    python = environment(tmp_path)
    # -I: neither PYTHONPATH nor the folder that the tests run in
    place, present = run(python, "-I", "-c", CHECK, *ABSENT, cwd=tmp_path).split("\n")[:2]
    assert Path(place).is_relative_to(tmp_path / "venv")
    assert present == ""

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?SmoothedClassifier.*?)^```", readme, re.MULTILINE | re.DOTALL)
    said = run(python, "-I", "-c", example, cwd=tmp_path).splitlines()
    assert len(said) == 3
    assert all(
        re.fullmatch(r"class (\d) \(true: \1\), certified up to l2 distance 0\.\d+", line) for line in said
    )

    installed, here = (
        {
            file.relative_to(folder)
            for file in folder.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        for folder in (Path(place), ROOT / "crt")
    )
    assert installed == here
