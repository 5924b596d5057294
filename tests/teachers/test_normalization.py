"""The first BatchNorm tells the normalization layer that a network was trained behind, and the noise."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from crt.models.cifar_resnet import CifarResNet
from crt.teachers.normalization import CLEAR, Candidate, Evidence, clear_choice, normalizations, weigh

CIFAR10 = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]])[:, None, :, None, None]
THIS_DATA = ([0.49, 0.48, 0.45], [0.25, 0.24, 0.26])


def natural_images(count: int, seed: int) -> torch.Tensor:
    """Smooth random images with CIFAR-10's mean and spread per channel."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    smooth = F.interpolate(coarse, size=8, mode="bicubic")
    smooth = smooth + 0.6 * torch.randn(count, 1, 1, 1, generator=generator)
    mean, std = CIFAR10
    return ((smooth / smooth.std()) * std + mean).clamp(0, 1)


def trained(choice: Candidate, sigma: float, steps: int = 60) -> nn.Module:
    """A CIFAR ResNet after some steps of training on noisy images behind `choice`."""
    torch.manual_seed(0)
    network = CifarResNet(20).train()
    images = natural_images(320, seed=1)
    labels = (images.mean((1, 2, 3)) * 10).long().clamp(0, 9)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    mean, std = (torch.tensor(v)[:, None, None] for v in (choice.mean, choice.std))
    for step in range(steps):
        # The rate is 0 in the second half: the statistics settle, as at a run's end.
        optimizer.param_groups[0]["lr"] = 0.1 * max(0.0, 1 - 2 * step / steps)
        batch = slice(step * 32 % 320, step * 32 % 320 + 32)
        noisy = images[batch] + sigma * torch.randn_like(images[batch])
        loss = F.cross_entropy(network((noisy - mean) / std), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def by_name(name: str) -> Candidate:
    return next(c for c in normalizations(3, THIS_DATA) if c.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["identity", "center, CIFAR-10", "normalize, CIFAR-10"])
def test_the_layer_and_the_noise_of_training_are_found(name):
    network = trained(by_name(name), sigma=0.25)
    images = natural_images(256, seed=2)
    evidence = weigh(network, images, normalizations(3, THIS_DATA), torch.Generator().manual_seed(0))
    chosen = clear_choice(evidence)
    assert chosen is not None
    # Centres of the tables are alike, and so are their functions.
    assert chosen.candidate.std == by_name(name).std
    assert torch.allclose(torch.tensor(chosen.candidate.mean), torch.tensor(by_name(name).mean), atol=0.03)
    assert chosen.sigma == 0.25
    right = next(e for e in evidence if e.candidate.name == name)
    assert right.mismatch <= 1.5 * evidence[0].mismatch
    assert [e.mismatch for e in evidence] == sorted(e.mismatch for e in evidence)


@pytest.mark.slow
def test_another_noise_is_found_too():
    network = trained(by_name("normalize, CIFAR-10"), sigma=1.0)
    evidence = weigh(
        network, natural_images(256, 2), normalizations(3, THIS_DATA), torch.Generator().manual_seed(0)
    )
    assert clear_choice(evidence).sigma == 1.0


def test_mismatch_is_the_formula():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(2)

        def forward(self, x):
            return self.bn(x)

    network = Tiny().eval()
    network.bn.running_mean.copy_(torch.tensor([1.0, 2.0]))
    network.bn.running_var.copy_(torch.tensor([4.0, 0.25]))
    images = torch.rand(300, 2, 3, 3)
    [evidence] = weigh(
        network, images, [Candidate("x", (0.5, 0.1), (2.0, 0.5))], torch.Generator().manual_seed(3)
    )
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    x = (images + evidence.sigma * noise - torch.tensor([0.5, 0.1])[:, None, None]) / torch.tensor(
        [2.0, 0.5]
    )[:, None, None]
    m, v = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    M, V = network.bn.running_mean, network.bn.running_var
    assert evidence.mismatch == pytest.approx(
        float((((m - M) ** 2 / V) + (v.log() - V.log()) ** 2).mean()), rel=1e-4
    )


def test_the_network_is_left_as_it_was():
    network = trained(by_name("identity"), 0.25, steps=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weigh(network, natural_images(8, 2), normalizations(3, THIS_DATA), torch.Generator())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert network(torch.rand(1, 3, 16, 16)).shape == (1, 10)


def test_no_batchnorm_is_no_evidence():
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8).eval()
    assert weigh(network, torch.rand(4, 3, 32, 32), normalizations(3, THIS_DATA), torch.Generator()) == []
    assert clear_choice([]) is None


def test_a_choice_must_be_clear():
    one, alike, other = (
        Candidate(n, (m,), (s,)) for n, m, s in [("a", 0.5, 0.25), ("b", 0.505, 0.252), ("c", 0.0, 1.0)]
    )
    assert clear_choice([Evidence(one, 0.25, 0.1), Evidence(other, 0.25, 0.1 * CLEAR - 0.01)]) is None
    assert clear_choice([Evidence(one, 0.25, 0.1), Evidence(other, 0.25, 0.1 * CLEAR)]).candidate is one
    assert (
        clear_choice(
            [Evidence(one, 0.25, 0.1), Evidence(alike, 0.25, 0.11), Evidence(other, 0.25, 1.0)]
        ).candidate
        is one
    )
    assert clear_choice([Evidence(one, 0.25, float("inf"))]) is None


def test_gray_candidates():
    names = [c.name for c in normalizations(1, ([0.3], [0.4]))]
    assert names == [
        "identity",
        "center, MNIST",
        "normalize, MNIST",
        "center, this data",
        "normalize, this data",
    ]
