"""What adaptive certification costs and loses on classifiers that others certified.

    git clone https://github.com/alinlab/smoothing-catrs /tmp/logs
    python benchmarks/released_logs.py --logs /tmp/logs/data/cifar10 [--rounds 5]

The logs hold the radii of all 10,000 CIFAR-10 test images for ResNet-110s (n = 100,000, alpha = 0.001). A
radius gives the number of votes k, and the class probability p is drawn from Beta(k + 1/2, n - k + 1/2).
Abstentions have no radius: theirs lie below 1/2 as densely, and are as often of the label, as those just
above. The runner-up has all other votes, or as many as the most frequent class where that has less than half:
the worst case for selection. Rules for giving up are compared by exact expectations, selection and modes by
simulated votes. About 20 minutes on one core.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom
from stopping_rules import place

from crt.certification import bounds
from crt.certification.giving_up import WORTH, futile_votes
from crt.certification.procedures import CLEAR, SELECTION_LOOKS
from crt.certification.stopping import StoppingTable, stopping_table
from crt.files import write_text

ROOT = Path(__file__).resolve().parents[1]
N0, N, ALPHA = 100, 100_000, 0.001
LOGS = [(method, sigma) for sigma in ("0.25", "0.5", "1.0") for method in ("cohen", "consistency", "cat-rs")]
RADII = {
    sigma: tuple(np.arange(0, end + 0.01, 0.25).tolist())
    for sigma, end in ((0.25, 0.75), (0.5, 1.75), (1.0, 2.5))
}
NEAR = 0.2  # sigmas above the least radius, where images stand for the abstentions below it
WORTHS = (3.0, 4.0, 5.0, 7.0, 10.0)
SAMPLES, RARE = 20, 1e-13  # draws of each image's probability; chances that expectations leave out
# The rule of 0.1.0: chance of giving up, at each look, what the last look would just have certified.
FUTILITY = 0.01


@dataclass(frozen=True)
class Images:
    """Arrays [N]: the probability of the most frequent class, and whether that is the label."""

    p: NDArray[np.float64]
    right: NDArray[np.bool_]


def read_images(path: Path, sigma: float, rng: np.random.Generator) -> Images:
    log = pd.read_csv(path, sep="\t")
    z, certified = log.radius.to_numpy() / sigma, (log.predict != -1).to_numpy()
    least = int(np.searchsorted(lower_bounds(N), 0.5))  # votes that just certify
    k = np.searchsorted(lower_bounds(N), ndtr(z)).clip(least, N)
    p = rng.beta(k + 0.5, N - k + 0.5)
    near = certified & (z < NEAR)
    depth = NEAR * (~certified).sum() / max(near.sum(), 1)
    p[~certified] = ndtr(ndtri(least / N) - depth * rng.random((~certified).sum()))
    right = log.correct.to_numpy() == 1
    right[~certified] = rng.random((~certified).sum()) < right[near].mean()
    return Images(p, right)


@cache
def lower_bounds(n: int) -> NDArray[np.float64]:
    """Of n draws with 0 ... n votes."""
    k = np.arange(n + 1)
    return np.where(k > 0, beta.ppf(ALPHA, k.clip(1), n - k + 1), 0.0)


# selection


def first_hundred(p: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.bool_], float]:
    """Whether the most frequent class is selected, and the draws per image: n0 = 100."""
    return leads(rng.binomial(N0, p), N0, rng), N0


def until_clear(p: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.bool_], float]:
    """The same of adaptive mode's selection."""
    votes, draws, going = np.zeros(len(p), int), np.zeros(len(p), int), np.ones(len(p), bool)
    for before, look in zip((0, *SELECTION_LOOKS), SELECTION_LOOKS, strict=False):
        votes += np.where(going, rng.binomial(look - before, p), 0)
        draws[going] = look
        clear = np.array([bounds.leads(max(v, look - v), min(v, look - v), CLEAR) for v in range(look + 1)])
        going &= ~clear[votes.clip(0, look)]
    return leads(votes, draws, rng), float(draws.mean())


