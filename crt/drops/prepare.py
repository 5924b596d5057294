"""From a raw drop to a prepared one: one pass, all cores, memory for pixels independent of the number of images."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from tqdm import tqdm

from crt.data.store import FORMAT, shard_name
from crt.drops.images import (
    ImageError,
    MisfitImageError,
    decode_image,
    fit_array,
    pixel_hash,
)
from crt.drops.layout import Drop, ImageFile, by_suffix, first_ten, read_drop
from crt.drops.parallel import map_chunks
from crt.drops.split import in_validation
from crt.errors import UserError
from crt.files import replacing
from crt.spec import ImageSpec

_CHUNK_BYTES = 4 << 20  # pixels that one task of a worker returns
_SHARD_BYTES = 1 << 30  # pixels in one file: DVC transfers files side by side
_ROW_GROUP = 16384


@dataclass(frozen=True)
class DecodedImage:
    """One image on its way: `pixels` uint8 [H, W, C] in the network's format."""

    name: str
    label: int
    source: str
    pixels: np.ndarray
    sha256: str
    validation: bool = False  # set aside: training leaves it out


def prepare_drop(
    source: Path,
    out: Path,
    *,
    spec: ImageSpec,
    validation: float = 0.0,
    skip_unreadable: bool = False,
    test_hashes: Mapping[str, str] | None = None,
    workers: int = 0,
    need_labels: bool = False,
) -> dict[str, Any]:
    """Check a raw drop and write it as arrays to the folder `out`, which appears complete or not at all.

    Args:
        source: the raw drop, see `crt.drops.layout`.
        spec: the classes, what the network takes, and how images are brought there.
        validation: share of the labelled images to set aside, see `crt.drops.split`.
        skip_unreadable: leave unreadable image files out instead of failing.
        test_hashes: pixel hash -> name of every test image; None: do not compare (for the test set itself).
        workers: processes that decode; 0: one per core.
        need_labels: unlabelled images are an error (the test set).

    Returns:
        The summary: counts per class, what is set aside, duplicates, what was skipped.

    Raises:
        UserError: the drop does not hold what it should; names at most ten of the files.
    """
    drop = read_drop(source, spec.classes)
    with replacing(out) as aside, Writer(aside, drop.count, spec) as writer:
        rows = _decoded_images(drop, spec, validation, workers)
        summary = _examine(drop, rows, spec, skip_unreadable, test_hashes, need_labels, consume=writer.add)
        writer.finish()
    return summary


def check_drop(
    source: Path,
    *,
    spec: ImageSpec,
    validation: float = 0.0,
    skip_unreadable: bool = False,
    test_hashes: Mapping[str, str] | None = None,
    workers: int = 0,
    need_labels: bool = False,
    look: Callable[[DecodedImage], None] = lambda row: None,
) -> dict[str, Any]:
    """All of `prepare_drop`'s checks, and its summary, without writing anything; `look` sees each sound image."""
    drop = read_drop(source, spec.classes)
    rows = _decoded_images(drop, spec, validation, workers)
    return _examine(drop, rows, spec, skip_unreadable, test_hashes, need_labels, consume=look)


def raw_hashes(
    source: Path, *, spec: ImageSpec, skip_unreadable: bool = False, workers: int = 0
) -> dict[str, str]:
    """Pixel hash -> name of a raw drop's images, as `read_hashes` gives it for a prepared one."""
    hashes: dict[str, str] = {}
    drop = read_drop(source, spec.classes)
    rows = _decoded_images(drop, spec, 0.0, workers)
    _examine(
        drop, rows, spec, skip_unreadable, None, False, lambda row: hashes.update({row.sha256: row.name})
    )
    return hashes


@dataclass
class _Findings:
    """What is wrong with a drop, gathered over the whole of it so that one run names all."""

    unreadable: list[str] = field(default_factory=list)
    misfits: list[MisfitImageError] = field(default_factory=list)
    overlap: list[str] = field(default_factory=list)

    def add(self, problem: ImageError) -> None:
        if isinstance(problem, MisfitImageError):
            self.misfits.append(problem)
        else:
            self.unreadable.append(f"{problem.name} ({problem.reason})")

    def sentence(self, folder: Path, skip_unreadable: bool) -> str | None:
        parts = []
        if self.unreadable and not skip_unreadable:
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
        if self.overlap:
            parts.append(
                f"{len(self.overlap)} image(s) that also stand in the test set: {first_ten(self.overlap)}; "
                "remove them from the drop, or the test results would be too good"
            )
        return f"{folder} has " + ", and ".join(parts) if parts else None


