"""The attacks against literal versions of their formulas, and what must hold whatever the network."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LABELS, SHAPE, SIGMA, B, K, batch, network, normal, objective, seeded
from torch import nn

from crt.methods.shared.attacks import (
    ddn,
    draw_noise,
    frozen,
    label_loss,
    noisy_logits,
    pgd,
    project,
    smoothed_gradient,
    smoothed_loss,
    warmup,
)

M = 3


class Spy(nn.Module):
    """Keeps what the network is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen, self.modes = inner, [], []

    def forward(self, images):
        self.seen.append(images.detach().clone())
        self.modes.append(self.training)
        return self.inner(images)


class Flat(nn.Module):
    """The same logits everywhere: no gradient leads anywhere."""

    def forward(self, images):
        return images.flatten(1).sum(1, keepdim=True) * torch.zeros(K, dtype=images.dtype)


def literal_pgd(model, images, labels, noise, epsilon, steps):
    found = []
    for b in range(len(images)):
        x, delta = images[b], torch.zeros(SHAPE, dtype=torch.float64)
        for _ in range(steps):
            point = (x + delta).requires_grad_()
            (g,) = torch.autograd.grad(objective(model, point, int(labels[b]), noise[:, b]), point)
            delta = delta + 2 * epsilon / steps * g / g.norm()
            delta = (x + delta).clamp(0, 1) - x
            if delta.norm() > epsilon:
                delta = delta * epsilon / delta.norm()
        found.append(x + delta)
    return torch.stack(found)


def literal_ddn(model, images, labels, noise, epsilon, steps):
    found = []
    for b in range(len(images)):
        x, y, delta = images[b], int(labels[b]), torch.zeros(SHAPE, dtype=torch.float64)
        reach = torch.maximum(x, 1 - x).norm()
        best, best_norm, r = delta, reach, epsilon
        for t in range(steps):
            point = (x + delta).requires_grad_()
            (g,) = torch.autograd.grad(objective(model, point, y, noise[:, b]), point)
            model.eval()
            votes = [int(model((x + delta + e)[None])[0].argmax()) for e in noise[:, b]]
            model.train()
            counts = [votes.count(k) for k in range(K)]
            fooled = counts.index(max(counts)) != y
            if fooled and delta.norm() < best_norm:
                best, best_norm = delta, delta.norm()
            eta = 0.01 + 0.99 * (1 + math.cos(math.pi * (t + 1) / steps)) / 2
            delta = delta + eta * g / g.norm()
            r = min(reach, r * (0.95 if fooled else 1.05))
            delta = delta * r / delta.norm()
            delta = ((x + delta) * 255).round().div(255).clamp(0, 1) - x
        if best.norm() > epsilon:
            best = best * epsilon / best.norm()
        found.append((x + (best * 255).round() / 255).clamp(0, 1))
    return torch.stack(found)


def attacked(attack, epsilon, steps, model=None, images=None, m=M):
    data = batch()
    images = data.images if images is None else images
    noise = normal((m, *images.shape), SIGMA, seeded()).to(images.dtype)
    model = network() if model is None else model
    found = attack(model, images, data.labels, noise, epsilon=epsilon, steps=steps, generator=seeded())
    return found, images, data.labels, noise


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize(("epsilon", "steps"), [(0.3, 1), (0.5, 4), (1.5, 3)])
def test_pgd_is_its_formula(m, epsilon, steps):
    found, images, labels, noise = attacked(pgd, epsilon, steps, m=m)
    torch.testing.assert_close(found, literal_pgd(network(), images, labels, noise, epsilon, steps))


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize(("epsilon", "steps"), [(0.3, 2), (0.6, 6)])
def test_ddn_is_its_formula(m, epsilon, steps):
    found, images, labels, noise = attacked(ddn, epsilon, steps, m=m)
    expected = literal_ddn(network(), images, labels, noise, epsilon, steps)
    torch.testing.assert_close(found, expected)
    moved = (found - images).flatten(1).norm(dim=1)
    assert 0 < (moved > 0).sum() < B  # images misclassified at once stay, others move


def test_ddn_leaves_an_image_that_no_candidate_turns():
    data = batch()
    sure = nn.Sequential(nn.Flatten(), nn.Linear(18, K)).double()
    with torch.no_grad():
        sure[1].weight.mul_(0.01)
        sure[1].bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    labels = torch.ones(B, dtype=torch.int64)
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    found = ddn(sure, data.images, labels, noise, epsilon=0.5, steps=4, generator=seeded())
    assert torch.equal(found, data.images)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 3), st.integers(1, 4), st.sampled_from([pgd, ddn]))
def test_adversaries_stay_in_the_box_and_the_ball(seed, epsilon, steps, attack):
    torch.manual_seed(seed)
    images = torch.rand(B, *SHAPE, dtype=torch.float64).round(decimals=1)
    found, *_ = attacked(attack, epsilon, steps, network(seed), images)
    slack = math.sqrt(18) / 510 if attack is ddn else 0  # rounding to 8 bits comes last
    assert ((found - images).flatten(1).norm(dim=1) <= epsilon + slack + 1e-9).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_one_pgd_step_may_reach_twice_the_radius_but_is_projected():
    data, noise = batch(), torch.zeros(1, B, *SHAPE, dtype=torch.float64)
    images = torch.full_like(data.images, 0.5)
    for steps, length in [(1, 0.2), (2, 0.2), (4, 0.2)]:
        found = pgd(network(), images, data.labels, noise, epsilon=0.2, steps=steps, generator=seeded())
        torch.testing.assert_close((found - images).flatten(1).norm(dim=1), torch.full((B,), length).double())


