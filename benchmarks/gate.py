"""The gate: which margins a test set can decide, and how far two runs of one recipe are apart.

    python benchmarks/gate.py sizes      # a minute: results/gate.md
    python benchmarks/gate.py bets       # a minute: results/gate_bets.md
    python benchmarks/gate.py repeats FILE.tsv FILE.tsv --radii 0 0.25 0.5 [--reach 0.616] [--images 360]

`repeats` takes certificates of two or more networks that were trained alike, apart from the seed, on the
same images: files of ours, or of others with the columns idx, radius and correct. An equal student is one
whose certificates are exchanged with the release's at random, image by image. The last lines are the margins
that it passes in all rows together, with 80 % and 95 % chance.
"""

import argparse
from itertools import combinations
from math import ceil, log
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom

from crt.evaluation.betting import decidable_margins, log_capital, mean_lower_bound

CONFIDENCE, RISK = 0.95, 0.025
SIZES = (50, 100, 200, 360, 500, 1000, 2000, 5000, 10_000, 50_000)
DISCORDANT = (0.0, 0.02, 0.05, 0.1, 0.2)  # shares of images that only one of two students certifies
SPREADS = (0.02, 0.05, 0.1, 0.2)  # deviation of the difference of radii, as a share of the largest radius
TEST_SETS = 400
RESULTS = Path(__file__).parent / "results"


def sizes() -> None:
    """The table of docs/gate.md."""
    normal = np.random.default_rng(0).normal(size=10_000)
    kinds = [
        *((f"{share:.0%}", _discordant(share)) for share in DISCORDANT),
        *((f"{spread:g}", np.clip(spread * normal, -1, 1)) for spread in SPREADS),
    ]
    head = ["images", *(name for name, _ in kinds), "wrong passes"]
    rows = [
        [
            f"{images:,}",
            *(_both(decidable_margins(values, CONFIDENCE, images)) for _, values in kinds),
            f"{wrong_passes(images):.4f}",
        ]
        for images in SIZES
    ]
    text = (
        "# Which margins a test set can decide\n\n"
        "`benchmarks/gate.py sizes`, confidence 0.95. The smallest margin that an equal student passes with\n"
        "80 % (95 %) chance. Columns with %: margins of certified accuracy, in percentage points, by the "
        "share\n"
        "of images that only one of the two certifies. Columns without: margins of ACR in percent of the\n"
        "largest radius that n and alpha can certify, by the standard deviation of the difference of radii\n"
        "(normal) as a share of it. Last column: exact chance that a student passes a margin of 2 points "
        "that\n"
        "truly loses 3 % of the certificates and gains 1 %; stated: at most 0.025.\n\n"
    )
    _write("gate.md", text, [head, ["--:"] * len(head), *rows])


def bets() -> None:
    """Does a bet that learns from the images before it, in a recorded order, decide smaller margins?"""
    rng = np.random.default_rng(0)
    rows = []
    for images in (190, 360, 500, 2000, 10_000):
        for share in (0.0, 0.01, 0.05, 0.15):
            needed = []
            for _ in range(100 if share else 1):
                values = rng.choice([-1.0, 0.0, 1.0], images, p=[share / 2, 1 - share, share / 2])
                needed.append([-mean_lower_bound(values, RISK), -learning_bound(values)])
            ours, learning = 100 * np.quantile(needed, 0.8, axis=0)
            rows.append(
                [f"{images:,}", f"{share:.0%}", f"{ours:.2f}", f"{learning:.2f}", f"{learning / ours:.2f}"]
            )
    head = ["images", "discordant", "fixed bets", "learning bet", "ratio"]
    text = (
        "# Fixed bets and a bet that learns\n\n"
        "`benchmarks/gate.py bets`, confidence 0.95. The margin of certified accuracy, in points, that 80 "
        "of\n100 simulated equal students pass: with the average over fixed bets, and with the predictable "
        "plug-in\nbet of Waudby-Smith and Ramdas (2024), which needs the order in which the images joined "
        "the test set.\n\n"
    )
    _write("gate_bets.md", text, [head, ["--:"] * len(head), *rows])


def _write(name: str, text: str, rows: list[list[str]]) -> None:
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    (RESULTS / name).write_text(f"{text}{table}\n", encoding="utf-8", newline="\n")
    print(table)


def learning_bound(values: np.ndarray) -> float:
    """Lower bound of the mean by the bet that fits the values before each, cut at 3/4 of what bankrupts."""
    x, count = (1 + values) / 2, np.arange(1, len(values) + 1)
    means = (0.5 + x.cumsum()) / (count + 1)
    variance = np.concatenate([[0.25], (0.25 + ((x - means) ** 2).cumsum()) / (count + 1)])[:-1]
    wished = np.sqrt(2 * log(1 / RISK) / (variance * count * np.log(count + 1)))
    low, high = 1e-9, float(x.mean())
    for _ in range(30):
        tried = (low + high) / 2
        capital = np.log1p(np.minimum(wished, 0.75 / tried) * (x - tried)).sum()
        low, high = (tried, high) if capital >= log(1 / RISK) else (low, tried)
    return 2 * low - 1


