"""The README's results, measured again by the commands beside them: only `make test-all` does it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ACR_TOLERANCE = 0.02
ACCURACY_TOLERANCE = 4.0  # percentage points; an accuracy of 360 images has a standard error of 1 to 2.6

pytestmark = [pytest.mark.quality, pytest.mark.timeout(4 * 3600)]


def run(root: Path, *command: str) -> None:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(root)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for name in ("DVC_ROOT", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def readme_rows() -> dict[str, list[float]]:
    """ACR, and smoothed accuracy and certified accuracies in percent, of each row of the digits' table."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Results\n")[1].split("\n## ")[0]
    rows = re.findall(
        r"^\| (?:student )?`?(\w+)`? \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \| [\d,]+ \|",
        section,
        re.MULTILINE,
    )
    return {name: [float(number) for number in numbers] for name, *numbers in rows}


def measured(root: Path, role: str) -> list[float]:
    details = json.loads((root / f"results/certify/details/{role}.json").read_text())
    accuracies = [details["smoothed_accuracy"], *(details["certified_accuracy"][r] for r in ("0.25", "0.5"))]
    return [details["acr"], *(100 * share for share in accuracies)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This working tree in a new repository, the sample pulled, nothing run, the settings of a clone."""
    root = tmp_path_factory.mktemp("quality") / "repo"
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    (root / "dvc.lock").unlink(missing_ok=True)
    run(root, "git", "init", "-q")
    run(root, "git", "add", "--all")
    run(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "project")
    run(root, "dvc", "pull", "data.dvc")
    return root


def test_the_digits_table(project):
    rows = readme_rows()
    assert {"teacher", "resnet", "regnet"} <= set(rows)
    found = {}
    for student in [name for name in rows if name != "teacher"]:
        run(project, "crt", "compose", f"student={student}")
        run(project, "dvc", "repro")
        found[student] = measured(project, "student")
    found["teacher"] = measured(project, "teacher")
    wrong = [
        f"{name}: README {said}, measured {found[name]}"
        for name, said in rows.items()
        if abs(found[name][0] - said[0]) > ACR_TOLERANCE
        or any(abs(a - b) > ACCURACY_TOLERANCE for a, b in zip(found[name][1:], said[1:], strict=True))
    ]
    assert wrong == []
