"""Prepared drops: the arrays that training and certification read, memory-mapped."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crt.errors import DamagedFileError, MissingFileError, UserError
from crt.spec import ImageSpec, check_fits

FORMAT = 2


class Shards:
    """Several arrays of images [n, H, W, C] as one, uint8 [N, H, W, C]: only what is indexed is read."""

    def __init__(self, parts: Sequence["Images"], chosen: np.ndarray | None = None) -> None:
        """Join arrays.

        Args:
            parts: The arrays.
            chosen: int64 [N], the numbers of the images to take from all of them; None: all.
        """
        self._chosen = chosen
        self._parts: list[Images] = []
        for part in parts:
            self._parts += part._parts if isinstance(part, Shards) and part._chosen is None else [part]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        count = int(self._starts[-1]) if chosen is None else len(chosen)
        self.shape: tuple[int, ...] = (count, *self._parts[0].shape[1:])
        self.nbytes = math.prod(self.shape)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """One image by its number, or several by a slice or by numbers from 0.

        Raises:
            IndexError: There is no such image.
        """
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"no image {index} among {len(self)}")
        if self._chosen is not None:
            numbers = self._chosen[numbers]
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        if numbers.ndim == 0:
            return self._parts[int(places)][int(numbers - self._starts[places])]
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for place in np.unique(places):
            mine = places == place
            out[mine] = self._parts[place][numbers[mine] - self._starts[place]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self._parts) if self._chosen is None else self[:]


Images = np.ndarray | Shards


def shard_name(number: int) -> str:
    """The file of a drop's images, from 0; a small drop has only the first."""
    return f"images-{number:04d}.npy" if number else "images.npy"


@dataclass(frozen=True)
class Store:
    """One prepared drop. Images stay on disk until they are indexed.

    Attributes:
        path: Its folder.
        images: uint8 [N, H, W, C].
        labels: int64 [N], -1 = unlabeled.
        spec: What the images are.
        fingerprint: Stands for names, pixels, labels, which images are set aside, and how the pixels came to
            their format.
        validation: bool [N], the images that are set aside for validation. Training leaves them out.
    """

    path: Path
    images: Images
    labels: np.ndarray
    spec: ImageSpec
    fingerprint: str
    validation: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def names(self) -> list[str]:
        """Each image's path in its drop, or `<archive>#<index>`."""
        return _read_index(self.path / "index.parquet", "name")["name"]

    @cached_property
    def hashes(self) -> list[str]:
        """Each image's pixel hash, SHA-256 over shape and pixels."""
        return _read_index(self.path / "index.parquet", "sha256")["sha256"]


@dataclass(frozen=True)
class ValidationSplit(Store):
    """The images that several drops set aside, as one store.

    Attributes:
        image_names: `<drop>/<name>` of each image.
    """

    image_names: list[str]

    @cached_property
    def names(self) -> list[str]:
        """Each image's drop and its path there."""
        return self.image_names


def open_validation(folder: Path) -> ValidationSplit:
    """The images that the prepared drops in `folder` set aside, by drop.

    The fingerprint depends on these images alone: another drop without any changes nothing.

    Raises:
        MissingFileError: There is no prepared drop, or one of its files is not there.
        DamagedFileError: A drop is damaged.
        UserError: No image is set aside, or the drops differ in what their images are.
    """
    drops = [open_store(meta.parent) for meta in sorted(folder.glob("*/meta.json"))]
    if not drops:
        raise MissingFileError(f"{folder} holds no prepared drop: prepare the training drops", folder)
    first = drops[0]
    for drop in drops[1:]:
        check_fits(str(first.path), first.spec, str(drop.path), drop.spec, "prepare both again", resize=True)
    chosen = np.flatnonzero(np.concatenate([drop.validation for drop in drops]))
    if not len(chosen):
        raise UserError(
            f"no image in {folder} is set aside: prepare the drops with a validation share above 0"
        )
    names, hashes = [], []
    for drop in drops:
        index = _read_index(drop.path / "index.parquet", "name", "sha256")
        names += [f"{drop.path.name}/{name}" for name in index["name"]]
        hashes += index["sha256"]
    names, hashes = [names[number] for number in chosen], [hashes[number] for number in chosen]
    labels = np.concatenate([drop.labels for drop in drops])[chosen]
    facts = [names, hashes, labels.tolist(), first.spec.classes, first.spec.resize]
    return ValidationSplit(
        path=folder,
        images=Shards([drop.images for drop in drops], chosen),
        labels=labels,
        spec=first.spec,
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        validation=np.ones(len(chosen), bool),
        image_names=names,
    )


def open_split(folder: Path, split: Literal["test", "validation"]) -> Store:
    """The images of a split: a prepared test set, or what the prepared drops in `folder` set aside."""
    return open_store(folder) if split == "test" else open_validation(folder)


def open_store(path: Path) -> Store:
    """Open a prepared drop.

    Raises:
        MissingFileError: The folder or one of its files is not there.
        DamagedFileError: It is incomplete, contradicts itself, or another version prepared it.
    """
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        shards = [
            np.load(path / shard_name(number), mmap_mode="r", allow_pickle=False)
            for number in range(meta.get("shards", 1))
        ]
        labels = np.load(path / "labels.npy", allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingFileError(f"{error.filename} is missing: prepare the drop again", path) from None
    except (ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from None
    if meta.get("format") != FORMAT:
        raise DamagedFileError(
            f"{path} has format {meta.get('format')}, this version reads {FORMAT}: prepare the drop again",
            path,
        )
    spec = ImageSpec(meta["classes"], meta["image_size"], meta["channels"], meta["resize"])
    shape = (meta["count"], spec.size, spec.size, spec.channels)
    sound = all(shard.shape[1:] == shape[1:] and shard.dtype == np.uint8 for shard in shards)
    images = shards[0] if len(shards) == 1 else Shards(shards)
    if not sound or images.shape != shape or labels.shape != shape[:1]:
        raise _damaged(path, f"its arrays do not have the {shape[0]} images of meta.json")
    if len(labels) and not -1 <= labels.min() <= labels.max() < len(spec.classes):
        raise _damaged(path, "it has labels of no class")
    validation = _read_validation(path / "index.parquet", len(labels))
    return Store(
        path=path,
        images=images,
        labels=labels,
        spec=spec,
        fingerprint=meta["fingerprint"],
        validation=validation,
    )


def _read_validation(file: Path, count: int) -> np.ndarray:
    """bool [count]: which images are set aside; none where the index is older than validation images."""
    import pyarrow.parquet as pq

    index = _read_index(file, "name")
    if "validation" not in pq.read_schema(file).names:
        index["validation"] = [False] * len(index["name"])
    else:
        index = _read_index(file, "validation")
    if len(index["validation"]) != count:
        raise _damaged(file.parent, f"its index has {len(index['validation'])} of {count} images")
    return np.array(index["validation"], bool)


def _read_index(file: Path, *columns: str) -> dict[str, list[Any]]:
    """Columns of an index.parquet, by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found: dict[str, list[Any]] = pq.ParquetFile(file).read(list(columns)).to_pydict()
    except FileNotFoundError:
        raise MissingFileError(f"{file} is missing: prepare the drop again", file.parent) from None
    except pa.ArrowException as error:
        raise _damaged(file, str(error)) from None
    if lacking := [name for name in columns if name not in found]:
        raise _damaged(file, f"it has no column {', '.join(lacking)}")
    return found


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({why}): prepare the drop again", path)
