"""How many draws each stopping rule needs to place images among the radii, by simulated votes.

    python benchmarks/stopping_rules.py [--images 20000]

All rules have the same looks and the same level alpha, and give up where further draws are worth nothing;
each is compared with exact mode on the same votes. The images are those of a classifier of about 70 %
smoothed accuracy at sigma 0.25: 27 % are misclassified and take no estimation draws, 3 % have a selected
class of probability below 1/2, 42 % a radius uniform between 0 and 3 sigma, 28 % one between 3 and 5 sigma.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import betaincc, betaln, ndtr, xlogy
from scipy.stats import binom

from crt.certification import bounds
from crt.certification.giving_up import futile_votes
from crt.certification.stopping import StoppingTable, enough_votes, stopping_table

ROOT = Path(__file__).resolve().parents[1]
SIGMA, RADII, N0, N, ALPHA = 0.25, (0.0, 0.25, 0.5, 0.75), 100, 100_000, 0.001
ESTIMATED = 0.73  # share of images that take estimation draws

Rule = Callable[[float, Sequence[int]], Sequence[int]]
"""(class probability to refute, looks) -> votes that refute it at each look, or more than the look has."""


def union_bound(share: Callable[[int, int], float]) -> Rule:
    """Look t of T has its own binomial test at level alpha * share(t, T)."""

    def votes(p: float, looks: Sequence[int]) -> list[int]:
        levels = [ALPHA * share(t, len(looks)) for t in range(1, len(looks) + 1)]
        return [int(binom.isf(level, look, p)) + 1 for level, look in zip(levels, looks, strict=True)]

    return votes


def e_process(p: float, looks: Sequence[int]) -> list[int]:
    """The mixture, prior Beta(1/2, 1/2), of likelihood ratios over probabilities above p reaches 1/alpha."""
    votes = []
    for look in looks:
        a = np.arange(int(p * look), look + 1)
        ratio = betaln(a + 0.5, look - a + 0.5) - betaln(0.5, 0.5) - xlogy(a, p) - xlogy(look - a, 1 - p)
        above = np.log(np.maximum(betaincc(a + 0.5, look - a + 0.5, p), 1e-300)) - np.log(
            betaincc(0.5, 0.5, p)
        )
        votes.append(int(a[0]) + int((ratio + above < -np.log(ALPHA)).sum()))
    return votes


def exact_spending(p: float, looks: Sequence[int]) -> Sequence[int]:
    return enough_votes(p, looks, ALPHA)


RULES: dict[str, Rule] = {
    "union bound, weights 5/((t+4)(t+5)) (Voracek 2024)": union_bound(lambda t, _: 5 / ((t + 4) * (t + 5))),
    "union bound, equal weights (Horvath et al. 2022)": union_bound(lambda _, T: 1 / T),
    "one-sided e-process": e_process,
    "alpha spending, exact distribution (this project)": exact_spending,
}


def votes_at_looks(images: int, looks: Sequence[int]) -> np.ndarray:
    """Votes of the selected class of the images that are estimated: [looks, images]."""
    rng = np.random.default_rng(0)
    kind = rng.random(images)
    z = np.where(kind < 0.041, rng.uniform(-0.5, 0, images), rng.uniform(0, 3, images))
    p = ndtr(np.where(kind > 0.616, rng.uniform(3, 5, images), z))
    fresh = [rng.binomial(step, p) for step in np.diff([0, *looks])]
    return np.cumsum(fresh, axis=0)


def place(table: StoppingTable, votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(radii certified, draws) of each image, from its votes [looks, images]."""
    certified, draws = (np.zeros(votes.shape[1], dtype=int) for _ in range(2))
    going, radii = np.ones(votes.shape[1], dtype=bool), len(table.radii)
    enough, futile = np.array(table.enough), np.array(table.futile)
    for i, look in enumerate(table.looks):
        for j in range(radii):
            certified[going & (certified == j) & (votes[i] >= enough[j, i])] += 1
        draws[going] = look
        going &= (certified < radii) & (votes[i] > futile[np.minimum(certified, radii - 1), i])
    return certified, draws


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "stopping_rules.md")
    args = parser.parse_args()

    built = stopping_table(tuple(RADII), SIGMA, N, ALPHA)
    votes = votes_at_looks(args.images, built.looks)
    lower = np.array([bounds.lower_bound(int(k), N, ALPHA) for k in votes[-1]])
    exact = (lower >= np.array(built.p_lower)[:, None]).sum(0)
    lines = [
        "# Draws that stopping rules need",
        "",
        f"Radii {', '.join(map(str, RADII))} at sigma {SIGMA}, n0 = {N0}, n at most {N:,}, alpha = {ALPHA}, "
        f"{len(built.looks)} looks; {args.images:,} simulated images ({ESTIMATED:.0%} of a test set; see the "
        "script). Losses are percentage points of all test images, against exact mode on the same votes.",
        "",
        "| rule | draws per image | fewer than exact mode | lost at "
        + " | lost at ".join(map(str, RADII))
        + " |",
        "|---" * (3 + len(RADII)) + "|",
        f"| exact mode | {N0 + ESTIMATED * N:,.0f} | 1.0 |" + " 0 |" * len(RADII),
    ]
    for name, rule in RULES.items():
        enough = tuple(tuple(rule(p, built.looks)) for p in built.p_lower)
        futile = futile_votes(enough, built.looks)
        certified, draws = place(replace(built, enough=enough, futile=futile), votes)
        mean = N0 + ESTIMATED * draws.mean()
        lost = [100 * ESTIMATED * ((exact > j).mean() - (certified > j).mean()) for j in range(len(RADII))]
        lines.append(
            f"| {name} | {mean:,.0f} | {(N0 + ESTIMATED * N) / mean:.1f} | "
            + " | ".join(f"{x:.2f}" for x in lost)
            + " |"
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    aside = args.output.with_name(args.output.name + ".partial")
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(aside, args.output)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
