"""What an image is: its classes, its format, its conversion to [0,1]; and whether two things agree on it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crt.errors import UserError, WrongTypeError

if TYPE_CHECKING:  # reading raw images needs no torch, and their worker processes start faster without it
    from torch import Tensor

RESIZES = ("none", "crop", "squash")


@dataclass(frozen=True)
class ImageSpec:
    """What the images of a data set, or those that a model takes, are.

    Example:
        >>> spec = ImageSpec(("cat", "dog"), size=32, channels=3)
        >>> spec.shape
        (3, 32, 32)

    Attributes:
        classes: The names of the classes, in the order of the labels and of a model's outputs.
        size: Height and width in pixels.
        channels: 1 for gray, 3 for RGB.
        resize: What may be done to an image file to get there. `none`: nothing, another size or mode is an
            error. `crop`: the center square, scaled. `squash`: the whole image, scaled. The last two also
            turn gray and CMYK into RGB. Color is never turned into gray, and an alpha channel is only
            dropped where every pixel is opaque: anything else would be guessing.

    Raises:
        UserError: There is no class, a size or a number of channels below 1, or an unknown way to resize.
    """

    classes: tuple[str, ...]
    size: int
    channels: int
    resize: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.classes:
            raise UserError("classes is empty: give the name of each class")
        if self.size < 1 or self.channels < 1:
            raise UserError(f"size is {self.size} and channels is {self.channels}: give numbers of 1 or more")
        if self.resize not in RESIZES:
            raise UserError(f"resize is {self.resize!r}: choose one of {', '.join(RESIZES)}")

    @classmethod
    def numbered(cls, classes: int, size: int, channels: int, resize: str = "none") -> "ImageSpec":
        """The same with classes that are named by their numbers: "0", "1", ...

        Example:
            >>> ImageSpec.numbered(2, size=8, channels=1).classes
            ('0', '1')
        """
        return cls(tuple(map(str, range(classes))), size, channels, resize)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W): that of one image as a network takes it."""
        return self.channels, self.size, self.size


def to_unit(pixels: "np.ndarray | Tensor") -> "Tensor":
    """Stored pixels as a network takes them; radii and sigma are in the units of the result.

    The result is channels-last in memory and on the device of the pixels.

    Example:
        >>> to_unit(np.full((1, 2, 2, 3), 255, np.uint8)).amax()
        tensor(1.)

    Args:
        pixels: uint8 [..., H, W, C].

    Returns:
        float32 [..., C, H, W] in [0,1].

    Raises:
        WrongTypeError: The pixels are not uint8.
    """
    import torch

    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8:
        # torch wants memory that can be written: that of memory-mapped files cannot.
        pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8:
        found = getattr(pixels, "dtype", type(pixels).__name__)
        raise WrongTypeError(f"pixels are {found}: give uint8 pixels [..., H, W, C] from 0 to 255")
    return pixels.movedim(-1, -3).float().div_(255)


def check_fits(
    what: str, spec: ImageSpec, other_what: str, other: ImageSpec, remedy: str, *, resize: bool = False
) -> None:
    """Check that two things are of the same classes, image size and channels.

    Example:
        >>> one, other = ImageSpec.numbered(10, 32, 3), ImageSpec.numbered(10, 28, 3)
        >>> check_fits("the teacher", one, "the data", other, "take another teacher")
        Traceback (most recent call last):
            ...
        crt.errors.UserError: the teacher and the data differ in image size (32 and 28): take another teacher

    Args:
        what: The one thing, as the message names it.
        spec: What its images are.
        other_what: The other thing, as the message names it.
        other: What its images are.
        remedy: The end of the message.
        resize: Whether image files must also have been brought to their size in the same way.

    Raises:
        UserError: They differ; the first difference is named.
    """
    check_same(what, spec.channels, other_what, other.channels, "channels", remedy)
    check_same(what, spec.size, other_what, other.size, "image size", remedy)
    if resize:
        check_same(what, spec.resize, other_what, other.resize, "resize", remedy)
    mine, others = spec.classes, other.classes
    check_same(what, len(mine), other_what, len(others), "the number of classes", remedy)
    for number, (one, another) in enumerate(zip(mine, others, strict=True)):
        check_same(what, repr(one), other_what, repr(another), f"class {number}", remedy)


def check_same(what: str, value: object, other_what: str, other: object, name: str, remedy: str) -> None:
    """Check that two things have the same `name` (such as sigma), in the words of `check_fits`.

    Raises:
        UserError: They differ.
    """
    if value != other:
        raise UserError(f"{what} and {other_what} differ in {name} ({value} and {other}): {remedy}")
