"""A fetched teacher's accuracy on noisy training images and, if it is bad, the likely cause."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

# A useful teacher is right in more cases than chance by this share of what chance leaves. Published
# classifiers have 0.35 and more, on CIFAR-10 at sigma 1 and on ImageNet alike; chance and wrong class orders
# are at 0.
USEFUL = 0.15
GAIN = 0.1  # an explanation that is worth naming raises the accuracy by so much


@dataclass(frozen=True)
class Probe:
    """Labeled training images and one noise draw of each, the same for all that is tried.

    Attributes:
        images: float [N, C, H, W] in [0,1].
        labels: int64 [N].
        noise: Like the images, standard normal.
    """

    images: Tensor
    labels: Tensor
    noise: Tensor


def predictions(model: nn.Module, probe: Probe, sigma: float, batch: int = 128) -> Tensor:
    """The base classifier's classes, int64 [N], of the probe's images under noise of `sigma`."""
    with torch.no_grad():
        parts = [
            model(images + sigma * noise).argmax(1)
            for images, noise in zip(probe.images.split(batch), probe.noise.split(batch), strict=True)
        ]
    return torch.cat(parts)


def noisy_accuracy(model: nn.Module, probe: Probe, sigma: float) -> float:
    """Share of the probe's images that the base classifier gets right under noise of `sigma`."""
    return float((predictions(model, probe, sigma) == probe.labels).double().mean())


def useful(value: float, num_classes: int) -> bool:
    """Whether an accuracy is that of a teacher rather than of chance."""
    chance = 1 / num_classes
    return value >= chance + USEFUL * (1 - chance)


def class_order(predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[list[int], float]:
    """The best one-to-one reading of the outputs, order[output] = class, and its accuracy.

    The reading comes from one half of the images and the accuracy from the other: from the same half it would
    be too high.
    """
    from scipy.optimize import linear_sum_assignment

    seen, kept = slice(0, None, 2), slice(1, None, 2)
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (predicted[seen].cpu().numpy(), labels[seen].cpu().numpy()), 1)
    # Without counts an output stands for its own class.
    _, order = linear_sum_assignment(counts + 0.5 * np.eye(num_classes), maximize=True)
    read = torch.from_numpy(order)[predicted[kept].cpu()]
    return order.tolist(), float((read == labels[kept].cpu()).double().mean())


def cause(
    model: nn.Module,
    probe: Probe,
    sigma: float,
    classes: Sequence[str],
    measured: float,
    other_normalizations: Callable[[], dict[str, float]],
) -> str | None:
    """What is wrong with a classifier of accuracy `measured` at `sigma`, and the remedy; None: nothing.

    Tried are another order of the classes, other normalizations and less noise. Of a classifier of useful
    accuracy, only the order of the classes is checked.

    Args:
        model: The base classifier.
        probe: What it is tried on.
        sigma: Standard deviation of the noise, [0,1] pixel units.
        classes: The names of the classes, in the data's order.
        measured: Its accuracy under this noise.
        other_normalizations: Gives the accuracy with each other normalization layer, by name.
    """
    predicted = predictions(model, probe, sigma)
    order, reordered = class_order(predicted, probe.labels, len(classes))
    is_useful = useful(measured, len(classes))
    is_moved = reordered >= measured + GAIN and useful(reordered, len(classes))
    if is_useful and not is_moved:
        return None
    bad = f"its accuracy on noisy training images is {measured:.1%} at sigma {sigma:g}"
    normalizations = {} if is_useful else other_normalizations()
    better = max(normalizations, key=lambda name: normalizations[name], default=None)
    best = normalizations[better] if better is not None else 0.0
    if is_moved and reordered >= best:
        shown = ", ".join(classes[target] for target in order[:20]) + (", ..." if len(order) > 20 else "")
        return (
            f"{bad}, but {reordered:.1%} with its outputs in another order; the likely cause is the class "
            f"order: set teacher.classes to the names in the order of its outputs, perhaps [{shown}]"
        )
    if best >= measured + GAIN and useful(best, len(classes)):
        return (
            f"{bad}, but {best:.1%} behind another normalization ({better}); the likely cause is the "
            "normalization: set teacher.mean and teacher.std to those"
        )
    for less in (sigma / 2, sigma / 4, 0.0):
        value = noisy_accuracy(model, probe, less)
        if useful(value, len(classes)) and value >= measured + GAIN:
            return (
                f"{bad}, but {value:.1%} at {less:g}; the likely cause is sigma: take a teacher that was "
                f"trained with noise of {sigma:g}, or set sigma to what it was trained with"
            )
    return (
        f"{bad}, near chance ({1 / len(classes):.1%}), and neither another normalization nor another class "
        "order nor less noise helps: check that it is a classifier of these images, and teacher.arch_args "
        "(small_images: true for networks that this project built)"
    )
