"""Small raw drops for tests: real files on disk."""

from pathlib import Path

import numpy as np
from PIL import Image

from crt.spec import ImageSpec

CLASSES = ["cat", "dog", "owl"]
GRAY8 = ImageSpec(tuple(CLASSES), size=8, channels=1)
RGB8 = ImageSpec(tuple(CLASSES), size=8, channels=3)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 8), dtype=np.uint8)


def write_image(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def class_folders(folder: Path, per_class: int = 4, first_seed: int = 0) -> Path:
    """Gray 8x8 PNGs in the class folders of CLASSES, all different."""
    for label, name in enumerate(CLASSES):
        for index in range(per_class):
            write_image(folder / name / f"{index:03}.png", pixels(first_seed + label * per_class + index))
    return folder
