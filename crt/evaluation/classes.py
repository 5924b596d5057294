"""Certified accuracy class by class: a student can be no worse over all images and lose one class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from crt.evaluation.betting import Floats, decidable_margins, mean_interval
from crt.evaluation.paired import Pair
from crt.evaluation.verdict import judge

_MOST_IMAGES = 2**20  # of one class; no test set has more


def compare_classes(
    both: Pair, radius: float, margin: float, confidence: float, names: Sequence[str]
) -> dict[str, Any]:
    """One row per class: both certified accuracies, their difference, its interval, a verdict.

    All intervals hold together with the given confidence: each has 1 / number of classes of the error
    (Bonferroni).

    Args:
        both: The student's and the baseline's certificates.
        radius: L2 radius, [0,1] pixel units.
        margin: The largest acceptable loss of certified accuracy in a class.
        confidence: Of the two-sided intervals, all together.
        names: The classes' names, in the order of the labels; a label without one stands for itself.

    Returns:
        `rows`, and `images_needed`: how many images of a class decide the margin with a chance of 80 %, for
        a student that is equal and differs on as many images as this one; None: no test set does.
    """
    mine, other = both.right_at(radius)
    difference = mine.astype(np.float64) - other
    labels = np.unique(both.first.label)
    each = 1 - (1 - confidence) / len(labels)
    rows = []
    for label in labels:
        members = both.first.label == label
        interval = mean_interval(difference[members], each)
        rows.append(
            {
                "class": names[label] if label < len(names) else str(label),
                "images": int(members.sum()),
                "student": float(mine[members].mean()),
                "other": float(other[members].mean()),
                "difference": float(difference[members].mean()),
                "interval": interval,
                "verdict": judge(interval, margin),
            }
        )
    needed = images_needed(difference, margin, each)
    return {"radius": radius, "margin": margin, "images_needed": needed, "rows": rows}


def images_needed(differences: Floats, margin: float, confidence: float) -> int | None:
    """How many images decide a margin with a chance of 80 %, for an equal student with such differences.

    Args:
        differences: Observed differences [N] between -1 and 1.
        margin: The largest acceptable loss.
        confidence: Of the two-sided interval.

    Returns:
        The number, to two digits, rounded up; None if it is over a million.
    """

    def decides(images: int) -> bool:
        return decidable_margins(differences, confidence, images)["0.8"] <= margin

    tens = 10
    while not decides(10 * tens):
        tens *= 10
        if tens > _MOST_IMAGES:
            return None
    low, high = 1, 100  # in tens / 10
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle * tens // 10) else (middle, high)
    return high * tens // 10
