"""Terms that several methods share. Labels: int64 [B]; -1 = unlabeled, out of every mean over labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits of a network under autocast, for a loss in full precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def labeled_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of `values` [B] over the labeled images; 0, with a gradient of 0, where there are none."""
    labeled = labels >= 0
    return values.where(labeled, values.new_zeros(())).sum() / labeled.sum().clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, K] over the labeled images."""
    return labeled_mean(F.cross_entropy(logits, labels, reduction="none", ignore_index=-1), labels)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labeled images whose largest logit is the label's; NaN where there are none."""
    labeled = labels >= 0
    return ((logits.argmax(1) == labels) & labeled).sum() / labeled.sum()
