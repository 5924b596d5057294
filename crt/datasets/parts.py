"""What lies in a folder of images from elsewhere: its parts for training and test, and each image's class.

Classes are told by folders or by lists (`crt.datasets.lists`), parts by names (`crt.datasets.roles`).
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crt.datasets.lists import LabelList, find_lists, images_in
from crt.datasets.roles import Role, split_names
from crt.drops.layout import ClassNames, folders, is_image, is_junk, nfc, walk_files
from crt.errors import UserError, first_ten

_LONGEST = 200  # bytes of a file's name
UNLABELED = "unlabeled"  # the drop of images without a label


@dataclass(frozen=True)
class Labeled:
    """An image file; `name` is its path in the part, with its class as the first folder if it has a label."""

    name: str
    path: Path
    label: str | None


@dataclass
class Part:
    """The images of one part; `place` is the folder that it lies in."""

    place: Path
    images: list[Labeled]

    @property
    def labels(self) -> set[str]:
        """The labels that there are."""
        return {image.label for image in self.images if image.label is not None}


@dataclass
class Parts:
    """What was found.

    Attributes:
        drops: The training images, by the names of their drops.
        test: The test images; None: there are none apart.
        classes: The names of the classes.
        told: What people should know of it, a line each.
        ignored: Other files and folders, which are not used, by their paths.
    """

    drops: dict[str, Part]
    test: Part | None
    classes: list[str]
    told: list[str]
    ignored: list[str]


def find_parts(folder: Path) -> Parts:
    """The parts of a folder of images.

    Raises:
        UserError: There is no such folder, no class, or parts that do not fit together.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing or no folder: name one with class folders of images")
    lists = find_lists(folder)
    root = without_wrappers(folder, lists=lists)
    lists = find_lists(root) if root != folder else lists
    images = images_in(root)
    splits = split_names({image.partition("/")[0] for image in images if "/" in image})
    if _is_class(splits.get("train"), images):
        splits = {}
    told = [f"the images lie in {root.relative_to(folder).as_posix()}/"] if root != folder else []
    told += [f"labels: {one.path.relative_to(root).as_posix()}, {one.column}" for one in lists]
    if lists:
        parts = _by_lists(root, images, lists, splits)
    elif splits:
        parts = {role: read_part(without_wrappers(root / name, part=True)) for role, name in splits.items()}
    else:
        parts = {"train": read_part(root)}
    train, test, unused = _train_and_test(root, parts)
    told += unused
    drops = _drops(train, test)
    told.append(
        f"test set: {_shown(test)}" if test else "test set: a fifth of each class, by the pixels alone"
    )
    classes = _class_names((test or train).labels)
    for drop in drops.values():
        _check_classes(drop, classes, test)
    told_of = {image.path for part in (*drops.values(), *parts.values()) for image in part.images}
    ignored = _not_used(folder, told_of | {one.path for one in lists})
    return Parts(drops, test, classes, told, ignored)


def _train_and_test(root: Path, parts: dict[Role, Part]) -> tuple[Part, Part | None, list[str]]:
    """The parts for training and for the test; and what is to be said of one that is neither."""
    if "train" not in parts:
        there = " and ".join(_shown(part) for part in parts.values())
        raise UserError(f"{root} has {there}, and no folder train/ beside: put the training images there")
    others = [part for role in ("test", "validation") if (part := parts.get(role))]
    test = next((part for part in others if part.labels), None)
    unused = []
    for part in others:
        if part is test:
            continue
        why = f"`crt ingest {part.place} --drop NAME` adds it to the training images"
        unused.append(f"not used: {_shown(part)}: {why if part.labels else 'it has no labels'}")
    if test is not None and any(image.label is None for image in test.images):
        count = sum(image.label is None for image in test.images)
        unused.append(f"not used: {count} image(s) of {test.place.name}/ without a label")
        test = Part(test.place, [image for image in test.images if image.label is not None])
    return parts["train"], test, unused


def _shown(part: Part) -> str:
    return f"{part.place.name}/ ({len(part.images)} images)"


def _drops(train: Part, test: Part | None) -> dict[str, Part]:
    """The drops of the training part: folders of class folders, or one, `base`; unlabeled images apart."""
    inner = {label: folders(train.place / label) for label in train.labels if (train.place / label).is_dir()}
    classes = ClassNames(sorted(test.labels)) if test else None
    if classes is None:
        shared = set.intersection(*map(set, inner.values())) if len(inner) > 1 else set()
        if shared and len(inner) == len(train.labels):
            raise UserError(
                f"{train.place} has folders ({first_ten(sorted(inner))}) with the same folders in them "
                f"({first_ten(sorted(shared))}): for drops of class folders a test set is needed, train/ and "
                "test/"
            )
    elif not any(classes.label(label) is not None for label in train.labels):
        drops = {
            label for label, names in inner.items() if any(classes.label(name) is not None for name in names)
        }
        if drops:
            return {name: read_part(train.place / name) for name in folders(train.place)}
    labeled = [image for image in train.images if image.label is not None]
    if not labeled or len(labeled) == len(train.images):
        return {"base": train}
    rest = [image for image in train.images if image.label is None]
    return {"base": Part(train.place, labeled), UNLABELED: Part(train.place, rest)}


