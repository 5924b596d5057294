"""Read a file of weights that others wrote. It is data: nothing in it is executed, and it cannot ask for more than it is.

Read are safetensors files and torch files (zip and the older container) that hold plain tensors and plain values.
"""

import io
import pickle
import pickletools
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crt.errors import UserError
from crt.references.fetch import what_came_instead

# torch's own list of what a weights-only file may name is longer: some of that can be told to take any amount of memory.
_PLAIN = {
    "collections OrderedDict",
    "collections Counter",  # in the state of a learning rate's schedule
    "argparse Namespace",  # timm's training script keeps its settings in one
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "torch device",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}


def load_checkpoint(file: Path) -> dict[str, Any]:
    """The mapping that a file of weights holds; tensors on the CPU.

    Raises:
        UserError: it is something else than weights, damaged, or holds or asks for what weights have no need of.
    """
    with file.open("rb") as stream:
        start = stream.read(4096)
    instead = what_came_instead(start)
    if instead is not None:
        raise UserError(f"{file} is {instead}, no weights: get the file itself")
    try:
        if start[8:9] == b"{":
            checkpoint: Any = load_file(file)
        elif start[:4] == b"PK\x03\x04":
            _check_zip(file)
            checkpoint = _torch_load(file, mmap=True)
        elif start[:1] == b"\x80":
            _check_old_container(file)
            checkpoint = _torch_load(file, mmap=False)
        else:
            raise UserError(
                f"{file} is no torch and no safetensors file: give the file that torch.save or safetensors wrote"
            )
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} holds more than plain tensors ({_first_line(error)}): {_EXPORT}") from None
    except (
        SafetensorError,
        zipfile.BadZipFile,
        RuntimeError,  # torch's for files that are cut off, and for sizes that no machine has
        ValueError,
        KeyError,
        EOFError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
        OverflowError,
        MemoryError,
    ) as error:
        raise UserError(f"{file} is damaged or cut off ({_first_line(error)}): get it again") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{file} holds a {type(checkpoint).__name__} instead of a state dict: {_EXPORT}")
    _check_sizes(checkpoint, file)
    return checkpoint


_EXPORT = "save the network's state_dict() alone, or ask its publisher for that"


def _torch_load(file: Path, mmap: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
        warnings.simplefilter("ignore")  # about pickle protocols
        # Mapped, a tensor is a part of the file: what the file claims beyond its end cannot be allocated.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _check_zip(file: Path) -> None:
    """Refuse archives whose members are more than the file, TorchScript, and programs."""
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(f"{file} is a TorchScript program: {_EXPORT}")
        bad = [name for name in names if ".." in name.split("/") or name.startswith("/")]
        if bad:
            raise UserError(f"{file} has a member {bad[0]!r} outside of itself: do not use it")
        unpacked = sum(member.file_size for member in members)
        if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(
                f"{file} has {size} bytes and unpacks to {unpacked}: torch packs weights without compression, do not use it"
            )
        if len(names) != len(set(names)):
            raise UserError(f"{file} has two members of the same name: do not use it")
        programs = [name for name in names if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise UserError(
                f"{file} is a zip archive but torch did not write it: unpack it and give the file inside"
            )
        _check_pickle(io.BytesIO(archive.read(programs[0])), file)


def _check_old_container(file: Path) -> None:
    """The container of torch before 1.6: five pickles (magic number, version, system, object, keys), then numbers."""
    with file.open("rb") as stream:
        for _ in range(5):
            _check_pickle(stream, file)


def _check_pickle(stream: BinaryIO | io.BytesIO, file: Path) -> None:
    """Read the names that a pickle's instructions refer to, without following them."""
    for instruction, argument, _ in pickletools.genops(stream):
        if instruction.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
            raise UserError(f"{file} holds a Python object that is no tensor, and it is not run: {_EXPORT}")
        if instruction.name == "GLOBAL" and argument not in _PLAIN:
            named = str(argument).replace(" ", ".")
            raise UserError(f"{file} holds the Python object {named!r}, which is not run: {_EXPORT}")


def _check_sizes(checkpoint: dict[Any, Any], file: Path) -> None:
    """Refuse tensors that are larger than the numbers that the file holds for them."""
    size = file.stat().st_size
    for value in (checkpoint, *(v for v in checkpoint.values() if isinstance(v, dict))):
        for name, tensor in value.items():
            if isinstance(tensor, Tensor) and tensor.numel() * tensor.element_size() > size:
                raise UserError(
                    f"{file}: {name} shall have {list(tensor.shape)} numbers, more than the file's {size} bytes hold: do not use it"
                )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
