"""Resume files: the state of a training run at an epoch's end, so that a killed run goes on from there."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from crt.errors import UserError
from crt.files import partial

STATE = "state.pt"
PARTS = {"model", "optimizer", "rows", "seconds"}


def save_state(work: Path, state: dict[str, Any]) -> None:
    """Write the state aside and rename it: a kill leaves this state or the one before, never half of one.

    Raises:
        UserError: it cannot be written (a full disk); the state before stays intact.
    """
    work.mkdir(parents=True, exist_ok=True)
    aside = partial(work / STATE)
    try:
        torch.save(state, aside)
        os.replace(aside, work / STATE)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        aside.unlink(missing_ok=True)
        raise UserError(
            f"{work} cannot be written ({str(error).splitlines()[0]}): free disk space and run again, "
            "the last checkpoint is intact"
        ) from error


def load_state(work: Path, device: torch.device) -> dict[str, Any] | None:
    """The saved state, or None where there is none, or a damaged one: then standard error says so.

    Nothing is unpickled but tensors and plain values.

    Raises:
        OSError, MemoryError, torch.OutOfMemoryError: it could not be read, and may be whole.
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
