"""Certified Robustness Transfer: match a robust teacher's logits on noised images (Vaishnavi et al. 2022).

The l2 distance of the logits bounds how much of the teacher's radius the student can lose: where the
teacher's margin exceeds sqrt(2) times the distance, both answer the same class.

An update of a release can also hold on to that release where it is right, which is meant to lose fewer of the
release's certificates. Positive-congruent training (Yan et al. 2021, arXiv 2011.09161) does so for plain
accuracy.
"""

import torch
from torch import Tensor, nn

from crt.errors import UserError
from crt.methods.base import Batch, Loss, Method, Teacher
from crt.methods.shared.terms import accuracy, at_least_float32, cross_entropy

NEEDS_LABELS = False
TEACHER = "logits"
RELEASE = True


def crt(
    *, teacher: Teacher | None, alpha: float, keep: float = 0.0, release: Teacher | None = None
) -> Method:
    """L = alpha * mean_b ||z_S(x'_b) - z_T(x'_b)||_2 + (1 - alpha) * mean_b CE(z_S(x'_b), y_b), x' = x + e.

    One noise draw per image; student, teacher and release see the same x'. The norm is not squared. Teacher
    and release get no gradient. With alpha = 1 and without a release labels are not used at all.

    A release adds keep * mean_b 1[right_b] * ||z_S(x'_b) - z_R(x'_b)||_2, the mean over all B images. right_b
    says whether the release answers x'_b with the label y_b; where there is no label, with the teacher's
    answer.

    Args:
        teacher: What the student learns from.
        alpha: Weight of the transfer, from 0 to 1.
        keep: Weight of the distance to the release, at least 0.
        release: The model that the student is an update of; None: it is the first one.

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
        parts = {
            "transfer": transfer.detach(),
            "cross_entropy": label_loss.detach(),
            "agreement": (logits.argmax(1) == target.argmax(1)).float().mean(),
            "noisy_accuracy": accuracy(logits, batch.labels),
        }
        if release is not None and keep > 0:
            held = release.logits(noisy)
            right = _right(held, target, batch.labels)
            drift = (right * torch.linalg.vector_norm(logits - held, dim=1)).mean()
            total = total + keep * drift
            parts |= {"drift": drift.detach(), "release_right": right.mean()}
        return Loss(total, parts)

    return loss


def _right(release: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """1 where the release answers the label or, without one, as the teacher; else 0: logits [B, K] -> [B]."""
    expected = torch.where(labels >= 0, labels, teacher.argmax(1))
    return (release.argmax(1) == expected).to(release.dtype)
