"""When adaptive mode gives a radius up: the rule that is worth most, by backward induction. No torch, no I/O.

Giving up can only remove certificates, so any rule keeps their level, and what is approximated here costs
draws or certificates, never soundness. This one maximizes what a test set is expected to gain: each radius
certified for an image is worth WORTH * n draws, each draw costs one. Before any vote the probability of an
image's class has Jeffreys' prior, Beta(1/2, 1/2); after k votes of N, fresh votes are beta-binomial. From the
last look backwards, the value of further draws follows for each number of votes; where there is none, the
radius is given up.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

WORTH = 5.0  # of a certified radius, in units of n draws
PRIOR = 0.5  # both parameters of the Beta distribution
POINTS = 64  # numbers of votes whose value is computed, and numbers of fresh votes that are looked ahead to
REACH = 6.0  # standard deviations that both go over

Numbers = NDArray[np.float64]


class Curve(NamedTuple):
    """The value of further draws at one look, by votes, while one radius is open.

    It is 0 below the first of them.
    """

    votes: Numbers  # [V], ascending
    value: Numbers  # [V], draws


def futile_votes(
    enough: Sequence[Sequence[int]], looks: Sequence[int], worth: float = WORTH
) -> tuple[tuple[int, ...], ...]:
    """Votes at each look at or below which each radius is given up.

    Args:
        enough: Votes that certify each radius [R] at each look [L]; more than the look has: none do.
        looks: Draws [L], ascending.
        worth: Of a certified radius, in units of n draws.
    """
    radii, reward = range(len(enough)), worth * looks[-1]
    futile = [[votes[-1] - 1] for votes in enough]  # at the last look there is nothing to wait for
    curves = [Curve(np.zeros(1), np.zeros(1)) for _ in radii]
    for i in range(len(looks) - 2, -1, -1):
        at_next = [votes[i + 1] for votes in enough]
        step, before = looks[i + 1] - looks[i], curves
        curves = []
        for j in radii:
            votes = _open_votes(looks[i], enough[j][i] - 1, enough[j][-1] / looks[-1])
            ahead, chance = _fresh(votes, looks[i], step)
            value = (chance * _value(ahead, j, at_next, before, reward)).sum(1) - step
            curves.append(Curve(votes, value.clip(0)))
            futile[j].append(_last_without_value(votes, value))
    return tuple(tuple(reversed(votes)) for votes in futile)


def _open_votes(look: int, most: int, share: float) -> Numbers:
    """Whole votes [V], from what a class of probability `share` hardly comes down to, to `most`."""
    least = look * share - REACH * (np.sqrt(look * max(share * (1 - share), 0)) + 1)
    return np.unique(np.linspace(min(max(least, 0), most), most, POINTS).round())


def _fresh(votes: Numbers, look: int, step: int) -> tuple[Numbers, Numbers]:
    """Votes after `step` more draws [V, POINTS + 1], and their probabilities."""
    a, b = votes[:, None] + PRIOR, look - votes[:, None] + PRIOR
    mean = step * a / (a + b)
    spread = np.sqrt(mean * b * (a + b + step) / ((a + b) * (a + b + 1)))
    least = (mean - REACH * (spread + 0.5)).clip(0, step).round()
    most = (mean + REACH * (spread + 0.5)).clip(0, step).round()
    stride = np.ceil((most - least) / POINTS).clip(1)
    fresh = least + stride * np.arange(POINTS + 1)
    rest = (step - fresh).clip(0)
    log = np.where(fresh <= step, betaln(fresh + a, rest + b) - betaln(fresh + 1, rest + 1), -np.inf)
    chance = np.exp(log - log.max(1, keepdims=True))
    return votes[:, None] + fresh, chance / chance.sum(1, keepdims=True)


def _value(
    votes: Numbers, certified: int, enough: Sequence[int], curves: Sequence[Curve], reward: float
) -> Numbers:
    """The value of images with so many votes and radii certified: what is due, and further draws."""
    if certified == len(curves):
        return np.zeros_like(votes)
    further = np.interp(votes, *curves[certified], left=0.0)
    due = votes >= enough[certified]
    if not due.any():
        return further
    return np.where(due, reward + _value(votes, certified + 1, enough, curves, reward), further)


def _last_without_value(votes: Numbers, value: Numbers) -> int:
    """The most votes at which further draws are worth nothing; between the points by a straight line."""
    worth = np.flatnonzero(value > 0)
    if not len(worth):
        return int(votes[-1])
    if not worth[0]:
        return int(votes[0]) - 1
    i = worth[0]
    return int(np.interp(0.0, value[i - 1 : i + 1], votes[i - 1 : i + 1]))
