"""Images from anywhere, written in the layout of `data/`: classes.txt, train/<drop>/, test/."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crt.datasets.archives import is_archive, unpack
from crt.datasets.arrays import is_npz, read_arrays, write_arrays
from crt.datasets.parquet import holds_parquet, is_parquet, unpack_parquet
from crt.datasets.parts import Part, find_parts
from crt.datasets.sorting import ImageFacts, NearCopies, counts_of, sort_out
from crt.datasets.sources import DataSet, common_size, write_classes
from crt.drops.copies import look_of
from crt.drops.images import ImageError, UnreadableImageError, pixel_hash, read_header, read_picture
from crt.drops.layout import ClassNames, check_class_names
from crt.drops.parallel import map_chunks
from crt.errors import UserError, first_ten
from crt.spec import ImageSpec


def write_folder(
    out: Path,
    source: Path,
    name: str,
    *,
    image_size: int | None = None,
    resize: str = "crop",
    skip_unreadable: bool = False,
    near_copies: NearCopies = "list",
    workers: int = 0,
) -> DataSet:
    """Images in any layout of docs/data.md: class folders, lists, parquet, `.npz`, or an archive of one.

    Without a test set, a fifth of each class becomes it; images of the same pixels stay together. Training
    images that the test set has too are left out. Files are copied as they are.

    Args:
        out: An empty folder.
        source: The folder or file.
        name: What the set is called.
        image_size: What images are to be scaled to; None: their common size up to 2048, otherwise the middle
            one of their shorter sides, at most 224.
        resize: How, see `crt.spec.ImageSpec`.
        skip_unreadable: Leave unreadable files out instead of failing.
        near_copies: What to do with training images that look like a test image.
        workers: Processes that decode; 0: one per core.

    Raises:
        UserError: No such layout, or images that cannot be read or used; names at most ten.
    """
    scratch = out / ".unpacked"
    try:
        folder = _as_folder(source, scratch)
        if arrays := read_arrays(folder):
            return write_arrays(out, arrays, name, image_size, resize, near_copies)
        return _write_files(out, folder, name, image_size, resize, skip_unreadable, near_copies, workers)
    except UserError as error:
        raise UserError(str(error).replace(str(scratch), str(source))) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _as_folder(source: Path, scratch: Path) -> Path:
    """The folder of image files that a source is, or that it was unpacked to."""
    if source.is_file() and is_archive(source) and not is_npz(source):
        unpack(source, scratch, ())
        return _as_folder(scratch, scratch / ".unpacked")
    if holds_parquet(source) if source.is_dir() else is_parquet(source):
        unpack_parquet(source, scratch)
        return scratch
    return source


def _write_files(
    out: Path,
    folder: Path,
    name: str,
    image_size: int | None,
    resize: str,
    skip_unreadable: bool,
    near_copies: NearCopies,
    workers: int,
) -> DataSet:
    found = find_parts(folder)
    check_class_names(found.classes, str(folder))
    known = ClassNames(found.classes)
    parts = {**found.drops, **({"": found.test} if found.test else {})}  # "": the test set
    paths = [image.path for part in parts.values() for image in part.images]
    headers = [header for header in map_chunks(_read_headers, paths, 256, workers) if header]
    spec = _common_spec(found.classes, headers, image_size, resize)
    looked, skipped = _look_at_all(folder, paths, spec, skip_unreadable, workers)
    entries = {place: _entries(part, looked, known) for place, part in parts.items()}
    test = entries.pop("", None)
    result = sort_out(entries, test, found.classes, near_copies)
    origins = {(place, image.name): image.path for place, part in parts.items() for image in part.images}
    test_place = "" if found.test else "base"
    for target, place, chosen in [
        ("test", test_place, result.test),
        *((f"train/{drop}", drop, kept) for drop, kept in result.drops.items()),
    ]:
        _copy([(origins[place, entry.name], entry.name) for entry in chosen], out / target)
    write_classes(out, found.classes)
    return DataSet(
        name,
        found.classes,
        spec.channels,
        spec.size,
        list(result.drops),
        left_out=result.left_out,
        skipped=skipped,
        ignored=found.ignored,
        near=result.near,
        counts=counts_of(result, found.classes),
        changes=Counter(change for look in looked.values() for change in look.changes),
        told=found.told,
    )


@dataclass(frozen=True)
class _Look:
    sha256: str
    look: bytes
    changes: tuple[str, ...]


def _entries(part: Part, looked: Mapping[Path, _Look], known: ClassNames) -> list[ImageFacts]:
    entries = []
    for image in part.images:
        if image.path in looked:
            label = None if image.label is None else known.label(image.label)
            seen = looked[image.path]
            entries.append(ImageFacts(image.name, -1 if label is None else label, seen.sha256, seen.look))
    return entries


def _look_at_all(
    folder: Path, paths: list[Path], spec: ImageSpec, skip_unreadable: bool, workers: int
) -> tuple[dict[Path, _Look], list[str]]:
    """Hash and look of every image that can be read, and what was skipped."""
    looked: dict[Path, _Look] = {}
    problems, skipped = [], []
    found = map_chunks(partial(_look_at, spec=spec), paths, 64, workers)
    for path, item in zip(paths, found, strict=True):
        if isinstance(item, _Look):
            looked[path] = item
        elif skip_unreadable and isinstance(item, UnreadableImageError):
            skipped.append(str(item))
        else:
            problems.append(item)
    if problems:
        named = first_ten([str(problem) for problem in problems])
        unreadable = any(isinstance(problem, UnreadableImageError) for problem in problems)
        remedy = "; data.skip_unreadable=true leaves out those that cannot be read" if unreadable else ""
        raise UserError(
            f"{folder} has {len(problems)} image(s) that cannot be used: {named}; "
            f"repair or remove them{remedy}"
        )
    return looked, skipped


def _copy(files: list[tuple[Path, str]], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path, name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _read_headers(paths: list[Path]) -> list[tuple[str, tuple[int, int]] | None]:
    """Mode and size of image files; None where one cannot be read."""
    headers: list[tuple[str, tuple[int, int]] | None] = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except UnreadableImageError:
            headers.append(None)
    return headers


def _common_spec(
    classes: Sequence[str],
    headers: Sequence[tuple[str, tuple[int, int]]],
    image_size: int | None,
    resize: str,
) -> ImageSpec:
    channels = 1 if all(mode in ("L", "LA", "1") or mode.startswith("I") for mode, _ in headers) else 3
    size = image_size or common_size([size for _, size in headers])
    return ImageSpec(tuple(classes), size, channels, resize)


def _look_at(paths: list[Path], spec: ImageSpec) -> list[_Look | ImageError]:
    looks: list[_Look | ImageError] = []
    for path in paths:
        try:
            picture = read_picture(path, spec)
        except ImageError as error:
            looks.append(error)
        else:
            looks.append(_Look(pixel_hash(picture.pixels), look_of(picture.pixels), picture.changes))
    return looks
