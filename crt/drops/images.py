"""One image file: decode it, bring it to the format of its data set, hash its pixels.

Training, certification and prediction all read images through here, so that all of them see the same pixels.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from crt.errors import UserError
from crt.spec import ImageSpec

# Only formats that Pillow decodes itself, alike everywhere: EPS, for one, would be handed to Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_READ = frozenset(
    {
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".bmp", ".dib", ".gif", ".webp",
        ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm",
    }
)  # fmt: skip
# Formats that need a plugin, and how one gets it.
_PLUGINS = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".hif"), "`pip install pillow-heif`"),
    **dict.fromkeys((".avif", ".avifs"), "a Pillow of 11.3 or later, or `pip install pillow-avif-plugin`"),
}
# Pictures in formats that are not read: unreadable images, and not files that do not matter.
_NOT_READ = frozenset(
    {
        ".jp2", ".j2k", ".jpx", ".jxl", ".psd", ".svg", ".tga", ".ico", ".eps", ".exr", ".hdr", ".dng",
        ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw",
    }
)  # fmt: skip
SUFFIXES = _READ | _PLUGINS.keys() | _NOT_READ

_ORIENTATION = 0x0112  # the tag of EXIF, and how an image is to be turned for each of its values
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_12_BITS = 4095  # values of 16 bits that stay below are those of a camera or scanner of fewer bits


@dataclass(frozen=True)
class Picture:
    """A decoded image file: `pixels` uint8 [H, W, C], and what was done to them, as `CHANGES` names it."""

    pixels: np.ndarray
    changes: tuple[str, ...]


# What is done to an image file besides scaling, and how it is told.
CHANGES = {
    "turned": "turned as the EXIF tag says",
    "first_frame": "only the first of several frames or pages is read",
    "opaque_alpha": "an alpha channel dropped that is opaque everywhere",
    "from_gray": "gray to RGB",
    "from_cmyk": "CMYK to RGB",
    "from_16_bits": "16 bits to 8",
}


class ImageError(UserError):
    """An image that cannot be used; `reason` says why, without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[Any, ...]]:
        return type(self), (self.name, self.reason)


class UnreadableImageError(ImageError):
    """The file is no image, or a damaged one."""


class MisfitImageError(ImageError):
    """A sound image of the wrong size or mode; `resizable`: with an `ImageSpec.resize` it would be taken."""

    def __init__(self, name: str, reason: str, resizable: bool = False) -> None:
        super().__init__(name, reason)
        self.resizable = resizable

    def __reduce__(self) -> tuple[type["MisfitImageError"], tuple[Any, ...]]:
        return type(self), (self.name, self.reason, self.resizable)


def decode_image(path: Path, spec: ImageSpec) -> np.ndarray:
    """The pixels of `read_picture`, uint8 [H, W, C]."""
    return read_picture(path, spec).pixels


def read_picture(path: Path, spec: ImageSpec) -> Picture:
    """Read an image file as pixels of the given kind.

    Raises:
        UnreadableImageError: the file cannot be decoded to its end, or has more pixels than Pillow's limit.
        MisfitImageError: its mode or size is not what the network takes.
    """
    with _opened(path) as image:
        changes = ["first_frame"] * _has_frames(image) + ["from_16_bits"] * (
            ";16" in str(getattr(image, "tile", ""))
        )
        image.load()
        upright = _upright(image)
    changes += ["turned"] * (upright is not image)
    pixels, converted = _fit(upright, spec, str(path))
    return Picture(pixels, tuple(dict.fromkeys((*changes, *converted))))


def fit_array(pixels: np.ndarray, spec: ImageSpec, name: str) -> np.ndarray:
    """Bring uint8 pixels [H, W, C] with C of 1 or 3 to the given size and channels.

    Raises:
        MisfitImageError: the number of channels or the size is not what the network takes.
    """
    if pixels.shape == (spec.size, spec.size, spec.channels):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    return _fit(image, spec, name)[0]


def read_header(path: Path) -> tuple[str, tuple[int, int]]:
    """Pillow's mode, and (width, height), of an image file that is not decoded.

    Raises:
        UnreadableImageError: the file is no image.
    """
    with _opened(path) as image:
        return image.mode, image.size


