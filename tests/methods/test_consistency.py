import math

import pytest
import torch
from tiny import SIGMA, B, agree, kl, normal, seeded, softmax
from torch import nn

from crt.methods.base import Batch
from crt.methods.consistency import consistency


@pytest.mark.parametrize(("m", "lbd", "eta"), [(2, 20.0, 0.5), (3, 5.0, 0.1), (2, 0.0, 0.0)])
def test_equals_the_formula_image_by_image(m, lbd, eta):
    def literal(model, data):
        noise = normal((m * B, *data.images.shape[1:]), SIGMA, seeded()).unflatten(0, (m, B))
        inputs = torch.stack([data.images[b] + noise[i, b] for i in range(m) for b in range(B)])
        logits = model(inputs)  # one forward pass: batch normalization sees all draws
        total = torch.zeros((), dtype=torch.float64)
        for b in range(B):
            p = [softmax(logits[i * B + b]) for i in range(m)]
            mean = sum(p) / m
            total = total + sum(-q[data.labels[b]].log() for q in p) / m
            total = total + lbd * sum(kl(mean, q) for q in p) / m
            total = total - eta * (mean * mean.log()).sum()
        return total / B

    loss = agree(consistency(num_noise=m, lbd=lbd, eta=eta), literal)
    parts = loss.parts
    assert set(parts) == {"cross_entropy", "divergence", "entropy", "noisy_accuracy"}
    total = parts["cross_entropy"] + lbd * parts["divergence"] + eta * parts["entropy"]
    torch.testing.assert_close(loss.total.detach(), total)


class Given(nn.Module):
    """Logits that do not depend on the images."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert len(images) == len(self.logits)
        return self.logits


def test_a_value_by_hand():
    """p_1 = (3/4, 1/4) and p_2 = (1/4, 3/4), so pbar = (1/2, 1/2)."""
    model = Given([[math.log(3), 0.0], [0.0, math.log(3)]])
    data = Batch(torch.zeros(1, 1, 2, 2), torch.tensor([0]), 0.0)
    parts = consistency(num_noise=2, lbd=1.0, eta=1.0)(model, data, SIGMA, seeded()).parts
    assert parts["cross_entropy"].item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert parts["divergence"].item() == pytest.approx(math.log(2 / 3) / 2 + math.log(2) / 2)
    assert parts["entropy"].item() == pytest.approx(math.log(2))
    assert parts["noisy_accuracy"].item() == 0.5


def test_certain_predictions_stay_finite():
    model = Given([[300.0, -300.0], [-300.0, 300.0]])
    data = Batch(torch.zeros(1, 1, 2, 2), torch.tensor([0]), 0.0)
    loss = consistency(num_noise=2, lbd=20.0, eta=0.5)(model, data, SIGMA, seeded())
    loss.total.backward()
    assert loss.total.isfinite()
    assert model.logits.grad.isfinite().all()