def _check_classes(part: Part, classes: Sequence[str], test: Part | None) -> None:
    if len(classes) < 2:
        raise UserError(f"{(test or part).place} has {len(classes)} class folder(s): at least two are needed")
    known = ClassNames(classes)
    unknown = sorted(label for label in part.labels if known.label(label) is None)
    if unknown and test is not None:
        raise UserError(
            f"{part.place} has classes that {test.place} lacks ({first_ten(unknown)}): make them alike"
        )


def read_part(folder: Path) -> Part:
    """The images of a folder with class folders, or with images directly in it, which have no labels.

    Raises:
        UserError: Both lie in it, or a class folder is without an image.
    """
    images = []
    for path in walk_files(folder):
        name = path.relative_to(folder).as_posix()
        if is_image(name):
            images.append(Labeled(name, path, nfc(name.partition("/")[0]) if "/" in name else None))
    flat = [image.name for image in images if image.label is None]
    classes = {image.label for image in images if image.label is not None}
    if flat and classes:
        raise UserError(
            f"{folder} mixes class folders ({first_ten(sorted(classes))}) and images outside class folders "
            f"({first_ten(flat)}): move these into folders"
        )
    if classes and (empty := [name for name in folders(folder) if nfc(name) not in classes]):
        raise UserError(
            f"{folder} has folders without a single image ({first_ten(empty)}): "
            "put images there, or remove the folders"
        )
    return Part(folder, images)


def _by_lists(
    root: Path, images: Sequence[str], lists: Sequence[LabelList], splits: dict[Role, str]
) -> dict[Role, Part]:
    """The parts by what lists say. Where they tell parts, an image that no list names belongs to none."""
    labels = labeled_by(lists)
    roles = {image: role for one in lists for image, role in one.roles.items()}
    by_folder = {name: role for role, name in splits.items()}
    parts: dict[Role, Part] = {}
    for image in images:
        role = roles.get(image) or by_folder.get(image.partition("/")[0])
        if role is None:
            if roles or by_folder:
                continue
            role = "train"
        label = labels.get(image)
        flat = flat_name(image)
        part = parts.setdefault(role, Part(root / splits.get(role, ""), []))
        part.images.append(Labeled(flat if label is None else f"{label}/{flat}", root / image, label))
    return parts


def labeled_by(lists: Sequence[LabelList]) -> dict[str, str | None]:
    """The label of each image that lists name.

    Raises:
        UserError: Two lists differ.
    """
    labels: dict[str, str | None] = {}
    for one in lists:
        for image, label in one.labels.items():
            if labels.setdefault(image, label) != label:
                raise UserError(
                    f"{one.path} labels {image} {label}, and another list {labels[image]}: "
                    "keep one of the lists"
                )
    return labels


def without_wrappers(
    folder: Path, *, lists: Sequence[LabelList] = (), known: ClassNames | None = None, part: bool = False
) -> Path:
    """The folder in which the images lie, where there are only folders in folders around them.

    Args:
        folder: The outermost one.
        lists: Lists of the images: none is left behind.
        known: The classes, if they are known: a folder of such a name is no wrapper.
        part: Whether the folder is a part already, in which its name may come again (`test_set/test_set/`).
    """
    while not any(is_image(path.name) for path in _files(folder)):
        inner = [name for name in folders(folder) if _has_images(folder / name)]
        if len(inner) != 1:
            break
        deeper = folder / inner[0]
        is_class = (
            known.label(inner[0]) is not None if known else any(is_image(p.name) for p in _files(deeper))
        )
        left_behind = any(not one.path.is_relative_to(deeper) for one in lists)
        if is_class or left_behind or (split_names(inner) and not part):
            break
        folder = deeper
    return folder


def _is_class(train: str | None, images: Sequence[str]) -> bool:
    """Whether the folder `train` is a class: images lie directly in it, and in others that are no parts."""
    holders = {image.partition("/")[0] for image in images if image.count("/") == 1}
    return train in holders and any(not split_names([name]) for name in holders)


def _files(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if entry.is_file() and not is_junk(entry.name))


def _has_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in walk_files(folder))


def _class_names(labels: Collection[str]) -> list[str]:
    """In numeric order if all are numbers, so that a label means the same in an .npz."""
    names = sorted(set(map(nfc, labels)))
    return sorted(names, key=int) if all(name.isascii() and name.isdigit() for name in names) else names


def _not_used(folder: Path, told_of: Collection[Path]) -> list[str]:
    """The other files below a folder; in place of those of a whole folder in it, their number."""
    left = []
    for entry in sorted(folder.iterdir()):
        if is_junk(entry.name):
            continue
        files = walk_files(entry) if entry.is_dir() else [entry]
        other = [file for file in files if file not in told_of]
        if entry.is_dir() and other and len(other) == len(files):
            left.append(f"{entry.name}/ ({len(files)} files)")
        else:
            left += [file.relative_to(folder).as_posix() for file in other]
    return left


def flat_name(image: str) -> str:
    """A path as one name, of a length that file systems take."""
    name = image.replace("/", "__")
    if len(name.encode()) <= _LONGEST:
        return name
    end = name.encode()[-_LONGEST // 2 :].decode(errors="ignore")
    return f"{hashlib.sha256(image.encode()).hexdigest()[:16]}__{end}"
