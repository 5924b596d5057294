"""The images of rows, found by the hash of their pixels: of a prepared test set, or of image files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crt.certification.run import image_hash
from crt.certification.smoothing import Pixels
from crt.data.store import shard_name
from crt.drops.prepare import Checks, DecodedImage, check_drop
from crt.errors import UserError
from crt.evaluation.certificates import Certificates
from crt.spec import ImageSpec


def find_images(
    folder: Path, certificates: Certificates, rows: Sequence[int], spec: ImageSpec
) -> tuple[dict[int, Pixels], list[int]]:
    """The pixels of rows.

    Args:
        folder: A prepared test set, or a folder of images as a test set's: class folders, a table of labels,
            or .npz archives. Files that cannot be read are left out.
        certificates: The table.
        rows: Places in the table.
        spec: What the network takes, and how image files are brought there.

    Returns:
        The pixels by place in the table; rows that are not in it are of images that are not in the folder.
        And the rows whose image has another label there.

    Raises:
        UserError: There is no such folder, or none of the images is in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the test images with --images")
    is_prepared = (folder / shard_name(0)).is_file() and (folder / "labels.npy").is_file()
    read = _of_arrays if is_prepared else _of_files
    found = read(folder, certificates, rows, spec)
    if not found:
        raise UserError(
            f"none of {len(rows)} images, chosen at random from the certificates, is in {folder}: name the "
            "folder of the test images with --images"
        )
    pixels = {row: image for row, (image, _) in found.items()}
    mislabeled = [row for row, (_, label) in found.items() if label != certificates.label[row]]
    return pixels, sorted(mislabeled)


def _of_arrays(
    folder: Path, certificates: Certificates, rows: Sequence[int], spec: ImageSpec
) -> dict[int, tuple[Pixels, int]]:
    """A prepared test set holds an image where the row says."""
    try:
        labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)
        parts, count = list[np.ndarray](), 0
        while (file := folder / shard_name(len(parts))).is_file():
            parts.append(np.load(file, mmap_mode="r", allow_pickle=False))
            count += len(parts[-1])
    except Exception as error:  # NumPy raises nearly anything on the header of a hostile file
        raise UserError(f"{folder} is damaged ({type(error).__name__}): prepare the test set again") from None
    shape = (spec.size, spec.size, spec.channels)
    if not all(isinstance(array, np.ndarray) for array in (labels, *parts)) or labels.dtype.kind not in "iu":
        raise UserError(f"{folder} holds no arrays of images and labels: name the release's test set")
    if any(part.shape[1:] != shape or part.dtype != np.uint8 for part in parts) or labels.shape != (count,):
        raise UserError(f"{folder} holds no images of shape {list(shape)}: name the release's test set")
    starts = np.cumsum([0, *(len(part) for part in parts)])
    found = {}
    for row in rows:
        number = int(certificates.idx[row])
        if number >= count:
            continue
        part = int(np.searchsorted(starts, number, side="right")) - 1
        pixels = np.array(parts[part][number - starts[part]])
        if image_hash(pixels) == certificates.image[row]:
            found[row] = pixels, int(labels[number])
    return found


def _of_files(
    folder: Path, certificates: Certificates, rows: Sequence[int], spec: ImageSpec
) -> dict[int, tuple[Pixels, int]]:
    """Files are decoded all, and recognized by their pixels.

    Rows of equal images need as many files: else the rows of one easy image could be most of a table.
    """
    asked, places = set(rows), dict[str, list[int]]()
    for row, name in enumerate(certificates.image):
        places.setdefault(name, []).append(row)
    files: Counter[str] = Counter()
    found: dict[int, tuple[Pixels, int]] = {}

    def look(image: DecodedImage) -> None:
        name = image_hash(image.pixels)
        mine = places.get(name, [])
        if files[name] < len(mine):
            row = mine[files[name]]
            files[name] += 1
            if row in asked:
                found[row] = image.pixels, image.label

    check_drop(folder, spec=spec, checks=Checks(skip_unreadable=True), look=look)
    return found
