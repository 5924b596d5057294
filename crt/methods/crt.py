"""Certified Robustness Transfer: match a robust teacher's logits on noised images (Vaishnavi et al. 2022).

The l2 distance of the logits bounds how much of the teacher's radius the student can lose: where the teacher's
margin exceeds sqrt(2) times the distance, both answer the same class.
"""

import torch
from torch import nn

from crt.errors import UserError
from crt.methods.base import Batch, Loss, Method, Teacher
from crt.methods.shared.terms import accuracy, at_least_float32, cross_entropy

NEEDS_LABELS = False
TEACHER = "logits"


def crt(*, teacher: Teacher | None, alpha: float) -> Method:
    """L = alpha * mean_b ||z_S(x'_b) - z_T(x'_b)||_2 + (1 - alpha) * mean_b CE(z_S(x'_b), y_b), x' = x + e.

    One noise draw per image; student and teacher see the same x'. The norm is not squared. The teacher gets no
    gradient. With alpha = 1 labels are not used at all.

    Args:
        teacher: What the student learns from.
        alpha: Weight of the transfer, from 0 to 1.

    Raises:
        UserError: There is no teacher.
    """
    if teacher is None:
        raise UserError(
            "method crt needs a teacher: give one (`teacher`), or choose a method that learns alone"
        )

    def loss(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        noisy, target = teacher.noised(batch, sigma, generator)
        logits = at_least_float32(model(noisy))
        transfer = torch.linalg.vector_norm(logits - target, dim=1).mean()
        label_loss = cross_entropy(logits, batch.labels)
        # Not 0 * label_loss: that is NaN where the label loss overflows.
        total = transfer if alpha == 1 else alpha * transfer + (1 - alpha) * label_loss
        return Loss(
            total,
            {
                "transfer": transfer.detach(),
                "cross_entropy": label_loss.detach(),
                "agreement": (logits.argmax(1) == target.argmax(1)).float().mean(),
                "noisy_accuracy": accuracy(logits, batch.labels),
            },
        )

    return loss
