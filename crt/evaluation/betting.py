"""Confidence intervals of a mean of bounded values, by betting: valid however often one looks at more values.

A bettor doubts that the mean is `mean` or less. On each value x of at least `least` the bettor stakes the
same share c of the capital, which is then multiplied by 1 + c ((x - least) / (mean - least) - 1). If the
doubt is wrong this is a fair game or worse, so that the capital ever reaches 1 / risk with probability
`risk` at most (Ville 1939). Here the capital is the average over a fixed set of shares c, so that it
depends on the values and not on their order. What the capital refutes lies outside of the interval
(Waudby-Smith and Ramdas 2024, Journal of the Royal Statistical Society B 86, 1-27).
"""

from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]

_BETS = 64
BETS: Floats = (np.arange(_BETS) + 0.5) / _BETS  # the shares c; each has the same capital at first
CHANCES = (0.8, 0.95)  # of a right pass, for which the decidable margin is told
_RESAMPLES = 500
_BINS = 24
_STEPS = 16  # halvings: a margin is told to 0.000015 of the range


def log_capital(values: Floats, counts: NDArray[np.int64], mean: float, least: float = -1.0) -> Floats:
    """Log capital [...] after `counts` [..., U] of the `values` [U], against a mean of at most `mean`."""
    growth = np.log1p(np.multiply.outer((values - least) / (mean - least) - 1, BETS))
    capital = np.asarray(counts @ growth)
    most = capital.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(capital - most).mean(axis=-1)) + most[..., 0])


def mean_lower_bound(values: Floats, risk: float, least: float = -1.0) -> float:
    """The least mean that `values` [N], none below `least`, leave possible, at this risk of being wrong."""
    distinct, counts = np.unique(np.maximum(values, least), return_counts=True)
    mean = float(counts @ distinct) / len(values)

    def doubt(tried: float) -> float:  # falls with `tried`
        return float(log_capital(distinct, counts, tried, least)) + log(risk)

    start = least + 1e-9 * (mean - least)
    if start == least or doubt(start) < 0:
        return least
    return float(brentq(doubt, start, mean))


def mean_interval(
    values: Floats, confidence: float, least: float = -1.0, most: float = 1.0
) -> tuple[float, float]:
    """Confidence interval of the mean of independent `values` [N] between `least` and `most`.

    Each end is wrong with probability (1 - confidence) / 2 at most, over all looks at ever more values.
    """
    risk = (1 - confidence) / 2
    return mean_lower_bound(values, risk, least), -mean_lower_bound(-values, risk, -most)


def decidable_margins(values: Floats, confidence: float, images: int | None = None) -> dict[str, float]:
    """The smallest losses that a test set tells from none, keyed by the chance that it does ("0.8", "0.95").

    For a mean that is truly 0, of values as large as these [N] but with random signs: a margin of this size
    is met by the lower end of the interval with that chance. From resamples, always the same ones.

    Args:
        values: Observed differences between -1 and 1.
        confidence: Of the interval.
        images: The number of images in the test set; None: as many as there are values.
    """
    size, share = _sizes(np.abs(values))
    both, shares = np.concatenate([-size, size]), np.concatenate([share, share]) / 2
    drawn = np.random.default_rng(0).multinomial(images or len(values), shares, size=_RESAMPLES)
    needed = -log((1 - confidence) / 2)

    def smallest(chance: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            passed = log_capital(both, drawn, -middle) >= needed
            low, high = (low, middle) if passed.mean() >= chance else (middle, high)
        return high

    return {str(chance): smallest(chance) for chance in CHANCES}


def _sizes(sizes: Floats) -> tuple[Floats, Floats]:
    """Few sizes and their shares instead of many: 0, and the root mean squares of equally wide bins."""
    top = float(sizes.max())
    if top == 0:
        return np.zeros(1), np.ones(1)
    bins = np.ceil(sizes * (_BINS / top)).astype(np.int64)  # 0: no difference
    counts = np.bincount(bins, minlength=_BINS + 1)
    squares = np.bincount(bins, sizes**2, minlength=_BINS + 1)
    kept = counts > 0
    return np.sqrt(squares[kept] / counts[kept]), counts[kept] / len(sizes)