def _discordant(share: float) -> np.ndarray:
    count = round(10_000 * share)
    return np.repeat([1.0, 0.0], [count, 10_000 - count])


def _both(margins: dict[str, float]) -> str:
    often, nearly = (100 * margins[chance] for chance in ("0.8", "0.95"))
    return f"{often:.2g} ({nearly:.2g})"


def wrong_passes(images: int, lost: float = 0.03, gained: float = 0.01) -> float:
    """Exact probability that a true loss of `lost - gained` passes as a margin."""
    total = 0.0
    for discordant in _likely(images, lost + gained):
        gains = np.array(list(_likely(discordant, gained / (lost + gained))))
        counts = np.stack([discordant - gains, np.full_like(gains, images - discordant), gains], axis=1)
        passed = log_capital(np.array([-1.0, 0.0, 1.0]), counts, gained - lost) >= log(1 / RISK)
        chance = binom.pmf(gains[passed], discordant, gained / (lost + gained)).sum()
        total += binom.pmf(discordant, images, lost + gained) * chance
    return total


def _likely(trials: int, chance: float) -> range:
    return range(int(binom.ppf(1e-7, trials, chance)), int(binom.ppf(1 - 1e-7, trials, chance)) + 1)


def repeats(args: argparse.Namespace) -> None:
    """How far runs of one recipe are apart, and which margins an equal student passes in all rows."""
    runs = pd.concat([right_radius(file) for file in args.files], axis=1, join="inner")
    if args.reach is None:
        args.reach = max(args.radii)
        steps = np.array(sorted({1e-9, *args.radii} - {0.0}))
        runs = runs.map(lambda radius: steps[steps <= radius].max(initial=0.0))
    images = args.images or len(runs)
    accuracy, acr = [], []
    rng = np.random.default_rng(0)
    for one, other in combinations(range(len(args.files)), 2):
        pair = runs.iloc[:, [one, other]].to_numpy()
        _describe(f"{one} and {other}", pair, args)
        for _ in range(max(1, TEST_SETS // (len(args.files) * (len(args.files) - 1) // 2))):
            drawn = pair[rng.integers(len(pair), size=images)]
            drawn = np.where(rng.random(images)[:, None] < 0.5, drawn, drawn[:, ::-1])
            rights = [(drawn >= radius) & (drawn > 0) for radius in args.radii]
            needed = [-mean_lower_bound(np.subtract(*right.T, dtype=float), RISK) for right in rights]
            accuracy.append(max(needed))
            acr.append(-mean_lower_bound(np.subtract(*drawn.T) / args.reach, RISK) * args.reach)
    print(f"test sets of {images} images, {len(acr)} of them")
    for chance in (0.8, 0.95):
        each = next(
            level
            for level in np.linspace(chance, 1, 100)
            if np.mean((accuracy <= np.quantile(accuracy, level)) & (acr <= np.quantile(acr, level)))
            >= chance
        )
        margins = (ceil(1e3 * np.quantile(found, each)) / 1e3 for found in (accuracy, acr))
        print(
            f"passed together with {chance:.0%}: margin {next(margins):.3f}, acr_margin {next(margins):.3f}"
        )


def right_radius(file: Path) -> pd.Series:
    """The radius of the right certificate by image, 0 where there is none."""
    table = pd.read_csv(file, sep="\t").set_index("idx")
    return (table.radius.fillna(0) * table.correct).astype(float)


def _describe(name: str, pair: np.ndarray, args: argparse.Namespace) -> None:
    shares = []
    for radius in args.radii:
        right = (pair >= radius) & (pair > 0)
        shares.append(
            f"{np.mean(right[:, 0] != right[:, 1]):.1%} at {radius:g} ({right.mean():.0%} certified)"
        )
    spread = np.std(pair[:, 0] - pair[:, 1])
    print(
        f"{name}: {len(pair)} images, ACR {pair[:, 0].mean():.3f} and {pair[:, 1].mean():.3f}, standard "
        f"deviation of the difference {spread:.3f} ({spread / args.reach:.3f} of the largest radius); "
        f"discordant {', '.join(shares)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    commands.add_parser("sizes").set_defaults(run=lambda args: sizes())
    commands.add_parser("bets").set_defaults(run=lambda args: bets())
    command = commands.add_parser("repeats")
    command.add_argument("files", nargs="+", type=Path)
    command.add_argument(
        "--reach",
        type=float,
        help="largest radius of n and alpha in exact mode (default: adaptive mode, the largest of --radii)",
    )
    command.add_argument("--radii", type=float, nargs="+", required=True)
    command.add_argument("--images", type=int, help="size of the test sets (default: as many as there are)")
    command.set_defaults(run=repeats)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