def suffix_of(content: bytes) -> str:
    """The suffix of a file of that content; .png where it is no image that is read."""
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            kind = image.format or "PNG"
    except Exception:  # it is named when it is read
        return ".png"
    return {"JPEG": ".jpg", "TIFF": ".tif", "HEIF": ".heic"}.get(kind, f".{kind.lower()}")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file; whatever is wrong with it while it is open becomes an UnreadableImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=_formats()) as image:
                yield image
        except Image.UnidentifiedImageError:
            suffix = path.suffix.lower()
            what = f"{suffix} is not read" if suffix in _NOT_READ else "not an image"
            if suffix in _PLUGINS and _plugin_lacks(suffix):
                what = f"reading {suffix} needs {_PLUGINS[suffix]}"
            raise UnreadableImageError(str(path), what) from None
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
            raise UnreadableImageError(str(path), str(error) or type(error).__name__) from None


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are read here, with those of the plugins that are installed."""
    formats: tuple[str, ...] = _FORMATS
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats += ("HEIF",)
    except ImportError:
        pass
    try:
        import pillow_avif  # noqa: F401 (registers itself)
    except ImportError:
        if not features.check("avif"):
            return formats
    return (*formats, "AVIF")


def _plugin_lacks(suffix: str) -> bool:
    return ("AVIF" if suffix.startswith(".avif") else "HEIF") not in _formats()


def pixel_hash(pixels: np.ndarray) -> str:
    """SHA-256 hex of shape and pixels: the same picture in another file format has the same hash."""
    digest = hashlib.sha256("x".join(str(side) for side in pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _has_frames(image: Image.Image) -> bool:
    """Whether there are more frames or pages; a camera's MPO holds other views of the picture instead."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first one is damaged
        return True


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says: a camera held upright stores the picture lying on its side."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged tag says nothing, and the pixels are sound
        return image
    return image if turn is None else image.transpose(turn)


def _fit(image: Image.Image, spec: ImageSpec, name: str) -> tuple[np.ndarray, list[str]]:
    """Pixels uint8 [H, W, C] of the given kind, and what was done to the colors."""
    image, changes = _to_channels(image, spec, name)
    size = spec.size
    if image.size != (size, size):
        width, height = image.size
        if spec.resize == "none":
            raise MisfitImageError(name, f"{width}x{height} pixels instead of {size}x{size}", resizable=True)
        if spec.resize == "crop":
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, spec.channels), changes


def _to_channels(image: Image.Image, spec: ImageSpec, name: str) -> tuple[Image.Image, list[str]]:
    wanted = "L" if spec.channels == 1 else "RGB"
    image, changes = _without_loss(image, name)
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        image, changes = _to_8_bits(image, name), [*changes, "from_16_bits"]
    elif image.mode == wanted:
        return image, changes
    elif wanted == "RGB" and mode in ("L", "CMYK"):
        image, changes = image.convert("RGB"), [*changes, "from_gray" if mode == "L" else "from_cmyk"]
    else:
        raise MisfitImageError(name, f"mode {mode} instead of {wanted}")
    if spec.resize == "none":
        raise MisfitImageError(name, f"mode {mode} instead of {wanted}", resizable=True)
    return image.convert(wanted), changes


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Gray of 16 bits with the upper 8 of them.

    Raises:
        MisfitImageError: the values are fractions, or do not use the 16 bits, so that nearly nothing would be
            left.
    """
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise MisfitImageError(name, f"mode {image.mode}, whose values have no known range")
    if 0 < values.max() <= _12_BITS:
        raise MisfitImageError(name, f"16 bits with values up to {values.max()} only, not 65535")
    return Image.fromarray((values // 256).astype(np.uint8))


def _without_loss(image: Image.Image, name: str) -> tuple[Image.Image, list[str]]:
    """The same pixels in mode L or RGB, where nothing is lost by that."""
    if image.mode == "1":
        return image.convert("L"), []
    if not (image.mode == "P" or image.has_transparency_data):
        return image, []
    alpha = image.mode != "P" and image.mode.endswith(("A", "a"))
    gray = image.mode in ("L", "LA", "La")
    whole = image.convert("LA" if gray else "RGBA")
    if whole.getchannel("A").getextrema() != (255, 255):
        raise MisfitImageError(name, "transparent pixels")
    return whole.convert("L" if gray else "RGB"), ["opaque_alpha"] * alpha
