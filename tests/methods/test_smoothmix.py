"""SmoothMix against its literal version, step by step."""

import pytest
import torch
from test_attacks import Flat, Spy
from tiny import (
    SHAPE,
    SIGMA,
    B,
    K,
    agree,
    batch,
    each_logits,
    kl,
    network,
    normal,
    objective,
    seeded,
    softmax,
)

from crt.methods.smoothmix import smoothmix, trajectory

M, STEPS, ALPHA, ETA = 3, 3, 0.1, 5.0


def literal(mix_step, weight=1.0, detach=False, on="start"):
    def loss(model, data):
        generator = seeded()
        noise = normal((M, B, *SHAPE), SIGMA, generator)
        starts, ends = [], []
        for b in range(B):
            x, y = data.images[b], int(data.labels[b])
            points = [x]
            for _ in range(STEPS):
                point = points[-1].clone().requires_grad_()
                (g,) = torch.autograd.grad(objective(model, point, y, noise[:, b]), point)
                points.append((points[-1] + ALPHA * g / (g.norm() + 1e-8)).clamp(0, 1))
            shift, radius = points[mix_step] - x, weight * ALPHA * mix_step
            if shift.norm() > radius:
                shift = shift * radius / shift.norm()
            starts.append((x + shift).clamp(0, 1))
            ends.append(points[-1])

        z = each_logits(model, {(i, b): starts[b] + noise[i, b] for i in range(M) for b in range(B)})
        lam = torch.empty(B, 1, dtype=torch.float64).uniform_(0, 0.5, generator=generator)
        mixed = {
            (i, b): (1 - lam[b]) * starts[b] + lam[b] * ends[b] + noise[i, b]
            for i in range(M)
            for b in range(B)
        }
        zm = each_logits(model, mixed)
        natural = mix = torch.zeros((), dtype=torch.float64)
        for b in range(B):
            y = int(data.labels[b])
            mean = sum(softmax(z[i, b]) for i in range(M)) / M
            if detach:
                mean = mean.detach()
            target = (1 - lam[b]) * mean + lam[b] / K
            for i in range(M):
                natural = natural - softmax(z[i, b])[y].log() / (M * B)
                if int(mean.argmax()) == y:
                    mix = mix + kl(target, softmax(zm[i, b])) / (M * B)
        return natural + ETA * weight * mix

    return loss


def method(mix_step=1, **changes):
    settings = {"num_noise": M, "steps": STEPS, "step_size": ALPHA, "eta": ETA, "warmup_epochs": 10}
    return smoothmix(**{**settings, "mix_step": mix_step, **changes})


@pytest.mark.parametrize("mix_step", [0, 1, 2])
def test_value_and_gradient(mix_step):
    loss = agree(method(mix_step), literal(mix_step))
    assert loss.parts["mix"] > 0
    assert loss.total.item() == pytest.approx((loss.parts["cross_entropy"] + ETA * loss.parts["mix"]).item())


@pytest.mark.parametrize(("epoch", "weight"), [(0.0, 0.1), (4.7, 0.5), (9.0, 1.0)])
@pytest.mark.parametrize("mix_step", [0, 1, 2])
def test_the_weight_and_the_start_radius_warm_up_but_not_the_step_size(mix_step, epoch, weight):
    agree(method(mix_step), literal(mix_step, weight), epoch)


def test_the_gradient_flows_through_the_target():
    with pytest.raises(AssertionError):
        agree(method(), literal(1, detach=True))


def test_a_step_has_the_absolute_length_and_no_ball_holds_it():
    model, data = network(), batch()
    images = torch.full_like(data.images, 0.5)
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    iterates = trajectory(model, images, data.labels, noise, steps=8, step_size=0.2)
    first = (iterates[1] - iterates[0]).flatten(1).norm(dim=1)
    torch.testing.assert_close(first, torch.full((B,), 0.2, dtype=torch.float64), rtol=1e-4, atol=0)
    assert (iterates[-1] - images).flatten(1).norm(dim=1).max() > 0.8
    assert all(point.min() >= 0 and point.max() <= 1 and not point.requires_grad for point in iterates)
    assert len(iterates) == 9


def test_no_gradient_is_no_step():
    data = batch()
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    iterates = trajectory(Flat(), data.images, data.labels, noise, steps=2, step_size=0.5)
    assert torch.equal(iterates[-1], data.images)


def test_the_passes_and_what_they_see():
    """Attack in evaluation mode; then the start and mixes at most half way, in train mode, with one noise."""
    spy, data = Spy(network()), batch()
    method(mix_step=1, step_size=2.0)(spy, data, SIGMA, seeded())
    assert spy.modes == [False] * STEPS + [True, True]
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    start, mixed = (seen.view(M, B, *SHAPE) - noise for seen in spy.seen[-2:])
    adversary = trajectory(network(), data.images, data.labels, noise, steps=STEPS, step_size=2.0)
    torch.testing.assert_close(start, adversary[1].expand_as(start))
    way = (mixed - start) / (adversary[-1] - adversary[1])
    share = way.flatten(2).nan_to_num(posinf=0, neginf=0)
    for b in range(B):
        moved = (adversary[-1] - adversary[1])[b].flatten().abs() > 1e-6
        values = share[:, b, moved]
        torch.testing.assert_close(values, values[0, 0].expand_as(values))  # one per image
        assert 0 <= values[0, 0] <= 0.5


def test_an_image_predicted_wrong_is_not_mixed_but_counts_in_the_mean():
    """A constant network predicts class 0: only the images of class 0 are in the mix term, over all B."""

    class Constant(torch.nn.Module):
        def forward(self, images):
            flat = images.flatten(1).sum(1, keepdim=True) * 0
            return flat + torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=images.dtype)

    data = batch()
    model, p = Constant(), softmax(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    loss = method(mix_step=0)(model, data, SIGMA, seeded())
    generator = seeded()
    normal((M, B, *SHAPE), SIGMA, generator)
    lam = torch.empty(B, 1, dtype=torch.float64).uniform_(0, 0.5, generator=generator)
    right = [b for b in range(B) if data.labels[b] == 0]
    expected = sum(kl((1 - lam[b]) * p + lam[b] / K, p) for b in right) / B
    assert 0 < len(right) < B
    assert loss.parts["mix"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("size", [1, 4, 5])
def test_any_batch_size_goes_with_any_number_of_noises(size):
    assert method()(network(), batch(size=size), SIGMA, seeded()).total.isfinite()
