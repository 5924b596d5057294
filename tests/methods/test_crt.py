import copy
import math

import pytest
import torch
from tiny import LABELS, SIGMA, B, agree, batch, network, normal, seeded, softmax
from torch import nn

from crt.methods.base import Batch, Teacher
from crt.methods.crt import crt


class Given(nn.Module):
    """Logits that do not depend on the images."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits + 0 * images.sum()


DATA = Batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), 0.0)


def test_the_transfer_loss_by_hand():
    """Differences (3, 4) and (0, 0): norms 5 and 0, mean 2.5. Each gradient has norm 1/B; 0 at no gap."""
    student, teacher = Given([[4.0, 4.0], [1.0, 2.0]]), Given([[1.0, 0.0], [1.0, 2.0]])
    loss = crt(teacher=Teacher(teacher), alpha=1.0)(student, DATA, SIGMA, seeded())
    assert loss.total.item() == 2.5
    assert loss.parts["transfer"].item() == 2.5
    loss.total.backward()
    torch.testing.assert_close(student.logits.grad, torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
    assert teacher.logits.grad is None


def test_the_mix_with_cross_entropy_by_hand():
    """Both images: CE of logits (0, ln 3) is ln 4 for class 0 and ln(4/3) for class 1; the gap has norm 2."""
    student = Given([[0.0, math.log(3)], [0.0, math.log(3)]])
    teacher = Given([[2.0, math.log(3)], [0.0, math.log(3) + 2]])
    loss = crt(teacher=Teacher(teacher), alpha=0.75)(student, DATA, SIGMA, seeded())
    label_loss = (math.log(4) + math.log(4 / 3)) / 2
    assert loss.total.item() == pytest.approx(0.75 * 2 + 0.25 * label_loss)
    assert loss.parts["cross_entropy"].item() == pytest.approx(label_loss)
    assert loss.parts["agreement"].item() == 0.5  # the teacher answers 0, 1; the student 1, 1
    assert loss.parts["noisy_accuracy"].item() == 0.5


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_equals_the_formula_with_the_same_noise_for_both(alpha):
    teacher = network(5)

    def literal(model, data):
        noisy = data.images + normal(data.images.shape, SIGMA, seeded())
        targets = copy.deepcopy(teacher).eval()(noisy).detach()
        total = torch.zeros((), dtype=torch.float64)
        for z, t, y in zip(model(noisy), targets, data.labels, strict=True):
            total = total + alpha * ((z - t) ** 2).sum().sqrt() - (1 - alpha) * softmax(z)[y].log()
        return total / B

    agree(crt(teacher=Teacher(teacher), alpha=alpha), literal)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("known", [[], [0, 2], [0, 1, 2, 3, 4]])
def test_holding_on_to_a_release_equals_the_formula(alpha, known):
    """Image by image: the label says where the release is right or, without one, the teacher's answer."""
    teacher, release, keep = network(5), network(14), 0.7
    labels = torch.tensor([label if i in known else -1 for i, label in enumerate(LABELS)])
    counted = []

    def literal(model, data):
        noisy = data.images + normal(data.images.shape, SIGMA, seeded())
        targets, held = (copy.deepcopy(net).eval()(noisy).detach() for net in (teacher, release))
        transfer, label_loss, drift = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for z, t, r, y in zip(model(noisy), targets, held, labels.tolist(), strict=True):
            transfer = transfer + ((z - t) ** 2).sum().sqrt()
            if y >= 0:
                label_loss = label_loss - softmax(z)[y].log()
            expected = y if y >= 0 else int(t.argmax())
            counted.append(int(r.argmax()) == expected)
            if counted[-1]:
                drift = drift + ((z - r) ** 2).sum().sqrt()
        return (alpha * transfer + keep * drift) / B + (1 - alpha) * label_loss / max(1, len(known))

    def method(model, data, *rest):
        step = crt(teacher=Teacher(teacher), alpha=alpha, keep=keep, release=Teacher(release))
        return step(model, Batch(data.images, labels, data.epoch), *rest)

    loss = agree(method, literal)
    assert 0 < sum(counted) < B, "the test must see both kinds of image"
    assert loss.parts["release_right"].item() == pytest.approx(sum(counted) / B)


def test_the_distance_to_the_release_by_hand():
    """The release answers 0 and 1, the teacher 0 and 0; the student is 5 and 10 away from the release."""
    student, release = Given([[3.0, 4.0], [6.0, 8.0]]), Given([[0.0, 0.0], [0.0, 0.0]])
    with torch.no_grad():
        release.logits += torch.tensor([[1e-6, 0.0], [0.0, 1e-6]])
    teacher = Given([[9.0, 1.0], [9.0, 1.0]])
    method = crt(teacher=Teacher(teacher), alpha=1.0, keep=0.5, release=Teacher(release))
    for labels, drift in (([0, 1], 7.5), ([1, 1], 5.0), ([0, -1], 2.5), ([-1, 0], 2.5), ([1, -1], 0.0)):
        loss = method(student, Batch(DATA.images, torch.tensor(labels), 0.0), SIGMA, seeded())
        assert loss.parts["drift"].item() == pytest.approx(drift, abs=1e-5)
        assert (loss.total - loss.parts["transfer"]).item() == pytest.approx(0.5 * drift, abs=1e-5)
    assert release.logits.grad is None


def test_without_a_release_or_a_weight_nothing_is_held_on_to():
    teacher, release, data = network(5), network(9), batch()
    plain = crt(teacher=Teacher(teacher), alpha=1.0)(network(), data, SIGMA, seeded())
    for held in ({"keep": 1.0}, {"keep": 0.0, "release": Teacher(release)}):
        loss = crt(teacher=Teacher(teacher), alpha=1.0, **held)(network(), data, SIGMA, seeded())
        assert loss.total == plain.total
        assert loss.parts.keys() == plain.parts.keys()


def test_labels_are_not_used_at_alpha_1():
    teacher, data = network(5), batch()
    other = Batch(data.images, (data.labels + 1) % 4, data.epoch)
    method = crt(teacher=Teacher(teacher), alpha=1.0)
    assert method(network(), data, SIGMA, seeded()).total == method(network(), other, SIGMA, seeded()).total


def test_an_infinite_label_loss_does_not_reach_the_transfer_loss():
    student, teacher = Given([[3.4e38, -3.4e38]] * 2), Given([[3.4e38, -3.4e38]] * 2)
    loss = crt(teacher=Teacher(teacher), alpha=1.0)(student, DATA, SIGMA, seeded())
    assert loss.parts["cross_entropy"].isinf()
    assert loss.total == 0


def test_the_teacher_stays_as_it_was():
    teacher = network(5).train()
    before = copy.deepcopy(teacher.state_dict())
    method = crt(teacher=Teacher(teacher), alpha=1.0)
    student = network()
    for _ in range(3):
        method(student, batch(), SIGMA, seeded()).total.backward()
    assert not any(module.training for module in teacher.modules())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.training
