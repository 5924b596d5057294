"""How a delivery differs from the drops before it: classes, pixels, and what a model makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

SIZE = 1000  # images of a sample; of 100 shifts by a quarter of a standard deviation 93 are found (simulated)
UNLIKELY = 0.001


@dataclass
class Sample:
    """Up to SIZE images of a stream, each equally likely to be in it, and the labels of all.

    They are drawn by algorithm R (Vitter 1985).
    """

    images: list[np.ndarray] = field(default_factory=list)  # uint8 [H, W, C]
    labels: list[int] = field(default_factory=list)  # -1: unlabeled
    seen: int = 0
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, pixels: np.ndarray, label: int) -> None:
        self.seen += 1
        self.labels.append(label)
        if len(self.images) < SIZE:
            self.images.append(pixels)
        elif (place := int(self._rng.integers(self.seen))) < SIZE:
            self.images[place] = pixels


@dataclass(frozen=True)
class Finding:
    """One quantity, before and now, in words; `p` is a two-sample test's for "nothing has changed"."""

    quantity: str
    before: str
    now: str
    p: float

    @property
    def unlikely(self) -> bool:
        return self.p < UNLIKELY


def class_drift(before: Sequence[int], now: Sequence[int], names: Sequence[str]) -> Finding | None:
    """The class whose share changed most, and the chi-squared test of all; None: too few labels on a side."""
    counts = np.stack(
        [np.bincount([x for x in labels if x >= 0], minlength=len(names)) for labels in (before, now)]
    )
    counts, known = (
        counts[:, counts.sum(0) > 0],
        [n for n, total in zip(names, counts.sum(0), strict=True) if total],
    )
    if counts.sum(1).min() == 0 or counts.shape[1] < 2:
        return None
    shares = counts / counts.sum(1, keepdims=True)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    p = float(stats.chi2_contingency(counts).pvalue)
    return Finding(f"share of class {known[most]}", f"{shares[0, most]:.1%}", f"{shares[1, most]:.1%}", p)


def pixel_drift(before: np.ndarray, now: np.ndarray) -> list[Finding]:
    """How brightness and contrast differ between images [N, H, W, C].

    They are the mean and the standard deviation of an image's pixels.
    """
    findings = []
    for quantity, measure in (("brightness", np.mean), ("contrast", np.std)):
        values = [measure(images.reshape(len(images), -1) / 255, axis=1) for images in (before, now)]
        findings.append(value_drift(quantity, values[0], values[1]))
    return findings


def value_drift(quantity: str, before: np.ndarray, now: np.ndarray) -> Finding:
    """A number per image, by the Kolmogorov-Smirnov test; the medians stand for the distributions."""
    p = float(stats.ks_2samp(before, now).pvalue)
    return Finding(quantity, f"{np.median(before):.3f}", f"{np.median(now):.3f}", p)