@pytest.mark.parametrize("attack", [pgd, ddn])
def test_an_attack_leaves_no_trace(attack):
    model = network()
    model[0].weight.requires_grad_(False)  # frozen by the user: stays frozen
    model[1].eval()  # so does a layer in evaluation mode
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found, *_ = attacked(attack, 0.5, 3, model)
    assert not found.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert [m.training for m in model] == [True, False, True, True, True]
    assert model.training


def test_an_attack_runs_in_evaluation_mode_on_unclipped_noisy_images():
    spy = Spy(network())
    _, images, _, noise = attacked(pgd, 0.5, 2, spy)
    assert spy.modes == [False, False]
    torch.testing.assert_close(spy.seen[0].view(M, B, *SHAPE), images + noise)  # the start is the image
    assert spy.seen[0].min() < 0
    assert spy.seen[0].max() > 1


def test_the_state_is_restored_after_an_exception():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, images):
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        attacked(pgd, 0.5, 1, model)
    assert model.training
    assert model.norm.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_inside():
    model = network()
    with frozen(model) as inside:
        assert inside is model
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_zero_gradient_takes_pgd_in_a_random_direction_and_no_nan():
    for attack in (pgd, ddn):
        found, images, *_ = attacked(attack, 0.5, 2, Flat())
        assert found.isfinite().all()
    found, images, *_ = attacked(pgd, 0.5, 2, Flat())
    assert ((found - images).flatten(1).norm(dim=1) > 0.1).all()


def test_where_the_expectation_sits():
    """The label gets 0.9 and 0.1: log of mean, mean of log and log of the mean logits' are three things."""
    logits = torch.tensor([[[math.log(9.0), 0.0]], [[math.log(1 / 9), 0.0]]], dtype=torch.float64)
    labels = torch.tensor([0])
    inside, outside = smoothed_loss(logits, labels), label_loss(logits, labels)
    assert inside.item() == pytest.approx(-math.log(0.5))
    assert outside.flatten().tolist() == pytest.approx([-math.log(0.9), -math.log(0.1)])
    assert outside.mean().item() == pytest.approx(1.2040, abs=1e-4)
    lopsided = torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    of_mean_logits = -math.log(math.exp(1.5) / (math.exp(1.5) + 1))
    assert smoothed_loss(lopsided, labels).item() != pytest.approx(of_mean_logits, abs=0.05)


def test_the_smoothed_loss_keeps_its_gradient_far_below_float32():
    logits = torch.tensor([[[0.0, 200.0]], [[0.0, 300.0]]], requires_grad=True)
    smoothed_loss(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0.5


def test_the_noise_axes_and_the_labels_go_together():
    """Without noise all copies of an image agree, whatever the layout in the forward pass."""
    model, data = network().eval(), batch()
    images = torch.arange(B).view(B, 1, 1, 1).expand(B, *SHAPE) / B + torch.zeros(1, dtype=torch.float64)
    logits = noisy_logits(model, images, torch.zeros(M, B, *SHAPE, dtype=torch.float64))
    alone = model(images)
    torch.testing.assert_close(logits, alone.expand(M, B, K))
    for i in range(M):
        for b in range(B):
            expected = alone[b].logsumexp(0) - alone[b][LABELS[b]]
            torch.testing.assert_close(label_loss(logits, data.labels)[i, b], expected)


def test_each_draw_has_the_standard_deviation_sigma():
    images = torch.zeros(64, 3, 16, 16)
    noise = draw_noise(images, 0.25, 4, seeded())
    assert noise.shape == (4, 64, 3, 16, 16)
    # 49,152 entries a draw: their standard deviation's standard error is 0.25 / sqrt(2 * 49152) = 0.0008.
    assert noise.flatten(1).std(1).tolist() == pytest.approx([0.25] * 4, abs=0.004)
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.025


def test_logits_are_at_least_float32():
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, K)).bfloat16()
    images = torch.rand(2, *SHAPE, dtype=torch.bfloat16)
    assert noisy_logits(model, images, torch.zeros(M, 2, *SHAPE, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_smoothed_gradient_is_each_images_own():
    model, data = network(), batch()
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    with frozen(model):
        together, _ = smoothed_gradient(model, data.images, data.labels, noise)
        for b in range(B):
            alone, _ = smoothed_gradient(
                model, data.images[b : b + 1], data.labels[b : b + 1], noise[:, b : b + 1]
            )
            torch.testing.assert_close(together[b : b + 1], alone)


@pytest.mark.parametrize(
    ("epoch", "epochs", "share"),
    [(0, 10, 0.1), (0.9, 10, 0.1), (1, 10, 0.2), (9, 10, 1), (50, 10, 1), (0, 0, 1)],
)
def test_warmup(epoch, epochs, share):
    assert warmup(epoch, epochs) == pytest.approx(share)


def test_projection():
    delta = torch.zeros(3, 1, 2, 2)
    delta[0, 0, 0] = torch.tensor([3.0, 4.0])
    delta[1, 0, 0, 0] = 0.5
    assert project(delta, 1.0).flatten(1).norm(dim=1).tolist() == pytest.approx([1, 0.5, 0])
    assert torch.equal(project(delta, 0.0), torch.zeros_like(delta))  # no 0 / 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_attacks_work_through_a_training_wrapper(precision):
    """Fabric's wrapper refuses torch.autograd.grad under mixed precision."""
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model = network().float()
    wrapped = fabric.setup_module(model)
    images = batch().images.float()
    with fabric.autocast():
        found, *_ = attacked(pgd, 0.5, 2, wrapped, images)
    assert (found - images).flatten(1).norm(dim=1).min() > 0.1
    assert found.dtype == torch.float32
    assert model.training
    assert wrapped.training
