"""A useless teacher is refused with the likely cause: normalization, class order, sigma, or none of them."""

import pytest
import torch
from torch import Tensor, nn

from crt.models.build import BaseClassifier, Normalize
from crt.teachers.check import GAIN, Probe, cause, class_order, noisy_accuracy, predictions, useful

CLASSES = [f"class{n}" for n in range(5)]


class Nearest(nn.Module):
    """The class whose brightness is nearest to the image's mean; noise-robust in its way."""

    def __init__(self, order: list[int] | None = None):
        super().__init__()
        self.order = order or list(range(5))

    def forward(self, images: Tensor) -> Tensor:
        levels = torch.linspace(0.1, 0.9, 5)
        distances = (images.mean((1, 2, 3))[:, None] - levels).abs()
        return -distances[:, self.order]  # output j stands for class order[j]


class Fragile(nn.Module):
    """Right as long as the noise is small."""

    def forward(self, images: Tensor) -> Tensor:
        noisy = images.var((1, 2, 3)) > 0.02
        logits = Nearest()(images)
        logits[noisy] = torch.randn(5, generator=torch.Generator().manual_seed(1))
        return logits


@pytest.fixture
def probe() -> Probe:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (400,), generator=generator)
    images = torch.linspace(0.1, 0.9, 5)[labels][:, None, None, None].expand(-1, 3, 8, 8).clone()
    return Probe(images, labels, torch.randn(images.shape, generator=generator))


def why(model, probe, sigma=0.25, others=None) -> str | None:
    tried = []

    def other_normalizations():
        tried.append(1)
        return others or {}

    measured = noisy_accuracy(model, probe, sigma)
    said = cause(model, probe, sigma, CLASSES, measured, other_normalizations)
    assert not (tried and useful(measured, 5)), "a useful teacher costs no further passes"
    return said


def test_accuracy_is_counted_under_the_probes_noise(probe):
    model = Nearest()
    noisy = probe.images + 0.5 * probe.noise
    expected = model(noisy).argmax(1)
    assert torch.equal(predictions(model, probe, 0.5, batch=7), expected)
    assert noisy_accuracy(model, probe, 0.5) == pytest.approx(
        (expected == probe.labels).float().mean().item()
    )
    assert noisy.min() < 0  # noise is not clipped
    assert noisy.max() > 1


def test_a_good_teacher_passes(probe):
    assert noisy_accuracy(Nearest(), probe, 0.25) > 0.9
    assert why(Nearest(), probe) is None


def test_what_is_useful():
    assert not useful(1 / 10, 10)
    assert not useful(0.2, 10)
    assert useful(0.35, 10)
    assert not useful(0.5, 2)
    assert useful(0.2, 1000)


def test_another_class_order_is_named_and_given(probe):
    model = Nearest(order=[3, 0, 4, 1, 2])
    said = why(model, probe)
    assert "the likely cause is the class order" in said
    assert "teacher.classes" in said
    assert "[class3, class0, class4, class1, class2]" in said


def test_two_exchanged_classes_are_found_although_the_accuracy_is_fair(probe):
    model = Nearest(order=[1, 0, 2, 3, 4])
    assert useful(noisy_accuracy(model, probe, 0.25), 5)
    assert "[class1, class0, class2, class3, class4]" in why(model, probe)


def test_a_wrong_normalization_is_named(probe):
    wrong = BaseClassifier(Normalize((0.9,) * 3, (0.02,) * 3), Nearest())
    said = why(wrong, probe, others={"center, x": 0.3, "identity: mean [0], std [1]": 0.95})
    assert "the likely cause is the normalization" in said
    assert "identity: mean [0], std [1]" in said
    assert "teacher.mean and teacher.std" in said


def test_too_much_noise_is_named(probe):
    said = why(Fragile(), probe, sigma=0.5, others={"identity": 0.2})
    assert "the likely cause is sigma" in said
    assert "at 0.125" in said


def test_no_explanation_is_said_to_be_none(probe):
    class Chance(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.randn(len(images), 5, generator=torch.Generator().manual_seed(2))

    said = why(Chance(), probe)
    assert "near chance (20.0%)" in said
    assert "neither" in said


def test_one_answer_for_everything_is_no_class_order(probe):
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(5)[torch.full((len(images),), 3)]

    assert "neither" in why(Constant(), probe)


def test_the_class_order_is_not_flattered_by_few_images():
    """With 100 classes and one image of each, a reading measured where it was fitted would be perfect."""
    generator = torch.Generator().manual_seed(0)
    predicted, labels = torch.randperm(100, generator=generator), torch.arange(100)
    order, value = class_order(predicted, labels, 100)
    assert sorted(order) == list(range(100))
    assert value < GAIN


def test_where_nothing_is_seen_an_output_stands_for_its_own_class():
    order, value = class_order(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), 6)
    assert order == list(range(6))
    assert value == 1.0
