"""A raw drop: what lies in `data/train/<drop>/` or `data/test/`, before any pixel is read.

Three layouts: class folders of images (`<class>/**/<file>`), images directly in the drop (unlabeled, or
labeled by a `labels.csv` with the columns file,label), or `.npz` archives with `images` and optional
`labels`.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crt.drops.images import SUFFIXES
from crt.drops.npz import ImageArrays, open_images
from crt.drops.tables import read_table
from crt.errors import MissingFileError, UserError, first_ten

LABELS_FILE = "labels.csv"
# What file managers, archivers, Python and network storage leave behind, in lower case.
_JUNK = frozenset(
    (
        "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
        "__pycache__", "@eadir", "#recycle", "@recycle", "@__thumb", "lost+found",
    )
)  # fmt: skip


@dataclass(frozen=True)
class ImageFile:
    """An image file; `name` is its path in the drop, `label` -1 if unlabeled."""

    name: str
    path: Path
    label: int


@dataclass(frozen=True)
class Drop:
    """A drop's image files, or its archives, in the order of preparation; `ignored` is all else."""

    folder: Path
    files: list[ImageFile]
    archives: list[ImageArrays]
    ignored: list[str]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.files) + sum(archive.count for archive in self.archives)


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
    check_class_names(classes, str(path))
    if len(classes) != num_classes:
        raise UserError(
            f"{path} names {len(classes)} classes but num_classes is {num_classes}: make them agree"
        )
    return classes


def check_class_names(classes: Sequence[str], where: str) -> None:
    """Make sure that names can stand in classes.txt and name folders, and that no two mean the same.

    Raises:
        UserError: names one that does not; begins with `where`.
    """
    if bad := [
        name
        for name in classes
        if set("/\0") & set(name) or is_junk(name) or name.strip().splitlines() != [name]
    ]:
        raise UserError(
            f"{where} names the class {bad[0]!r}, which cannot be a folder and a line of text: rename it"
        )
    composed = [nfc(name) for name in classes]
    if len(set(composed)) != len(classes):
        twice = next(name for name in composed if composed.count(name) > 1)
        raise UserError(f"{where} names the class {twice!r} twice: remove one")


def check_data_dir(data_dir: Path, drops: Iterable[str]) -> None:
    """Make sure that these training drops lie in `data_dir`.

    Raises:
        MissingFileError: names the drop that does not.
    """
    for drop in drops:
        folder = data_dir / "train" / drop
        if not folder.is_dir():
            raise MissingFileError(
                f"{folder} is missing: the images of the drop {drop!r} belong there", folder
            )


class ClassNames:
    """Finds classes by their names, with accents in one character or two, and in any case.

    The case matters where two classes differ by nothing else.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        exact = {nfc(name): label for label, name in enumerate(classes)}
        folded = {name.casefold(): label for name, label in exact.items()}
        self._fold = len(folded) == len(exact)
        self._labels = folded if self._fold else exact

    def label(self, name: str) -> int | None:
        """The label of the class of that name; None: there is none."""
        return self._labels.get(nfc(name).casefold() if self._fold else nfc(name))


def read_drop(folder: Path, classes: Sequence[str]) -> Drop:
    """List a drop's images with their labels, in a fixed order: by class, then name; archives by name.

    Raises:
        UserError: no such folder, no images, a class that `classes` does not know, mixed layouts, a bad
            archive.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing or no folder: its images belong there", folder)
    names = sorted(entry.name for entry in os.scandir(folder) if not is_junk(entry.name))
    for name in names:
        check_encoding(folder / name)
    folders = [name for name in names if (folder / name).is_dir()]
    archives = [name for name in names if name.lower().endswith(".npz") and name not in folders]
    images = [name for name in names if is_image(name) and name not in folders]
    tables = [name for name in names if is_labels(name) and name not in folders]
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
    if tables and not images:
        raise UserError(
            f"{folder / tables[0]} labels images that lie beside it, but there are none: remove it"
        )
    if len(tables) > 1:
        raise UserError(f"{folder} has {' and '.join(tables)}, which differ in case alone: remove one")

    ignored = [name for name in names if name not in {*folders, *archives, *images, *tables}]
    files: list[ImageFile] = []
    if folders:
        files, more = _read_class_folders(folder, folders, classes)
        ignored += more
    elif images:
        labels = _read_labels(folder / tables[0], classes, images) if tables else {}
        files = [ImageFile(name, folder / name, labels.get(name, -1)) for name in images]
        files.sort(key=lambda file: (file.label, file.name))
    drop = Drop(folder, files, [open_images(folder / name, classes) for name in archives], ignored)
    if drop.count == 0:
        raise UserError(f"{folder} holds no images: put class folders, images or .npz archives there")
    return drop


