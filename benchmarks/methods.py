"""Cost of one training step of each method, relative to plain Gaussian training of the same network.

    python benchmarks/methods.py [--device cuda] [--arch cifar_resnet110] [--rounds 9]

All methods run in one process, one step each in turn, with a Gaussian step before and after each: a ratio
compares neighbors in time. The table has the median of the ratios, times the number of noises: the cost of
one epoch. Every step sees about 128 noisy images, so that no method gains or loses by the size of its batch.
Run it on a quiet machine.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crt.methods.base import Batch, Teacher, find_method
from crt.models.build import build_model
from crt.project import Project
from crt.spec import ImageSpec

ROOT = Path(__file__).resolve().parents[1]
NOISY_IMAGES = 128
SIGMA = 0.25
ATTACK, FORWARD = 2 / 3, 1 / 4  # an attack step, and a forward pass without gradients, in training steps

# Row: method, changes of its published settings for sigma 0.25, slow-down in Table 1 of Vaishnavi et al.
# 2022.
ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("crt", "crt", {}, ""),
    ("consistency", "consistency", {}, ""),
    ("smoothmix", "smoothmix", {}, "4.97"),
    ("macer", "macer", {}, "20.86"),
    ("catrs", "catrs", {"votes_from": "self"}, ""),
    ("smoothadv", "smoothadv", {}, "46.20"),
    ("smoothadv, DDN, 4 steps", "smoothadv", {"attack": "ddn", "steps": 4}, ""),
    ("smoothadv, 1 step, 1 noise", "smoothadv", {"steps": 1, "num_noise": 1}, ""),
]


def predicted(name: str, settings: dict[str, Any]) -> float:
    """The ratio by operation counts; the teacher of `crt` is a network of the same size."""
    m, steps = settings.get("num_noise", 1), settings.get("steps", 0)
    return {
        "crt": 1 + FORWARD,
        "consistency": m,
        "macer": m,
        "smoothadv": m * (1 + steps * ATTACK),
        "smoothmix": m * (2 + steps * ATTACK),
        "catrs": m * (2 + steps * ATTACK) + settings.get("num_votes", 0) * FORWARD,
    }[name]


def stepper(name: str, settings: dict[str, Any], arch: str, device: torch.device) -> Callable[[], float]:
    """A function that trains for one step and returns its seconds."""
    torch.manual_seed(0)

    def network() -> torch.nn.Module:
        return build_model(arch, ImageSpec.numbered(10, 32, 3), None, [0.5] * 3, [0.25] * 3).to(device)

    model, size = network().train(), NOISY_IMAGES // settings.get("num_noise", 1)
    method = find_method(name).build(settings, Teacher(network()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator(device).manual_seed(0)
    batch = Batch(
        torch.rand(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device), epoch=100.0
    )

    def step() -> float:
        _wait(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        method(model, batch, SIGMA, generator).total.backward()
        optimizer.step()
        _wait(device)
        return time.perf_counter() - start

    step()  # the first one pays for allocations
    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", default="cifar_resnet20")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "methods.md")
    args = parser.parse_args()
    device = torch.device(args.device)

    gaussian = stepper("gaussian", {}, args.arch, device)
    steps, multiples, expected = {}, {}, {}
    for label, name, changes, _ in ROWS:
        settings = Project(ROOT).composed([f"method={name}"])[1].method.model_dump(exclude={"name"}) | changes
        steps[label] = stepper(name, settings, args.arch, device)
        multiples[label], expected[label] = settings.get("num_noise", 1), predicted(name, settings)

    plain: list[float] = []
    ratios: dict[str, list[float]] = {label: [] for label in steps}
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(args.rounds):
        before = gaussian()
        plain.append(before)
        for label, step in steps.items():
            elapsed = step()
            after = gaussian()
            plain.append(after)
            seconds[label].append(elapsed)
            ratios[label].append(2 * elapsed / (before + after) * multiples[label])
            before = after

    lines = [
        "# Cost of a training step",
        "",
        f"`{args.arch}`, 3x32x32 images, {NOISY_IMAGES} noisy images per step, "
        f"{_hardware(device)}, torch {torch.__version__}; {args.rounds} rounds.",
        "A ratio is the time for one epoch over that of Gaussian training: time per step x noises per image. "
        "Prediction: docs/methods.md.",
        "The last column is the slow-down that Vaishnavi et al. 2022 report for ResNet-110 on one V100 "
        "(their Table 1).",
        "",
        "| method | ms per step | ratio (median) | smallest to largest | predicted | Table 1 |",
        "|---|---|---|---|---|---|",
        f"| gaussian | {1000 * statistics.median(plain):.0f} | 1 | | 1 | 1 |",
    ]
    for label, _, _, published in ROWS:
        values = ratios[label]
        lines.append(
            f"| {label} | {1000 * statistics.median(seconds[label]):.0f} | {statistics.median(values):.2f} "
            f"| {min(values):.2f} to {max(values):.2f} | {expected[label]:.2f} | {published} |"
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(partial, args.output)
    print(args.output.read_text(encoding="utf-8"))


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
