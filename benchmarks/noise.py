"""What noise in whole numbers costs on a CPU, and what it changes in certificates.

    python benchmarks/noise.py cost [--rounds 41]
    python benchmarks/noise.py certificates --models models/teacher models/student --images prepared/test

`cost`: a draw of noise for 3x32x32 images beside an int8 and a float32 pass of ResNet-20, in the batches that
certification makes, in one thread. Times are the process's own; ratios are of neighbors in time, so that
other programs on the machine, which slow all three, change them little. A minute. `certificates`: exact
certification with n = 1,000 draws as version 0.1.0 made it, with float32 Gaussian noise, beside that of this
version, on the same images and networks. A minute for the digits.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from crt.certification import bounds
from crt.certification.noise import NoisyBatch, Piece, rounded_gaussian
from crt.certification.procedures import Draws, Stage
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.votes import certified_network
from crt.data.store import open_store
from crt.files import write_text
from crt.inference.fold import fold_batchnorm
from crt.models.build import build_model
from crt.models.checkpoint import load_model
from crt.spec import ImageSpec, to_unit

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SHAPE, BATCH = (3, 32, 32), 64
SIGMAS = (0.12, 0.25, 0.5, 1.0)
SECONDS = 0.15  # of a measurement, about
N0, N, ALPHA = 100, 1_000, 0.001


# cost


@torch.inference_mode()
def cost(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("cifar_resnet20", ImageSpec.numbered(10, 32, 3), None, [0.5] * 3, [0.25] * 3).eval()
    images = torch.rand(BATCH, *SHAPE).contiguous(memory_format=torch.channels_last)
    work: dict[str, Callable[[], object]] = {}
    for precision in ("int8", "float32"):
        network = certified_network(fold_batchnorm(model), SHAPE, 0.25, CPU, precision, compile_network=False)
        work[precision] = lambda network=network: network(images)
    levels = np.random.default_rng(0).integers(0, 256, 3072)
    for sigma in SIGMAS:
        law = rounded_gaussian(sigma)
        batch, draws = NoisyBatch(law, BATCH, SHAPE, CPU), Draws(Stage.ESTIMATION, 0, BATCH)
        piece = Piece((levels * law.fineness).astype(np.int16), 2**127 + 5, draws)
        work[f"noise {sigma:g}"] = lambda batch=batch, piece=piece: batch.fill([piece])

    calls = {name: max(1, round(SECONDS / seconds(do, 3))) for name, do in work.items()}
    taken = [{name: seconds(do, calls[name]) for name, do in work.items()} for _ in range(args.rounds)]
    rows = []
    for sigma in SIGMAS:
        name = f"noise {sigma:g}"
        each = 1e6 / BATCH * np.median([one[name] for one in taken])
        shares = [quartiles([one[name] / one[other] for one in taken]) for other in ("int8", "float32")]
        rows.append(f"| {sigma:g} | {each:.1f} | {' | '.join(shares)} |")
    passes = ", ".join(
        f"{name} {1e6 / BATCH * np.median([one[name] for one in taken]):.0f} us"
        for name in ("int8", "float32")
    )
    lines = [
        "# Cost of the noise",
        "",
        "`python benchmarks/noise.py cost`: a draw for a 3x32x32 image beside a pass of ResNet-20, batches "
        f"of {BATCH}, one thread of a "
        f"CPU ({torch.backends.cpu.get_cpu_capability()}), shared with other programs. Medians of "
        f"{args.rounds} rounds, in brackets "
        f"the quartiles; process time. A pass for an image: {passes}.",
        "",
        "| sigma | us for a draw | share of an int8 pass | share of a float32 pass |",
        "|---|---|---|---|",
        *rows,
    ]
    finish(args.output / "noise_cost.md", lines)


def seconds(do: Callable[[], object], calls: int) -> float:
    """Process time of one of so many calls."""
    began = time.process_time()
    for _ in range(calls):
        do()
    return (time.process_time() - began) / calls


def quartiles(values: list[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.1%} ({low:.1%} to {high:.1%})"


# certificates


def certificates(args: argparse.Namespace) -> None:
    store, rows = open_store(args.images), []
    for folder in args.models:
        model, info = load_model(folder)
        found = {"0.1.0: float32": in_floating_point(model, info.sigma, store.images)}
        smoothed = SmoothedClassifier(model, info.sigma, n0=N0, n=N, alpha=ALPHA, device=CPU, seed=0)
        made = smoothed.certify_pixels((pixels, None) for pixels in store.images)
        in_order = [certificate for _, certificate, _ in sorted(made, key=lambda one: one[0])]
        found["whole numbers"] = np.array([(c.predict, c.radius, c.n_a) for c in in_order])
        for name, (predict, radius, _) in ((name, table.T) for name, table in found.items()):
            right = predict == store.labels
            shares = [f"{(right & (radius >= r)).mean():.1%}" for r in (0.0, 0.25, 0.5)]
            rows.append(
                f"| {folder.name} | {name} | {(radius * right).mean():.4f} | {' | '.join(shares)} | "
                f"{(predict < 0).mean():.1%} | |"
            )
        before, after = found.values()
        rows[-1] = rows[-1].removesuffix("| |") + f"| {differences(before, after)} |"
    lines = [
        "# Certificates before and after noise in whole numbers",
        "",
        f"`python benchmarks/noise.py certificates` on the digits: exact mode, n0 = {N0}, n = {N:,}, alpha = "
        f"{ALPHA}, all "
        f"{len(store.images)} test images, the same networks. The last column: votes of the same class after "
        "minus before, in units "
        "of their standard deviation if both are binomial with one probability (mean, and standard deviation "
        "over the images, 1 is "
        "expected).",
        "",
        "| network | noise | ACR | certified at 0 | at 0.25 | at 0.5 | abstained | votes |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    finish(args.output / "noise_certificates.md", lines)


@torch.inference_mode()
def in_floating_point(model: nn.Module, sigma: float, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(class, radius, votes) of each image as published [N, 3], with normal numbers added in float32."""
    model, generator, found = fold_batchnorm(model), torch.Generator().manual_seed(0), []

    def votes(image: torch.Tensor, n: int) -> list[int]:
        noisy = image + sigma * torch.randn(n, *image.shape, generator=generator)
        return torch.bincount(model(noisy).argmax(1), minlength=10).tolist()

    for pixels in tqdm(images, "float32 noise"):
        image = to_unit(pixels)
        first = votes(image, N0)
        c = first.index(max(first))
        n_a = votes(image, N)[c]
        p_lower = bounds.lower_bound(n_a, N, ALPHA)
        found.append((c, bounds.radius(p_lower, sigma), n_a) if p_lower >= 0.5 else (-1, 0.0, n_a))
    return np.array(found)


def differences(before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    """Of the votes of images that have the same class in both, and not all votes."""
    k, m = before[:, 2], after[:, 2]
    p = (k + m) / (2 * N)
    same = (before[:, 0] == after[:, 0]) & (before[:, 0] >= 0) & (p < 1)
    z = (m - k)[same] / np.sqrt(2 * N * p * (1 - p))[same]
    return f"{z.mean():+.2f} ± {1 / np.sqrt(len(z)):.2f}, {z.std():.2f}"


def finish(path: Path, lines: list[str]) -> None:
    write_text(path, "\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("cost")
    one.set_defaults(run=cost)
    one.add_argument("--rounds", type=int, default=41)
    two = commands.add_parser("certificates")
    two.set_defaults(run=certificates)
    two.add_argument("--models", type=Path, nargs="+", required=True, help="model folders")
    two.add_argument("--images", type=Path, required=True, help="a prepared test set")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
