"""A raw drop: what lies in `data/train/<drop>/` or `data/test/`, before any pixel is read.

Three layouts: class folders of images (`<class>/**/<file>`), images directly in the drop (unlabelled, or labelled by
a `labels.csv` with the columns file,label), or `.npz` archives with `images` and optional `labels`.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crt.drops.images import SUFFIXES
from crt.drops.npz import ImageArrays, open_images
from crt.errors import MissingFileError, UserError

LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class ImageFile:
    """An image file; `name` is its path in the drop, `label` -1 if unlabelled."""

    name: str
    path: Path
    label: int


@dataclass(frozen=True)
class Drop:
    """A drop's image files, or its archives, in the order in which they are prepared; `ignored` is all else."""

    folder: Path
    files: list[ImageFile]
    archives: list[ImageArrays]
    ignored: list[str]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.files) + sum(archive.count for archive in self.archives)

    @property
    def names(self) -> list[str]:
        """What each image is called when it is prepared: its path in the drop, or `<archive>#<index>`."""
        inside = [
            f"{archive.path.name}#{index}" for archive in self.archives for index in range(archive.count)
        ]
        return [file.name for file in self.files] + inside

    @property
    def labels(self) -> list[int]:
        """The label of each image, -1 if unlabelled."""
        inside = [label for archive in self.archives for label in archive.labels.tolist()]
        return [file.label for file in self.files] + inside


def read_classes(data_dir: Path, num_classes: int) -> list[str]:
    """The class names of `classes.txt`, one per line; a label is a line's number, from 0.

    Raises:
        UserError: the file is missing, or names not exactly `num_classes` different classes.
    """
    path = data_dir / "classes.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: write one class name per line there", path) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: write one class name per line") from None
    classes = [line.strip() for line in lines if line.strip()]
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(f"{path} names the class {twice!r} twice: remove one")
    if bad := [name for name in classes if "/" in name or is_junk(name)]:
        raise UserError(f"{path} names the class {bad[0]!r}, which cannot be a folder's name: rename it")
    if len(classes) != num_classes:
        raise UserError(
            f"{path} names {len(classes)} classes but num_classes is {num_classes}: make them agree"
        )
    return classes


def check_data_dir(data_dir: Path, drops: Iterable[str]) -> None:
    """Make sure that these training drops lie in `data_dir`.

    Raises:
        UserError: names the drop that does not.
    """
    for drop in drops:
        folder = data_dir / "train" / drop
        if not folder.is_dir():
            raise MissingFileError(
                f"{folder} is missing: the images of the drop {drop!r} belong there", folder
            )


def read_drop(folder: Path, classes: Sequence[str]) -> Drop:
    """List a drop's images with their labels, in a fixed order: by class, then name; archives by name.

    Raises:
        UserError: no such folder, no images, a class that `classes` does not know, mixed layouts, a bad archive.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing or no folder: its images belong there", folder)
    names = sorted(entry.name for entry in os.scandir(folder) if not is_junk(entry.name))
    folders = [name for name in names if (folder / name).is_dir()]
    archives = [name for name in names if name.lower().endswith(".npz") and name not in folders]
    images = [name for name in names if _is_image(name) and name not in folders]
    table = folder / LABELS_FILE
    layouts = [
        what
        for what, there in (
            (f"class folders ({', '.join(folders[:3])})", folders),
            (f".npz archives ({', '.join(archives[:3])})", archives),
            (f"images outside class folders ({', '.join(images[:3])})", images),
        )
        if there
    ]
    if len(layouts) > 1:
        raise UserError(f"{folder} mixes {' and '.join(layouts)}: split it into drops of one layout each")
    if table.exists() and not images:
        raise UserError(f"{table} labels images that lie beside it, but there are none: remove it")

    ignored = [name for name in names if name not in {*folders, *archives, *images, LABELS_FILE}]
    files: list[ImageFile] = []
    if folders:
        files, more = _read_class_folders(folder, folders, classes)
        ignored += more
    elif images:
        labels = _read_labels(table, classes, images) if table.exists() else {}
        files = [ImageFile(name, folder / name, labels.get(name, -1)) for name in images]
        files.sort(key=lambda file: (file.label, file.name))
    drop = Drop(folder, files, [open_images(folder / name, len(classes)) for name in archives], ignored)
    if drop.count == 0:
        raise UserError(f"{folder} holds no images: put class folders, images or .npz archives there")
    return drop


def _read_class_folders(
    folder: Path, names: list[str], classes: Sequence[str]
) -> tuple[list[ImageFile], list[str]]:
    labels = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise UserError(
            f"{folder} has class folders that classes.txt does not know ({first_ten(unknown)}): rename them "
            "(unlabelled images belong directly into the drop's folder)"
        )
    files, ignored = [], []
    for name in sorted(names, key=labels.__getitem__):
        found = []
        for path in walk_files(folder / name):
            relative = path.relative_to(folder).as_posix()
            if path.suffix.lower() == ".npz":
                raise UserError(
                    f"{path} lies in a class folder: .npz archives belong directly into the drop's folder"
                )
            if _is_image(path.name):
                found.append(ImageFile(relative, path, labels[name]))
            else:
                ignored.append(relative)
        files += sorted(found, key=lambda file: file.name)
    return files, ignored


def walk_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted; hidden files and folders are left out.

    Raises:
        UserError: a link to a folder, which may lead anywhere.
    """
    files = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in folders:
            if os.path.islink(os.path.join(where, name)):
                raise UserError(
                    f"{os.path.join(where, name)} is a link to a folder: put the folder itself there"
                )
        files += [Path(where, name) for name in names if not is_junk(name)]
    return sorted(files)


def _read_labels(table: Path, classes: Sequence[str], images: list[str]) -> dict[str, int]:
    labels = {name: label for label, name in enumerate(classes)}
    known = set(images)
    found: dict[str, int] = {}
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if reader.fieldnames is None or not {"file", "label"} <= set(reader.fieldnames):
                raise UserError(f"{table} needs a first line with the columns file,label")
            for row in reader:
                name, label = row["file"], row["label"]
                where = f"{table}, line {reader.line_num}"
                if name not in known:
                    raise UserError(f"{where}: {name!r} is no image beside it: remove the line")
                if name in found:
                    raise UserError(f"{where}: {name!r} has a second label: remove one")
                if label and label not in labels:
                    raise UserError(
                        f"{where}: classes.txt does not know {label!r} (leave it empty for unlabelled)"
                    )
                found[name] = labels[label] if label else -1
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no UTF-8 table of file,label ({error}): write it again") from None
    return found


def first_ten(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_junk(name: str) -> bool:
    """What file managers and archivers leave behind, and writes that were cut short."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini") or ".partial" in name
