"""Lists of images with their labels: tables beside the images, as other tools and people write them.

Known are tables of any name with a column of image files and one of labels (CSV with commas, semicolons,
tabs), Hugging Face's `metadata.csv` and `metadata.jsonl`, and lists without a first line, separated by blanks
(Oxford's `annotations/trainval.txt`). Which column holds the images is seen from the images.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crt.datasets.roles import Role, role_of
from crt.drops.layout import is_image, nfc, walk_files
from crt.drops.tables import Table, read_table, read_text
from crt.errors import UserError, first_ten

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt", ".lst")
_LABELS = (
    "label", "labels", "class", "class_name", "classname", "category", "category_name", "target", "breed",
    "species", "class_id", "label_id", "category_id", "y",
)  # fmt: skip
_SPLITS = ("split", "subset", "set", "partition", "fold", "split_name")
_NO_LABELS = (
    "text",
    "caption",
    "captions",
    "description",
    "prompt",
    "url",
    "width",
    "height",
    "size",
    "md5",
    "sha256",
)
_MOST_IN_A_FOLDER = 20  # more text files beside each other are one for each image, and no lists


@dataclass(frozen=True)
class LabelList:
    """What a list says of the images that it names.

    Attributes:
        path: Its file.
        labels: The label of each image, by its path below the folder of images; None: it has none. An
            image's folder is its label where the list has no labels.
        roles: The part of each image, where the list says it.
        own: Whether the list itself has labels.
        column: The name of the column of labels, or what stands for it.
    """

    path: Path
    labels: dict[str, str | None]
    roles: dict[str, Role]
    own: bool
    column: str


def images_in(root: Path) -> list[str]:
    """The paths of the images below a folder, sorted."""
    return [path.relative_to(root).as_posix() for path in walk_files(root) if is_image(path.name)]


def find_lists(root: Path) -> list[LabelList]:
    """The lists in a folder that tell labels or parts of images in it, in the order of their names.

    Raises:
        UserError: A list names images that are not there, or an image twice, or its labels cannot be told.
    """
    tables = [path for path in walk_files(root) if path.suffix.lower() in _SUFFIXES]
    crowd = Counter(path.parent for path in tables)
    index = ImageIndex(images_in(root) if tables else ())
    found = [
        one
        for path in tables
        if crowd[path.parent] <= _MOST_IN_A_FOLDER and (one := _read_list(path, root, index))
    ]
    # Others, such as of captions, tell neither.
    found = [one for one in found if one.own or one.roles]
    in_parts = [one for one in found if role_of(one.path.stem) is not None]
    # Of a set's lists, those of its parts say more than the list of all images beside them.
    return in_parts if {role_of(one.path.stem) for one in in_parts} > {"train"} else found


class ImageIndex:
    """Images by what lists call them: their path or an end of it, with or without the suffix, in any case."""

    def __init__(self, images: Iterable[str]) -> None:
        self._exact: dict[str, str] = {}
        self._ends: dict[str, str | None] = {}  # None: several images end so
        for image in images:
            self._exact[nfc(image)] = image
            parts = PurePosixPath(nfc(image).casefold()).parts
            ends = {"/".join(parts[start:]) for start in range(len(parts))}
            for end in ends | {end.rpartition(".")[0] for end in ends}:
                self._ends[end] = image if self._ends.get(end, image) == image else None

    def find(self, name: str, folder: str) -> str | None:
        """The image of that name, which a list in `folder` calls so; None: there is none, or several."""
        name = nfc(name.replace("\\", "/"))
        for path in (PurePosixPath(folder, name).as_posix(), name):
            if path in self._exact:
                return self._exact[path]
        parts = [part for part in name.casefold().split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            if (end := "/".join(parts[start:])) in self._ends:
                return self._ends[end]
        return None


def _read_list(path: Path, root: Path, index: ImageIndex) -> LabelList | None:
    """A list; None: the file names no image."""
    table = _read(path)
    if table is None or not table.rows:
        return None
    folder = path.parent.relative_to(root).as_posix()
    hits = [
        sum(index.find(cells[place], folder) is not None for _, cells in table.rows)
        for place in range(len(table.columns))
    ]
    place = max(range(len(hits)), key=lambda k: hits[k], default=0)
    if not hits or hits[place] == 0:
        return None
    label = _label_place(table, place)
    split = table.place(*_SPLITS)
    labels: dict[str, str | None] = {}
    roles: dict[str, Role] = {}
    lost = []
    for number, cells in table.rows:
        image = index.find(cells[place], folder)
        if image is None:
            lost.append(cells[place])
            continue
        mine = (PurePosixPath(image).parent.name or None) if label is None else cells[label] or None
        if labels.setdefault(image, mine) != mine:
            raise UserError(f"{path}, line {number}: {cells[place]!r} has a second label: remove one")
        role = role_of(cells[split]) if split is not None else role_of(path.stem)
        if role is not None:
            roles[image] = role
    if lost:
        raise UserError(
            f"{path} names {len(lost)} image(s) that are not there ({first_ten(lost)}): "
            "remove the lines, or put the images there"
        )
    column = "the images' folders" if label is None else f"column {table.columns[label] or label + 1}"
    return LabelList(path, _with_names(labels, root), roles, label is not None, column)


def _read(path: Path) -> Table | None:
    """A file as a table; columns without names are called ''. None: it is no table, or nothing for one."""
    try:
        if path.suffix.lower() == ".jsonl":
            return _read_json_lines(path)
        text = read_text(path)
    except UserError:
        if path.suffix.lower() in (".txt", ".lst"):
            return None
        raise
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return None
    if not re.search(r"[,;\t|]", lines[0]):
        rows = [(number, line.split()) for number, line in enumerate(lines, 1)]
        width = len(rows[0][1])
        if any(len(cells) != width for _, cells in rows):  # prose
            return None
        return Table(path, [""] * width, rows)
    table = read_table(path)
    if any(is_image(name) for name in table.columns):  # the first line is an image's
        return Table(path, [""] * len(table.columns), [(1, table.columns), *table.rows])
    return table


def _read_json_lines(path: Path) -> Table:
    """An object in each line, by Hugging Face's `imagefolder`."""
    try:
        objects = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
        columns = list(dict.fromkeys(key for one in objects for key in one))
        rows = [
            (number, ["" if one.get(key) is None else str(one[key]) for key in columns])
            for number, one in enumerate(objects, 1)
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} has a line that is no JSON object ({error}): write it again") from None
    return Table(path, columns, rows)


