"""Sets of images in `.npz` archives, in the spellings in which they are found."""

import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crt.datasets.roles import Role, role_of
from crt.datasets.sorting import ImageFacts, NearCopies, counts_of, sort_out
from crt.datasets.sources import DataSet, common_size, write_classes
from crt.drops.copies import look_of
from crt.drops.images import fit_array, pixel_hash
from crt.drops.layout import is_image, walk_files
from crt.drops.npz import write_npz
from crt.drops.tables import read_text
from crt.errors import UserError, first_ten
from crt.spec import ImageSpec

_IMAGES = ("images", "image", "imgs", "x", "data")
_LABELS = ("labels", "label", "y", "targets", "target")
_CLASSES = ("classes", "class_names", "label_names")


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [N, H, W, C] and labels int64 [N] (-1: none), with what tells where they belong."""

    path: Path
    role: Role | None
    drop: str
    images: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]


def is_npz(path: Path) -> bool:
    """Whether a file's name says that it is one."""
    return path.suffix.lower() == ".npz"


def read_arrays(source: Path) -> list[Arrays]:
    """The arrays of an archive, or of the archives in a folder; none: the folder holds image files.

    Raises:
        UserError: Image files lie beside archives, or an archive holds no images.
    """
    if source.is_file():
        return list(_in_archive(source, source.parent)) if is_npz(source) else []
    if not source.is_dir():
        return []
    files = walk_files(source)
    archives = [path for path in files if is_npz(path)]
    images = [path.relative_to(source).as_posix() for path in files if is_image(path.name)]
    if archives and images:
        named = [path.relative_to(source).as_posix() for path in archives]
        raise UserError(
            f"{source} mixes .npz archives ({first_ten(named)}) and image files ({first_ten(images)}): "
            "give one kind"
        )
    return [arrays for path in archives for arrays in _in_archive(path, source)]


def write_arrays(
    out: Path,
    arrays: Sequence[Arrays],
    name: str,
    image_size: int | None,
    resize: str,
    near_copies: NearCopies,
) -> DataSet:
    """Write sets of arrays in the layout of `data/`: train/<drop>/ and test/ with `.npz`, and classes.txt.

    Raises:
        UserError: They do not fit together, or an image has two labels.
    """
    train = [one for one in arrays if one.role in ("train", None)]
    others = {role: [one for one in arrays if one.role == role] for role in ("test", "validation")}
    test = next(
        (part for part in others.values() if part and all((one.labels >= 0).all() for one in part)), []
    )
    if not train:
        raise UserError(f"{arrays[0].path} holds nothing for training: give arrays or files called train")
    spec = _spec(arrays, [*train, *test], image_size, resize)
    entries = {id(one): _entries(one, spec) for one in [*train, *test]}
    drops: dict[str, list[ImageFacts]] = {}
    for one in train:
        drops.setdefault(one.drop, []).extend(entries[id(one)])
    if not test and drops.keys() != {"base"}:
        raise UserError(f"{train[0].path.parent} has drops and no test set beside: put test/ there")
    tested = [entry for one in test for entry in entries[id(one)]] if test else None
    found = sort_out(drops, tested, spec.classes, near_copies)
    for place, chosen in (
        ("test", found.test),
        *((f"train/{drop}", kept) for drop, kept in found.drops.items()),
    ):
        names = {entry.name for entry in chosen}
        for number, one in enumerate(test if test and place == "test" else train):
            if place in ("test", f"train/{one.drop}"):
                keep = [k for k, entry in enumerate(entries[id(one)]) if entry.name in names]
                _write(out / place, one, number, keep)
    write_classes(out, spec.classes)
    unused = [one for one in arrays if all(one is not other for other in (*train, *test))]
    told = [f"not used: {one.path.name}, {len(one.labels)} images for {one.role}" for one in unused]
    told.append("test set: as given" if test else "test set: a fifth of each class, by the pixels alone")
    return DataSet(
        name,
        list(spec.classes),
        spec.channels,
        spec.size,
        list(found.drops),
        left_out=found.left_out,
        near=found.near,
        counts=counts_of(found, spec.classes),
        told=told,
    )


