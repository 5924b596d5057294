"""Read a file of weights that others wrote. It is data: nothing in it is executed.

`torch.load` with `weights_only` and safetensors do the reading. What is added here: sentences for what people
give by mistake, and checks that a file does not claim to be far larger than it is.
"""

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from crt.errors import UserError
from crt.references.fetch import what_came_instead

_EXPORT = "save the network's state_dict() alone, or ask its publisher for that"


def load_checkpoint(file: Path) -> dict[str, Any]:
    """The mapping that a file of weights holds; tensors on the CPU.

    Raises:
        UserError: It is something else than weights, damaged, or holds more than tensors and plain values.
    """
    with file.open("rb") as stream:
        start = stream.read(4096)
    instead = what_came_instead(start)
    if instead is not None:
        raise UserError(f"{file} is {instead}, no weights: get the file itself")
    try:
        checkpoint = _load(file, start)
    except UserError:
        raise
    except (
        pickle.UnpicklingError
    ) as error:  # torch's advice, to read the file without its checks, is not passed on
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {named[1]!r}" if named else "more than tensors and plain values"
        raise UserError(f"{file} holds {what}, which is not run: {_EXPORT}") from None
    except Exception as error:  # damaged bytes lead to errors of any kind
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{file} is damaged or cut off ({reason}): get it again") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{file} holds a {type(checkpoint).__name__} instead of a state dict: {_EXPORT}")
    _check_sizes(checkpoint, file)
    return checkpoint


def _load(file: Path, start: bytes) -> Any:
    if start[8:9] == b"{":
        return load_file(file)
    is_zip = start[:4] == b"PK\x03\x04"
    if not is_zip and start[:1] != b"\x80":  # a pickle: torch's container before 1.6
        raise UserError(
            f"{file} is no torch and no safetensors file: give the file that torch.save or safetensors wrote"
        )
    if is_zip:
        _check_zip(file)
    # timm's training script keeps its settings in a Namespace, a schedule's state may hold a Counter.
    with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
        warnings.simplefilter("ignore")  # about pickle protocols
        # Mapped, a tensor is a part of the file: what the file claims beyond its end cannot be allocated.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)


def _check_zip(file: Path) -> None:
    """Refuse other archives than torch's, and members that are more than the file."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{file} is a TorchScript program: {_EXPORT}")
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(
            f"{file} is a zip archive but torch did not write it: unpack it and give the file inside"
        )
    if bad := [name for name in names if ".." in name.split("/") or name.startswith("/")]:
        raise UserError(f"{file} has a member {bad[0]!r} outside of itself: do not use it")
    size, unpacked = file.stat().st_size, sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(
            f"{file} has {size} bytes and unpacks to {unpacked}, though torch packs weights without "
            "compression: do not use it"
        )


def _check_sizes(checkpoint: dict[Any, Any], file: Path) -> None:
    """Refuse tensors that are larger than the file: one number can be spread over any shape."""
    size = file.stat().st_size
    for value in (checkpoint, *(v for v in checkpoint.values() if isinstance(v, dict))):
        for name, tensor in value.items():
            if isinstance(tensor, Tensor) and tensor.numel() * tensor.element_size() > size:
                raise UserError(
                    f"{file}: {name} claims {list(tensor.shape)} numbers, more than the file's {size} bytes "
                    "hold: do not use it"
                )
