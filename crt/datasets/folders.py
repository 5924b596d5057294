"""A folder of image files from anywhere, written in the layout of `data/`: classes.txt, train/<drop>/, test/."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from crt.datasets.sources import TEST_SHARE, DataSet, write_classes
from crt.drops.images import (
    ImageError,
    UnreadableImageError,
    decode_image,
    pixel_hash,
    read_header,
)
from crt.drops.layout import (
    Drop,
    ImageFile,
    check_class_names,
    check_encoding,
    compose,
    first_ten,
    is_junk,
    read_drop,
    walk_files,
)
from crt.drops.parallel import map_chunks
from crt.errors import UserError
from crt.spec import ImageSpec

_LARGEST = 224  # pixels; images of mixed sizes are scaled to no more than this unless told
_LARGEST_COMMON = 2048  # pixels; images of one size keep it up to this, the most that a configuration takes


def write_folder(
    out: Path,
    folder: Path,
    name: str,
    *,
    image_size: int | None = None,
    resize: str = "crop",
    skip_unreadable: bool = False,
    workers: int = 0,
) -> DataSet:
    """A tree of image files: train/<class>/, train/<drop>/<class>/ or just <class>/, with or without test/<class>/.

    Without a test set (`test` or `val`), a fifth of each class becomes it; images of the same pixels stay together.
    Training images that the test set has too are left out. Files are copied as they are.

    Args:
        image_size: what images are to be scaled to; None: their common size up to 2048, otherwise the middle one of their
            shorter sides, at most 224.
        resize: how, see `crt.spec.ImageSpec`.
        skip_unreadable: leave unreadable files out instead of failing.

    Raises:
        UserError: no such layout, or images that cannot be read or used; names at most ten.
    """
    drops, test, classes = _find_parts(folder)
    check_class_names(classes, str(folder))
    parts = [*drops.values(), *([test] if test else [])]
    files = [file for part in parts for file in part.files]
    headers = [found for found in map_chunks(_read_headers, files, 256, workers) if found]
    spec = _common_spec(classes, headers, image_size, resize)
    hashes, skipped = _hash_all(folder, files, spec, skip_unreadable, workers)
    chosen = {drop: [file for file in part.files if file.path in hashes] for drop, part in drops.items()}
    if test:
        test_files = [file for file in test.files if file.path in hashes]
    else:
        chosen["base"], test_files = _split(chosen["base"], hashes)

    in_test = {hashes[file.path] for file in test_files}
    left_out = []
    _copy(test_files, out / "test")
    for drop, train_files in chosen.items():
        _copy([file for file in train_files if hashes[file.path] not in in_test], out / "train" / drop)
        left_out += [f"{drop}/{file.name}" for file in train_files if hashes[file.path] in in_test]
    write_classes(out, classes)
    ignored = [
        f"{part.folder.relative_to(folder).as_posix()}/{name}" for part in parts for name in part.ignored
    ]
    ignored += _beside(folder, [part.folder for part in parts])
    return DataSet(name, classes, spec.channels, spec.size, list(chosen), left_out, skipped, ignored)


def _hash_all(
    folder: Path, files: list[ImageFile], spec: ImageSpec, skip_unreadable: bool, workers: int
) -> tuple[dict[Path, str], list[str]]:
    """The pixel hash of every image, and what was skipped."""
    hashes: dict[Path, str] = {}
    problems, skipped = [], []
    found = map_chunks(partial(_read_hashes, spec=spec), files, 64, workers)
    for file, item in zip(files, found, strict=True):
        if isinstance(item, str):
            hashes[file.path] = item
        elif skip_unreadable and isinstance(item, UnreadableImageError):
            skipped.append(str(item))
        else:
            problems.append(str(item))
    if problems:
        raise UserError(
            f"{folder} has {len(problems)} image(s) that cannot be used: {first_ten(problems)}; repair or remove them"
        )
    return hashes, skipped


def _copy(files: list[ImageFile], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, folder / file.name)


def _find_parts(folder: Path) -> tuple[dict[str, Drop], Drop | None, list[str]]:
    """The training drops, the test set if there is one, and the class names."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing or no folder: name one with class folders of images")
    train_dir = folder / "train"
    test_dir = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if not train_dir.is_dir():
        if test_dir:
            raise UserError(f"{test_dir} has no {train_dir} beside it: both or neither are needed")
        classes = _classes(folder)
        return {"base": _images_only(folder, classes)}, None, classes
    if test_dir is None:
        raise UserError(
            f"{train_dir} has no test/ or val/ beside it: name {train_dir} itself to have it split"
        )
    classes = _classes(test_dir)
    test = _images_only(test_dir, classes)
    names = _folders(train_dir)
    if any(set(_classes(train_dir / name)) & set(classes) for name in names):
        return {name: _images_only(train_dir / name, classes) for name in names}, test, classes
    if unknown := [name for name in names if compose(name) not in classes]:
        raise UserError(
            f"{train_dir} has classes that {test_dir} lacks ({first_ten(unknown)}): make them alike"
        )
    return {"base": _images_only(train_dir, classes)}, test, classes


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not is_junk(entry.name)]
    for entry in found:
        check_encoding(entry)
    return sorted(entry.name for entry in found)


