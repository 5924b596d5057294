"""`.npz` archives of images, read as a stream and written with the same bytes everywhere."""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from crt.errors import UserError

_CHUNK_BYTES = 8 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip archive can hold


@dataclass(frozen=True)
class ImageArrays:
    """An archive's `images` uint8 [N, H, W] or [N, H, W, C], yet unread, and `labels` int64 [N].

    A label of -1: unlabeled.
    """

    path: Path
    shape: tuple[int, ...]
    labels: np.ndarray

    @property
    def count(self) -> int:
        return self.shape[0]

    def images(self) -> Iterator[np.ndarray]:
        """The images one by one, uint8 [H, W, C], in memory that does not grow with N.

        Raises:
            UserError: the archive is damaged.
        """
        row_shape = self.shape[1:] if len(self.shape) == 4 else (*self.shape[1:], 1)
        row_bytes = math.prod(row_shape)
        rows_per_read = max(1, _CHUNK_BYTES // row_bytes)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("images.npy") as stream:
                _read_header(stream)
                for start in range(0, self.count, rows_per_read):
                    rows = min(rows_per_read, self.count - start)
                    chunk = stream.read(rows * row_bytes)
                    if len(chunk) != rows * row_bytes:
                        raise EOFError("its images end early")
                    yield from np.frombuffer(chunk, np.uint8).reshape(rows, *row_shape)
        except _DAMAGED as error:
            raise UserError(f"{self.path} is damaged ({error}): write it again with numpy.savez") from None


_DAMAGED = (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, SyntaxError)


def open_images(path: Path, classes: Sequence[str]) -> ImageArrays:
    """Check an archive's header and labels; the images are left for `ImageArrays.images`.

    Args:
        path: The archive.
        classes: The names of the classes; label k is the k-th from 0.

    Raises:
        UserError: no npz archive, no `images`, a wrong dtype or shape, pickled objects, labels out of range,
            or labels that would be taken for another number's class.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.getinfo(name).file_size for name in archive.namelist()}
            if "images.npy" not in members:
                raise UserError(
                    f"{path} has no array `images`: write it with numpy.savez(file, images=..., labels=...)"
                )
            with archive.open("images.npy") as stream:
                shape, dtype = _read_header(stream)
                header_bytes = stream.tell()
            _refuse_pickle(path, "images", dtype)
            if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
                raise UserError(
                    f"{path}: `images` is {dtype} {list(shape)}, but uint8 [N, H, W], [N, H, W, 1] or "
                    "[N, H, W, 3] is needed"
                )
            if min(shape) == 0:
                raise UserError(f"{path}: `images` is empty, shape {list(shape)}: remove the file")
            if members["images.npy"] != header_bytes + math.prod(shape):
                raise UserError(f"{path} is damaged (its images end early): write it again with numpy.savez")
            labels = np.full(shape[0], -1, np.int64)
            if "labels.npy" in members:
                labels = _read_labels(path, archive, shape[0], classes)
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(
            f"{path} is no readable .npz archive ({error}): write it again with numpy.savez"
        ) from None
    return ImageArrays(path, shape, labels)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Like numpy.savez, but the bytes depend on the arrays alone: no clock, no zlib, no operating system."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(info, buffer.getvalue())


def _read_labels(path: Path, archive: zipfile.ZipFile, count: int, classes: Sequence[str]) -> np.ndarray:
    with archive.open("labels.npy") as stream:
        shape, dtype = _read_header(stream)
        _refuse_pickle(path, "labels", dtype)
        if dtype.kind not in "iu" or shape != (count,):
            raise UserError(f"{path}: `labels` is {dtype} {list(shape)}, but integers [{count}] are needed")
        labels = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    if len(labels) != count:
        raise EOFError("its labels end early")
    wrong = np.flatnonzero((labels.astype(np.float64) < -1) | (labels.astype(np.float64) >= len(classes)))
    if len(wrong):
        raise UserError(
            f"{path}: {len(wrong)} of {count} labels are out of range, first {labels[wrong[0]]} at index "
            f"{wrong[0]}: labels go from 0 to {len(classes) - 1} (-1: unlabeled), in the order of "
            "classes.txt"
        )
    labels = labels.astype(np.int64)
    if ordered := _numbers_in_another_order(classes):
        for label in np.unique(labels[labels >= 0]):
            if classes[label] != ordered[label]:
                raise UserError(
                    f"{path}: label {label} is class number {label} of classes.txt, which is named "
                    f"{classes[label]!r}, as its numbers are not in numeric order: deliver class folders "
                    "instead"
                )
    return labels


def _numbers_in_another_order(classes: Sequence[str]) -> list[str] | None:
    """The classes in numeric order, if all are numbers and stand in another one."""
    if not all(name.isascii() and name.isdigit() for name in classes):
        return None
    ordered = sorted(classes, key=int)
    return None if ordered == list(classes) else ordered


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if fortran_order and len(shape) > 1:
        raise ValueError("an array in Fortran order, pass it through numpy.ascontiguousarray")
    return shape, dtype


def _refuse_pickle(path: Path, name: str, dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise UserError(
            f"{path}: `{name}` holds pickled Python objects, which are never loaded: save plain numbers "
            "(uint8 images, integer labels)"
        )
