"""A process that imports the large libraries once and forks for each stage and command that a test runs.

A pipeline starts some ten processes, and each would import torch and timm, or DVC, for seconds.
`fork_server()` starts the server and writes programs `python`, `dvc` and `crt` into a folder; whoever has
that folder first on its path runs them in a fork of the server, in the caller's folder, environment and open
files. The project's own code is imported after the fork, so that it is the caller's. What the server does not
know (`python -c`, `python -m pytest`) is run by the real interpreter. Tests of kills and of the first run do
without it.
"""

import contextlib
import importlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMPORTED = (
    "timm",
    "torchvision",
    "lightning_fabric",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "scipy.optimize",
    "sklearn.metrics",
    "jinja2",
    "hydra",
    "pydantic",
    "tqdm",
    "dvc.cli",
    "dvc.commands.repro",
    "dvc.repo",
    "dvc.repo.reproduce",
    "dvc.stage.run",
    "gto.api",
)
# The program that stands in: it hands itself over to the server, or becomes the real one.
_STAND_IN = """#!{python} -IS
import json, os, socket, sys
name, words = {name!r}, sys.argv[1:]
if name != "python" or words[:2] == ["-m", "dvc"] or (words and words[0].startswith("stages/")):
    if words[:2] == ["-m", "dvc"]:
        name, words = "dvc", words[2:]
    call = json.dumps([name, words, os.getcwd(), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect({address!r})
        socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(call)
        status = server.recv(1)
    sys.exit(status[0] if status else 137)
os.execv({program!r}, [{program!r}, *words])
"""


@contextlib.contextmanager
def fork_server() -> Iterator[Path]:
    """Start a server; gives the folder of the programs that call it.

    A caller that is killed leaves its fork running.
    """
    real = Path(sys.executable).parent
    folder = Path(tempfile.mkdtemp(prefix="fork"))  # a socket's address is short
    address = str(folder / "server")
    programs = folder / "programs"
    programs.mkdir(parents=True)
    for name in ("python", "dvc", "crt"):
        text = _STAND_IN.format(python=sys.executable, name=name, address=address, program=str(real / name))
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen(
        [sys.executable, __file__, address, str(programs / "python")], env=environment, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield programs
        finally:
            server.terminate()
            shutil.rmtree(folder)


def serve(address: str, python: str) -> None:
    """Fork for each caller, forever."""
    for name in IMPORTED:
        importlib.import_module(name)
    path = sys.path[1:]  # without this file's folder
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            caller, _ = listening.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork() == 0:
                listening.close()
                sys.executable = python
                _answer(caller, path)
            caller.close()


def _answer(caller: socket.socket, path: list[str]) -> None:
    """In the fork: become the caller's program, and tell how it ended."""
    head, fds, _, _ = socket.recv_fds(caller, 8, 3)
    call = bytearray()
    while len(call) < int.from_bytes(head, "big"):
        call += caller.recv(1 << 16)
    name, words, folder, environment = json.loads(call)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    unbuffered = "PYTHONUNBUFFERED" in environment
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, buffering=1 if unbuffered else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    script = words[0] if name == "python" else None
    first = str(Path(folder, script).parent) if script else str(Path(sys.executable).parent)
    given = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [first, *given, *path]
    sys.argv = words if script else [name, *words]
    caller.send(bytes([_status(lambda: _run(name, script))]))
    os._exit(0)


def _run(name: str, script: str | None) -> Any:
    if script:
        return runpy.run_path(script, run_name="__main__")
    return importlib.import_module(f"{name}.cli").main()


def _status(program: Any) -> int:
    """Run to the end as an interpreter does: exit status, buffers, threads, what is registered at exit."""
    import atexit
    import threading
    import traceback

    status = 0
    try:
        result = program()
        status = result if isinstance(result, int) else 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if status == 1 and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return status & 0xFF


if __name__ == "__main__":
    serve(*sys.argv[1:])