def _read_class_folders(
    folder: Path, names: list[str], classes: Sequence[str]
) -> tuple[list[ImageFile], list[str]]:
    known = ClassNames(classes)
    labels = {name: label for name in names if (label := known.label(name)) is not None}
    if unknown := [name for name in names if name not in labels]:
        raise UserError(
            f"{folder} has class folders that classes.txt does not know ({first_ten(unknown)}): rename them "
            "(unlabeled images belong directly into the drop's folder)"
        )
    files, ignored = [], []
    for path in walk_files(folder):
        relative = path.relative_to(folder)
        if len(relative.parts) == 1:
            continue
        if path.suffix.lower() == ".npz":
            raise UserError(
                f"{path} lies in a class folder: .npz archives belong directly into the drop's folder"
            )
        if is_image(path.name):
            files.append(ImageFile(relative.as_posix(), path, labels[relative.parts[0]]))
        else:
            ignored.append(relative.as_posix())
    return sorted(files, key=lambda file: (file.label, file.name)), ignored


def folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, but for junk.

    Raises:
        UserError: A name is no text.
    """
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not is_junk(entry.name)]
    for entry in found:
        check_encoding(entry)
    return sorted(entry.name for entry in found)


def walk_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, but for junk.

    Folders directly in it may be links, as class folders may.

    Raises:
        UserError: a link to a folder further down, which may lead anywhere; a name that is no text.
    """
    files = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in folders:
            path = Path(where, name)
            check_encoding(path)
            if path.is_symlink() and Path(where) != folder:
                raise UserError(f"{path} is a link to a folder: put the folder itself there")
        files += [Path(where, name) for name in names if not is_junk(name)]
    for path in files:
        check_encoding(path)
    return sorted(files)


def check_encoding(path: Path) -> None:
    """Make sure that a file's name is text: other programs cannot handle it, and no table can hold it.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise UserError(
            f"{shown}: the name is not UTF-8, rename it (`convmv` does it for whole folders)"
        ) from None


def _read_labels(path: Path, classes: Sequence[str], images: list[str]) -> dict[str, int]:
    names = ClassNames(classes)
    known = {nfc(name).strip(): name for name in images}
    table = read_table(path)
    file, label_place = table.place("file"), table.place("label")
    if file is None or label_place is None:
        raise UserError(f"{path} needs a first line with the columns file,label")
    found: dict[str, int] = {}
    for number, cells in table.rows:
        name, label = cells[file], cells[label_place]
        where = f"{path}, line {number}"
        if nfc(name) not in known:
            raise UserError(f"{where}: {name!r} is no image beside it: remove the line")
        image = known[nfc(name)]
        if image in found:
            raise UserError(f"{where}: {name!r} has a second label: remove one")
        of_class = names.label(label) if label else -1
        if of_class is None:
            raise UserError(f"{where}: classes.txt does not know {label!r} (leave it empty for unlabeled)")
        found[image] = of_class
    return found


def by_suffix(names: Iterable[str]) -> dict[str, int]:
    """How many files there are of each suffix, in lower case; those without one under their names."""
    counts = Counter(os.path.splitext(name)[1].lower() or os.path.basename(name) for name in names)
    return dict(sorted(counts.items()))


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for a picture, in a format that is read or in another."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_data(name: str) -> bool:
    """Whether a file of this name directly in a drop is a part of it, and not something beside the images."""
    return is_image(name) or name.lower().endswith(".npz") or is_labels(name)


def is_labels(name: str) -> bool:
    """Whether a file of this name is a drop's table of labels."""
    return name.lower() == LABELS_FILE


def is_junk(name: str) -> bool:
    """What other programs leave behind in folders, hidden files, and writes that were cut short."""
    return name.startswith(".") or name.lower() in _JUNK or ".partial" in name


def nfc(name: str) -> str:
    """A name with each accented letter as one character: macOS hands letter and accent over as two."""
    return unicodedata.normalize("NFC", name)
