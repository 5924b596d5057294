"""Public data sets and folders of images, written in the layout of `data/`: classes.txt, train/<drop>/, test/."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crt.data.files import write_text
from crt.data.npz import write_npz

_TEST_SHARE = 5  # one image in five is for the test


@dataclass(frozen=True)
class DataSet:
    """What was written: becomes conf/dataset.yaml. `left_out`: training images that the test set has too."""

    name: str
    classes: list[str]
    channels: int
    image_size: int
    drops: list[str]
    left_out: list[str]


def write_digits(out: Path) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: three drops of 479 images and 360 test images.

    The split is fixed and even in the classes; the bytes are the same on every machine.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # values 0 to 16
    labels = digits.target.astype(np.int64)
    drops = ["2025-01", "2025-02", "2025-03"]

    order = shuffled([f"digits {index}" for index in range(len(labels))])
    by_class = [[index for index in order if labels[index] == label] for label in range(10)]
    test_size = len(labels) // _TEST_SHARE // 10 + 1
    test = [index for members in by_class for index in members[:test_size]]
    train = [index for members in by_class for index in members[test_size:]]
    # Dealing out class after class, like cards, makes the drops as even as can be in size and in classes.
    parts = {f"train/{drop}": train[place :: len(drops)] for place, drop in enumerate(drops)}
    for part, indices in {**parts, "test": test}.items():
        (out / part).mkdir(parents=True)
        members = set(indices)
        chosen = [index for index in order if index in members]
        write_npz(out / part / "digits.npz", images=images[chosen], labels=labels[chosen])
    classes = [str(label) for label in range(10)]
    write_classes(out, classes)
    return DataSet("digits", classes, channels=1, image_size=8, drops=drops, left_out=[])


def write_classes(out: Path, classes: Sequence[str]) -> None:
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))


def shuffled(keys: Sequence[str]) -> list[int]:
    """The indices of `keys` in an order that depends on the keys alone, not on any library's random numbers."""
    return sorted(range(len(keys)), key=lambda index: hashlib.sha256(keys[index].encode()).digest())