def as_drop(source: Path, target: Path) -> None:
    """Copy an archive for a raw drop, with its arrays under the names `images` and `labels`.

    Raises:
        UserError: It holds several parts, such as x_train and x_test.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            named = "images.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        named = True  # what is wrong with it is said when it is read
    if named:
        shutil.copyfile(source, target)
        return
    found = list(_in_archive(source, source.parent))
    if len(found) > 1:
        parts = ", ".join(str(one.role) for one in found)
        raise UserError(f"{source} holds several parts ({parts}): save the images of the delivery alone")
    _save(target, found[0].images, found[0].labels)


def _spec(arrays: Sequence[Arrays], used: Sequence[Arrays], image_size: int | None, resize: str) -> ImageSpec:
    channels = {one.images.shape[3] for one in used}
    if len(channels) > 1:
        raise UserError(f"{arrays[0].path.parent} holds gray and color images: give one kind")
    largest = max(int(one.labels.max(initial=-1)) for one in used)
    classes = next((list(one.classes) for one in arrays if len(one.classes)), None)
    if classes is None:
        classes = [str(label) for label in range(largest + 1)]
    if largest >= len(classes) or len(classes) < 2:
        raise UserError(
            f"{arrays[0].path} has labels up to {largest} for {len(classes)} class(es): "
            "give labels from 0, of at least two classes"
        )
    sizes = [(one.images.shape[2], one.images.shape[1]) for one in used]
    return ImageSpec(tuple(classes), image_size or common_size(sizes), channels.pop(), resize)


def _entries(arrays: Arrays, spec: ImageSpec) -> list[ImageFacts]:
    entries = []
    for number, (pixels, label) in enumerate(zip(arrays.images, arrays.labels.tolist(), strict=True)):
        name = f"{arrays.path.name}#{number}"
        fitted = fit_array(pixels, spec, name)
        entries.append(ImageFacts(name, label, pixel_hash(fitted), look_of(fitted)))
    return entries


def _write(folder: Path, arrays: Arrays, number: int, keep: Sequence[int]) -> None:
    if keep:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{arrays.path.stem}.npz"
        if path.exists():  # of another folder, or another part of the same file
            path = folder / f"{arrays.path.stem}-{number}.npz"
        _save(path, arrays.images[keep], arrays.labels[keep])


def _save(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    labeled = {"labels": labels} if (labels >= 0).any() else {}
    write_npz(path, images=images, **labeled)


def _in_archive(path: Path, root: Path) -> Iterator[Arrays]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no readable .npz archive of plain arrays ({error}): write it again with numpy.savez"
        ) from None
    classes = next(([str(name) for name in arrays[key]] for key in _CLASSES if key in arrays), _beside(root))
    above = list(path.relative_to(root).parts[:-1])
    where = next((role for name in (path.stem, *reversed(above)) if (role := role_of(name))), None)
    starts = [place for place, name in enumerate(above) if role_of(name) == "train"]
    drop = above[starts[0] + 1] if starts and len(above) > starts[0] + 1 else "base"
    there = False
    for role in dict.fromkeys(role_of(key) for key in arrays):
        mine = {key: value for key, value in arrays.items() if role_of(key) == role}
        if (images := _one_of(mine, _IMAGES)) is None:
            continue
        there = True
        pixels = _as_images(path, images, mine[images])
        labels = _one_of(mine, _LABELS)
        numbers = (
            _as_labels(path, labels, mine[labels], len(pixels))
            if labels
            else np.full(len(pixels), -1, np.int64)
        )
        yield Arrays(path, role or where, drop, pixels, numbers, classes)
    if not there:
        raise UserError(
            f"{path} has no array of images (it has {first_ten(list(arrays))}): "
            "name it `images`, and the labels `labels`"
        )


def _one_of(arrays: Mapping[str, np.ndarray], words: Sequence[str]) -> str | None:
    """The key that has one of these words, by their order: `x_train`, `train_images`."""
    for word in words:
        for key in arrays:
            if word in re.split(r"[^a-z]+", key.lower()):
                return key
    return None


def _as_images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    shape = list(images.shape)
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise UserError(
            f"{path}: `{key}` is {images.dtype} {shape}, but uint8 images [N, H, W], [N, H, W, 1] or "
            "[N, H, W, 3] are needed: save them as bytes from 0 to 255"
        )
    return images


def _as_labels(path: Path, key: str, labels: np.ndarray, count: int) -> np.ndarray:
    flat = labels.reshape(len(labels)) if labels.ndim > 1 and labels.size == len(labels) else labels
    if flat.dtype.kind not in "iu" or flat.shape != (count,):
        raise UserError(
            f"{path}: `{key}` is {labels.dtype} {list(labels.shape)}, but integers [{count}] are needed: "
            "save class numbers"
        )
    return flat.astype(np.int64)


def _beside(root: Path) -> list[str]:
    """The names in a classes.txt in the folder."""
    path = root / "classes.txt"
    return [line.strip() for line in read_text(path).splitlines() if line.strip()] if path.is_file() else []
