"""Prepared drops: the arrays that training and certification read, memory-mapped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crt.errors import DamagedFileError, MissingFileError
from crt.spec import ImageSpec

FORMAT = 2


class Shards:
    """Several arrays of images [n, H, W, C] as one, uint8 [N, H, W, C]: only what is indexed is read."""

    def __init__(self, parts: Sequence["Images"]) -> None:
        self._parts: list[np.ndarray] = []
        for part in parts:
            self._parts += part._parts if isinstance(part, Shards) else [part]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *self._parts[0].shape[1:])
        self.nbytes = sum(part.nbytes for part in self._parts)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """One image by its number, or several by a slice or by numbers from 0.

        Raises:
            IndexError: there is no such image.
        """
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"no image {index} among {len(self)}")
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        if numbers.ndim == 0:
            return self._parts[int(places)][int(numbers - self._starts[places])]
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for place in np.unique(places):
            mine = places == place
            out[mine] = self._parts[place][numbers[mine] - self._starts[place]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self._parts)


Images = np.ndarray | Shards


def shard_name(number: int) -> str:
    """The file of a drop's images, from 0; a small drop has only the first."""
    return f"images-{number:04d}.npy" if number else "images.npy"


@dataclass(frozen=True)
class Store:
    """One prepared drop. Images stay on disk until they are indexed.

    `images` uint8 [N, H, W, C], `labels` int64 [N] (-1 = unlabelled); `fingerprint` stands for names, pixels, labels
    and how the pixels came to their format.
    """

    path: Path
    images: Images
    labels: np.ndarray
    spec: ImageSpec
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def names(self) -> list[str]:
        """Each image's path in its drop, or `<archive>#<index>`."""
        import pyarrow.parquet as pq

        names: list[str] = pq.read_table(self.path / "index.parquet", columns=["name"])["name"].to_pylist()
        return names


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
    return Store(
        path=path,
        images=images,
        labels=labels,
        spec=spec,
        fingerprint=meta["fingerprint"],
    )


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({why}): prepare the drop again", path)


def read_hashes(index: Path) -> dict[str, str]:
    """Pixel hash (SHA-256 over shape and pixels) -> name, of the images in a prepared drop's index.parquet.

    Raises:
        MissingFileError: There is no such file.
        DamagedFileError: It is no index.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(index, columns=["sha256", "name"])
    except FileNotFoundError:
        raise MissingFileError(f"{index} is missing: prepare the drop again", index.parent) from None
    except pa.ArrowException as error:
        raise _damaged(index, str(error)) from None
    return dict(zip(table["sha256"].to_pylist(), table["name"].to_pylist(), strict=True))
