"""Consistency regularization: noisy predictions are drawn to their mean (Jeong and Shin 2020, section 3)."""

import math

import torch
from torch import nn

from crt.methods.base import Batch, Loss, Method, add_noise
from crt.methods.shared.terms import accuracy, at_least_float32, cross_entropy

NEEDS_LABELS = True
TEACHER = None


def consistency(*, num_noise: int, lbd: float, eta: float) -> Method:
    """L = mean CE(z_i, y) + mean_b [ lbd * mean_i KL(pbar || p_i) + eta * H(pbar) ], pbar = mean_i p_i.

    i runs over `num_noise` draws per image, all in one forward pass; gradients flow through pbar too.
    Unlabeled images take part in the two terms that need no label.
    """

    def loss(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        copies = batch.images.repeat(num_noise, 1, 1, 1)  # noise-major: image b's draw i is row i * B + b
        labels = batch.labels.repeat(num_noise)
        logits = at_least_float32(model(add_noise(copies, sigma, generator)))
        log_p = logits.log_softmax(1).unflatten(0, (num_noise, -1))  # [m, B, K]
        log_mean = log_p.logsumexp(0) - math.log(num_noise)  # [B, K]
        mean = log_mean.exp()
        divergence = (mean * (log_mean - log_p)).sum(2).mean()
        entropy = -(mean * log_mean).sum(1).mean()
        label_loss = cross_entropy(logits, labels)
        return Loss(
            label_loss + lbd * divergence + eta * entropy,
            {
                "cross_entropy": label_loss.detach(),
                "divergence": divergence.detach(),
                "entropy": entropy.detach(),
                "noisy_accuracy": accuracy(logits, labels),
            },
        )

    return loss
