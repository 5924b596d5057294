"""From a raw drop to a prepared one: in one pass, on all cores, without holding all pixels in memory."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from tqdm import tqdm

from crt.data.store import FORMAT, open_store, shard_name
from crt.drops.copies import SMALLEST, KnownImages, look_of
from crt.drops.images import (
    CHANGES,
    ImageError,
    MisfitImageError,
    Picture,
    fit_array,
    pixel_hash,
    read_picture,
)
from crt.drops.layout import Drop, ImageFile, by_suffix, read_drop
from crt.drops.parallel import map_chunks
from crt.drops.split import in_validation
from crt.errors import UserError, first_ten
from crt.files import replacing
from crt.spec import ImageSpec

_CHUNK_BYTES = 4 << 20  # pixels that one task of a worker returns
_SHARD_BYTES = 1 << 30  # pixels in one file: DVC transfers files side by side
_ROW_GROUP = 16384
_NAMED = 100  # files that a summary names of each kind; it counts all


@dataclass(frozen=True)
class DecodedImage:
    """One image on its way: `pixels` uint8 [H, W, C] in the network's format."""

    name: str
    label: int
    source: str
    pixels: np.ndarray
    sha256: str
    validation: bool = False  # set aside: training leaves it out
    look: bytes = b""  # see `crt.drops.copies.look_of`; empty where nobody asks
    changes: tuple[str, ...] = ()  # what was done to it, see `crt.drops.images.CHANGES`


@dataclass(frozen=True)
class Checks:
    """What a drop is held to.

    Attributes:
        validation: Share of the labeled images to set aside, see `crt.drops.split`.
        skip_unreadable: Leave unreadable image files out instead of failing.
        tested: The test images; None: do not compare (for the test set itself).
        near_copies: What to do with images that look like a test image: `list` them, `drop` or `refuse` them.
        need_labels: Unlabeled images are an error (the test set).
    """

    validation: float = 0.0
    skip_unreadable: bool = False
    tested: KnownImages | None = None
    near_copies: Literal["list", "drop", "refuse"] = "list"
    need_labels: bool = False


def prepare_drop(
    source: Path, out: Path, *, spec: ImageSpec, checks: Checks | None = None, workers: int = 0
) -> dict[str, Any]:
    """Check a raw drop and write it as arrays to the folder `out`, which appears complete or not at all.

    Args:
        source: the raw drop, see `crt.drops.layout`.
        out: where the arrays go.
        spec: the classes, what the network takes, and how images are brought there.
        checks: what the drop is held to.
        workers: processes that decode; 0: one per core.

    Returns:
        The summary: counts per class, what is set aside, copies, what was changed, skipped and ignored.

    Raises:
        UserError: the drop does not hold what it should; names at most ten of the files.
    """
    drop = read_drop(source, spec.classes)
    with replacing(out) as aside, Writer(aside, drop.count, spec) as writer:
        summary = _examine(drop, spec, checks or Checks(), workers, consume=writer.add)
        writer.finish()
    return summary


def check_drop(
    source: Path,
    *,
    spec: ImageSpec,
    checks: Checks | None = None,
    workers: int = 0,
    look: Callable[[DecodedImage], None] = lambda row: None,
) -> dict[str, Any]:
    """All of `prepare_drop`'s checks, and its summary; nothing is written. `look` sees each sound image."""
    return _examine(read_drop(source, spec.classes), spec, checks or Checks(), workers, consume=look)


def raw_images(
    source: Path, *, spec: ImageSpec, skip_unreadable: bool = False, workers: int = 0
) -> KnownImages:
    """A raw test set's images, as `prepared_images` gives them for a prepared one."""
    known = KnownImages()
    # It is not compared with anything, but its looks are wanted.
    checks = Checks(skip_unreadable=skip_unreadable, tested=KnownImages())
    check_drop(
        source,
        spec=spec,
        checks=checks,
        workers=workers,
        look=lambda row: known.add(row.name, row.sha256, row.look),
    )
    return known


def prepared_images(folder: Path) -> KnownImages:
    """The images of a prepared drop, by their pixels and their looks.

    Raises:
        MissingFileError: It is not there.
        DamagedFileError: It is no prepared drop.
    """
    store, known = open_store(folder), KnownImages()
    for number, (name, sha256) in enumerate(zip(store.names, store.hashes, strict=True)):
        known.add(name, sha256, look_of(store.images[number]))
    return known


