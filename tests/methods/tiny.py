"""A tiny network in float64, and the means to write a formula out image by image and noise by noise."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crt.methods.base import Batch, Loss

B, K, SHAPE = 5, 4, (2, 3, 3)
SIGMA = 0.25
LABELS = [0, 1, 2, 3, 1]


def network(seed: int = 0) -> nn.Module:
    """With BatchNorm, whose running statistics differ from a batch's; smooth, so no gradient vanishes."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(54, K)
    ).double()
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.5, 0.5)
        net[1].running_var.uniform_(0.5, 2)
        net[4].weight.mul_(4)
    return net.train()


def batch(epoch: float = 100.0, size: int = B) -> Batch:
    torch.manual_seed(7)
    images = torch.rand(size, *SHAPE, dtype=torch.float64)
    images[0, 0, 0, 0], images[-1, 0, 0, 0] = 0.0, 1.0  # on the border of the box
    return Batch(images, torch.tensor(LABELS[:size]), epoch)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).normal_(generator=generator) * std


def each_logits(model: nn.Module, inputs: dict[tuple[int, int], Tensor]) -> dict[tuple[int, int], Tensor]:
    """Logits [K] of the inputs[i, b], in one forward pass (BatchNorm sees all), image after image."""
    order = sorted(inputs, key=lambda key: (key[1], key[0]))
    logits = model(torch.stack([inputs[key] for key in order]))
    return dict(zip(order, logits, strict=True))


def softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """sum_k p_k log(p_k / q_k), 0 log 0 = 0."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total = total + a * (a / b).log()
    return total


def objective(model: nn.Module, image: Tensor, label: int, noises: Tensor) -> Tensor:
    """-log of the label's mean probability, in evaluation mode; the model's mode is given back."""
    training = model.training
    model.eval()
    mean = sum(softmax(model((image + e)[None])[0])[label] for e in noises) / len(noises)
    model.train(training)
    return -mean.log()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def agree(
    method: Callable[..., Loss], literal: Callable[[nn.Module, Batch], Tensor], epoch: float = 100.0
) -> Loss:
    """The method's loss and parameter gradients equal those of its literal version; returns the loss."""
    ours, theirs, data = network(), network(), batch(epoch)
    before = data.images.clone()
    loss = method(ours, data, SIGMA, seeded())
    expected = literal(theirs, data)
    torch.testing.assert_close(loss.total, expected, rtol=1e-9, atol=1e-10)
    for got, want in zip(gradients(ours, loss.total), gradients(theirs, expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)
    assert torch.equal(data.images, before)
    return loss
