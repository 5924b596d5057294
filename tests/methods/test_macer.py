"""MACER's two terms against their literal versions, and the numerics of Phi^-1."""

import math

import pytest
import torch
from scipy.stats import norm
from test_attacks import Spy
from tiny import SHAPE, SIGMA, B, agree, batch, each_logits, gradients, network, normal, seeded, softmax

from crt.methods.macer import label_term, macer, radius_term

M, LBD, GAMMA, BETA = 3, 2.0, 3.0, 4.0


def phi_inverse(p):
    """Phi^-1 through the inverse error function, which agrees with ndtri in float64."""
    return math.sqrt(2) * torch.erfinv(2 * p - 1)


def literal(lbd=LBD, gamma=GAMMA, detach=False):
    def loss(model, data):
        noise = normal((M, B, *SHAPE), SIGMA, seeded())
        z = each_logits(model, {(i, b): data.images[b] + noise[i, b] for i in range(M) for b in range(B)})
        total = torch.zeros((), dtype=torch.float64)
        for b in range(B):
            y = int(data.labels[b])
            mean = sum(softmax(z[i, b]) for i in range(M)) / M
            total = total - (mean[y] + 1e-10).log() / B
            sharp = sum(softmax(BETA * z[i, b]) for i in range(M)) / M
            if detach:
                sharp = sharp.detach()
            first, second = sharp.argsort(descending=True)[:2]
            xi = phi_inverse(sharp[first]) - phi_inverse(sharp[second])
            if int(first) == y and bool(xi <= gamma):
                total = total + lbd * SIGMA / 2 * (gamma - xi) / B
        return total

    return loss


def method(**changes):
    return macer(**{"num_noise": M, "lbd": LBD, "gamma": GAMMA, "beta": BETA, "defer_epochs": 0, **changes})


def test_value_and_gradient():
    loss = agree(method(), literal())
    assert loss.parts["radius"] > 0  # the radius term is in play
    assert loss.total.item() == pytest.approx(
        (loss.parts["cross_entropy"] + LBD * loss.parts["radius"]).item()
    )


def test_the_radius_term_is_not_detached():
    with pytest.raises(AssertionError):
        agree(method(), literal(detach=True))


def test_no_radius_term_until_it_is_due():
    agree(method(defer_epochs=4), literal(lbd=0), epoch=3.9)
    agree(method(defer_epochs=4), literal(), epoch=4.0)


def test_one_forward_pass_on_unclipped_noisy_images():
    spy, data = Spy(network()), batch()
    method()(spy, data, SIGMA, seeded())
    (seen,) = spy.seen
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    # Every draw starts from the image.
    torch.testing.assert_close(seen.view(M, B, *SHAPE), data.images + noise)


def probabilities(rows):
    """Logits [1, B, K] whose softmax is `rows`."""
    return torch.tensor([rows], dtype=torch.float64).log().requires_grad_()


def test_by_hand():
    """Image 0 right (xi = 2 Phi^-1(0.8)), 1 wrong, 2 right but beyond gamma; divided by 3, not by 1."""
    logits = probabilities([[0.8, 0.2], [0.8, 0.2], [0.999999, 0.000001]])
    labels = torch.tensor([0, 1, 0])
    expected = 0.5 / 2 * (8 - 2 * norm.ppf(0.8)) / 3
    assert radius_term(logits, labels, 0.5, gamma=8.0, beta=1.0).item() == pytest.approx(expected)
    assert label_term(logits, labels).item() == pytest.approx(
        -(math.log(0.8) + math.log(0.2) + math.log(0.999999)) / 3
    )


def test_beta_is_in_the_radius_term_only_and_decides_who_is_right():
    """One noise votes strongly for class 0, two weakly for 1: class 0 leads until votes are sharpened."""
    logits = torch.tensor([[[6.0, 0.0, -9.0]], [[0.0, 0.3, -9.0]], [[0.0, 0.3, -9.0]]], dtype=torch.float64)
    labels = torch.tensor([0])
    assert logits.softmax(-1).mean(0).argmax() == 0
    assert (16 * logits).softmax(-1).mean(0).argmax() == 1
    assert radius_term(logits, labels, 0.25, gamma=8.0, beta=1.0) > 0
    assert radius_term(logits, labels, 0.25, gamma=8.0, beta=16.0) == 0
    label = label_term(logits, labels)
    assert label.item() == pytest.approx(-math.log(logits.softmax(-1).mean(0)[0, 0]))


@pytest.mark.parametrize("gap", [0.0, 1.0, 10.0, 17.0, 40.0, 200.0])
def test_no_infinity_or_nan_reaches_the_gradient_in_float32(gap):
    logits = torch.zeros(2, 3, 4)
    logits[:, 0, 1], logits[:, 1, 2] = gap, gap
    logits.requires_grad_()
    value = radius_term(logits, torch.tensor([1, 2, 0]), 0.25, gamma=8.0, beta=16.0)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_the_radius_is_computed_in_float32_under_bfloat16_autocast():
    """0.99 and 0.995 are one bfloat16 number apart: the loss must be that of the float32 logits."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 4))
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    data = batch()
    single = type(data)(data.images.float(), data.labels, data.epoch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method()(model, single, SIGMA, seeded())
    (logits,) = seen
    assert logits.dtype == torch.bfloat16
    full = logits.float().view(M, B, 4)
    expected = label_term(full, data.labels) + LBD * radius_term(
        full, data.labels, SIGMA, gamma=GAMMA, beta=BETA
    )
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_any_batch_size_goes_with_any_number_of_noises(size):
    model = network()
    loss = method()(model, batch(size=size), SIGMA, seeded())
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss.total))