def _classes(folder: Path) -> list[str]:
    """The names of class folders; in numeric order if all are numbers, so that a label means the same in an .npz."""
    names = sorted({compose(name) for name in _folders(folder)})
    return sorted(names, key=int) if all(name.isascii() and name.isdigit() for name in names) else names


def _beside(folder: Path, used: list[Path]) -> list[str]:
    """What lies in a folder beside the parts that are used: files, and folders with their number of files."""
    if folder in used:
        return []
    left = [
        path
        for path in folder.iterdir()
        if not is_junk(path.name) and not any(part.is_relative_to(path) for part in used)
    ]
    return [
        f"{path.name}/ ({len(walk_files(path))} files)" if path.is_dir() else path.name
        for path in sorted(left)
    ]


def _images_only(folder: Path, classes: list[str]) -> Drop:
    if len(classes) < 2:
        raise UserError(f"{folder} has {len(classes)} class folder(s): at least two are needed")
    drop = read_drop(folder, classes)
    with_images = {classes[file.label] for file in drop.files}
    if empty := [name for name in _folders(folder) if compose(name) not in with_images]:
        raise UserError(
            f"{folder} has folders without a single image ({first_ten(empty)}): put images there, or remove the folders"
        )
    if drop.archives:
        raise UserError(f"{folder} has .npz archives: give class folders of image files")
    return drop


def _read_headers(files: list[ImageFile]) -> list[tuple[str, tuple[int, int]] | None]:
    """Mode and size of image files; None where one cannot be read."""
    headers: list[tuple[str, tuple[int, int]] | None] = []
    for file in files:
        try:
            headers.append(read_header(file.path))
        except UnreadableImageError:
            headers.append(None)
    return headers


def _common_spec(
    classes: Sequence[str],
    headers: Sequence[tuple[str, tuple[int, int]]],
    image_size: int | None,
    resize: str,
) -> ImageSpec:
    channels = 1 if all(mode in ("L", "1") for mode, _ in headers) else 3
    if image_size is None:
        sizes = {side for _, size in headers for side in size}
        shorter = sorted(min(size) for _, size in headers) or [_LARGEST]
        keep = len(sizes) == 1 and max(sizes) <= _LARGEST_COMMON
        image_size = max(sizes) if keep else min(_LARGEST, shorter[len(shorter) // 2])
    return ImageSpec(tuple(classes), image_size, channels, resize)


def _read_hashes(files: list[ImageFile], spec: ImageSpec) -> list[str | ImageError]:
    hashes: list[str | ImageError] = []
    for file in files:
        try:
            hashes.append(pixel_hash(decode_image(file.path, spec)))
        except ImageError as error:
            hashes.append(error)
    return hashes


def _split(files: list[ImageFile], hashes: Mapping[Path, str]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Training and test files: a fifth of each class, chosen by the hash of the pixels alone."""
    sizes = Counter(file.label for file in files)
    test: set[Path] = set()
    taken: Counter[int] = Counter()
    last: dict[int, str] = {}
    for file in sorted(files, key=lambda file: hashes[file.path]):
        quota = max(sizes[file.label] // TEST_SHARE, min(1, sizes[file.label] - 1))
        if taken[file.label] < quota or last.get(file.label) == hashes[file.path]:
            test.add(file.path)
            taken[file.label] += 1
            last[file.label] = hashes[file.path]
    return [file for file in files if file.path not in test], [file for file in files if file.path in test]
