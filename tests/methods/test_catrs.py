"""CAT-RS against its literal version, and its parts by hand."""

import pytest
import torch
from test_attacks import Spy
from tiny import SHAPE, SIGMA, B, K, agree, batch, each_logits, kl, network, normal, seeded, softmax
from torch import nn

from crt.errors import UserError
from crt.methods.base import Teacher
from crt.methods.catrs import attack_noise, catrs, divergences, vote

M, STEPS, EPSILON, LBD, VOTES, VOTE_SIGMA = 3, 3, 0.8, 2.0, 7, 0.4


def literal_votes(model, data, generator):
    """Row b: how often each class was the hard prediction."""
    training = model.training
    model.eval()
    rows = torch.zeros(B, K, dtype=torch.float64)
    for _ in range(VOTES):
        noise = normal((1, B, *SHAPE), VOTE_SIGMA, generator)
        for b in range(B):
            rows[b, int(model((data.images[b] + noise[0, b])[None])[0].argmax())] += 1
    model.train(training)
    return rows / VOTES


def literal_attack(model, x, q, e):
    training = model.training
    model.eval()
    mu_0, s_0 = e.mean(), (e**2).mean().sqrt()
    v = e
    for _ in range(STEPS):
        v = v.detach().requires_grad_()
        (g,) = torch.autograd.grad(kl(q, softmax(model((x + v)[None])[0])), v)
        v = v.detach() + 2 * EPSILON / STEPS * g / (g.norm() + 1e-8)
        if (v - e).norm() > EPSILON:
            v = e + (v - e) * EPSILON / (v - e).norm()
        v = mu_0 + s_0 * (v - v.mean()) / (v**2).mean().sqrt()
    model.train(training)
    return v


def literal(teacher=None, mean_of=max):
    def loss(model, data):
        generator = seeded()
        q = literal_votes(model if teacher is None else teacher, data, generator)
        e = normal((M, B, *SHAPE), SIGMA, generator)
        z = each_logits(model, {(i, b): data.images[b] + e[i, b] for i in range(M) for b in range(B)})
        uniform = torch.empty(M, B, dtype=torch.float64).uniform_(generator=generator)
        v = {(i, b): literal_attack(model, data.images[b], q[b], e[i, b]) for i in range(M) for b in range(B)}
        zv = each_logits(model, {(i, b): data.images[b] + v[i, b] for i in range(M) for b in range(B)})
        total = torch.zeros((), dtype=torch.float64)
        for b in range(B):
            y = int(data.labels[b])
            w = sum(int(z[i, b].argmax()) == y for i in range(M)) / M
            count = max(1, sum(bool(uniform[i, b] < w) for i in range(M)))
            losses = sorted((-softmax(z[i, b])[y].log() for i in range(M)), key=lambda loss: loss.item())
            total = total + sum(losses[:count]) / M / B
            if count == M:
                total = total + LBD * mean_of(kl(q[b], softmax(zv[i, b])) for i in range(M)) / B
        return total

    return loss


def method(teacher=None, **changes):
    settings = {"num_noise": M, "steps": STEPS, "epsilon": EPSILON, "lbd": LBD, "num_votes": VOTES}
    source = "self" if teacher is None else "teacher"
    taught = None if teacher is None else Teacher(teacher)
    return catrs(**{**settings, "votes_from": source, "vote_sigma": VOTE_SIGMA, "teacher": taught, **changes})


def test_value_and_gradient_with_its_own_votes():
    loss = agree(method(), literal())
    assert loss.parts["worst_case"] > 0
    assert loss.total.item() == pytest.approx(
        (loss.parts["cross_entropy"] + LBD * loss.parts["worst_case"]).item()
    )


def test_value_and_gradient_with_a_teachers_votes():
    teacher = network(seed=5)
    agree(method(teacher), literal(network(seed=5)))
    with pytest.raises(AssertionError):
        agree(method(teacher), literal())


def test_the_worst_case_is_the_largest_divergence():
    with pytest.raises(AssertionError):
        agree(method(), literal(mean_of=min))


def test_the_teacher_is_left_alone():
    teacher = network(seed=5)
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    method(teacher)(network(), batch(), SIGMA, seeded()).total.backward()
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_teachers_votes_need_a_teacher():
    with pytest.raises(UserError, match="votes_from"):
        method(votes_from="teacher")


def test_the_passes_and_what_they_see():
    spy, data = Spy(network()), batch()
    method()(spy, data, SIGMA, seeded())
    assert spy.modes == [False] * VOTES + [True] + [False] * STEPS + [True]
    first_attacked = spy.seen[VOTES + 1]
    torch.testing.assert_close(first_attacked, spy.seen[VOTES])  # the attack starts from the loss's own noise
    assert spy.seen[VOTES].min() < 0  # never clipped
    assert spy.inner[1].num_batches_tracked == 2
    assert all(parameter.requires_grad and parameter.grad is None for parameter in spy.parameters())


