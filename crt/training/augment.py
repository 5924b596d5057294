"""Augmentation of whole batches on the device: crops of the padded image, resized crops, mirroring."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crt.spec import to_unit

RATIO = 4 / 3  # largest of a resized crop's sides, before it is resized


@dataclass(frozen=True)
class Moves:
    """What happens to each of n images.

    Attributes:
        shift: int64 [2, n], the crop's row and column in the padded image.
        flip: bool [n], whether it is mirrored.
        box: float32 [4, n], a resized crop's top, left, height and width as shares of the image, or None.
    """

    shift: Tensor
    flip: Tensor
    box: Tensor | None

    def __getitem__(self, which: slice | Tensor) -> "Moves":
        """The moves of some of the images."""
        return Moves(self.shift[:, which], self.flip[which], None if self.box is None else self.box[:, which])

    @classmethod
    def join(cls, parts: Sequence["Moves"]) -> "Moves":
        """The moves of all the parts' images."""
        boxes = [part.box for part in parts if part.box is not None]
        return cls(
            torch.cat([part.shift for part in parts], 1),
            torch.cat([part.flip for part in parts]),
            torch.cat(boxes, 1) if boxes else None,
        )

    def to(self, device: torch.device) -> "Moves":
        """The same on `device`."""
        return Moves(
            self.shift.to(device), self.flip.to(device), None if self.box is None else self.box.to(device)
        )


def draw_moves(
    count: int, crop_padding: int, crop_area: float, flip: bool, generator: torch.Generator
) -> Moves:
    """Random moves for `count` images.

    Args:
        count: The number of images.
        crop_padding: Pixels of zeros on each side, of which a crop of the image's size is taken.
        crop_area: The smallest share of the image that a resized crop takes (1: none), of a ratio of sides
            between 3/4 and 4/3, log-uniform, as in torchvision's RandomResizedCrop. A side that would be
            longer than the image is as long as the image.
        flip: Whether half of the images are mirrored.
        generator: On the CPU.
    """
    shift = torch.randint(0, 2 * crop_padding + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5 if flip else torch.zeros(count).bool()
    if crop_area == 1:
        return Moves(shift, flips, None)
    area, ratio, top, left = torch.rand(4, count, generator=generator)
    area = crop_area + (1 - crop_area) * area
    ratio = torch.exp((2 * ratio - 1) * math.log(RATIO))  # width over height
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    return Moves(shift, flips, torch.stack([top * (1 - height), left * (1 - width), height, width]))


def augment(images: Tensor, crop_padding: int, moves: Moves) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [0,1], channels-last in memory, moved as `moves` says."""
    if moves.box is not None:
        return _resized(to_unit(images), moves)
    return to_unit(_crop_and_flip(images, crop_padding, moves))


def _crop_and_flip(images: Tensor, padding: int, moves: Moves) -> Tensor:
    """A crop of the original size from each zero-padded image, perhaps mirrored: uint8 [B, H, W, C]."""
    height, width = images.shape[1:3]
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    columns = columns.where(~moves.flip[:, None], width - 1 - columns) + moves.shift[1][:, None]
    rows = torch.arange(height, device=images.device) + moves.shift[0][:, None]
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]


def _resized(images: Tensor, moves: Moves) -> Tensor:
    """Each image's box, brought to the image's size (bilinear), perhaps mirrored. float32 [B, C, H, W]."""
    assert moves.box is not None
    top, left, height, width = moves.box
    # Output coordinates in [-1, 1] to the image's.
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(moves.flip, -width, width)
    theta[:, 0, 2] = 2 * left + width - 1
    theta[:, 1, 1] = height
    theta[:, 1, 2] = 2 * top + height - 1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
