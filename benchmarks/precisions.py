"""Where bfloat16 pays on a CPU: time of a training step of every student option, in float32 and in bfloat16.

    python benchmarks/precisions.py [--scales tiny small large] [--students resnet vit ...] [--threads 1]

CRT from a ResNet-20, random images of each scale's size. The two precisions take turns; the table has the
medians of the rounds' ratios. `crt.training.numerics.choose_precision` has its limits from it; the last
column is what it chooses here.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from crt.devices import has_bfloat16_units
from crt.files import write_text
from crt.methods.base import Batch, Teacher
from crt.methods.crt import crt
from crt.models.build import build_model
from crt.spec import ImageSpec
from crt.training.fit import frozen_teacher
from crt.training.numerics import choose_precision

ROOT = Path(__file__).resolve().parents[1]
# Side, channels, batch, rounds.
SCALES = {"tiny": (8, 1, 64, 10), "small": (32, 3, 64, 5), "large": (224, 3, 8, 3)}


def network(arch: str, arch_args: dict, size: int, channels: int) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = ImageSpec.numbered(10, size, channels)
    return build_model(arch, spec, arch_args, [0.5] * channels, [0.25] * channels)


def step_of(arch: str, arch_args: dict, size: int, channels: int, batch: int) -> Callable[[bool], float]:
    """A function that trains for one step, in bfloat16 or not, and returns the seconds."""
    model = network(arch, arch_args, size, channels).to(memory_format=torch.channels_last).train()
    teacher = frozen_teacher(network("cifar_resnet20", {}, size, channels))
    method = crt(teacher=Teacher(teacher), alpha=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    images = torch.rand(batch, channels, size, size).to(memory_format=torch.channels_last)
    inputs = Batch(images, torch.zeros(batch, dtype=torch.long), 0.0)
    generator = torch.Generator().manual_seed(0)

    def step(bfloat16: bool) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = method(model, inputs, 0.25, generator)
        loss.total.backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def measure(scale: str, option: dict) -> tuple[float, float, float]:
    """Median milliseconds per image in float32 and in bfloat16, and the median of the ratios."""
    size, channels, batch, rounds = SCALES[scale]
    step = step_of(option["arch"], option["arch_args"], size, channels, batch)
    pairs = [(step(False), step(True)) for _ in range(rounds + 1)][1:]
    plain, half = (1e3 * statistics.median(column) / batch for column in zip(*pairs, strict=True))
    return plain, half, statistics.median(a / b for a, b in pairs)


def automatic(scale: str, option: dict) -> str:
    """What `runtime.precision: auto` is for the option on this CPU."""
    size, channels, _, _ = SCALES[scale]
    model = network(option["arch"], option["arch_args"], size, channels)
    return choose_precision("auto", model, (channels, size, size), torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=list(SCALES))
    parser.add_argument("--students", nargs="+")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if not has_bfloat16_units(torch.device("cpu")):
        parser.exit(1, "this CPU has no bfloat16 units (AVX-512 BF16 or AMX): there is nothing to measure\n")
    torch.set_num_threads(args.threads)
    lines = [
        "# bfloat16 against float32 on a CPU with units for it",
        "",
        f"A CRT training step of each student option, teacher ResNet-20; {platform.machine()}, "
        f"{args.threads} threads, torch {torch.__version__.split('+')[0]}. Milliseconds per image; the "
        "ratio is the median over pairs of steps.",
        "",
        "| student | scale | pixels | float32 | bfloat16 | ratio | auto |",
        "|---|---|---|---|---|---|---|",
    ]
    for scale in args.scales:
        options = sorted((ROOT / "conf/network" / scale).glob("*.yaml"))
        for student in args.students or [file.stem for file in options if file.stem != "timm"]:
            option = yaml.safe_load((ROOT / f"conf/network/{scale}/{student}.yaml").read_text())
            plain, half, ratio = measure(scale, option)
            chosen = automatic(scale, option)
            lines.append(
                f"| {student} | {scale} | {SCALES[scale][0]} | {plain:.2f} | {half:.2f} | {ratio:.2f} | "
                f"{chosen} |"
            )
            print(lines[-1], flush=True)
    if args.students is None and args.scales == list(SCALES):
        write_text(ROOT / "benchmarks" / "results" / "precisions.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
