"""Which labeled images are set aside for validation: decided by what an image shows, and by nothing else.

An image never changes sides when other images come or go, and pictures that look nearly the same fall on one
side as far as a coarse hash can tell. The hash is the signs of an image's 16 lowest frequencies: brightness
and contrast do not enter, and a lossy copy changes none of them unless one is close to zero. Fewer signs
would separate fewer copies, but fill the split less evenly (docs/data.md has the numbers).
"""

import hashlib

import numpy as np

_SIDE = 16  # of the thumbnail; smaller images are told apart by their pixels
_SIGNS = 16
_SALT = b"validation 1"  # of 50, the one that splits the classes in benchmarks/results/split.md most evenly


def in_validation(pixels: np.ndarray, share: float) -> bool:
    """Whether an image belongs to the validation split. A larger share keeps what a smaller one chose.

    Args:
        pixels: uint8 [H, H, C], as prepared.
        share: Of all images, in [0, 1).
    """
    if share == 0:
        return False
    digest = hashlib.sha256(_SALT + content_key(pixels)).digest()
    return int.from_bytes(digest[:6], "big") < share * 2**48


def content_key(pixels: np.ndarray) -> bytes:
    """What stands for an image's content: equal for nearly equal pictures; of a tiny image, its pixels.

    Args:
        pixels: uint8 [H, H, C].
    """
    if len(pixels) < _SIDE:
        return pixels.tobytes()
    # Whole numbers throughout: the sign of a sum of floats could depend on the machine.
    frequencies = _COSINES @ _thumbnail(pixels) @ _COSINES.T
    signs = [frequencies[row, column] > 0 for row, column in _LOWEST]
    return np.packbits(signs).tobytes()


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """The mean brightness of each of 16 x 16 blocks, in 1/64 of a gray level, int64."""
    edges = np.arange(_SIDE) * len(pixels) // _SIDE
    gray = pixels.sum(axis=2, dtype=np.int64)
    sums = np.add.reduceat(np.add.reduceat(gray, edges, axis=0), edges, axis=1)
    sides = np.diff(edges, append=len(pixels))
    return 64 * sums // (np.outer(sides, sides) * pixels.shape[2])


def _cosines() -> np.ndarray:
    """The rows of a discrete cosine transform of 16 numbers, in 1/1024, int64 [frequency, place]."""
    places, frequencies = np.arange(_SIDE), np.arange(_SIDE)[:, None]
    return np.rint(1024 * np.cos(np.pi * (2 * places + 1) * frequencies / (2 * _SIDE))).astype(np.int64)


_COSINES = _cosines()
_LOWEST = sorted(
    ((row, column) for row in range(_SIDE) for column in range(_SIDE) if row or column),
    key=lambda place: (sum(place), place),
)[:_SIGNS]
