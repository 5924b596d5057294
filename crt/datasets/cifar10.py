"""CIFAR-10's archives: the binary one and the Python one.

The Python one holds pickles. They are read once they are known to be the published ones.
"""

import hashlib
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crt.errors import UserError

_NAMES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
_IMAGE_BYTES = 3 * 32 * 32
_LARGEST = 64 << 20  # bytes; a batch has 31 MB


def read_batches(source: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Name, images uint8 [N, 32, 32, 3] and labels int64 [N] of `data_batch_1` to `_5` and of `test_batch`.

    Args:
        source: cifar-10-python.tar.gz, cifar-10-binary.tar.gz, or a folder that holds their files.

    Raises:
        UserError: a batch is missing or damaged, or a pickled one is not the published one, and so is not
            unpickled.
    """
    found = dict(_read_files(source))
    for name in _NAMES:
        if name in found:
            yield name, _unpickled(source, name, found[name])
        elif f"{name}.bin" in found:
            try:
                yield name, _parse_binary(found[f"{name}.bin"])
            except ValueError as error:
                raise UserError(
                    f"{source}: {name} is damaged ({error}): download the archive again"
                ) from None
        else:
            raise UserError(
                f"{source} has no {name}: name CIFAR-10's archive (python or binary version) or its folder"
            )


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


def _unpickled(source: Path, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A batch of the Python archive.

    A pickle can run anything, so only the authors' own bytes are unpickled.
    """
    from torchvision.datasets import CIFAR10  # seconds to import

    published = dict((*CIFAR10.train_list, *CIFAR10.test_list))[name]
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != published:
        raise UserError(
            f"{source}: {name} has MD5 {md5} instead of the published {published} and is not unpickled: "
            f"download {CIFAR10.url} again"
        )
    batch = pickle.loads(content, encoding="latin1")  # noqa: S301 (checked above)
    return _images(batch["data"]), np.array(batch["labels"], np.int64)


def _parse_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _IMAGE_BYTES)
    if not len(rows) or rows[:, 0].max() > 9:
        raise ValueError("its labels are not CIFAR-10's")
    return _images(rows[:, 1:]), rows[:, 0].astype(np.int64)


def _images(rows: np.ndarray) -> np.ndarray:
    """[N, 3072], the red, then the green, then the blue plane, -> [N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
