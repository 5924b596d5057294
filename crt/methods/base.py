"""The one interface of all training methods."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """What a training step sees: clean images, before any noise.

    images: float [B, C, H, W] in [0,1]; labels: int64 [B], -1 = unlabelled; epoch: epochs done so far (with a
    fraction within the epoch), for warm-ups. Where the teacher's logits are known before: noise [B, C, H, W], standard
    normal, and target [B, K], the teacher's logits of images + sigma * noise.
    """

    images: Tensor
    labels: Tensor
    epoch: float
    noise: Tensor | None = None
    target: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise and its named parts (detached scalars, for the log)."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


Method = Callable[[nn.Module, Batch, float, torch.Generator], Loss]
"""(model in train mode, batch, sigma, generator on the batch's device) -> Loss."""


def standard_normal_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, I) draws of images' shape, type and memory format [B, C, H, W].

    They are drawn in the order of memory: torch's CPU kernel is eight times slower where that is not the order of axes,
    as in channels-last images.
    """
    noise = torch.empty_like(images)  # dense, whatever the memory format
    noise.as_strided((noise.numel(),), (1,)).normal_(generator=generator)
    return noise


def add_noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """images + sigma * N(0, I): [B, C, H, W] -> [B, C, H, W], fresh draws, never clipped (the certificate's noise)."""
    return images + sigma * standard_normal_like(images, generator)
