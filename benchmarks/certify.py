"""What certification costs.

    python benchmarks/certify.py speed [--device cuda --variants float32,bfloat16+compile] [--rounds 7]
    python benchmarks/certify.py adaptive --model models/student --images prepared/test --count 500

`speed`: forward passes per second of exact certification, beside the loop that the field uses, in one process, by turns;
ratios are of neighbours in time. The network is an untrained ResNet-20: speed does not depend on weights.
`adaptive`: both modes on the same images with a trained model. Exact mode draws until its answers at the radii are sure, not
to the end, which takes a day on a CPU; a run that was interrupted goes on where it was. Run both on a quiet machine.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from bisect import bisect_left as bisect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from crt.certification import bounds
from crt.certification.certificate import Row
from crt.certification.journal import Journal
from crt.certification.procedures import certify, estimate_adaptive
from crt.certification.run import Settings, certify_store, to_unit
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.votes import VoteCounter, certified_network, run_procedures
from crt.data.store import Store, open_store
from crt.evaluation.certificates import Certificates, read_certificates
from crt.models.build import build_model
from crt.models.checkpoint import load_model, model_fingerprint
from crt.models.fold import fold_batchnorm

ROOT = Path(__file__).resolve().parents[1]
SIGMA = 0.25
USUAL_BATCH = 1000
SURE = 1e-6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# speed


@torch.no_grad()
def field_loop(model: nn.Module, image: Tensor, n: int, batch_size: int) -> list[int]:
    """Votes as the field's programs count them: one image, float32, channels first, each batch's classes to the host."""
    counts, left = [0] * 10, n
    while left > 0:
        size = min(batch_size, left)
        left -= size
        copies = image.repeat(size, 1, 1, 1)
        classes = model(copies + torch.randn_like(copies) * SIGMA).argmax(1).cpu().numpy()
        for c in classes:
            counts[c] += 1
    return counts


def rate(work: Callable[[], object], passes: int, device: torch.device) -> float:
    """Passes per second of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return passes / (time.perf_counter() - began)


