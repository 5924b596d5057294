"""SmoothAdv's loss: cross-entropy averaged outside the log, on adversaries found with the same noise."""

import pytest
import torch
from test_attacks import Spy, literal_ddn, literal_pgd
from tiny import SHAPE, SIGMA, B, agree, batch, each_logits, gradients, network, normal, seeded, softmax

from crt.methods.smoothadv import smoothadv

M, STEPS, EPSILON = 3, 2, 0.6


def literal(attack, scale=1.0):
    def loss(model, data):
        noise = normal((M, B, *SHAPE), SIGMA, seeded())
        found = attack(model, data.images, data.labels, noise, EPSILON * scale, STEPS)
        z = each_logits(model, {(i, b): found[b] + noise[i, b] for i in range(M) for b in range(B)})
        return sum(-softmax(z[i, b])[data.labels[b]].log() for i in range(M) for b in range(B)) / (M * B)

    return loss


def method(attack="pgd", **changes):
    return smoothadv(
        **{
            "attack": attack,
            "epsilon": EPSILON,
            "steps": STEPS,
            "num_noise": M,
            "warmup_epochs": 10,
            **changes,
        }
    )


@pytest.mark.parametrize(("attack", "slow"), [("pgd", literal_pgd), ("ddn", literal_ddn)])
def test_value_and_gradient(attack, slow):
    loss = agree(method(attack), literal(slow))
    assert loss.parts.keys() == {"cross_entropy", "adversarial_accuracy"}


@pytest.mark.parametrize(("epoch", "scale"), [(0.0, 0.1), (3.5, 0.4), (9.0, 1.0)])
@pytest.mark.parametrize(("attack", "slow"), [("pgd", literal_pgd), ("ddn", literal_ddn)])
def test_epsilon_and_the_start_norm_warm_up(attack, slow, epoch, scale):
    agree(method(attack), literal(slow, scale), epoch)


def test_the_attack_and_the_loss_see_the_same_noise():
    spy = Spy(network())
    data = batch()
    method()(spy, data, SIGMA, seeded())
    assert spy.modes == [False] * STEPS + [True]
    noise = spy.seen[0].view(M, B, *SHAPE) - data.images  # the attack starts at the image
    adversaries = spy.seen[-1].view(M, B, *SHAPE) - noise
    torch.testing.assert_close(adversaries, adversaries[:1].expand_as(adversaries))  # one per image, shared


def test_only_the_loss_reaches_parameters_and_running_statistics():
    model, reference = network(), network()
    data = batch()
    loss = method()(model, data, SIGMA, seeded())
    assert all(parameter.grad is None for parameter in model.parameters())
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    found = literal_pgd(reference, data.images, data.labels, noise, EPSILON, STEPS)
    reference((found + noise).flatten(0, 1))
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean)
    assert model[1].num_batches_tracked == 1
    assert all(g is not None and g.any() for g in gradients(model, loss.total))


@pytest.mark.parametrize("size", [1, 4, 5])
def test_any_batch_size_goes_with_any_number_of_noises(size):
    assert method()(network(), batch(size=size), SIGMA, seeded()).total.isfinite()
