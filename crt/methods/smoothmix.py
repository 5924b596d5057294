"""SmoothMix: images mixed with adversaries of the smoothed network (Jeong et al. 2021, arXiv 2111.09277)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crt.methods.base import Batch, Loss, Method
from crt.methods.shared.attacks import (
    EPSILON,
    draw_noise,
    frozen,
    label_loss,
    noisy_logits,
    norms,
    project,
    smoothed_gradient,
    warmup,
)
from crt.methods.shared.terms import accuracy

NEEDS_LABELS = True
TEACHER = None


def smoothmix(
    *, num_noise: int, steps: int, step_size: float, mix_step: int, eta: float, warmup_epochs: int
) -> Method:
    """Cross-entropy at a start image s; on the way to an adversary, the label is drawn to the uniform one.

        L = mean_{b,i} CE(f(s_b + e_ib), y_b)
            + eta * w * mean_{b,i} c_b KL(ymix_b || softmax(f(xmix_b + e_ib)))
        xmix = (1 - lam) s + lam xadv,  ymix = (1 - lam) pbar + lam / K,  lam_b ~ U[0, 1/2]

    with pbar the mean prediction at s (not detached: the gradient flows through the target), c_b = 1 where
    its top class is y_b, and w the warm-up.

    Args:
        num_noise: noise draws per image (m); a step sees 2 m * B noisy images.
        steps: attack steps.
        step_size: l2 length of an attack step, [0,1] pixel units; there is no ball, the way is up to steps *
            step_size.
        mix_step: s is the iterate of this number, at most step_size * mix_step (times w) away; 0: the image
            itself.
        eta: weight of the mix term.
        warmup_epochs: epochs until `eta`, and the way from the image to s, are reached; 0: at once.
    """

    def loss(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        weight = warmup(batch.epoch, warmup_epochs)
        noise = draw_noise(batch.images, sigma, num_noise, generator)
        iterates = trajectory(model, batch.images, batch.labels, noise, steps=steps, step_size=step_size)
        shift = project(iterates[mix_step] - batch.images, weight * step_size * mix_step)
        start, adversaries = (batch.images + shift).clamp(0, 1), iterates[-1]

        logits = noisy_logits(model, start, noise)
        label = label_loss(logits, batch.labels).mean()

        lam = torch.empty(len(start), 1, dtype=start.dtype, device=start.device).uniform_(
            0, 0.5, generator=generator
        )
        mixed = torch.lerp(start, adversaries, lam[:, :, None, None])
        mean = logits.softmax(-1).mean(0)
        target = (1 - lam) * mean + lam / mean.shape[-1]
        divergence = F.kl_div(
            noisy_logits(model, mixed, noise).log_softmax(-1), target.expand_as(logits), reduction="none"
        )
        correct = mean.argmax(-1) == batch.labels
        mix = (correct * divergence.sum(-1)).mean()
        return Loss(
            label + eta * weight * mix,
            {
                "cross_entropy": label.detach(),
                "mix": mix.detach(),
                "noisy_accuracy": accuracy(logits.flatten(0, 1), batch.labels.repeat(num_noise)),
            },
        )

    return loss


def trajectory(
    model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor, *, steps: int, step_size: float
) -> list[Tensor]:
    """The images [B, C, H, W] and the `steps` iterates of ascent on the smoothed loss, detached, in [0,1]."""
    iterates = [images]
    with frozen(model) as network:
        for _ in range(steps):
            gradient, _ = smoothed_gradient(network, iterates[-1], labels, noise)
            step = step_size * gradient / (norms(gradient) + EPSILON)
            iterates.append((iterates[-1] + step).clamp(0, 1))
    return iterates
