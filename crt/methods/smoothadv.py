"""SmoothAdv: adversarial training of the smoothed classifier (Salman et al. 2019, arXiv 1906.04584)."""

from typing import Literal

import torch
from torch import nn

from crt.methods.base import Batch, Loss, Method
from crt.methods.shared.attacks import ddn, draw_noise, label_loss, noisy_logits, pgd, warmup
from crt.methods.shared.terms import accuracy

NEEDS_LABELS = True
TEACHER = None


def smoothadv(
    *, attack: Literal["pgd", "ddn"], epsilon: float, steps: int, num_noise: int, warmup_epochs: int
) -> Method:
    """Cross-entropy on noisy adversarial images; the attack sees the same noise as the loss.

        xadv = argmax over ||x' - x||_2 <= epsilon of -log mean_i softmax(f(x' + e_i))_y
        L = mean_{b,i} CE(f(xadv_b + e_ib), y_b)

    Args:
        attack: `pgd` or `ddn`.
        epsilon: largest l2 norm of the attack, [0,1] pixel units; grows linearly over the first epochs.
        steps: attack steps; one forward and backward pass each.
        num_noise: noise draws per image (m); a step sees m * B noisy images.
        warmup_epochs: epochs until epsilon is reached; 0: at once.
    """
    attacker = {"pgd": pgd, "ddn": ddn}[attack]

    def loss(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        noise = draw_noise(batch.images, sigma, num_noise, generator)
        adversaries = attacker(
            model,
            batch.images,
            batch.labels,
            noise,
            epsilon=epsilon * warmup(batch.epoch, warmup_epochs),
            steps=steps,
            generator=generator,
        )
        logits = noisy_logits(model, adversaries, noise)
        total = label_loss(logits, batch.labels).mean()
        attacked = accuracy(logits.flatten(0, 1), batch.labels.repeat(num_noise))
        return Loss(total, {"cross_entropy": total.detach(), "adversarial_accuracy": attacked})

    return loss
