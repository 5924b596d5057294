"""Attacks on the smoothed classifier, and what they share with the losses.

The noise of one step is one tensor [m, B, C, H, W], logits are [m, B, K]: m noise draws for each of B images.
Carrying the two axes apart leaves no copy order to confuse when labels are matched to logits.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crt.methods.base import standard_normal_like

DDN_GAMMA = 0.05  # relative change of DDN's norm in a step
LEVELS = 255  # DDN's iterates are 8-bit images
EPSILON = 1e-8  # keeps a zero gradient a zero step where the formula says g / (||g|| + 1e-8)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode and without gradients to parameters; all is as before afterwards.

    Yields the bare network: a wrapper for several processes (`model.module`) would synchronize gradients that
    an attack does not have, and Lightning Fabric's refuses `torch.autograd.grad` under mixed precision.
    """
    network: nn.Module = getattr(model, "module", model)
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield network
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


def warmup(epoch: float, epochs: int) -> float:
    """Share of what grows linearly over the first `epochs` epochs: min(1, (e + 1) / epochs), e = 0, 1, ..."""
    return min(1.0, (math.floor(epoch) + 1) / epochs) if epochs else 1.0


def draw_noise(images: Tensor, sigma: float, num_noise: int, generator: torch.Generator) -> Tensor:
    """Independent N(0, sigma^2) draws: [B, C, H, W] -> [num_noise, B, C, H, W]."""
    return torch.empty((num_noise, *images.shape), dtype=images.dtype, device=images.device).normal_(
        0, sigma, generator=generator
    )


def noisy_logits(model: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
    """Logits [m, B, K] of images [B, C, H, W] (or [m, B, C, H, W]) + noise [m, B, C, H, W], in one pass.

    At least float32: under autocast the losses are still computed in full precision. Nothing is clipped.
    """
    logits: Tensor = model((images + noise).flatten(0, 1))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(0, noise.shape[:2])


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each noisy image: logits [m, B, K], labels [B] -> [m, B]."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return losses.unflatten(0, logits.shape[:2])


def smoothed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the mean probability of the label: logits [m, B, K], labels [B] -> [B].

    The expectation is inside the log (SmoothAdv, equation 6). Computed as a log-sum-exp, so that it keeps a
    gradient however small the probability is; with one noise it is the cross-entropy.
    """
    return math.log(len(logits)) - torch.logsumexp(-label_loss(logits, labels), dim=0)


def norms(tensor: Tensor) -> Tensor:
    """l2 norm of each image [..., C, H, W], as [..., 1, 1, 1]."""
    return torch.linalg.vector_norm(tensor, dim=(-3, -2, -1), keepdim=True)


def project(delta: Tensor, radius: float) -> Tensor:
    """Each image of delta [..., C, H, W] shrunk to an l2 norm of at most radius."""
    norm = norms(delta).clamp(min=torch.finfo(delta.dtype).tiny)  # 0 / 0 would be NaN
    return delta * (radius / norm).clamp(max=1)


def unit(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """gradient / its l2 norm per image; where that is zero, an N(0, I) draw, as in SmoothAdv."""
    norm = norms(gradient)
    return torch.where(norm > 0, gradient / norm, standard_normal_like(gradient, generator))


def smoothed_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the smoothed loss with respect to images [B, C, H, W], and the logits [m, B, K] there.

    Parameters' `.grad` is not touched. Call it inside `frozen(model)`.
    """
    images = images.detach().requires_grad_()
    logits = noisy_logits(model, images, noise)
    # The sum over the batch gives each image its own gradient: in evaluation mode images do not interact.
    (gradient,) = torch.autograd.grad(smoothed_loss(logits, labels).sum(), images)
    return gradient, logits.detach()


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Projected gradient ascent on the smoothed loss (Salman et al. 2019, section 3): detached [B, C, H, W].

    The noise [m, B, C, H, W] is the same in all steps, the step size 2 epsilon / steps, the start the image
    itself. After each step first the box [0,1], then the l2 ball of radius epsilon around the image.
    """
    delta = torch.zeros_like(images)
    with frozen(model) as network:
        for _ in range(steps):
            gradient, _ = smoothed_gradient(network, images + delta, labels, noise)
            delta = delta + 2 * epsilon / steps * unit(gradient, generator)
            delta = project((images + delta).clamp(0, 1) - images, epsilon)
    return images + delta


def ddn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Decoupled direction and norm (Rony et al. 2019) on the smoothed classifier: detached [B, C, H, W].

    Returns the tested iterate of smallest norm that the vote over the m noises misclassifies, shrunk to norm
    epsilon and rounded to 8 bits (which may add up to sqrt(CHW)/510 to the norm); the image itself where
    there is none. The norm starts at epsilon and changes by 5 % a step. The last iterate is not tested:
    `steps` - 1 non-zero candidates.
    """
    largest = norms(torch.maximum(images, 1 - images))
    delta, best, best_norm = torch.zeros_like(images), torch.zeros_like(images), largest
    radius = torch.full_like(largest, epsilon)
    with frozen(model) as network:
        for step in range(1, steps + 1):
            gradient, logits = smoothed_gradient(network, images + delta, labels, noise)
            fooled = (logits.argmax(-1).mode(0).values != labels).view(-1, 1, 1, 1)
            shorter = fooled & (norms(delta) < best_norm)
            best, best_norm = torch.where(shorter, delta, best), torch.where(shorter, norms(delta), best_norm)
            size = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
            delta = delta + size * unit(gradient, generator)
            radius = torch.minimum(largest, radius * torch.where(fooled, 1 - DDN_GAMMA, 1 + DDN_GAMMA))
            delta = delta * radius / norms(delta)
            delta = _rounded(images + delta).clamp(0, 1) - images
    return (images + _rounded(project(best, epsilon))).clamp(0, 1)


def _rounded(images: Tensor) -> Tensor:
    return (images * LEVELS).round() / LEVELS
