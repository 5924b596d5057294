"""What certification costs.

    python benchmarks/certify.py speed [--device cuda] [--variants float32,float32+compile] [--rounds 7]
    python benchmarks/certify.py adaptive --model models/student --images prepared/test --count 500

`speed`: forward passes per second of exact certification, beside the loop that the field uses, in one process, by turns;
ratios are of neighbours in time. The network is an untrained ResNet-20: speed does not depend on weights.
`adaptive`: both modes on the same images with a trained model, both for real. Exact mode takes hours on a CPU; a run that
was interrupted goes on where it was. Run both on a quiet machine.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from crt.certification.run import Settings, certify_store
from crt.certification.smoothing import SmoothedClassifier
from crt.data.store import open_store
from crt.evaluation.certificates import Certificates, read_certificates
from crt.models.build import build_model
from crt.models.checkpoint import load_model, model_fingerprint

ROOT = Path(__file__).resolve().parents[1]
SIGMA = 0.25
USUAL_BATCH = 1000
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
    precisions = {variant.split("+")[0] for variant in ours}
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
        peak = medians[f"matrix product, {name.split('+')[0] if name in ours else 'float32'}"]
        label = f"crt, {name}" if name in ours else name
        share = medians[name] * flops / peak
        rows.append([label, f"{medians[name]:.0f}", f"{to_usual:.2f}", f"{to_best:.2f}", f"{share:.0%}"])
    peaks = ", ".join(f"{p} {medians[f'matrix product, {p}'] / 1e9:.0f} GFLOP/s" for p in sorted(precisions))
    write(
        args.output / "certify",
        "Speed of exact certification",
        f"`{args.arch}`, {size[0]}x{size[1]}x{size[2]} images, {flops / 1e6:.1f} MFLOP per pass; {hardware(device)}, torch "
        f"{torch.__version__}; medians of {args.rounds} rounds. Peak, measured as a product of {args.matrix} x {args.matrix} "
        f"matrices: {peaks}. The field's loop is fastest at batch {best.split()[-1]}.",
        ["what", "passes per second", "to the usual batch", "to the best batch", "share of peak"],
        rows,
    )


# adaptive


def adaptive(args: argparse.Namespace) -> None:
    model, info = load_model(args.model)
    store = open_store(args.images)
    exact = Settings(
        sigma=info.sigma,
        mode="exact",
        n0=100,
        n=args.n,
        alpha=0.001,
        radii=tuple(args.radii),
        seed=0,
        stride=max(len(store) // args.count, 1),
        max_images=args.count,
        skip_misclassified=True,
        allow_sigma_mismatch=False,
        precision="float32",
        compile=False,
        device=args.device,
        batch_size=None,
    )
    tables: dict[str, Certificates] = {}
    for mode in ("adaptive", "exact"):
        out = args.work / f"{mode}.tsv"
        settings = replace(exact, mode=mode)
        certify_store(
            model, info, model_fingerprint(args.model), store, settings, out, args.work / "unfinished"
        )
        tables[mode] = read_certificates(out)
    images = len(tables["exact"])
    whole = images * (exact.n0 + exact.n)
    rows = []
    for mode, table in tables.items():
        passes = table.settings["forward_passes"]
        accuracy = [f"{table.right_at(radius).mean():.1%}" for radius in exact.radii]
        ratios = [f"{tables['exact'].settings['forward_passes'] / passes:.1f}", f"{whole / passes:.1f}"]
        rows.append(
            [mode, f"{passes / images:.0f}", *ratios, f"{table.settings['seconds'] / images:.2f}", *accuracy]
        )
    write(
        args.output / "certify_adaptive",
        "Adaptive against exact certification",
        f"`{info.arch}` ({info.method}), sigma {info.sigma:g}, {images} test images (every {exact.stride}th), n0 = {exact.n0}, "
        f"n = {exact.n:,}, alpha = {exact.alpha}; {tables['exact'].settings['device']}, torch {torch.__version__}. "
        "Both modes skip the estimation of misclassified images.",
        [
            "mode",
            "passes per image",
            "fewer than exact",
            "fewer than exact without skipping",
            "seconds per image",
            *(f"certified at {radius:g}" for radius in exact.radii),
        ],
        rows,
    )


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
    fast.add_argument("--variants", default="float32", help="precision[+compile], separated by commas")
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
    few.add_argument("--radii", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    few.add_argument(
        "--work", type=Path, default=ROOT / ".work" / "benchmark", help="certificates and unfinished work"
    )
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
