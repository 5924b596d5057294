"""`dvc repro` killed while the student trains: run again, it goes on and ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = ["+experiment=smoke", "student.epochs=10"]
LOOP, SLOW, OFTEN = "crt/training/loop.py", "CHECKPOINT_SECONDS = 20.0", "CHECKPOINT_SECONDS = 0.5"


def own_code(root: Path) -> dict[str, str]:
    """An environment in which stages import the crt of their repository."""
    return {"PYTHONPATH": str(root)}


def killed(root: Path, until: float | None, rng: random.Random) -> None:
    """Start `dvc repro student` and kill it all, after `until` seconds or just after its first checkpoint."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", **own_code(root)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        ["dvc", "repro", "student"],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < (until or 600):
        if until is None and list(root.glob(".work/student-*/state.pt")):
            time.sleep(rng.random())
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


def test_a_killed_repro_goes_on_and_ends_with_the_same_bytes(project, tmp_path):
    loop = project.root / LOOP
    text = loop.read_text()
    assert SLOW in text
    loop.write_text(text.replace(SLOW, OFTEN))  # so that a short run has checkpoints
    project.run("crt", "compose", *SETTINGS)
    project.run("dvc", "repro", "teacher@2025-01", env=own_code(project.root))
    through = project.copy(tmp_path / "through")
    through.run("dvc", "repro", "student", env=own_code(through.root))
    rng = random.Random(os.environ.get("CRT_KILL_SEED", "0"))
    killed(project.root, None, rng)
    killed(project.root, 1 + 6 * rng.random(), rng)
    (work,) = project.root.glob(".work/student-*")
    assert (work / "state.pt").is_file()
    done = project.run("dvc", "repro", "student", env=own_code(project.root))
    assert "Running stage 'student'" in done.stdout + done.stderr
    shown = done.stderr.replace("\r", "\n").splitlines()
    first = next(line for line in shown if line.startswith("student:"))
    assert not first.startswith("student:   0%"), "it started again"
    for file in ("models/student/model.safetensors", "models/student/model.json"):
        assert (project.root / file).read_bytes() == (through.root / file).read_bytes()
    assert not work.exists()