def test_the_moved_noise_keeps_mean_and_second_moment():
    model, data = network(), batch()
    noise = normal((M, B, *SHAPE), SIGMA, seeded()) + 0.1  # a mean far from zero tells the moments apart
    q = torch.full((B, K), 1 / K, dtype=torch.float64)
    moved = attack_noise(model, data.images, q, noise, epsilon=0.5, steps=2)
    for i in range(M):
        for b in range(B):
            expected = literal_two_steps(model, data.images[b], q[b], noise[i, b])
            torch.testing.assert_close(moved[i, b], expected)
    torch.testing.assert_close(moved.mean((-3, -2, -1)), noise.mean((-3, -2, -1)))
    assert not torch.equal(moved[0], moved[1])  # one perturbation per draw
    assert not moved.requires_grad


def literal_two_steps(model, x, q, e):
    """`literal_attack` with 2 steps and radius 0.5."""
    model.eval()
    v = e
    for _ in range(2):
        v = v.detach().requires_grad_()
        (g,) = torch.autograd.grad(kl(q, softmax(model((x + v)[None])[0])), v)
        v = v.detach() + 0.5 * g / (g.norm() + 1e-8)
        v = e + (v - e) * min(1.0, 0.5 / float((v - e).norm()))
        v = e.mean() + (e**2).mean().sqrt() * (v - v.mean()) / (v**2).mean().sqrt()
    model.train()
    return v


def test_the_attack_finds_what_it_looks_for():
    model, data = network(), batch()
    noise = normal((M, B, *SHAPE), SIGMA, seeded())
    q = vote(model, data.images, SIGMA, 20, seeded())
    moved = attack_noise(model, data.images, q, noise, epsilon=0.5, steps=4)
    model.eval()

    def mean_divergence(e):
        logits = model((data.images + e).flatten(0, 1)).view(M, B, K)
        return divergences(q, logits).mean()

    assert mean_divergence(moved) > 1.2 * mean_divergence(noise)


class Rule(nn.Module):
    """Class 1 where the first pixel is positive, else class 0; logits' size does not matter to hard votes."""

    def forward(self, images):
        pixel = images[:, 0, 0, 0]
        return torch.stack([torch.zeros_like(pixel), pixel * 1e-3], 1)


def test_votes_are_hard_and_their_frequencies_are_the_normal_probability():
    """P(0.1 + 0.4 N > 0) = Phi(0.25) = 0.5987; 4000 votes have a standard error of 0.0077."""
    images = torch.full((1, 1, 1, 1), 0.1)
    frequencies = vote(Rule(), images, 0.4, 4000, seeded())
    assert frequencies.shape == (1, 2)
    assert frequencies[0, 1].item() == pytest.approx(0.5987, abs=0.031)
    assert frequencies.sum().item() == pytest.approx(1)


class Scripted(nn.Module):
    """Gives the logits it was told, whatever the images; keeps a path to the input for the attack."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        flat = images.flatten(1).sum(1, keepdim=True) * 0
        return flat + self.logits.flatten(0, 1)[: len(images)].to(images)


@pytest.mark.parametrize("seed", range(8))
def test_an_image_always_wrong_gives_its_easiest_noise_and_no_worst_case(seed):
    """Cross-entropies of three noises, 1, 2 and 3 nats up to a constant: the smallest, divided by m = 3."""
    logits = torch.tensor([[[0.0, 1.0]], [[0.0, 2.0]], [[0.0, 3.0]]])
    data = type(batch())(torch.zeros(1, 1, 1, 2), torch.tensor([0]), 0.0)
    loss = method()(Scripted(logits), data, SIGMA, seeded(seed))
    assert loss.parts["cross_entropy"].item() == pytest.approx(torch.tensor(1.0).exp().log1p().item() / 3)
    assert loss.parts["worst_case"].item() == 0


def test_an_image_always_right_has_all_noises_and_the_worst_case():
    logits = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 0.0]]])
    data = type(batch())(torch.zeros(1, 1, 1, 2), torch.tensor([0]), 0.0)
    loss = method()(Scripted(logits), data, SIGMA, seeded())
    each = [torch.tensor(-z).exp().log1p().item() for z in (1.0, 2.0, 3.0)]
    assert loss.parts["cross_entropy"].item() == pytest.approx(sum(each) / 3)
    assert loss.parts["worst_case"].item() == pytest.approx(each[0])  # KL of a one-hot q is the cross-entropy


@pytest.mark.parametrize("size", [1, 4, 5])
def test_any_batch_size_goes_with_any_number_of_noises(size):
    assert method()(network(), batch(size=size), SIGMA, seeded()).total.isfinite()
