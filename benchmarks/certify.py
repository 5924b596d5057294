"""What certification costs.

    python benchmarks/certify.py speed [--device cuda --variants float32,bfloat16+compile] [--rounds 7]
    python benchmarks/certify.py adaptive --model models/student --images prepared/test --count 500
    python benchmarks/certify.py precisions --model models/student --images prepared/test

`speed`: forward passes per second of exact certification, beside the loop that the field uses, in one
process, in alternation; ratios are of neighbors in time. The network is an untrained ResNet-20: speed does
not depend on weights.

`adaptive`: both modes on the same images with a trained model. Exact mode draws until its answers at the
radii are sure, not to the end, which takes a day on a CPU; a run that was interrupted goes on where it was.

`precisions`: what float32, bfloat16 and int8 make of the same noise.

Run all on a quiet machine.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import statistics
import time
from bisect import bisect_left as bisect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from crt.certification import bounds
from crt.certification.noise import noise_key, rounded_gaussian
from crt.certification.procedures import Draws, Procedure, Selected, Stage, estimate_adaptive, top_class
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.stopping import StoppingTable, stopping_table
from crt.certification.votes import (
    DTYPES,
    Precision,
    Request,
    VoteCounter,
    certified_network,
    device_name,
    run_procedures,
)
from crt.data.store import Store, open_store
from crt.inference.fold import fold_batchnorm
from crt.models.build import build_model
from crt.models.checkpoint import load_model, model_fingerprint
from crt.spec import ImageSpec

ROOT = Path(__file__).resolve().parents[1]
SIGMA = 0.25
USUAL_BATCH = 1000
N0, ALPHA = 100, 0.001
SURE = 1e-6


# speed


@torch.no_grad()
def field_loop(model: nn.Module, image: Tensor, n: int, batch_size: int) -> list[int]:
    """Votes as the field's programs count them.

    One image, float32, channels first; each batch's classes go to the host.
    """
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
    model = (
        build_model(args.arch, ImageSpec.numbered(10, args.size, 3), None, [0.5] * 3, [0.25] * 3)
        .to(device)
        .eval()
    )
    image = torch.randint(0, 256, size, device=device) / 255
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
    kinds = {"float32", *peak_of.values()}
    matrices = {p: torch.rand(args.matrix, args.matrix, device=device).to(DTYPES[p]) for p in sorted(kinds)}
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
    peaks = ", ".join(f"{p} {medians[f'matrix product, {p}'] / 1e9:.0f} GFLOP/s" for p in sorted(kinds))
    write(
        args.output / "certify",
        "Speed of exact certification",
        f"`{args.arch}`, {size[0]}x{size[1]}x{size[2]} images, {flops / 1e6:.1f} MFLOP per pass; "
        f"{hardware(device)}, torch {torch.__version__}; medians of {args.rounds} rounds. Peak, measured as "
        f"a product of {args.matrix} x {args.matrix} matrices: {peaks} (int8 is held to float32's). The "
        f"field's loop is fastest at batch {best.split()[-1]}.",
        ["what", "passes per second", "to the usual batch", "to the best batch", "share of peak"],
        rows,
    )


# adaptive


def adaptive(args: argparse.Namespace) -> None:
    model, info = load_model(args.model)
    store = open_store(args.images)
    images, device = chosen(store, args.count), torch.device(args.device)
    counter = vote_counter(fold_batchnorm(model), store, info.sigma, device, args.precision)
    table = stopping_table(tuple(args.radii), info.sigma, args.n, ALPHA)
    facts = [
        model_fingerprint(args.model),
        store.fingerprint,
        args.n,
        args.radii,
        args.precision,
        str(device),
    ]
    decided = args.work / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.jsonl"
    args.work.mkdir(parents=True, exist_ok=True)
    found = {idx: row for idx, *row in map(json.loads, decided.open())} if decided.exists() else {}
    left = [idx for idx in images if idx not in found]
    sure = foreseen(table, args.n) if left else table
    tasks = ((idx, store.images[idx], both(table, sure, int(store.labels[idx]))) for idx in left)
    with decided.open("a", buffering=1) as file:
        for idx, row, _ in tqdm(
            run_procedures(counter, tasks, "benchmark"), "certify", len(left), unit="image"
        ):
            file.write(json.dumps([idx, *row]) + "\n")
            found[idx] = row

    radii, passes = np.array([found[idx][:2] for idx in images]), sum(found[idx][2] for idx in images)
    whole = len(images) * (N0 + args.n)
    shortcut = len(images) * N0 + sum(found[idx][2] > N0 for idx in images) * args.n
    modes = [("exact", whole, 1), ("exact, shortcut", shortcut, 1), ("adaptive, shortcut", passes, 0)]
    rows = [
        [mode, f"{spent / len(images):.0f}", f"{whole / spent:.1f}"]
        + [f"{(radii[:, column] >= r).mean():.1%}" for r in args.radii]
        for mode, spent, column in modes
    ]
    lost = [int((radii[:, 1] >= r).sum() - (radii[:, 0] >= r).sum()) for r in args.radii]
    rows.append(["images lost", "", "", *map(str, lost)])
    write(
        args.output / "certify_adaptive",
        "Adaptive against exact certification",
        f"`{info.arch}` ({info.method}), sigma {info.sigma:g}, {len(images)} test images (every "
        f"{images.step}th), n0 = {N0}, n = {args.n:,}, alpha = {ALPHA}; {args.precision} on "
        f"{device_name(device)}, torch {torch.__version__}. Both modes see the same draws; exact mode's end "
        "where the rest changes an answer at these radii with probability "
        f"below {SURE:g} per look.",
        [
            "mode",
            "passes per image",
            "fewer than exact",
            *(f"certified at {radius:g}" for radius in args.radii),
        ],
        rows,
    )


def both(table: StoppingTable, sure: StoppingTable, label: int) -> Procedure:
    """[largest radius by adaptive mode, by exact mode, passes of adaptive mode] of one image.

    A radius of -1: none is right.
    """
    c = top_class((yield Draws(Stage.SELECTION, 0, N0)))
    if c != label:
        return [-1.0, -1.0, N0]
    certificates, running = (
        {},
        {mode: estimate_adaptive(rule, Selected(c, N0)) for mode, rule in enumerate((table, sure))},
    )
    for estimate in running.values():
        asked = next(estimate)  # the same for both, always: their looks are the same
    while running:
        votes = yield asked
        for mode, estimate in list(running.items()):
            try:
                asked = estimate.send(votes)
            except StopIteration as end:
                certificates[mode] = end.value
                del running[mode]
    by_adaptive, by_exact = (
        -1.0 if certificates[mode].status == "abstained" else certificates[mode].radius for mode in (0, 1)
    )
    return [by_adaptive, by_exact, N0 + certificates[0].n]


def foreseen(table: StoppingTable, n: int) -> StoppingTable:
    """As `table`, but deciding on a radius only where exact mode, by all its n draws, surely does the same.

    At each look, with k of exact mode's votes needed in the end: the probability is bounded from the votes so
    far (Clopper-Pearson, at level `SURE`), and so is the chance that the remaining draws bring the rest.
    """

    def reached(votes: int, look: int, k: int) -> bool:
        p = bounds.lower_bound(votes, look, SURE)
        return bool(binom.cdf(k - votes - 1, n - look, p) <= SURE)

    def possible(votes: int, look: int, k: int) -> bool:
        p = 1 - bounds.lower_bound(look - votes, look, SURE)
        return bool(binom.sf(k - votes - 1, n - look, p) > SURE)

    enough, futile = [], []
    for p in table.p_lower:
        k = bisect(range(n + 1), p, key=lambda votes: bounds.lower_bound(votes, n, ALPHA))
        looks = table.looks
        enough.append(tuple(bisect(range(m + 1), True, key=lambda v: reached(v, m, k)) for m in looks))
        futile.append(tuple(bisect(range(m + 1), True, key=lambda v: possible(v, m, k)) - 1 for m in looks))
    return replace(table, enough=tuple(enough), futile=tuple(futile))


# precisions


def precisions(args: argparse.Namespace) -> None:
    model, info = load_model(args.model)
    store = open_store(args.images)
    idxs = chosen(store, args.count)
    labels = np.array([store.labels[idx] for idx in idxs])
    device, folded = torch.device(args.device), fold_batchnorm(model)
    fineness, draws = rounded_gaussian(info.sigma).fineness, Draws(Stage.SELECTION, 0, args.n)
    images = [np.ascontiguousarray(store.images[idx]) for idx in idxs]
    requests = [
        Request(image.reshape(-1).astype(np.int16) * fineness, noise_key(image, "benchmark"), draws)
        for image in images
    ]
    votes: dict[str, np.ndarray] = {}
    for precision in args.precisions.split(","):
        counter = vote_counter(folded, store, info.sigma, device, precision)
        votes[precision] = np.array(counter.count(requests))
    first = next(iter(votes.values()))
    rows = [
        [
            precision,
            f"{(found.argmax(1) == labels).mean():.1%}",
            f"{found[np.arange(len(labels)), labels].sum() / found.sum():.1%}",
            f"{np.abs(found - first).sum() / 2 / found.sum():.1%}",
        ]
        for precision, found in votes.items()
    ]
    write(
        args.output / "certify_precisions",
        "The same network in other precisions",
        f"`{info.arch}` ({info.method}), sigma {info.sigma:g}, {len(images)} test images, {args.n} votes "
        f"each on the same noise; {device_name(device)}, torch {torch.__version__}.",
        ["precision", "smoothed accuracy", "accuracy under noise", "votes that differ from the first"],
        rows,
    )


# both of them


def chosen(store: Store, count: int) -> range:
    """Places of `count` images, evenly over the store."""
    return range(len(store))[:: max(len(store) // count, 1)][:count]


def vote_counter(
    folded: nn.Module, store: Store, sigma: float, device: torch.device, precision: Precision
) -> VoteCounter:
    shape = store.spec.shape
    network = certified_network(folded, shape, sigma, device, precision, compile_network=False)
    return VoteCounter(network, shape, rounded_gaussian(sigma), device, precision, None)


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
    few.add_argument("--work", type=Path, default=ROOT / ".work" / "benchmark", help="for decided images")
    same = commands.add_parser("precisions")
    same.set_defaults(run=precisions)
    same.add_argument("--model", type=Path, required=True, help="a model folder")
    same.add_argument("--images", type=Path, required=True, help="a prepared test set")
    same.add_argument("--count", type=int, default=500)
    same.add_argument("--n", type=int, default=100, help="votes per image")
    same.add_argument("--precisions", default="float32,int8", help="separated by commas")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