def speed(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(0)
    size = (3, args.size, args.size)
    model = build_model(args.arch, {}, 10, *size[:2], [0.5] * 3, [0.25] * 3).to(device).eval()
    image = torch.rand(size, device=device)
    with FlopCounterMode(display=False) as counter:
        model(image[None])
    flops = counter.get_total_flops()

    yardsticks = {
        f"field's loop, batch {batch}": (
            lambda b=batch: field_loop(model, image, max(args.n // 4, b), b),
            max(args.n // 4, batch),
        )
        for batch in (32, 64, 128, 256, 512, USUAL_BATCH)
    }
    ours = {}
    for variant in args.variants.split(","):
        precision, *compiled = variant.split("+")
        smoothed = SmoothedClassifier(
            model,
            SIGMA,
            n=args.n,
            device=device,
            precision=precision,
            compile=bool(compiled),
            batch_size=args.batch_size,
        )
        ours[variant] = (lambda s=smoothed: s.certify(image[None]), args.n + 100)
    # torch has no public product of int8 matrices: int8 is held to float32's.
    peak_of = {v: v.split("+")[0].replace("int8", "float32") for v in ours}
    precisions = {"float32", *peak_of.values()}
    matrices = {
        p: torch.rand(args.matrix, args.matrix, device=device).to(DTYPES[p]) for p in sorted(precisions)
    }
    products = {
        f"matrix product, {p}": (lambda m=m: [m @ m for _ in range(4)], 4 * 2 * args.matrix**3)
        for p, m in matrices.items()
    }

    tasks = yardsticks | ours | products
    for work, _ in tasks.values():
        work()  # the first call pays for allocation and compilation
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(args.rounds):
        for name, (work, passes) in tasks.items():
            rates[name].append(rate(work, passes, device))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    usual = f"field's loop, batch {USUAL_BATCH}"
    best = max(yardsticks, key=medians.__getitem__)
    rows = []
    for name in [*yardsticks, *ours]:
        to_usual, to_best = (
            statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True))
            for base in (usual, best)
        )
        peak = medians[f"matrix product, {peak_of.get(name, 'float32')}"]
        label = f"crt, {name}" if name in ours else name
        share = medians[name] * flops / peak
        rows.append([label, f"{medians[name]:.0f}", f"{to_usual:.2f}", f"{to_best:.2f}", f"{share:.0%}"])
    peaks = ", ".join(f"{p} {medians[f'matrix product, {p}'] / 1e9:.0f} GFLOP/s" for p in sorted(precisions))
    write(
        args.output / "certify",
        "Speed of exact certification",
        f"`{args.arch}`, {size[0]}x{size[1]}x{size[2]} images, {flops / 1e6:.1f} MFLOP per pass; {hardware(device)}, torch "
        f"{torch.__version__}; medians of {args.rounds} rounds. Peak, measured as a product of {args.matrix} x {args.matrix} "
        f"matrices: {peaks} (int8 is held to float32's). The field's loop is fastest at batch {best.split()[-1]}.",
        ["what", "passes per second", "to the usual batch", "to the best batch", "share of peak"],
        rows,
    )


# adaptive


def adaptive(args: argparse.Namespace) -> None:
    model, info = load_model(args.model)
    store = open_store(args.images)
    settings = Settings(
        sigma=info.sigma,
        mode="adaptive",
        n0=100,
        n=args.n,
        alpha=0.001,
        radii=tuple(args.radii),
        seed=0,
        stride=max(len(store) // args.count, 1),
        max_images=args.count,
        skip_misclassified=True,
        allow_sigma_mismatch=False,
        precision=args.precision,
        compile=False,
        device=args.device,
        batch_size=None,
    )
    fingerprint, out = model_fingerprint(args.model), args.work / "adaptive.tsv"
    certify_store(model, info, fingerprint, store, settings, out, args.work / "unfinished")
    table = read_certificates(out)
    exact = exact_radii(model, store, table, settings, Journal(args.work, table.settings, 0))

    images, passes = len(table), table.settings["forward_passes"]
    selected = int((table.status != "misclassified").sum())
    shortcut = images * settings.n0 + selected * settings.n
    rows = [
        ["exact", f"{settings.n0 + settings.n}", "1.0"],
        [
            "exact, shortcut",
            f"{shortcut / images:.0f}",
            f"{images * (settings.n0 + settings.n) / shortcut:.1f}",
        ],
        [
            "adaptive, shortcut",
            f"{passes / images:.0f}",
            f"{images * (settings.n0 + settings.n) / passes:.1f}",
        ],
    ]
    for row, right in zip(rows, (exact, exact, None), strict=True):
        row += [f"{(table.right_at(r) if right is None else right >= r).mean():.1%}" for r in settings.radii]
    lost = [int((exact >= r).sum() - table.right_at(r).sum()) for r in settings.radii]
    rows.append(["images lost", "", "", *map(str, lost)])
    write(
        args.output / "certify_adaptive",
        "Adaptive against exact certification",
        f"`{info.arch}` ({info.method}), sigma {info.sigma:g}, {images} test images (every {settings.stride}th), "
        f"n0 = {settings.n0}, n = {settings.n:,}, alpha = {settings.alpha}; {settings.precision} on "
        f"{table.settings['device']}, torch {torch.__version__}. Both modes see the same draws; exact mode's "
        f"end where the rest changes an answer at these radii with probability below {SURE:g} per look.",
        [
            "mode",
            "passes per image",
            "fewer than exact",
            *(f"certified at {radius:g}" for radius in settings.radii),
        ],
        rows,
    )


def exact_radii(
    model: nn.Module, store: Store, table: Certificates, settings: Settings, journal: Journal
) -> np.ndarray:
    """The largest reported radius that exact mode certifies for each image, -1: none; float [N].

    From exact mode's own draws, which end when those that are left change the answer with probability below `SURE`.
    Misclassified images are selected by the same draws in both modes.
    """
    device, shape = torch.device(settings.device), to_unit(store.images[0]).shape
    network = certified_network(
        fold_batchnorm(model), shape, settings.sigma, device, settings.precision, settings.compile
    )
    counter = VoteCounter(network, shape, settings.sigma, device, settings.precision, None)
    estimate = partial(estimate_adaptive, foreseen(settings))
    done = journal.read()
    selected = [int(idx) for idx in table.idx[table.status != "misclassified"]]
    left = [idx for idx in selected if idx not in done]
    tasks = ((idx, to_unit(store.images[idx]), certify(settings.n0, estimate, None)) for idx in left)
    found = journal.append(Row(*result) for result in run_procedures(counter, tasks, settings.seed))
    done |= {row.idx: row for row in tqdm(found, "exact", len(left), unit="image")}
    right = {idx: row.certificate.radius for idx, row in done.items() if row.correct(store.labels[idx])}
    return np.array([right.get(int(idx), -1.0) for idx in table.idx])


def foreseen(settings: Settings) -> bounds.StoppingTable:
    """A table that certifies or gives up a radius where exact mode is sure to, by all n draws, do the same.

    At each look, with k of exact mode's votes needed in the end: the probability is bounded from the votes so far
    (Clopper-Pearson, at level `SURE`), and so is the chance that the remaining draws bring the rest.
    """
    n, ladder = settings.n, bounds.stopping_table(settings.radii, settings.sigma, settings.n, settings.alpha)

    def reached(votes: int, look: int, k: int) -> bool:
        p = bounds.lower_bound(votes, look, SURE)
        return bool(binom.cdf(k - votes - 1, n - look, p) <= SURE)

    def possible(votes: int, look: int, k: int) -> bool:
        p = 1 - bounds.lower_bound(look - votes, look, SURE)
        return bool(binom.sf(k - votes - 1, n - look, p) > SURE)

    enough, futile = [], []
    for p in ladder.p_lower:
        k = bisect(range(n + 1), p, key=lambda votes: bounds.lower_bound(votes, n, settings.alpha))
        looks = ladder.looks
        enough.append(tuple(bisect(range(m + 1), True, key=lambda v: reached(v, m, k)) for m in looks))
        futile.append(tuple(bisect(range(m + 1), True, key=lambda v: possible(v, m, k)) - 1 for m in looks))
    return replace(ladder, enough=tuple(enough), futile=tuple(futile))


# output


def write(path: Path, title: str, words: str, header: list[str], rows: list[list[str]]) -> None:
    """The table as .md and .csv."""
    lines = [f"# {title}", "", words, "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(aside, path.with_suffix(".md"))
    with aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    os.replace(aside, path.with_suffix(".csv"))
    print("\n".join(lines))


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU ({kind}), {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--device", default="cpu")
    commands = parser.add_subparsers(required=True)
    fast = commands.add_parser("speed")
    fast.set_defaults(run=speed)
    fast.add_argument("--arch", default="cifar_resnet20")
    fast.add_argument("--size", type=int, default=32, help="height and width of the images")
    fast.add_argument(
        "--n", type=int, default=4_000, help="passes per measurement of crt; the field's loop does a quarter"
    )
    fast.add_argument(
        "--variants", default="float32,float32+compile,int8", help="precision[+compile], separated by commas"
    )
    fast.add_argument("--batch-size", type=int, default=None, help="of crt; default: its own choice")
    fast.add_argument(
        "--matrix", type=int, default=2048, help="side of the matrices whose product measures the peak"
    )
    fast.add_argument("--rounds", type=int, default=7)
    few = commands.add_parser("adaptive")
    few.set_defaults(run=adaptive)
    few.add_argument("--model", type=Path, required=True, help="a model folder")
    few.add_argument("--images", type=Path, required=True, help="a prepared test set")
    few.add_argument("--count", type=int, default=500)
    few.add_argument("--n", type=int, default=100_000)
    few.add_argument("--precision", default="float32", help="float32, bfloat16 or int8")
    few.add_argument("--radii", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    few.add_argument(
        "--work", type=Path, default=ROOT / ".work" / "benchmark", help="certificates and unfinished work"
    )
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
