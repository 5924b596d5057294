"""Before anything is trained: can the gate decide the margins with so many test images?"""

import numpy as np

from crt.config import Certify, Gate
from crt.drops.layout import read_classes, read_drop
from crt.evaluation.betting import decidable_margins
from crt.project import Project

# Of two networks that are trained alike, how many images only one certifies: CIFAR-10, ResNet-110, sigma
# 0.25, 10,000 images (benchmarks/README.md, the gate).
DISCORDANT = 0.1


def say_decidable(project: Project) -> None:
    """Print the margin that the test set in data/ can decide, and what to do where the gate's is smaller."""
    config = project.params
    data = project.root / "data"
    classes = read_classes(data, config.data.num_classes)
    images = certified_images(read_drop(data / "test", classes).count, config.certify)
    print(decidable_sentence(images, config.gate))


def certified_images(there: int, options: Certify) -> int:
    """How many of the images that are there are certified."""
    images = len(range(0, there, options.stride))
    return images if options.max_images is None else min(images, options.max_images)


def decidable_sentence(images: int, gate: Gate) -> str:
    """What so many images decide, for an equal student that differs on every tenth of them."""
    discordant = round(1000 * DISCORDANT)
    values = np.repeat([1.0, 0.0], [discordant, 1000 - discordant])
    margin = decidable_margins(values, gate.confidence, images)["0.8"]
    said = (
        f"the gate can decide a loss of {100 * margin:.1f} points of certified accuracy on {images:,} test "
        f"images, with 80 % chance, if two equal students differ on {DISCORDANT:.0%} of them"
    )
    if margin <= gate.margin:
        return f"{said}; gate.margin is {100 * gate.margin:g}"
    return (
        f"{said}; gate.margin is {100 * gate.margin:g}, so most verdicts would be undecided: add test images "
        "(data/test, certify.stride) or widen the margin before anything is trained (docs/gate.md)"
    )