def leads(
    votes: NDArray[np.int_], draws: NDArray[np.int_] | int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    return (2 * votes > draws) | ((2 * votes == draws) & (rng.random(len(votes)) < 0.5))


# estimation


def by_chance(table: StoppingTable) -> list[list[int]]:
    """The rule of 0.1.0: give up where a class that just gets enough votes in the end rarely has so few."""
    return [
        [int(binom.ppf(FUTILITY, look, votes[-1] / N)) - 1 for look in table.looks] for votes in table.enough
    ]


def expected(table: StoppingTable, p: float) -> list[float]:
    """Expected draws of an image whose class has probability p, and its chances to be certified for radii."""
    radii = len(table.radii)
    alive, least, drawn, draws = np.zeros((radii, 1)), 0, 0, 0.0  # alive[j, i]: j certified, least + i votes
    alive[0] = 1.0
    ended = np.zeros(radii + 1)  # by radii certified
    for i, look in enumerate(table.looks):
        step, drawn = look - drawn, look
        draws += step * alive.sum()
        low, high = int(binom.ppf(RARE, step, p)), int(binom.isf(RARE, step, p))
        fresh = binom.pmf(np.arange(low, high + 1), step, p)
        alive, least = np.stack([np.convolve(row, fresh) for row in alive]), least + low
        votes = least + np.arange(alive.shape[1])
        for j in range(radii):
            due = votes >= table.enough[j][i]
            if j + 1 < radii:
                alive[j + 1, due] += alive[j, due]
            else:
                ended[radii] += alive[j, due].sum()
            given_up = ~due & (votes <= table.futile[j][i])
            ended[j] += alive[j, given_up].sum()
            alive[j, due | given_up] = 0
        common = np.flatnonzero(alive.sum(0) > RARE)
        if not len(common):
            break
        alive, least = alive[:, common[0] : common[-1] + 1], least + int(common[0])
    ended[:radii] += alive.sum(1)
    return [draws, *ended[::-1].cumsum()[::-1][1:]]


def expected_by_exact(table: StoppingTable, p: float) -> list[float]:
    """The same of exact mode."""
    enough = np.searchsorted(lower_bounds(N), table.p_lower)
    return [N, *binom.sf(enough - 1, N, p)]


def votes_at(p: NDArray[np.float64], looks: Iterable[int], rng: np.random.Generator) -> NDArray[np.int_]:
    return np.cumsum([rng.binomial(step, p) for step in np.diff([0, *looks])], axis=0)


def exact_radii(votes: NDArray[np.int_], n: int, table: StoppingTable) -> NDArray[np.int_]:
    """How many of the table's radii exact mode certifies."""
    return (lower_bounds(n)[votes] >= np.array(table.p_lower)[:, None]).sum(0)


def shares(certified: NDArray[np.int_], radii: int, images: int) -> NDArray[np.float64]:
    """Certified accuracy at each radius, %."""
    return np.array([100 * (certified > j).sum() / images for j in range(radii)])


# tables


def one_round(path: Path, sigma: float, seed: int) -> dict[str, NDArray[np.float64]]:
    """(passes per image, % certified at each radius) of each procedure."""
    rng = np.random.default_rng(seed)
    images = read_images(path, sigma, rng)
    table, count = stopping_table(RADII[sigma], sigma, N, ALPHA), len(images.p)
    found = dict[str, NDArray[np.float64]]()

    def keep(name: str, draws: float, certified: NDArray[np.int_]) -> None:
        found[name] = np.array([draws, *shares(certified, len(table.radii), count)])

    p = images.p[images.right]  # the most frequent class is selected, always
    votes = votes_at(p, table.looks, rng)
    keep("exact", len(p) / count * N, exact_radii(votes[-1], N, table))
    for name, selection in (("n0 = 100", first_hundred), ("until clear", until_clear)):
        top, draws = selection(images.p.clip(0.5), rng)
        estimated = top == images.right  # the selected class is the label
        p = np.where(top, images.p, np.minimum(images.p, 1 - images.p))[estimated]
        votes = votes_at(p, table.looks, rng)
        keep(f"exact, {name}", draws + len(p) / count * N, exact_radii(votes[-1], N, table))
        fewer = rng.binomial(10_000, p)
        keep(f"exact 10,000, {name}", draws + len(p) / count * 10_000, exact_radii(fewer, 10_000, table))
        certified, spent = place(table, votes)
        keep(f"adaptive, {name}", draws + spent.sum() / count, certified)
        keep(f"selection, {name}", draws, np.zeros(0, int))
    return found


@cache
def by_probability(sigma: float) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """z [Z], and what each rule does with a class of probability Phi(z): [Z, 1 + radii], as `expected`."""
    table = stopping_table(RADII[sigma], sigma, N, ALPHA)
    close = np.arange(-0.06, 0.06, 0.003)
    z = np.unique(np.concatenate([np.arange(-2.0, 5.5, 0.04), *(r / sigma + close for r in table.radii)]))
    tables = {"chance": replace(table, futile=by_chance(table))} | {
        f"worth {worth:g}": replace(table, futile=futile_votes(table.enough, table.looks, worth))
        for worth in WORTHS
    }
    rules = {name: partial(expected, one) for name, one in tables.items()}
    rules["exact"] = partial(expected_by_exact, table)
    return z, {name: np.array([do(p) for p in ndtr(z)]) for name, do in rules.items()}


def giving_up_row(log: str, path: Path, sigma: float) -> str:
    z, rules = by_probability(sigma)
    samples = [read_images(path, sigma, np.random.default_rng(seed)) for seed in range(SAMPLES)]
    found = {
        name: np.mean(
            [
                [np.interp(ndtri(one.p[one.right]), z, column).sum() / len(one.p) for column in what.T]
                for one in samples
            ],
            0,
        )
        for name, what in rules.items()
    }

    def cost(name: str) -> tuple[float, float, float]:
        lost = 100 * (found["exact"] - found[name])[1:]
        return found[name][0], lost.mean(), lost.max()

    old, new = cost("chance"), cost(f"worth {WORTH:g}")
    curve = np.array([cost(f"worth {worth:g}")[:2] for worth in reversed(WORTHS)])  # loss ascends
    equal = np.interp(old[1], curve[:, 1], curve[:, 0])
    return (
        f"| {log} | {old[0]:,.0f} | {old[1]:.3f} / {old[2]:.2f} | {new[0]:,.0f} | {new[1]:.3f} / "
        f"{new[2]:.2f} | "
        f"{1 - equal / old[0]:.1%} |"
    )


def selection_row(log: str, found: dict[str, NDArray[np.float64]]) -> str:
    cells = [
        f"{found[f'selection, {name}'][0]:,.0f} | {(found['exact'] - found[f'exact, {name}'])[1]:.2f} | "
        f"{(found['exact'] - found[f'exact, {name}'])[1:].mean():.2f}"
        for name in ("n0 = 100", "until clear")
    ]
    return f"| {log} | {' | '.join(cells)} |"


def mode_rows(log: str, radii: Sequence[float], found: dict[str, NDArray[np.float64]]) -> list[str]:
    names = {
        "exact, n = 100,000": "exact, n0 = 100",
        "exact, n = 10,000": "exact 10,000, n0 = 100",
        "adaptive": "adaptive, until clear",
    }
    shown = [j for j, r in enumerate(radii) if (r * 4) % (1 if len(radii) < 6 else 2) == 0]
    return [
        f"| {log} | {name} | {found[key][0]:,.0f} | "
        + " / ".join(f"{found[key][1 + j]:.2f}" for j in shown)
        + f" | {(found[key] - found['exact, n0 = 100'])[1:].mean():+.2f} |"
        for name, key in names.items()
    ]


def page(rounds: int, giving_up: Sequence[str], selection: Sequence[str], modes: Sequence[str]) -> list[str]:
    """The lines of the results, of the rows of three tables."""
    grids = "; ".join(f"0 to {radii[-1]:g} at sigma {sigma:g}" for sigma, radii in RADII.items())
    return [
        "# Adaptive certification on released logs",
        "",
        "`python benchmarks/released_logs.py`, on the logs of alinlab/smoothing-catrs (data/cifar10: "
        "ResNet-110, 10,000 test images, "
        f"n = {N:,}, alpha = {ALPHA}), {rounds} rounds of simulated votes. Misclassified images are not "
        "estimated. Radii in "
        f"steps of 0.25: {grids}. Points are percentage points of all test images.",
        "",
        "## Giving up",
        "",
        "Expected draws per image that estimate, and points lost against exact mode, mean / largest over the "
        "radii. The rule "
        f"of 0.1.0 gives up what is reached with {FUTILITY:.0%} chance; today's takes a certified radius to "
        f"be worth {WORTH:g} n draws. "
        "The last column is what today's rule saves where it loses as much as that of 0.1.0.",
        "",
        "| log | 0.1.0: draws | lost | today: draws | lost | fewer draws at equal loss |",
        "|---|---|---|---|---|---|",
        *giving_up,
        "",
        "## Selection",
        "",
        "Points that exact mode loses because the wrong class is selected, where the runner-up has all other "
        "votes.",
        "",
        "| log | n0 = 100: draws | lost at 0 | mean over the radii | until clear: draws | lost at 0 | mean "
        "over the radii |",
        "|---|---|---|---|---|---|---|",
        *selection,
        "",
        "## Modes",
        "",
        "As the pipeline runs them: exact with n0 = 100, adaptive with n = 100,000 and selection until "
        "clear.",
        "",
        "| log | mode | passes per image | certified at 0 / 0.25 / 0.5 / 0.75, from sigma 0.5 on at 0 / 0.5 "
        "/ 1 / ..., % | to exact, n = 100,000: mean points |",
        "|---|---|---|---|---|",
        *modes,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--logs", type=Path, required=True, help="folder with noise_<sigma>/<method>/noise_<sigma>.tsv"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "released_logs.md")
    args = parser.parse_args()

    giving_up, selection, modes = list[str](), list[str](), list[str]()
    for method, noise in LOGS:
        path, sigma = args.logs / f"noise_{noise}" / method / f"noise_{noise}.tsv", float(noise)
        rounds = [one_round(path, sigma, seed) for seed in range(args.rounds)]
        found = {name: np.mean([one[name] for one in rounds], 0) for name in rounds[0]}
        log = f"{method}, {sigma:g}"
        giving_up.append(giving_up_row(log, path, sigma))
        selection.append(selection_row(log, found))
        modes += mode_rows(log, RADII[sigma], found)
        print(log, flush=True)
    lines = page(args.rounds, giving_up, selection, modes)
    write_text(args.output, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
