"""Gaussian augmentation, and the rules for noise and labels that all methods share."""

import inspect
import math
import pkgutil
import subprocess
import sys

import pytest
import torch
from tiny import SIGMA, agree, batch, network, normal, seeded, softmax
from torch import nn

import crt.methods
from crt.errors import UserError
from crt.methods.base import Batch, Teacher, find_method, standard_normal_like
from crt.methods.gaussian import gaussian
from crt.methods.shared.terms import accuracy, cross_entropy

SETTINGS = {
    "gaussian": {},
    "consistency": {"num_noise": 2, "lbd": 10.0, "eta": 0.5},
    "crt": {"alpha": 0.5},
}


class Spy(nn.Module):
    """A front layer that keeps what the network was given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.inputs: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.inputs.append(images.detach().clone())
        return self.network(images)


def test_equals_the_formula():
    def literal(model, data):
        noise = normal(data.images.shape, SIGMA, seeded())
        logits = model(data.images + noise)
        return sum(-softmax(z)[y].log() for z, y in zip(logits, data.labels, strict=True)) / len(data.labels)

    loss = agree(gaussian(), literal)
    assert set(loss.parts) == {"cross_entropy", "noisy_accuracy"}


@pytest.mark.parametrize("name", SETTINGS)
def test_noise_is_fresh_has_sigma_and_is_not_clipped(name):
    spy = Spy(network())
    method = find_method(name).build(SETTINGS[name], Teacher(network(1)))
    data = Batch(torch.rand(400, 2, 3, 3).double(), torch.zeros(400, dtype=torch.int64), 0.0)
    generator = seeded()
    for _ in range(2):
        method(spy, data, SIGMA, generator)
    draws = []
    for given in spy.inputs:
        copies = len(given) // len(data.images)
        draws += list((given - data.images.repeat(copies, 1, 1, 1)).unflatten(0, (copies, -1)))
    for i, noise in enumerate(draws):
        # 7,200 values: the standard deviation's own is sigma / sqrt(2 * 7200), 0.8 %.
        assert noise.std().item() == pytest.approx(SIGMA, rel=0.05)
        assert abs(noise.mean().item()) < 5 * SIGMA / math.sqrt(noise.numel())
        for other in draws[:i]:
            correlation = (noise * other).mean().item() / SIGMA**2
            assert abs(correlation) < 5 / math.sqrt(noise.numel())
    for given in spy.inputs:
        assert given.min() < 0
        assert given.max() > 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_noise_fills_any_memory_format(memory_format):
    images = torch.rand(64, 3, 8, 8).to(memory_format=memory_format)
    noise = standard_normal_like(images, seeded())
    assert noise.stride() == images.stride()
    assert abs(noise.mean().item()) < 5 / math.sqrt(noise.numel())
    assert noise.var(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 3, rel=5 * math.sqrt(2 / 4096))
    assert torch.equal(noise, standard_normal_like(images, seeded()))
    in_memory = noise.permute(0, 2, 3, 1) if memory_format == torch.channels_last else noise
    assert torch.equal(in_memory.flatten(), torch.empty(noise.numel()).normal_(generator=seeded()))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_seed_gives_the_same_noise(name):
    seen = []
    for _ in range(2):
        spy = Spy(network())
        find_method(name).build(SETTINGS[name], Teacher(network(1)))(spy, batch(), SIGMA, seeded(11))
        seen.append(spy.inputs[0])
    assert torch.equal(*seen)


def test_unlabeled_images_leave_the_label_terms():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 0, -1]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient[2], torch.zeros(2))
    assert accuracy(logits, torch.tensor([0, 0, -1])).item() == 0.5


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_without_any_label_gives_a_finite_loss_and_gradient(name):
    model = network()
    data = batch()
    unlabeled = Batch(data.images, torch.full_like(data.labels, -1), 0.0)
    method = find_method(name).build(SETTINGS[name], Teacher(network(1)))
    loss = method(model, unlabeled, SIGMA, seeded())
    loss.total.backward()
    assert loss.total.isfinite()
    assert loss.parts["cross_entropy"] == 0
    assert loss.parts["noisy_accuracy"].isnan()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    learns = any(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert learns == (name != "gaussian")


def test_methods_by_name():
    assert find_method("gaussian").needs_labels
    assert not find_method("crt").needs_labels
    assert [find_method(name).teacher for name in ("crt", "catrs", "consistency")] == [
        "logits",
        "network",
        None,
    ]
    for unknown in ("magic", "base", "shared"):
        with pytest.raises(UserError, match=rf"{unknown}.*choose one of catrs, .*, smoothmix$"):
            find_method(unknown)
    with pytest.raises(UserError, match="needs a teacher"):
        find_method("crt").build({"alpha": 1.0})


@pytest.mark.parametrize("name", ["gaussian", "catrs", "crt"])
def test_a_methods_file_alone_is_imported(name):
    """What a training computes does not depend on other methods: a change of them must not re-run it."""
    code = (
        "import sys; from crt.training import fit; from crt.methods.base import find_method; "
        f"find_method({name!r}); "
        "print(*sorted(m for m in sys.modules if m.startswith('crt.methods.') or m == 'crt.bank'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shared = {
        "crt.methods.base",
        "crt.methods.shared",
        "crt.methods.shared.attacks",
        "crt.methods.shared.terms",
    }
    assert set(done.stdout.split()) - shared == {f"crt.methods.{name}"}


def test_every_method_says_what_it_needs():
    names = [module.name for module in pkgutil.iter_modules(crt.methods.__path__) if not module.ispkg]
    for name in set(names) - {"base"}:
        kind = find_method(name)
        takes = "teacher" in inspect.signature(kind.factory).parameters
        assert (kind.teacher is not None) == takes, name
        assert kind.needs_labels in (True, False)
