"""Real git + DVC repositories: a copy of this project, run as a user runs it."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from fork_server import fork_server

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Project:
    """A git + DVC repository under test."""

    root: Path

    def run(self, *command: str, check: bool = True, env: dict[str, str] | None = None, forked: bool = True):
        """Run a command in the repository, by this environment's programs or forks of them."""
        full = {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        first = [os.environ["FORKED_PROGRAMS"]] if forked else []
        full["PATH"] = os.pathsep.join([*first, str(Path(sys.executable).parent), full["PATH"]])
        for name in list(full):  # what a dvc or pytest process around this one left
            if name.startswith("DVC_") and name != "DVC_NO_ANALYTICS":
                del full[name]
        done = subprocess.run(command, cwd=self.root, env=full, capture_output=True, text=True, timeout=600)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def stages_run(self, *command: str, forked: bool = True) -> list[str]:
        """Run a DVC command and return the names of the stages that really ran, in order."""
        done = self.run(*command, forked=forked)
        return re.findall(r"Running stage '([^']+)'", done.stdout + done.stderr)

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def copy(self, to: Path) -> "Project":
        """A second checkout with its own cache, in the same state."""
        shutil.copytree(self.root, to, symlinks=True)
        return Project(to)


@pytest.fixture(scope="session", autouse=True)
def forked_programs():
    """Programs that fork from a process in which the large libraries are imported."""
    with fork_server() as programs, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORKED_PROGRAMS", str(programs))
        yield


@pytest.fixture(scope="session")
def fresh(tmp_path_factory) -> Project:
    """A new repository with this project's files, the sample data pulled, nothing run; smoke settings."""
    root = tmp_path_factory.mktemp("project") / "repo"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
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
    project = Project(root)
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "config", "user.name", "tester")
    project.run("git", "config", "user.email", "tester@example.org")
    project.run("dvc", "pull", "data.dvc")
    project.run("crt", "compose", "+experiment=smoke")
    project.commit("project")
    return project


@pytest.fixture(scope="session")
def reproduced(request, tmp_path_factory) -> tuple[Project, list[str]]:
    """The same after one `dvc repro`, committed; and which stages ran.

    Made once for all workers of pytest-xdist.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    result = shared / "reproduced.json"
    with FileLock(shared / "reproduced.lock"):
        if not result.exists():
            fresh = request.getfixturevalue("fresh")
            ran = fresh.stages_run("dvc", "repro", forked=False)
            fresh.commit("first run")
            result.write_text(json.dumps([str(fresh.root), ran]))
        root, ran = json.loads(result.read_text())
    return Project(Path(root)), ran


@pytest.fixture
def project(reproduced, tmp_path) -> Project:
    """A copy of the reproduced project that a test may change."""
    return reproduced[0].copy(tmp_path / "repo")


@pytest.fixture(scope="session")
def ssh(tmp_path_factory):
    """An SSH server of this test's own on loopback: (port, private key)."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
    if program is None:
        pytest.skip("sshd is not installed: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(
            ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)), check=True, timeout=60
        )
    shutil.copy(folder / "user.pub", folder / "authorized")
    if Path("/run").stat().st_uid == 0 and getpass.getuser() == "root":
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it when it starts as root
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\n"
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PasswordAuthentication no\nUsePAM no\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nPidFile none\n"
        "Subsystem sftp internal-sftp\n"
    )
    process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.PIPE)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    yield port, folder / "user"
    process.terminate()
    process.wait(10)
    process.stderr.close()
