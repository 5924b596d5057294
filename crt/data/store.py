"""Prepared drops: the arrays that training and certification read, memory-mapped."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from crt.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Store:
    """One prepared drop. Images stay on disk until they are indexed.

    `images` uint8 [N, H, W, C], `labels` int64 [N] (-1 = unlabelled); `fingerprint` stands for names, pixels, labels
    and how the pixels came to their format.
    """

    path: Path
    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    fingerprint: str
    image_size: int
    channels: int

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
        UserError: it is missing, incomplete, or of another format.
    """
    remedy = "run `dvc repro` (or `dvc pull`) to get it"
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(path / "labels.npy", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {remedy}") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {meta.get('format')}, this version reads {FORMAT}: run `dvc repro` to rewrite it"
        )
    shape = (meta["count"], meta["image_size"], meta["image_size"], meta["channels"])
    if images.shape != shape or images.dtype != np.uint8 or labels.shape != shape[:1]:
        raise UserError(
            f"{path} is damaged (its arrays do not have the {shape[0]} images of meta.json): {remedy}"
        )
    return Store(
        path=path,
        images=images,
        labels=labels,
        classes=meta["classes"],
        fingerprint=meta["fingerprint"],
        image_size=meta["image_size"],
        channels=meta["channels"],
    )


def read_hashes(index: Path) -> dict[str, str]:
    """Pixel hash (SHA-256 over shape and pixels) -> name, of the images in a prepared drop's index.parquet.

    Raises:
        UserError: the file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(index, columns=["sha256", "name"])
    except (FileNotFoundError, pa.ArrowException) as error:
        raise UserError(
            f"{index} cannot be read ({error}): run `dvc repro prepare_test` to write it"
        ) from None
    return dict(zip(table["sha256"].to_pylist(), table["name"].to_pylist(), strict=True))
