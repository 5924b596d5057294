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

# Long enough for a checkpoint (crt.training.loop.CHECKPOINT_SECONDS) and for a kill after it.
SETTINGS = ["+experiment=smoke", "student.epochs=60"]


def killed(root: Path, until: float | None, rng: random.Random) -> None:
    """Start `dvc repro student` and kill all of it: after `until` seconds, or a little after its first checkpoint."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
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
    project.run("crt", "compose", *SETTINGS)
    through = project.copy(tmp_path / "through")
    assert through.stages_run("dvc", "repro", "student") == ["student"]
    rng = random.Random(os.environ.get("CRT_KILL_SEED", "0"))
    killed(project.root, None, rng)
    killed(project.root, 1 + 10 * rng.random(), rng)
    (work,) = project.root.glob(".work/student-*")
    assert (work / "state.pt").is_file()
    done = project.run("dvc", "repro", "student")
    assert "Running stage 'student'" in done.stdout + done.stderr
    shown = done.stderr.replace("\r", "\n").splitlines()
    first = next(line for line in shown if line.startswith("student:"))
    assert not first.startswith("student:   0%"), "it began anew"
    for file in ("models/student/model.safetensors", "models/student/model.json"):
        assert (project.root / file).read_bytes() == (through.root / file).read_bytes()
    assert not work.exists()