def _examine(
    drop: Drop,
    rows: Iterable[DecodedImage | ImageError],
    spec: ImageSpec,
    skip_unreadable: bool,
    test_hashes: Mapping[str, str] | None,
    need_labels: bool,
    consume: Callable[[DecodedImage], None],
) -> dict[str, Any]:
    """Look at every image once, hand the sound ones to `consume` in order, and count."""
    counts = np.zeros(len(spec.classes) + 1, np.int64)  # the last one: unlabelled, label -1
    aside = np.zeros(len(spec.classes), np.int64)
    seen: set[bytes] = set()
    duplicates = 0
    findings = _Findings()
    progress = tqdm(total=drop.count, desc=drop.folder.name, unit="img", delay=2, disable=None, leave=False)
    with progress:
        for item in rows:
            progress.update()
            if isinstance(item, ImageError):
                findings.add(item)
                continue
            if test_hashes is not None and item.sha256 in test_hashes:
                findings.overlap.append(f"{item.name} (test image {test_hashes[item.sha256]})")
            digest = bytes.fromhex(item.sha256)
            duplicates += digest in seen
            seen.add(digest)
            counts[item.label] += 1
            if item.validation:
                aside[item.label] += 1
            consume(item)
    if sentence := findings.sentence(drop.folder, skip_unreadable):
        raise UserError(sentence)
    if counts.sum() == 0:
        raise UserError(f"{drop.folder} holds no readable image: deliver it again")
    if need_labels and counts[-1]:
        raise UserError(
            f"{drop.folder} has {counts[-1]} unlabelled image(s), but a test set needs labels: add or remove them"
        )
    return {
        "images": int(counts.sum()),
        "unlabelled": int(counts[-1]),
        "classes": _by_class(spec, counts[:-1]),
        "validation": {
            "images": int(aside.sum()),
            "classes": _by_class(spec, aside),
            "whole_classes": [spec.classes[k] for k in np.flatnonzero((aside == counts[:-1]) & (aside > 0))],
        },
        "duplicates": duplicates,
        "skipped": len(findings.unreadable),
        "skipped_files": findings.unreadable,
        "ignored_files": len(drop.ignored),
        "ignored": by_suffix(drop.ignored),
    }


def _by_class(spec: ImageSpec, counts: np.ndarray) -> dict[str, int]:
    return {name: int(count) for name, count in zip(spec.classes, counts, strict=True)}


def _decoded_images(
    drop: Drop, spec: ImageSpec, validation: float, workers: int
) -> Iterator[DecodedImage | ImageError]:
    """Every image of the drop in order, or what is wrong with it."""
    chunk = max(1, min(256, _CHUNK_BYTES // (spec.size**2 * spec.channels)))
    yield from map_chunks(partial(decode_rows, spec=spec, validation=validation), drop.files, chunk, workers)
    for archive in drop.archives:
        source = archive.path.name
        for index, pixels in enumerate(archive.images()):
            name = f"{source}#{index}"
            try:
                fitted = fit_array(pixels, spec, name)
            except MisfitImageError as error:
                yield error
                continue
            yield _decoded(name, int(archive.labels[index]), source, fitted, validation)


def decode_rows(
    files: list[ImageFile], spec: ImageSpec, validation: float = 0.0
) -> list[DecodedImage | ImageError]:
    """Decode image files; an error stands in the place of its image."""
    rows: list[DecodedImage | ImageError] = []
    for file in files:
        try:
            pixels = decode_image(file.path, spec)
        except ImageError as error:
            error.name = file.name  # as the drop calls it
            rows.append(error)
        else:
            rows.append(_decoded(file.name, file.label, file.name, pixels, validation))
    return rows


def _decoded(name: str, label: int, source: str, pixels: np.ndarray, validation: float) -> DecodedImage:
    aside = label >= 0 and in_validation(pixels, validation)
    return DecodedImage(name, label, source, pixels, pixel_hash(pixels), aside)


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
