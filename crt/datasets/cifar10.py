"""CIFAR-10's archives: the binary one, and the Python one without unpickling it into real objects."""

import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crt.errors import UserError

_NAMES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
_IMAGE_BYTES = 3 * 32 * 32
_LARGEST = 64 << 20  # bytes; a batch has 31 MB


def read_batches(source: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The name, images uint8 [N, 32, 32, 3] and labels int64 [N] of `data_batch_1` to `data_batch_5`, `test_batch`.

    Args:
        source: cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or a folder that holds their files.

    Raises:
        UserError: a batch is missing or damaged, or holds anything but numbers and text.
    """
    found = dict(_read_files(source))
    for name in _NAMES:
        if name in found:
            parse, content = _parse_pickle, found[name]
        elif f"{name}.bin" in found:
            parse, content = _parse_binary, found[f"{name}.bin"]
        else:
            raise UserError(
                f"{source} has no {name}: name CIFAR-10's archive (python or binary version) or its folder"
            )
        try:
            yield name, parse(content)
        except Exception as error:  # a pickle's opcodes can fail in any way
            raise UserError(f"{source}: {name} is damaged ({error}): download the archive again") from None


def _read_files(source: Path) -> Iterator[tuple[str, bytes]]:
    wanted = {name + suffix for name in _NAMES for suffix in ("", ".bin")}
    try:
        if source.is_dir():
            for path in sorted(source.rglob("*")):
                if path.name in wanted and path.is_file():
                    yield path.name, path.read_bytes()
        else:
            with tarfile.open(source) as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    if name in wanted and member.isfile() and member.size <= _LARGEST:
                        content = archive.extractfile(member)
                        assert content is not None  # it is a file
                        yield name, content.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{source} cannot be read ({error}): name CIFAR-10's archive or its folder") from None


def _parse_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _IMAGE_BYTES)
    return _checked(rows[:, 1:], rows[:, 0])


def _parse_pickle(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _Reader(io.BytesIO(content), encoding="bytes").load()
    data = batch[b"data"] if b"data" in batch else batch["data"]
    labels = batch[b"labels"] if b"labels" in batch else batch["labels"]
    return _checked(data.array(), np.array(labels))


def _checked(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if (
        labels.dtype.kind not in "iu"
        or labels.shape != pixels.shape[:1]
        or labels.min() < 0
        or labels.max() > 9
    ):
        raise ValueError("its labels are not CIFAR-10's")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64)


class _Dtype:
    """Stands for numpy.dtype in a pickle: keeps the code and nothing else."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for numpy.ndarray in a pickle: keeps the state as it is written there."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran_order, self.content = state

    def array(self) -> np.ndarray:
        if self.dtype.code not in ("u1", b"u1") or self.fortran_order:
            raise ValueError("its images are not bytes")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape)


class _Reader(pickle.Unpickler):
    """Reads numbers, text, lists, dicts and byte arrays; any other object is an error.

    The names that an array's pickle calls lead to stand-ins here, so that nothing of NumPy runs on foreign state.
    """

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            # How Python 3 writes bytes in protocol 2.
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        return allowed[module, name]
