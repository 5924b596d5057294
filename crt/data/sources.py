"""Public data sets and folders of images, written in the layout of `data/`: classes.txt, train/<drop>/, test/.

Nothing is unpickled: CIFAR-10's Python archive is read by `crt.data.cifar10`.
"""

import gzip
import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from crt.data.cifar10 import read_batches
from crt.data.drops import Drop, ImageFile, first_ten, read_drop
from crt.data.files import write_text
from crt.data.images import (
    ImageError,
    ImageFormat,
    MisfitImageError,
    UnreadableImageError,
    decode_image,
    load_image,
    pixel_hash,
)
from crt.data.npz import write_npz
from crt.data.parallel import map_chunks
from crt.errors import UserError

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# As the authors name them, but a slash cannot be in the name of a class folder.
FASHION_MNIST_CLASSES = [
    "T-shirt or top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
_TEST_SHARE = 5  # one image in five is for the test
_LARGEST = 224  # pixels; images of mixed sizes are scaled to no more than this unless told


@dataclass(frozen=True)
class DataSet:
    """What was written; becomes conf/dataset.yaml.

    `left_out`: training images that the test set has too. `skipped`: image files that cannot be read.
    """

    name: str
    classes: list[str]
    channels: int
    image_size: int
    drops: list[str]
    left_out: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def write_digits(out: Path) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: three drops of 479 images and 360 test images.

    The split is fixed and even in the classes; the bytes are the same on every machine.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # values 0 to 16
    labels = digits.target.astype(np.int64)
    drops = ["2025-01", "2025-02", "2025-03"]

    order = _shuffled([f"digits {index}" for index in range(len(labels))])
    by_class = [[index for index in order if labels[index] == label] for label in range(10)]
    test_size = len(labels) // _TEST_SHARE // 10 + 1
    test = [index for members in by_class for index in members[:test_size]]
    train = [index for members in by_class for index in members[test_size:]]
    # Dealing out class after class, like cards, makes the drops as even as can be in size and in classes.
    parts = {f"train/{drop}": train[place :: len(drops)] for place, drop in enumerate(drops)}
    for part, indices in {**parts, "test": test}.items():
        members = set(indices)
        chosen = [index for index in order if index in members]
        _write_part(out / part, "digits", images[chosen], labels[chosen])
    classes = [str(label) for label in range(10)]
    _write_classes(out, classes)
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
    _write_classes(out, CIFAR10_CLASSES)
    return DataSet("cifar10", CIFAR10_CLASSES, 3, 32, [f"batch{n}" for n in range(1, 6)], left_out)


def write_fashion_mnist(out: Path, folder: Path) -> DataSet:
    """Fashion-MNIST, 28x28 grey, as one drop `base`.

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
    _write_classes(out, FASHION_MNIST_CLASSES)
    return DataSet("fashion_mnist", FASHION_MNIST_CLASSES, 1, 28, ["base"], left_out)


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
        image_size: what images are to be scaled to; None: their common size, otherwise the middle one of their
            shorter sides, at most 224.
        resize: how, see `ImageFormat`.
        skip_unreadable: leave unreadable files out instead of failing.

    Raises:
        UserError: no such layout, or images that cannot be read or used; names at most ten.
    """
    drops, test, classes = _find_parts(folder)
    files = [file for drop in drops.values() for file in drop.files] + (test.files if test else [])
    formats = list(map_chunks(_read_formats, files, 256, workers))
    fmt = _common_format(formats, image_size, resize)
    hashes: dict[Path, str] = {}
    problems: list[str] = []
    skipped: list[str] = []
    for file, found in zip(
        files, map_chunks(partial(_read_hashes, fmt=fmt), files, 64, workers), strict=True
    ):
        if isinstance(found, str):
            hashes[file.path] = found
        else:
            (skipped if skip_unreadable and isinstance(found, UnreadableImageError) else problems).append(
                str(found)
            )
    if problems:
        raise UserError(
            f"{folder} has {len(problems)} image(s) that cannot be used: {first_ten(problems)}; mend or remove them"
        )
    train_files = {drop: [file for file in part.files if file.path in hashes] for drop, part in drops.items()}
    if test:
        test_files = [file for file in test.files if file.path in hashes]
    else:
        train_files["base"], test_files = _split(train_files["base"], hashes)
    in_test = {hashes[file.path] for file in test_files}
    left_out = []
    for part, chosen in {
        **{f"train/{drop}": these for drop, these in train_files.items()},
        "test": test_files,
    }.items():
        (out / part).mkdir(parents=True)
        for file in chosen:
            if part != "test" and hashes[file.path] in in_test:
                left_out.append(f"{part}/{file.name}")
                continue
            (out / part / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, out / part / file.name)
    _write_classes(out, classes)
    return DataSet(name, classes, fmt.channels, fmt.image_size, list(train_files), left_out, skipped)


def _find_parts(folder: Path) -> tuple[dict[str, Drop], Drop | None, list[str]]:
    """The training drops, the test set if there is one, and the class names."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing or no folder: name one with class folders of images")
    train_dir = folder / "train"
    test_dir = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if not train_dir.is_dir():
        if test_dir:
            raise UserError(f"{test_dir} has no {train_dir} beside it: both or neither are needed")
        classes = _folders(folder)
        return {"base": _images_only(folder, classes)}, None, classes
    classes = _folders(test_dir or train_dir)
    if test_dir is None:
        raise UserError(
            f"{train_dir} has no test/ or val/ beside it: name {train_dir} itself to have it split"
        )
    test = _images_only(test_dir, classes)
    names = _folders(train_dir)
    if any(set(_folders(train_dir / name)) & set(classes) for name in names):
        return {name: _images_only(train_dir / name, classes) for name in names}, test, classes
    return {"base": _images_only(train_dir, classes)}, test, classes


def _folders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _images_only(folder: Path, classes: list[str]) -> Drop:
    if len(classes) < 2:
        raise UserError(f"{folder} has {len(classes)} class folder(s): at least two are needed")
    drop = read_drop(folder, classes)
    if drop.archives:
        raise UserError(
            f"{folder} has .npz archives: deliver such with `crt ingest`; here, class folders are needed"
        )
    return drop


def _read_formats(files: list[ImageFile]) -> list[tuple[str, tuple[int, int]] | None]:
    """Mode and size of image files; None where one cannot be read."""
    formats: list[tuple[str, tuple[int, int]] | None] = []
    for file in files:
        try:
            image = load_image(file.path)
        except UnreadableImageError:
            formats.append(None)
        else:
            formats.append((image.mode, image.size))
    return formats


def _common_format(
    found: Sequence[tuple[str, tuple[int, int]] | None], image_size: int | None, resize: str
) -> ImageFormat:
    readable = [item for item in found if item is not None]
    channels = 1 if all(mode in ("L", "1") for mode, _ in readable) else 3
    sizes = {size for _, size in readable}
    if image_size is None and len(sizes) == 1 and len(set(*sizes)) == 1:
        image_size = min(next(iter(sizes)))
    if image_size is None:
        shorter = sorted(min(size) for _, size in readable)
        image_size = min(_LARGEST, shorter[len(shorter) // 2]) if shorter else _LARGEST
    return ImageFormat(channels, image_size, resize)


def _read_hashes(files: list[ImageFile], fmt: ImageFormat) -> list[str | ImageError]:
    hashes: list[str | ImageError] = []
    for file in files:
        try:
            hashes.append(pixel_hash(decode_image(file.path, fmt)))
        except (UnreadableImageError, MisfitImageError) as error:
            hashes.append(error)
    return hashes


def _split(files: list[ImageFile], hashes: Mapping[Path, str]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Training and test files: a fifth of each class, chosen by the hash of the pixels alone."""
    sizes = Counter(file.label for file in files)
    test: set[Path] = set()
    taken: Counter[int] = Counter()
    last: dict[int, str] = {}
    for file in sorted(files, key=lambda file: hashes[file.path]):
        quota = max(sizes[file.label] // _TEST_SHARE, min(1, sizes[file.label] - 1))
        if taken[file.label] < quota or last.get(file.label) == hashes[file.path]:
            test.add(file.path)
            taken[file.label] += 1
            last[file.label] = hashes[file.path]
    return [file for file in files if file.path not in test], [file for file in files if file.path in test]


def _write_arrays(out: Path, stem: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Write parts of images and labels; names the training images that stand in the test set too, and omits them."""
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


def _write_classes(out: Path, classes: Sequence[str]) -> None:
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))


def _shuffled(keys: Sequence[str]) -> list[int]:
    """The indices of `keys` in an order that depends on the keys alone, not on any library's random numbers."""
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
