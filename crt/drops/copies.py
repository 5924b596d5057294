"""Copies of test images among training images: equal pixels, and pictures that look the same.

What looks the same is decided by the perceptual hash of the library imagehash (pHash: the signs of an image's
lowest frequencies), of 12 x 12 frequencies. docs/data.md has the numbers: which copies it finds, and how
often it errs.
"""

from dataclasses import dataclass, field

import numpy as np

_SIDE = 12  # frequencies in each direction
MOST = 10  # of the 144 signs: the most that differ between copies
SMALLEST = 16  # pixels; smaller images are compared by their pixels alone


def look_of(pixels: np.ndarray) -> bytes:
    """What an image looks like: its perceptual hash, of 24 bytes; b"" of an image too small for that.

    Args:
        pixels: uint8 [H, H, C], as prepared.
    """
    if len(pixels) < SMALLEST:
        return b""
    import imagehash
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    signs = imagehash.phash(image, hash_size=_SIDE).hash.ravel()
    return np.packbits(np.pad(signs, (0, -len(signs) % 64))).tobytes()


@dataclass
class KnownImages:
    """Images by their pixels and by their looks.

    Attributes:
        by_hash: Pixel hash -> name.
    """

    by_hash: dict[str, str] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)  # of the images that have a look
    _looks: list[bytes] = field(default_factory=list)
    _table: np.ndarray | None = None  # the looks as uint64 [N, 3], once they are asked for

    def add(self, name: str, sha256: str, look: bytes) -> None:
        """Remember an image."""
        self.by_hash[sha256] = name
        if look:
            self._names.append(name)
            self._looks.append(look)
            self._table = None

    def like(self, look: bytes) -> str | None:
        """The name of the image that looks most like this, if one looks the same."""
        if not look or not self._looks:
            return None
        if self._table is None:
            self._table = np.frombuffer(b"".join(self._looks), np.uint64).reshape(len(self._looks), -1)
        apart = np.bitwise_count(self._table ^ np.frombuffer(look, np.uint64)).sum(axis=1)
        nearest = int(apart.argmin())
        return self._names[nearest] if apart[nearest] <= MOST else None
