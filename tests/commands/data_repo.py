"""What tests of the commands that change data/ look at, and the deliveries that they make."""

import contextlib
import io
import os
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import yaml
from PIL import Image

from crt.errors import UserError
from crt.project import Project


def dvc_in_process(project: Project, *arguments: str, quiet: bool = True) -> str:
    """`Project.dvc` in this process: DVC's own command line, without a second for its imports."""
    from dvc.cli import main

    # DVC_TEST keeps DVC from putting the real stdout back.
    with (
        mock.patch.dict(os.environ, DVC_TEST="1"),
        contextlib.chdir(project.root),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        status = main(list(arguments))
    if status:
        raise UserError(f"dvc {arguments} failed: {out.getvalue()}")
    return out.getvalue()


def run(root: Path, *command: str) -> str:
    if command[0] == "dvc":
        return dvc_in_process(Project(root), *command[1:])
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "state")


def record(root: Path) -> dict:
    """data.dvc's one output."""
    return yaml.safe_load((root / "data.dvc").read_text())["outs"][0]


def listed_drops(root: Path) -> list[str]:
    """The drops, which conf/choice.yaml and params.yaml must agree on."""
    assert_composed(root)
    return yaml.safe_load((root / "params.yaml").read_text())["data"]["drops"]


def assert_composed(root: Path) -> None:
    """params.yaml is exactly what DVC composes from conf/."""
    from dvc.utils.hydra import compose_and_dump

    out = root.parent / "composed.yaml"
    compose_and_dump(str(out), str(root / "conf"), None, "config", "", [])
    assert (root / "params.yaml").read_text() == out.read_text()


def choice(root: Path) -> dict:
    """conf/choice.yaml."""
    return yaml.safe_load((root / "conf/choice.yaml").read_text())


def state(root: Path) -> dict[str, bytes]:
    """Everything that a command may change, to the byte."""
    files = [path for path in root.rglob("*") if path.is_file()]
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not name.startswith((".git/", ".dvc/", ".work/"))
    }


def delivery(folder: Path, first_seed: int = 0, size: int = 8) -> Path:
    """Gray PNGs in the class folders 3 and 7."""
    for label in (3, 7):
        for index in range(3):
            rng = np.random.default_rng(first_seed + 10 * label + index)
            path = folder / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(path)
    return folder