@dataclass
class _Findings:
    """What is wrong with a drop, gathered over the whole of it so that one run names all."""

    unreadable: list[str] = field(default_factory=list)
    misfits: list[MisfitImageError] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    overlap: list[str] = field(default_factory=list)
    near: list[str] = field(default_factory=list)

    def add(self, problem: ImageError) -> None:
        if isinstance(problem, MisfitImageError):
            self.misfits.append(problem)
        else:
            self.unreadable.append(f"{problem.name} ({problem.reason})")

    def sentence(self, folder: Path, checks: Checks) -> str | None:
        parts = []
        if self.unreadable and not checks.skip_unreadable:
            parts.append(
                f"{len(self.unreadable)} unreadable image(s): {first_ten(self.unreadable)}; "
                "convert, repair or remove them, or set skip_unreadable to true to leave them out"
            )
        if self.misfits:
            named = first_ten([f"{image.name} ({image.reason})" for image in self.misfits])
            resizable = sum(image.resizable for image in self.misfits)
            remedy = f", or set resize to crop or squash for {resizable} of them" if resizable else ""
            parts.append(
                f"{len(self.misfits)} image(s) of the wrong size or mode: {named}; convert them{remedy}"
            )
        if self.contradictions:
            parts.append(
                f"{len(self.contradictions)} image(s) under two labels: {first_ten(self.contradictions)}; "
                "remove what is wrong"
            )
        if self.overlap:
            parts.append(
                f"{len(self.overlap)} image(s) that also stand in the test set: {first_ten(self.overlap)}; "
                "remove them from the drop, or the test results would be too good"
            )
        if self.near and checks.near_copies == "refuse":
            parts.append(
                f"{len(self.near)} image(s) that look like a test image: {first_ten(self.near)}; "
                "remove them from the drop, or set near_copies to drop to leave them out"
            )
        return f"{folder} has " + ", and ".join(parts) if parts else None


class _Seen:
    """The images of a drop so far, to find those that come again."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._first: dict[bytes, tuple[str, int]] = {}  # of each image its first name, and its label
        self.again = 0

    def add(self, item: DecodedImage) -> str | None:
        """Which image contradicts this one's label, in words."""
        digest = bytes.fromhex(item.sha256)
        name, label = self._first.setdefault(digest, (item.name, item.label))
        self.again += name != item.name
        if label < 0 <= item.label:
            self._first[digest] = (item.name, item.label)
        if item.label < 0 or label < 0 or item.label == label:
            return None
        mine, other = self._classes[item.label], self._classes[label]
        return f"{item.name} is labeled {mine}, and the same image as {name} {other}"


def _examine(
    drop: Drop, spec: ImageSpec, checks: Checks, workers: int, consume: Callable[[DecodedImage], None]
) -> dict[str, Any]:
    """Look at every image once, hand the sound ones to `consume` in order, and count."""
    counts = np.zeros(len(spec.classes) + 1, np.int64)  # the last one: unlabeled, label -1
    aside = np.zeros(len(spec.classes), np.int64)
    changes: Counter[str] = Counter()
    seen, findings, tested = _Seen(spec.classes), _Findings(), checks.tested
    progress = tqdm(total=drop.count, desc=drop.folder.name, unit="img", delay=2, disable=None, leave=False)
    with progress:
        for item in _decoded_images(drop, spec, checks.validation, tested is not None, workers):
            progress.update()
            if isinstance(item, ImageError):
                findings.add(item)
                continue
            if contradiction := seen.add(item):
                findings.contradictions.append(contradiction)
            if tested and item.sha256 in tested.by_hash:
                findings.overlap.append(f"{item.name} (test image {tested.by_hash[item.sha256]})")
            elif tested and (like := tested.like(item.look)):
                findings.near.append(f"{item.name} (test image {like})")
                if checks.near_copies == "drop":
                    continue
            counts[item.label] += 1
            if item.validation:
                aside[item.label] += 1
            changes.update(item.changes)
            consume(item)
    if sentence := findings.sentence(drop.folder, checks):
        raise UserError(sentence)
    if counts.sum() == 0:
        left_out = f" that does not look like a test image ({first_ten(findings.near)})"
        raise UserError(
            f"{drop.folder} holds no readable image{left_out if findings.near else ''}: deliver it again"
        )
    if checks.need_labels and counts[-1]:
        raise UserError(
            f"{drop.folder} has {counts[-1]} unlabeled image(s), but a test set needs labels: add or remove "
            "them"
        )
    compared = tested is not None and spec.size >= SMALLEST
    near = {"images": len(findings.near), "left_out": checks.near_copies == "drop"}
    return {
        "images": int(counts.sum()),
        "unlabelled": int(counts[-1]),
        "classes": _by_class(spec, counts[:-1]),
        "validation": {
            "images": int(aside.sum()),
            "classes": _by_class(spec, aside),
            "whole_classes": [spec.classes[k] for k in np.flatnonzero((aside == counts[:-1]) & (aside > 0))],
        },
        "changes": {change: changes[change] for change in CHANGES if changes[change]},
        "duplicates": seen.again,
        "near_copies": near | {"files": findings.near[:_NAMED]} if compared else None,
        "skipped": len(findings.unreadable),
        "skipped_files": findings.unreadable,
        "ignored_files": len(drop.ignored),
        "ignored": by_suffix(drop.ignored),
        "ignored_names": drop.ignored[:_NAMED],
    }


