"""Is this network a function of one image? The theorem assumes it; a batch, or chance, can break it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from crt.errors import UserError

ROWS = 128  # made-up noisy images that are looked at
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the largest logit
MOST_KEPT = 16  # rows whose activations are compared to find the module at fault
MOST_DIFFERING = 0.01  # share of rows that may change their class with the shape of the batch


@dataclass(frozen=True)
class ShapeCheck:
    """How many of `rows` images change their class when the batch has another size, by rounding."""

    rows: int
    batch_size: int
    differing: int


def made_up_images(shape: Sequence[int], sigma: float) -> Tensor:
    """Noisy images [ROWS, C, H, W] of soft patches, for any shape [C, H, W]."""
    generator, (C, H, W) = torch.Generator().manual_seed(0), shape
    patches = torch.rand(ROWS, C, min(H, 8), min(W, 8), generator=generator)
    images = F.interpolate(patches, size=(H, W), mode="bilinear", align_corners=False)
    return images + sigma * torch.randn(ROWS, C, H, W, generator=generator)


def check_batch_norms(network: nn.Module) -> None:
    """Refuse BatchNorms that normalize with the statistics of the batch.

    Raises:
        UserError: There is one; it is named.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise UserError(
                f"the module {name!r} ({type(module).__name__}) has no running statistics and normalizes "
                "each image by its batch: certify a network with track_running_stats=True"
            )


@torch.inference_mode()
def check_function(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    batch_size: int,
    tolerance: float,
    other_shape: bool,
) -> ShapeCheck | None:
    """Check that a row's logits depend on nothing but the row.

    Args:
        network: For naming the module at fault.
        forward: Images [B, C, H, W] -> logits [B, K].
        images: Made-up noisy images [n, C, H, W].
        batch_size: Of all of certification's forward passes.
        tolerance: What logits may differ by, as a share of the largest.
        other_shape: Whether batches of another size are looked at, too.

    Returns:
        What another size of the batch changes, None where that is not looked at.

    Raises:
        UserError: Logits depend on the other rows, on the place in the batch or on chance, there are none, or
            classes change with the size of the batch.
    """

    batches = _Batches(forward, images)
    count = len(images)
    logits = batches.in_order(batch_size)
    if logits.isnan().any(1).all():
        raise UserError(
            "the model returns NaN for every one of the made-up images: look for NaN in its weights, "
            "or overflow in its precision"
        )
    if not _alike(logits, batches.in_other_company(batch_size), tolerance):
        random = not _alike(logits, batches.in_order(batch_size), tolerance)
        reason = "on chance" if random else "on the other images of its batch"
        first = torch.arange(batch_size, device=images.device) % count
        others = first if random else torch.full_like(first, 2)
        others[0] = 0
        shared = batch_size if random else 1
        pair = batches.of(first), batches.of(others)
        module = _first_unsteady(network, forward, *pair, shared, tolerance)
        raise UserError(
            f"what the model says of an image depends {reason}, first in {module}: "
            "certify a network whose rows are independent"
        )
    if not other_shape:
        return None
    other = max(batch_size // 2, 1) if batch_size > 1 else 2
    differing = int((_classes(logits) != _classes(batches.in_order(other))).sum())
    if differing > MOST_DIFFERING * count:
        raise UserError(
            f"{differing} of {count} made-up images change their class when batches have {other} images "
            f"instead of {batch_size}: certify a network that rounds less, or in float32"
        )
    return ShapeCheck(count, other, differing)


@dataclass(frozen=True)
class _Batches:
    """The logits [n, K] of `images` [n, C, H, W], computed in batches of several kinds."""

    forward: Callable[[Tensor], Tensor]
    images: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """A batch of these rows."""
        return self.images[rows].contiguous(memory_format=torch.channels_last)

    def in_order(self, size: int) -> Tensor:
        """One image after the other, in batches of one size; the last is filled up."""
        count = len(self.images)
        rows = torch.arange(-(-count // size) * size, device=self.images.device) % count
        return torch.cat([self.forward(self.of(part)) for part in rows.split(size)])[:count]

    def in_other_company(self, size: int) -> Tensor:
        """The same of batches that are shuffled, and whose first half is one image again and again."""
        mixed = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        mixed = mixed.to(self.images.device)
        parts = list[Tensor]()
        for rows in mixed.split(max(size // 2, 1)):
            filling = mixed[:1].expand(size - len(rows))
            parts.append(self.forward(self.of(torch.cat([filling, rows])))[len(filling) :])
        logits = torch.cat(parts)
        return torch.empty_like(logits).index_copy_(0, mixed, logits)


def _classes(logits: Tensor) -> Tensor:
    """The class of each row, -1 for none."""
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1))


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two results agree up to the tolerance, and in their classes."""
    one, other = one.float(), other.float()
    finite = one[one.isfinite()].abs()
    scale = float(finite.max()) if len(finite) else 1.0
    close = torch.isclose(one, other, rtol=0, atol=tolerance * scale, equal_nan=True).all()
    return bool(close) and (one.ndim != 2 or torch.equal(_classes(one), _classes(other)))


def _first_unsteady(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batch: Tensor,
    other: Tensor,
    shared: int,
    tolerance: float,
) -> str:
    """The first module whose output for the first rows differs between two batches that share so many."""
    plain: Any = getattr(network, "_orig_mod", network)  # a compiled network's own modules
    with _outputs(plain, len(batch), min(shared, MOST_KEPT)) as found:
        forward(batch)
    with _outputs(plain, len(batch), min(shared, MOST_KEPT)) as again:
        forward(other)
    for (name, kind, first), (_, _, second) in zip(found, again, strict=False):
        if not _alike(first, second, tolerance):
            return f"the module {name!r} ({kind})"
    return f"the forward pass of {type(plain).__name__}"


@contextmanager
def _outputs(network: nn.Module, rows: int, kept: int) -> Iterator[list[tuple[str, str, Tensor]]]:
    """(name, type, output for the first rows) of each innermost module, in the order of their calls."""
    found = list[tuple[str, str, Tensor]]()

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim and len(output) == rows:
                found.append((name, type(module).__name__, output[:kept].clone().flatten()))

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.named_modules()
        if name and not any(module.children())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
