"""How often stopping tables certify falsely at n = 100,000, computed exactly, one draw at a time.

    python benchmarks/stopping_tables.py

For each radius the class probability lies at the boundary, where false certificates are most frequent. The
distribution of the votes is carried from draw to draw; probabilities below 1e-30 at either end count as false
certificates. Nightly tests do the same for n up to 10,000. About 20 minutes on one core.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crt.certification.noise import rounded_gaussian
from crt.certification.stopping import stopping_table
from crt.files import write_text

ROOT = Path(__file__).resolve().parents[1]
N, ALPHAS = 100_000, (0.05, 0.001, 1e-6, 1e-12)
PIXELS = 3 * 32 * 32
GRIDS = {0.25: (0.25, 0.5, 0.75), 0.5: (0.5, 1.0, 1.5, 1.75), 1.0: (1.0, 2.0, 3.0, 3.75)}
RARE = 1e-30


def false_certificates(p: float, looks: Sequence[int], enough: Sequence[int]) -> float:
    """P(votes reach `enough` at some look) for a class of probability p."""
    alive, least, error, drawn = np.ones(1), 0, 0.0, 0
    for look, needed in zip(looks, enough, strict=True):
        for _ in range(look - drawn):
            after = np.empty(len(alive) + 1)
            after[:-1], after[-1] = alive * (1 - p), 0.0
            after[1:] += alive * p
            alive = after
        drawn, kept = look, max(needed - least, 0)
        error += float(alive[kept:].sum())
        alive = alive[:kept]
        common = np.flatnonzero(alive > RARE)
        first, stop = int(common[0]), int(common[-1]) + 1
        error += float(alive[:first].sum() + alive[stop:].sum())
        alive, least = alive[first:stop], least + first
    return error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "stopping_tables.md")
    args = parser.parse_args()
    rows = []
    for sigma, radii in GRIDS.items():
        charge = rounded_gaussian(sigma).charge(PIXELS)
        for alpha in ALPHAS:
            table = stopping_table(radii, sigma, N, alpha, charge)
            shares = [
                false_certificates(p + charge, table.looks, enough) / alpha
                for p, enough in zip(table.p_lower, table.enough, strict=True)
            ]
            cells = ", ".join(f"{r:g}: {share:.5f}" for r, share in zip(table.radii, shares, strict=True))
            rows.append(f"| {sigma:g} | {alpha:g} | {cells} | {max(shares):.6f} |")
            print(rows[-1], flush=True)
    lines = [
        "# False certificates of stopping tables",
        "",
        "`python benchmarks/stopping_tables.py`: exact probability that a class at the boundary of a radius "
        "is certified for it within "
        f"n = {N:,} draws, as a share of alpha; with the charge for the noise of 3x32x32 images. 1 is the "
        "most that is allowed; 0: "
        "n draws cannot certify the radius.",
        "",
        "| sigma | alpha | radius: share of alpha | largest |",
        "|---|---|---|---|",
        *rows,
    ]
    write_text(args.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
