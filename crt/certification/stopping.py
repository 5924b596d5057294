"""When adaptive mode stops: tables of the votes that certify l2 radii or give them up. No torch, no I/O."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from crt.certification.bounds import SLACK, probability_at
from crt.certification.giving_up import futile_votes

FIRST_LOOK, GROWTH = 64, 1.05  # looks at the votes, and how much further on the next one is
LEAST_ADAPTIVE_ALPHA = 1e-12  # the least that the tests hold tables to
COSTLY = 0.1  # share of n that a radius may take without a warning
FEW = 1_000  # draws that are never worth one


@dataclass(frozen=True)
class StoppingTable:
    """When to stop drawing.

    After `looks[i]` draws, `enough[j][i]` votes certify radii[j], and `futile[j][i]` or fewer give it up.
    The radii ascend from 0. A radius counts as certified only after all smaller ones, so a false certificate
    needs the smallest untrue radius to be certified: that one test, at level alpha, is the level of all of
    them together.
    """

    radii: tuple[float, ...]
    p_lower: tuple[float, ...]  # the class probability that each radius needs
    looks: tuple[int, ...]
    enough: tuple[tuple[int, ...], ...]
    futile: tuple[tuple[int, ...], ...]


@functools.lru_cache(maxsize=32)
def stopping_table(
    radii: tuple[float, ...], sigma: float, n: int, alpha: float, charge: float = 0.0
) -> StoppingTable:
    """The table for l2 radii to report (0, the bare class, is added), with at most n draws.

    charge: what the class probability under the noise as drawn may exceed that under Gaussian noise by.
    """
    ladder = (0.0, *sorted(set(radii) - {0.0}))
    needed = tuple(probability_at(r, sigma) for r in ladder)
    schedule = looks(n)
    enough = tuple(enough_votes(min(p + charge, 1.0), schedule, alpha) for p in needed)
    return StoppingTable(ladder, needed, schedule, enough, futile_votes(enough, schedule))


def fewest_draws(p: float, n: int, alpha: float) -> int | None:
    """Draws after which unanimous votes refute "the class probability is p or less"; None: more than n."""
    return next((look for look in looks(n) if p**look <= alpha * look / n), None)


def costly_radii(radii: Sequence[float], sigma: float, n: int, alpha: float) -> list[str]:
    """What is to be said of radii that n draws certify hardly or not at all."""
    said = list[str]()
    for radius in sorted(set(radii)):
        draws = fewest_draws(probability_at(radius, sigma), n, alpha)
        if draws is None:
            said.append(
                f"radius {radius:g} is beyond what n={n:,} draws certify at sigma {sigma:g}: "
                "leave it out, or raise n"
            )
        elif draws > max(COSTLY * n, FEW):
            said.append(
                f"radius {radius:g} takes at least {draws:,} of n={n:,} draws for each image that comes "
                "near it: leave it out, or raise n"
            )
    return said


def looks(n: int) -> tuple[int, ...]:
    """Multiples of FIRST_LOOK that grow by GROWTH, up to n."""
    sizes, size = {n}, float(FIRST_LOOK)
    while size < n:
        sizes.add(min(round(size / FIRST_LOOK) * FIRST_LOOK, n))
        size *= GROWTH
    return tuple(sorted(sizes))


def enough_votes(p: float, looks: Sequence[int], alpha: float) -> tuple[int, ...]:
    """Votes at each look that refute "the class probability is p or less"; looks[i] + 1 or more: none do.

    A class of probability p ever gets so many with probability <= alpha, whatever stops the draws: after N of
    n draws at most alpha N/n is spent (alpha spending, Lan and DeMets 1983), with the exact distribution of
    the votes of runs not yet certified instead of a union bound. A smaller probability gets there less often.
    """
    budget, left_out = alpha * (1 - SLACK), SLACK * alpha / (4 * len(looks))
    alive, least = np.ones(1), 0  # alive[i] = P(not certified yet, least + i votes)
    drawn, spent, counts = 0, 0.0, list[int]()
    for look in looks:
        step, drawn = look - drawn, look
        # Numbers of votes that are rarer than left_out, at either end, count as false certificates at once.
        low, high = int(binom.ppf(left_out, step, p)), int(binom.isf(left_out, step, p))
        alive = np.convolve(alive, binom.pmf(np.arange(low, high + 1), step, p))
        least, spent = least + low, spent + 2 * left_out
        # What is spent, if the runs with least + i votes or more are certified.
        spent_from = spent + alive[::-1].cumsum()[::-1]
        k = int((spent_from > budget * look / looks[-1]).sum())
        counts.append(least + k)
        spent = float(np.append(spent_from, spent)[k])
        alive = alive[:k]
        rare = int((alive.cumsum() < left_out).sum())
        spent, alive, least = spent + left_out, alive[rare:], least + rare
    return tuple(counts)
