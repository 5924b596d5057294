"""Public data sets, written in the layout of `data/`: classes.txt, train/<drop>/, test/."""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from crt.datasets.cifar10 import read_batches
from crt.datasets.sorting import TEST_SHARE
from crt.drops.images import pixel_hash
from crt.drops.layout import check_class_names
from crt.drops.npz import write_npz
from crt.errors import UserError
from crt.files import write_text

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# As the authors name them, but a slash cannot be in the name of a class folder.
FASHION_MNIST_CLASSES = [
    "T-shirt or top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
]  # fmt: skip
_LARGEST = 224  # pixels; images of mixed sizes are scaled to no more than this unless told
_LARGEST_COMMON = 2048  # pixels; images of one size keep it up to this, the most that a configuration takes


@dataclass(frozen=True)
class DataSet:
    """What was written; becomes the data: part of conf/choice.yaml.

    Attributes:
        name: What the set is called.
        classes: The names of the classes.
        channels: 1 for gray, 3 for RGB.
        image_size: Height and width, pixels.
        drops: The names of the drops.
        left_out: Training images that the test set has too.
        skipped: Image files that cannot be read.
        ignored: Files that are not used.
        near: Training images that look like a test image.
        counts: How many images of each class each drop has, and `test`; those without a label under ''.
        changes: What was done to how many images (`crt.drops.images.CHANGES`).
        told: How the source was understood, a line each.
    """

    name: str
    classes: list[str]
    channels: int
    image_size: int
    drops: list[str]
    left_out: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def common_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The size for images of these widths and heights: theirs, if it is one; else the median shorter side."""
    sides = {side for size in sizes for side in size}
    if len(sides) == 1 and max(sides) <= _LARGEST_COMMON:
        return sides.pop()
    shorter = sorted(map(min, sizes)) or [_LARGEST]
    return min(_LARGEST, shorter[len(shorter) // 2])


def write_digits(out: Path) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 gray: three drops of 479 images and 360 test images.

    The split is fixed and even in the classes; the bytes are the same on every machine.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # values 0 to 16
    labels = digits.target.astype(np.int64)
    drops = ["2025-01", "2025-02", "2025-03"]

    order = _shuffled([f"digits {index}" for index in range(len(labels))])
    by_class = [[index for index in order if labels[index] == label] for label in range(10)]
    test_size = len(labels) // TEST_SHARE // 10 + 1
    test = [index for members in by_class for index in members[:test_size]]
    train = [index for members in by_class for index in members[test_size:]]
    # Dealing out class after class, like cards, makes the drops as even as can be in size and in classes.
    parts = {f"train/{drop}": train[place :: len(drops)] for place, drop in enumerate(drops)}
    for part, indices in {**parts, "test": test}.items():
        members = set(indices)
        chosen = [index for index in order if index in members]
        _write_part(out / part, "digits", images[chosen], labels[chosen])
    classes = [str(label) for label in range(10)]
    write_classes(out, classes)
    return DataSet("digits", classes, channels=1, image_size=8, drops=drops)


def write_cifar10(out: Path, archive: Path) -> DataSet:
    """CIFAR-10, 32x32 RGB: its five training batches as five drops.

    Args:
        archive: cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder that either unpacks to.

    Raises:
        UserError: the archive is not CIFAR-10's, or damaged.
    """
    parts = {
        "test" if name == "test_batch" else f"train/batch{name[-1]}": arrays
        for name, arrays in read_batches(archive)
    }
    left_out = _write_arrays(out, "cifar10", parts)
    write_classes(out, CIFAR10_CLASSES)
    return DataSet("cifar10", CIFAR10_CLASSES, 3, 32, [f"batch{n}" for n in range(1, 6)], left_out)


def write_fashion_mnist(out: Path, folder: Path) -> DataSet:
    """Fashion-MNIST, 28x28 gray, as one drop `base`.

    Args:
        folder: holds the four IDX files, plain or gzip.

    Raises:
        UserError: a file is missing or damaged.
    """
    parts = {}
    for part, stem in (("train/base", "train"), ("test", "t10k")):
        images = _read_idx(folder, f"{stem}-images-idx3-ubyte", dimensions=3)
        labels = _read_idx(folder, f"{stem}-labels-idx1-ubyte", dimensions=1).astype(np.int64)
        if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max() > 9:
            raise UserError(f"{folder}: the {stem} files are not Fashion-MNIST's: download them again")
        parts[part] = (images, labels)
    left_out = _write_arrays(out, "fashion_mnist", parts)
    write_classes(out, FASHION_MNIST_CLASSES)
    return DataSet("fashion_mnist", FASHION_MNIST_CLASSES, 1, 28, ["base"], left_out)


def _write_arrays(out: Path, stem: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Write parts of images and labels, without the training images that the test set has: their names."""
    in_test = {pixel_hash(image) for image in parts["test"][0]}
    left_out = []
    for part, (images, labels) in parts.items():
        keep = np.ones(len(images), bool)
        if part != "test":
            keep = np.array([pixel_hash(image) not in in_test for image in images])
            left_out += [f"{part}#{index}" for index in np.flatnonzero(~keep)]
        _write_part(out / part, stem, images[keep], labels[keep])
    return left_out


def _write_part(folder: Path, stem: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    write_npz(folder / f"{stem}.npz", images=images, labels=labels)


def write_classes(out: Path, classes: Sequence[str]) -> None:
    """Write classes.txt.

    Raises:
        UserError: `crt.drops.layout.read_classes` would not read the names back.
    """
    check_class_names(classes, "the data set")
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))


def _shuffled(keys: Sequence[str]) -> list[int]:
    """The indices of `keys` in an order that depends on the keys alone, on no library's random numbers."""
    return sorted(range(len(keys)), key=lambda index: hashlib.sha256(keys[index].encode()).digest())


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file of bytes (http://yann.lecun.com/exdb/mnist/ describes the format), plain or with .gz."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.exists() else packed
    try:
        with plain.open("rb") if path == plain else gzip.open(packed) as stream:
            return _parse_idx(stream, dimensions)
    except FileNotFoundError:
        raise UserError(
            f"{plain} (or .gz) is missing: put the four IDX files of Fashion-MNIST there"
        ) from None
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from None


def _parse_idx(stream: BufferedIOBase, dimensions: int) -> np.ndarray:
    header = stream.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError("not an IDX file of bytes")
    shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
    size = int(np.prod(shape, dtype=np.int64))
    content = stream.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{size} bytes were announced, not {len(content)}")
    return np.frombuffer(content, np.uint8).reshape(shape)
