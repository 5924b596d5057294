"""Two classifiers' certificates on the same images, side by side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from crt.errors import UserError
from crt.evaluation.certificates import Certificates

# Numbers that were obtained with other values of these must not be compared.
SAME_SETTINGS = ("sigma", "alpha", "n0", "n", "mode", "radii")
SAME_IMAGES = ("stride", "max_images", "data_fingerprint")


@dataclass(frozen=True)
class Pair:
    """Certificates of two classifiers, row by row of the same images, none twice."""

    first: Certificates
    second: Certificates

    def __len__(self) -> int:
        return len(self.first)

    @property
    def radii(self) -> list[float]:
        """The radii to report that n draws can reach: nobody has a certificate at the others."""
        return [radius for radius in self.first.radii if radius <= self.first.largest_radius]

    @property
    def reach(self) -> float:
        """What no radius of a certificate exceeds; adaptive mode gives none but those to report."""
        largest, adaptive = self.first.largest_radius, self.first.settings["mode"] == "adaptive"
        return max([*self.radii, 0.0]) or largest if adaptive else largest

    @property
    def middle_radius(self) -> float:
        """The radius in the middle of those that n draws can reach."""
        radii = self.radii or self.first.radii[:1]
        return radii[len(radii) // 2]

    def right_at(self, radius: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which images [N] the first and the second certify right at `radius`."""
        return self.first.right_at(radius), self.second.right_at(radius)


def pair(first: Certificates, second: Certificates, *, common: bool = False) -> Pair:
    """Bring two classifiers' certificates together; an image that stands in the test set twice counts once.

    Args:
        first: The one classifier's.
        second: The other's.
        common: Take the images that both have, known by their pixels, and leave the others out, as well as
            those whose label has changed in between. Else both must be of the same test set.

    Raises:
        UserError: one is of an older kind, or settings or images differ; they are named.
    """
    check_comparable(first, second, common=common)
    rows = np.flatnonzero(first.once)
    if not common:
        return _pair_of(first, rows, second, rows)
    place = {second.image[row]: row for row in np.flatnonzero(second.once)}
    both = [(row, place[first.image[row]]) for row in rows if first.image[row] in place]
    kept = [(mine, other) for mine, other in both if first.label[mine] == second.label[other]]
    mine, others = (np.array([rows[side] for rows in kept], dtype=np.intp) for side in (0, 1))
    return _pair_of(first, mine, second, others)


def _pair_of(
    first: Certificates, rows: NDArray[np.intp], second: Certificates, others: NDArray[np.intp]
) -> Pair:
    if len(rows) < 2:
        raise UserError(
            f"{_both(first, second)}: {len(rows)} image(s) in common tell nothing; certify more of the "
            "same images"
        )
    return Pair(first.take(rows), second.take(others))


def check_comparable(first: Certificates, second: Certificates, *, common: bool = False) -> None:
    """Refuse to compare certificates of other settings, or, unless `common`, of other images.

    Raises:
        UserError: one is of an older kind, or settings or images differ; they are named.
    """
    both = _both(first, second)
    if first.noise != second.noise:
        older = first if first.noise is None else second
        raise UserError(
            f"{both}: {older.source} is of an older kind, with other noise; certify that model again"
        )
    for key in SAME_SETTINGS + (() if common else SAME_IMAGES):
        mine, other = first.settings.get(key), second.settings.get(key)
        if mine != other:
            raise UserError(
                f"{both}: {key} is {mine} in one and {other} in the other; certify both with the same "
                "settings"
            )
    if common:
        return
    if not np.array_equal(first.idx, second.idx):
        apart = len(np.setxor1d(first.idx, second.idx))
        raise UserError(f"{both}: {apart} image(s) are in one alone; certify both on the same images")
    if first.name != second.name or not np.array_equal(first.label, second.label):
        raise UserError(
            f"{both}: images of the same index have other names or labels; certify both on the same test set"
        )


def _both(first: Certificates, second: Certificates) -> str:
    return f"{first.source} and {second.source} cannot be compared"


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of the hypothesis that both shares are equal (McNemar 1947, binomial form).

    Args:
        gained: The number of images on which only the first classifier is right.
        lost: The number on which only the second is.
    """
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
