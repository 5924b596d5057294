"""Giving up: worth nearly as much as the best of all rules, which is computed here exactly."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from crt.certification import giving_up, stopping

SIGMA, N, RADII = 0.25, 384, (0.1, 0.25, 0.4)
TABLE = stopping.stopping_table(RADII, SIGMA, N, 0.001)


def value_at_start(worth: float, futile: Sequence[Sequence[int]] | None) -> float:
    """Expected worth of an image, minus its draws, under a rule; None: under the best one. In units of draws.

    All numbers of votes are gone through, from the last look backwards; fresh votes are beta-binomial.
    """
    looks, enough = TABLE.looks, TABLE.enough
    # Of further draws, by radii certified and votes, at the look before.
    value = np.zeros((len(enough), looks[-1] + 1))
    for i in range(len(looks) - 1, -1, -1):
        votes = np.arange(looks[i] + 1)
        here = np.zeros((len(enough) + 1, looks[i] + 1))  # of certificates that are due, and further draws
        for j in range(len(enough) - 1, -1, -1):
            further = value[j, : looks[i] + 1]
            if futile is not None and i < len(looks) - 1:
                further = np.where(votes <= futile[j][i], 0, further)
            elif i < len(looks) - 1:
                further = further.clip(0)
            here[j] = np.where(votes >= enough[j][i], worth * N + here[j + 1], further)
        drawn = looks[i - 1] if i else 0
        before, fresh = np.arange(drawn + 1)[:, None], np.arange(looks[i] - drawn + 1)
        chance = betabinom.pmf(fresh, len(fresh) - 1, before + 0.5, drawn - before + 0.5)
        value = np.stack([(chance * row[before + fresh]).sum(1) - (looks[i] - drawn) for row in here[:-1]])
    return float(value[0, 0])


def by_chance(level: float) -> list[list[int]]:
    """Votes that would be rare even for a class that gets just enough votes at the last look."""
    return [
        [int(binom.ppf(level, look, votes[-1] / N)) - 1 for look in TABLE.looks] for votes in TABLE.enough
    ]


@pytest.mark.parametrize("worth", [0.2, 1.0, 5.0])
def test_no_rule_is_worth_much_more(worth: float) -> None:
    best = value_at_start(worth, None)
    built = value_at_start(worth, giving_up.futile_votes(TABLE.enough, TABLE.looks, worth))
    assert best - 0.001 * N < built <= best + 1e-6
    others = [value_at_start(worth, by_chance(level)) for level in (0.5, 0.2, 0.05, 0.01, 0.001)]
    never = value_at_start(worth, [[-1] * len(TABLE.looks)] * len(TABLE.enough))
    assert max(*others, never) < built


def test_the_more_a_certificate_is_worth_the_later_it_is_given_up() -> None:
    few, many = (
        np.array(giving_up.futile_votes(TABLE.enough, TABLE.looks, worth)[1]) for worth in (0.1, 10.0)
    )
    assert np.all(many <= few)
    assert np.all(many[:-1] < few[:-1])


def test_a_radius_out_of_reach_is_given_up_at_once() -> None:
    table = stopping.stopping_table((2.0,), 0.25, 1_000, 0.001)
    assert table.futile[1] == table.looks
    assert all(votes > look for votes, look in zip(table.enough[1], table.looks, strict=True))


@pytest.mark.parametrize("n", [1, 10, 64, 65, 100, 100_000])
def test_what_is_enough_is_never_given_up(n: int) -> None:
    table = stopping.stopping_table((0.25, 0.75), 0.25, n, 0.3)
    for enough, futile in zip(table.enough, table.futile, strict=True):
        assert all(a < b for a, b in zip(futile, enough, strict=True))
        assert all(least >= -1 for least in futile)