def _by_class(spec: ImageSpec, counts: np.ndarray) -> dict[str, int]:
    return {name: int(count) for name, count in zip(spec.classes, counts, strict=True)}


def _decoded_images(
    drop: Drop, spec: ImageSpec, validation: float, looks: bool, workers: int
) -> Iterator[DecodedImage | ImageError]:
    """Every image of the drop in order, or what is wrong with it."""
    chunk = max(1, min(256, _CHUNK_BYTES // (spec.size**2 * spec.channels)))
    decode = partial(decode_rows, spec=spec, validation=validation, looks=looks)
    yield from map_chunks(decode, drop.files, chunk, workers)
    for archive in drop.archives:
        source = archive.path.name
        for index, pixels in enumerate(archive.images()):
            name = f"{source}#{index}"
            try:
                fitted = fit_array(pixels, spec, name)
            except MisfitImageError as error:
                yield error
                continue
            yield _decoded(name, int(archive.labels[index]), source, Picture(fitted, ()), validation, looks)


def decode_rows(
    files: list[ImageFile], spec: ImageSpec, validation: float = 0.0, looks: bool = False
) -> list[DecodedImage | ImageError]:
    """Decode image files; an error stands in the place of its image."""
    rows: list[DecodedImage | ImageError] = []
    for file in files:
        try:
            picture = read_picture(file.path, spec)
        except ImageError as error:
            error.name = file.name  # as the drop calls it
            rows.append(error)
        else:
            rows.append(_decoded(file.name, file.label, file.name, picture, validation, looks))
    return rows


def _decoded(
    name: str, label: int, source: str, picture: Picture, validation: float, looks: bool
) -> DecodedImage:
    pixels = picture.pixels
    aside = label >= 0 and in_validation(pixels, validation)
    look = look_of(pixels) if looks else b""
    return DecodedImage(name, label, source, pixels, pixel_hash(pixels), aside, look, picture.changes)


class Writer:
    """Streams rows into the files of a prepared drop (the format is `crt.data.store`'s)."""

    def __init__(self, folder: Path, count: int, spec: ImageSpec) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._folder, self._spec, self._count = folder, spec, 0
        self._shard, self._per_shard = 0, max(1, _SHARD_BYTES // (spec.size**2 * spec.channels))
        self._images = (folder / shard_name(0)).open("wb")
        self._labels = (folder / "labels.npy").open("wb")
        self._write_headers(count)
        columns = [
            ("name", pa.string()),
            ("sha256", pa.string()),
            ("label", pa.int64()),
            ("source", pa.string()),
            ("validation", pa.bool_()),
        ]
        self._schema = pa.schema(columns)
        self._index = pq.ParquetWriter(folder / "index.parquet", self._schema)
        self._pending: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._images, self._labels, self._index):
            file.close()

    def add(self, row: DecodedImage) -> None:
        if self._count == (self._shard + 1) * self._per_shard:
            self._next_shard()
        self._images.write(row.pixels.tobytes())
        self._labels.write(np.int64(row.label).tobytes())
        aside = [row.validation] if row.validation else []  # a drop without a split keeps its fingerprint
        self._digest.update(json.dumps([row.name, row.sha256, row.label, *aside]).encode())
        self._pending.append({column: getattr(row, column) for column in self._schema.names})
        self._count += 1
        if len(self._pending) == _ROW_GROUP:
            self._flush_index()

    def finish(self) -> None:
        """Settle the number of images, which unreadable files may have lowered, and describe the drop."""
        self._flush_index()
        self._write_headers(self._count)
        setting = {
            "classes": list(self._spec.classes),
            "image_size": self._spec.size,
            "channels": self._spec.channels,
            "count": self._count,
            "resize": self._spec.resize,
        }
        self._digest.update(json.dumps(setting, sort_keys=True).encode())
        fingerprint = self._digest.hexdigest()
        meta = {"format": FORMAT, "fingerprint": fingerprint, **setting, "shards": self._shard + 1}
        text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
        (self._folder / "meta.json").write_text(text, encoding="utf-8", newline="\n")

    def _write_headers(self, count: int) -> None:
        # NumPy pads a header so that the first axis can grow: another count does not change its length.
        size, channels = self._spec.size, self._spec.channels
        in_shard = min(count - self._shard * self._per_shard, self._per_shard)
        _write_header(self._images, "|u1", (in_shard, size, size, channels))
        _write_header(self._labels, "<i8", (count,))

    def _next_shard(self) -> None:
        self._images.close()
        self._shard += 1
        self._images = (self._folder / shard_name(self._shard)).open("wb")
        size, channels = self._spec.size, self._spec.channels
        _write_header(self._images, "|u1", (self._per_shard, size, size, channels))

    def _flush_index(self) -> None:
        import pyarrow as pa

        if self._pending:
            self._index.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
            self._pending = []


def _write_header(file: BinaryIO, descr: str, shape: tuple[int, ...]) -> None:
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