def _label_place(table: Table, images: int) -> int | None:
    """The column of labels; None: there is no other column than the images'.

    Raises:
        UserError: Several columns could be it.
    """
    if (named := table.place(*_LABELS)) is not None and named != images:
        return named
    others = [
        place
        for place, name in enumerate(table.columns)
        if place != images
        and name.casefold() not in (*_SPLITS, *_NO_LABELS)
        and any(cells[place] for _, cells in table.rows)
    ]
    if not others:
        return None
    if len(others) == 1 or not any(table.columns):
        return others[0]
    raise UserError(
        f"{table.path} has the columns {', '.join(table.columns)}, and none is called label: "
        "rename the one that holds the classes"
    )


def _with_names(labels: Mapping[str, str | None], root: Path) -> dict[str, str | None]:
    """Gives numbers names, from a classes.txt beside, or from the images' names, as in Oxford's sets."""
    numbers = {label for label in labels.values() if label is not None}
    if not numbers or not all(re.fullmatch(r"\d+", number) for number in numbers):
        return dict(labels)
    names = _names_by_number(root, max(map(int, numbers))) or _names_by_prefix(labels)
    return {image: label if label is None else names.get(label, label) for image, label in labels.items()}


def _names_by_number(root: Path, largest: int) -> dict[str, str]:
    path = root / "classes.txt"
    if not path.is_file():
        return {}
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return {str(number): name for number, name in enumerate(names)} if largest < len(names) else {}


def _names_by_prefix(labels: Mapping[str, str | None]) -> dict[str, str]:
    """`Abyssinian_100` and all others of label 1 begin alike, and no other label's images do."""
    prefixes: dict[str, set[str]] = {}
    for image, label in labels.items():
        if label is not None:
            prefixes.setdefault(label, set()).add(re.split(r"[_-]\d+$", PurePosixPath(image).stem)[0])
    flat = [next(iter(found)) for found in prefixes.values() if len(found) == 1]
    if len(set(flat)) != len(prefixes):
        return {}
    return {label: next(iter(found)) for label, found in prefixes.items()}
