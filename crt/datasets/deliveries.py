"""A delivery from anywhere, written as one raw drop in a layout of `crt.drops.layout`."""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from crt.datasets.archives import is_archive, unpack
from crt.datasets.arrays import as_drop, is_npz
from crt.datasets.lists import find_lists, images_in
from crt.datasets.parquet import holds_parquet, is_parquet, unpack_parquet
from crt.datasets.parts import flat_name, labeled_by, without_wrappers
from crt.datasets.roles import split_names
from crt.drops.layout import LABELS_FILE, ClassNames, check_class_names, is_labels, walk_files
from crt.errors import UserError, first_ten


def write_drop(source: Path, folder: Path, classes: Sequence[str] | None) -> list[str]:
    """Copy a delivery to an empty folder, in a layout of raw drops.

    Args:
        source: A folder, an `.npz`, a parquet file, or a zip or tar archive of such a folder.
        folder: Where the drop goes.
        classes: The names of the classes, whose folders are not taken for a folder around all images; None:
            not known.

    Returns:
        How it was understood, a line each.

    Raises:
        UserError: It is none of these, or holds several parts of a data set.
    """
    scratch = folder / ".unpacked"
    try:
        return _write_folder(_as_folder(source, scratch, classes), folder, classes)
    except UserError as error:
        message = str(error)
        for unpacked in (scratch / "tables", scratch / "files"):
            message = message.replace(str(unpacked), str(source))
        raise UserError(message) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _as_folder(source: Path, scratch: Path, classes: Sequence[str] | None) -> Path:
    """The folder of image files or `.npz` that a source is, or that it was unpacked to."""
    if source.is_file() and is_archive(source) and not is_npz(source):
        unpack(source, scratch / "files", classes or ())
        source = scratch / "files"
    if holds_parquet(source) if source.is_dir() else is_parquet(source):
        unpack_parquet(source, scratch / "tables")
        return scratch / "tables"
    if source.is_dir() or is_npz(source):
        return source
    raise UserError(f"{source} is no folder, .npz, parquet file, zip or tar archive: deliver one of these")


def _write_folder(source: Path, folder: Path, classes: Sequence[str] | None) -> list[str]:
    if is_npz(source):
        as_drop(source, folder / source.name)
        return []
    known = None if classes is None else ClassNames(classes)
    lists = find_lists(source)
    root = without_wrappers(source, lists=lists, known=known)
    told = [f"the images lie in {root.relative_to(source).as_posix()}/"] if root != source else []
    root = _the_training_part(root, known, unpacked=root.is_relative_to(folder))
    images = images_in(root)
    if any(is_labels(path.name) for path in root.iterdir()) and not any("/" in image for image in images):
        lists = []  # it is our own layout
    elif root != source:
        lists = find_lists(root)
    if not lists:
        _copy([(path, path.relative_to(root).as_posix()) for path in walk_files(root)], folder)
        return told
    if len({role for one in lists for role in one.roles.values()}) > 1:
        names = first_ten([one.path.name for one in lists])
        raise UserError(f"{source} has lists of several parts ({names}): leave that of the delivery alone")
    labels = labeled_by(lists)
    found = {label for label in labels.values() if label is not None}
    check_class_names(sorted(found), str(lists[0].path))
    if unknown := {label for label in found if known and known.label(label) is None}:
        raise UserError(
            f"{lists[0].path} has labels that classes.txt does not know ({first_ten(sorted(unknown))}): "
            "correct them"
        )
    _lay_out(root, {image: labels.get(image) for image in images}, folder)
    return told + [f"labels: {one.path.relative_to(root).as_posix()}, {one.column}" for one in lists]


def _the_training_part(root: Path, known: ClassNames | None, unpacked: bool) -> Path:
    """The folder itself, or the only part in it, `train`.

    Raises:
        UserError: There are other parts in it.
    """
    tops = {image.partition("/")[0] for image in images_in(root) if "/" in image}
    splits = split_names(name for name in tops if known is None or known.label(name) is None)
    if splits and splits.keys() != {"train"}:
        named = " and ".join(sorted(splits.values()))
        remedy = (
            "unpack it and ingest one" if unpacked else f"`crt ingest {root / splits['train']} --drop NAME`"
        )
        if "train" not in splits:
            remedy = "name the folder in it that is meant"
        raise UserError(
            f"{root} has {named}, parts of a data set, and a delivery is one for training: {remedy}"
        )
    return root / splits["train"] if splits else root


def _lay_out(root: Path, labels: Mapping[str, str | None], folder: Path) -> None:
    """Images as class folders, or flat with a table of labels where some have none."""
    if all(label is not None for label in labels.values()):
        _copy([(root / image, f"{label}/{flat_name(image)}") for image, label in labels.items()], folder)
        return
    _copy([(root / image, flat_name(image)) for image in labels], folder)
    with (folder / LABELS_FILE).open("w", encoding="utf-8", newline="") as file:
        rows = [(flat_name(image), label) for image, label in labels.items() if label is not None]
        csv.writer(file, lineterminator="\n").writerows([("file", "label"), *rows])


def _copy(files: Sequence[tuple[Path, str]], folder: Path) -> None:
    for path, name in files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if is_npz(path):
                as_drop(path, target)
            elif path.is_relative_to(folder):  # it was unpacked there
                path.replace(target)
            else:
                shutil.copyfile(path, target)
        except FileNotFoundError:
            raise UserError(f"{path} is a link to a file that is not there: fix or remove it") from None
