"""New classes in a delivery: their names in classes.txt, and a fifth of their images in the test set.

Every step can be repeated: data.num_classes tells which classes are new, and it is written last.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crt.config import Data
from crt.datasets.parts import flat_name
from crt.datasets.sorting import ImageFacts, split_off
from crt.datasets.sources import write_classes
from crt.drops.images import ImageError, pixel_hash, read_picture
from crt.drops.layout import (
    LABELS_FILE,
    ClassNames,
    ImageFile,
    check_class_names,
    folders,
    nfc,
    read_drop,
)
from crt.drops.npz import write_npz
from crt.errors import UserError, first_ten
from crt.files import replacing_file
from crt.spec import ImageSpec


@dataclass(frozen=True)
class Growth:
    """What a delivery adds besides training images.

    Attributes:
        classes: All names, the new ones last.
        new: The new names.
        test: The images that go to the test set.
    """

    classes: list[str]
    new: list[str]
    test: list[ImageFile]


def known_classes(data_dir: Path, count: int) -> list[str]:
    """The first `count` names of classes.txt: a killed run may have added its own already."""
    lines = (data_dir / "classes.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()][:count]


def find_growth(delivery: Path, classes: Sequence[str], data: Data) -> Growth:
    """The classes of a delivery that are new, and the images of these that are for the test.

    Args:
        delivery: A raw drop of class folders.
        classes: The names so far.
        data: How images are read.

    Raises:
        UserError: It has no new class, no class folders, or a new class of one image.
    """
    known = ClassNames(classes)
    new = sorted({nfc(name) for name in folders(delivery) if known.label(name) is None})
    if not new:
        raise UserError(f"{delivery} has no class folder that classes.txt lacks: leave --add-classes out")
    if (delivery / LABELS_FILE).exists():
        raise UserError(f"{delivery} has images without a label: put those into a delivery of their own")
    check_class_names([*classes, *new], str(delivery))
    spec = ImageSpec((*classes, *new), data.image_size, data.channels, data.resize)
    files = [file for file in read_drop(delivery, spec.classes).files if file.label >= len(classes)]
    entries, by_name = [], {}
    for file in files:
        try:
            digest = pixel_hash(read_picture(file.path, spec).pixels)
        except ImageError:  # it is named when the whole delivery is checked
            continue
        entries.append(ImageFacts(file.name, file.label, digest))
        by_name[file.name] = file
    chosen = [by_name[entry.name] for entry in split_off(entries)[1]]
    if few := [
        name for number, name in enumerate(new, len(classes)) if number not in {f.label for f in chosen}
    ]:
        raise UserError(
            f"{delivery} has one image of the class {first_ten(few)}: at least two are needed, "
            "one for training and one for the test"
        )
    return Growth([*classes, *new], new, chosen)


def set_aside(growth: Growth, drop: str, staged: Path) -> None:
    """Move the images for the test from the delivery to the folder `staged`, as class folders."""
    for file in growth.test:
        inner = file.name.partition("/")[2]
        target = staged / growth.classes[file.label] / f"{drop}__{flat_name(inner)}"
        target.parent.mkdir(parents=True, exist_ok=True)
        file.path.replace(target)


def add_to_data(growth: Growth, drop: str, staged: Path, data_dir: Path, data: Data) -> None:
    """Write what a delivery adds: test images, in the layout of the test set, and names.

    Raises:
        UserError: The test set has a table of labels.
    """
    test = data_dir / "test"
    files = read_drop(staged, growth.classes).files
    if any(path.suffix.lower() == ".npz" for path in test.iterdir()):
        spec = ImageSpec(tuple(growth.classes), data.image_size, data.channels, data.resize)
        images = np.stack([read_picture(file.path, spec).pixels for file in files])
        labels = np.array([file.label for file in files], np.int64)
        with replacing_file(test / f"{drop}.npz") as aside:
            write_npz(aside, images=images, labels=labels)
    elif (test / LABELS_FILE).exists():
        raise UserError(f"{test} has a table of labels: make class folders of it, then add classes")
    else:
        for file in files:
            (test / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, test / file.name)
    write_classes(data_dir, growth.classes)
