"""Gaussian augmentation: cross-entropy on noised images (Cohen, Rosenfeld and Kolter 2019)."""

import torch
from torch import nn

from crt.methods.base import Batch, Loss, Method, add_noise
from crt.methods.shared.terms import accuracy, at_least_float32, cross_entropy

NEEDS_LABELS = True
TEACHER = None


def gaussian() -> Method:
    """L = mean_b CE(f(x_b + e_b), y_b), one noise draw per image."""

    def loss(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        logits = at_least_float32(model(add_noise(batch.images, sigma, generator)))
        total = cross_entropy(logits, batch.labels)
        return Loss(
            total,
            {"cross_entropy": total.detach(), "noisy_accuracy": accuracy(logits, batch.labels)},
        )

    return loss
