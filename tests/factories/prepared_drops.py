"""Small prepared drops for tests, in memory and on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crt.data.store import Store
from crt.drops.images import pixel_hash
from crt.drops.prepare import DecodedImage, Writer
from crt.files import replacing
from crt.spec import ImageSpec


def spec_of(images: np.ndarray, classes: int = 10) -> ImageSpec:
    """What uint8 images [N, H, H, C] are, their classes named by numbers."""
    return ImageSpec.numbered(classes, images.shape[1], images.shape[3])


def store_of(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    spec: ImageSpec | None = None,
    path: Path = Path("prepared/toy"),
    fingerprint: str = "f",
    validation: Sequence[int] = (),
) -> Store:
    """A drop in memory: uint8 images [N, H, H, C] and their labels (None: all 0).

    `validation` has the numbers of those that are set aside.
    """
    known = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels)
    aside = np.isin(np.arange(len(images)), validation)
    return Store(path, images, known, spec or spec_of(images), fingerprint, aside)


def write_prepared(
    folder: Path,
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    spec: ImageSpec | None = None,
    validation: Sequence[int] = (),
) -> Path:
    """The same as files, written as the prepare stage writes them. The images are named 0.png, 1.png, ..."""
    with replacing(folder) as aside, Writer(aside, len(images), spec or spec_of(images)) as writer:
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{number}.png"
            writer.add(DecodedImage(name, int(label), name, pixels, pixel_hash(pixels), number in validation))
        writer.finish()
    return folder
