"""Paired comparison of two classifiers by their certificates on the same images."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, bootstrap, norm

from crt.errors import UserError
from crt.evaluation.certificates import Certificates

# Numbers that were got with other values of these must not be compared.
SAME_SETTINGS = ("sigma", "alpha", "n0", "n", "mode", "radii", "stride", "max_images", "data_fingerprint")
RESAMPLES = 9999
_BATCH = 2**21  # numbers resampled at a time, so that memory does not grow with the test set


@dataclass(frozen=True)
class Discordance:
    """How two classifiers fare on `images` paired images: on `gained` only the first is right, on `lost` only the second."""

    images: float
    gained: float
    lost: float

    @property
    def difference(self) -> float:
        """The first classifier's share of right images minus the second's."""
        return (self.gained - self.lost) / self.images


def check_comparable(first: Certificates, second: Certificates) -> None:
    """Refuse to compare certificates of other images or settings.

    Raises:
        UserError: one is of an older kind, or settings or images differ; they are named.
    """
    both = f"{first.source} and {second.source} cannot be compared"
    if first.noise != second.noise:
        older = first if first.noise is None else second
        raise UserError(
            f"{both}: {older.source} is of an older kind, with other noise; certify that model again"
        )
    for key in SAME_SETTINGS:
        mine, other = first.settings.get(key), second.settings.get(key)
        if mine != other:
            raise UserError(
                f"{both}: {key} is {mine} in one and {other} in the other; certify both with the same settings"
            )
    if not np.array_equal(first.idx, second.idx):
        apart = len(np.setxor1d(first.idx, second.idx))
        raise UserError(f"{both}: {apart} image(s) are in one alone; certify both on the same images")
    if first.name != second.name or not np.array_equal(first.label, second.label):
        raise UserError(
            f"{both}: images of the same index have other names or labels; certify both on the same test set"
        )
    if len(first) < 2:
        raise UserError(f"{both}: a single image tells nothing; certify more")


def discordance(first: Certificates, second: Certificates, radius: float) -> Discordance:
    """Counts of images certified right at `radius` by one classifier alone."""
    mine, other = first.right_at(radius), second.right_at(radius)
    return Discordance(len(mine), int((mine & ~other).sum()), int((other & ~mine).sum()))


def score_interval(counts: Discordance, confidence: float) -> tuple[float, float]:
    """Tango's score interval for the difference of two paired shares (Tango 1998, Statistics in Medicine 17, 891-908).

    It holds the differences that a score test does not reject, with the share of images that the second classifier alone
    gets right at its most likely value under the tested difference.
    """
    z = float(norm.ppf((1 + confidence) / 2))
    if counts.gained == counts.lost == 0:  # N delta = z sqrt(N delta (1 - delta)); 0 is a second root
        bound = z**2 / (counts.images + z**2)
        return -bound, bound
    low = brentq(lambda delta: _score(counts, delta) - z * _deviation(counts, delta), -1, counts.difference)
    high = brentq(lambda delta: _score(counts, delta) + z * _deviation(counts, delta), counts.difference, 1)
    return float(low), float(high)


def _score(counts: Discordance, delta: float) -> float:
    """Observed minus expected difference, in images."""
    return counts.gained - counts.lost - counts.images * delta


def _deviation(counts: Discordance, delta: float) -> float:
    """Standard deviation of `_score` when the true difference is `delta`, nuisance parameter at its likeliest value.

    With q = P(only the second is right), P(only the first is right) = q + delta, and the likelihood's derivative vanishes
    where 2 N q^2 - (g + l - (2 N - g + l) delta) q - l delta (1 - delta) = 0, for g gained, l lost, delta >= 0.
    """
    if delta < 0:  # the same with the two classifiers exchanged
        return _deviation(Discordance(counts.images, counts.lost, counts.gained), -delta)
    images, gained, lost = counts.images, counts.gained, counts.lost
    linear = gained + lost - (2 * images - gained + lost) * delta
    q = (linear + sqrt(linear**2 + 8 * images * lost * delta * (1 - delta))) / (4 * images)
    return sqrt(images * max(0.0, 2 * q + delta * (1 - delta)))


def mcnemar(counts: Discordance) -> float:
    """Exact two-sided p-value of the hypothesis that both shares are equal (McNemar 1947, binomial form)."""
    discordant = int(counts.gained + counts.lost)
    return float(binomtest(int(counts.gained), discordant).pvalue) if discordant else 1.0


def mean_interval(differences: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """BCa bootstrap interval of the mean of paired differences [N >= 2] (Efron 1987), always with the same resamples."""
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # every resample has the same mean
        return mean, mean
    result = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(differences)),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
