"""MACER: maximize the certified radius (Zhai et al. 2020, arXiv 2001.02378)."""

import torch
from torch import Tensor, nn

from crt.methods.base import Batch, Loss, Method
from crt.methods.shared.attacks import draw_noise, noisy_logits
from crt.methods.shared.terms import accuracy

NEEDS_LABELS = True
TEACHER = None


def macer(*, num_noise: int, lbd: float, gamma: float, beta: float, defer_epochs: int) -> Method:
    """Cross-entropy of the mean prediction, and a hinge on the certified radius of images classified right.

        L = mean_b -log(mean_i softmax(z_ib)_y + 1e-10) + lbd * sigma/2 * (1/B) sum_{b in S} (gamma - xi_b)
        xi = Phi^-1(q1) - Phi^-1(q2), q1 >= q2 the two largest entries of mean_i softmax(beta z_ib)
        S = images with top class y, xi finite and xi <= gamma

    Args:
        num_noise: noise draws per image (k); a step sees k * B noisy images.
        lbd: weight of the radius term.
        gamma: hinge, in units of xi: radii above sigma * gamma / 2 are not pushed further.
        beta: inverse temperature of the radius term.
        defer_epochs: epochs trained without the radius term; 0: none.
    """

    def loss(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        noise = draw_noise(batch.images, sigma, num_noise, generator)
        logits = noisy_logits(model, batch.images, noise)
        label = label_term(logits, batch.labels)
        radius = radius_term(logits, batch.labels, sigma, gamma=gamma, beta=beta)
        weight = lbd if batch.epoch >= defer_epochs else 0.0
        return Loss(
            label + weight * radius,
            {
                "cross_entropy": label.detach(),
                "radius": radius.detach(),
                "noisy_accuracy": accuracy(logits.flatten(0, 1), batch.labels.repeat(num_noise)),
            },
        )

    return loss


def label_term(logits: Tensor, labels: Tensor) -> Tensor:
    """mean_b -log(mean_i softmax(z_ib)_y + 1e-10): logits [k, B, K], labels [B] -> scalar."""
    mean = logits.softmax(-1).mean(0)
    return -(mean.gather(-1, labels[:, None]) + 1e-10).log().mean()


def radius_term(logits: Tensor, labels: Tensor, sigma: float, *, gamma: float, beta: float) -> Tensor:
    """sigma/2 * (1/B) sum over S of (gamma - xi): logits [k, B, K], labels [B] -> scalar; B, not |S|."""
    top, classes = (beta * logits).softmax(-1).mean(0).topk(2)
    with torch.no_grad():
        xi = _gap(top)
        selected = (classes[:, 0] == labels) & xi.isfinite() & (xi <= gamma)
    # Probabilities are masked before Phi^-1: an infinite derivative times a zero gradient would be NaN.
    xi = _gap(torch.where(selected[:, None], top, 0.5))
    return sigma / 2 * ((gamma - xi) * selected).mean()


def _gap(top: Tensor) -> Tensor:
    quantiles = torch.special.ndtri(top)
    return quantiles[:, 0] - quantiles[:, 1]
