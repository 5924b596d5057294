"""Resume files: the state of a training run at an epoch's end, so that a killed run continues from there."""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from crt.errors import UserError
from crt.files import replacing_file
from crt.processes import rank

STATE = "state.pt"
PARTS = {"model", "optimizer", "rows", "seconds"}
PACKAGE = Path(__file__).parents[1]


def resume_folder(root: Path, name: str, facts: Any, code: Iterable[str]) -> Path:
    """The folder for one run's resume files, `<root>/<name>-<fingerprint>`; it is made.

    Where it holds nothing yet but a run of the same name was left unfinished, standard error says so.

    Args:
        root: The folder for the resume files of all runs.
        name: What is made, such as `student`.
        facts: All that the result follows from, as JSON: settings, fingerprints of data and models.
        code: Files and folders of this package that decide the result.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in code:
        path = PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    folder = root / f"{name}-{digest.hexdigest()[:16]}"
    if rank() == 0 and not any(folder.glob("*")):
        for other in sorted({file.parent for file in root.glob(f"{name}-{'[0-9a-f]' * 16}/*")}):
            print(
                f"{other} was left by an unfinished run with other settings, data or code and is not "
                "continued: remove it, or restore what was changed",
                file=sys.stderr,
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_state(work: Path, state: dict[str, Any]) -> None:
    """Write the state aside and rename it: a kill leaves this state or the one before, never half of one.

    Raises:
        UserError: It cannot be written (a full disk); the state before stays intact.
    """
    try:
        with replacing_file(work / STATE) as aside:
            torch.save(state, aside)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UserError(
            f"{work} cannot be written ({str(error).splitlines()[0]}): free disk space and run again, "
            "the last checkpoint is intact"
        ) from error


def load_state(work: Path, device: torch.device) -> dict[str, Any] | None:
    """The saved state, or None where there is none, or a damaged one: then standard error says so.

    Nothing is unpickled but tensors and plain values.

    Raises:
        OSError, MemoryError, torch.OutOfMemoryError: It could not be read, and may be whole.
    """
    file = work / STATE
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        reason = "it holds something else"
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each kind of damage has an exception of its own
        state, reason = None, type(error).__name__
    if isinstance(state, dict) and state.keys() >= PARTS:
        return state
    print(f"the checkpoint {file} is damaged ({reason}): training starts from the beginning", file=sys.stderr)
    return None
