"""Speed of our training step against a loop in the way of the field's code: images per second, side by side.

    python benchmarks/training.py [--device cuda] [--batch 128] [--steps 10] [--rounds 5]
        [--teacher resnet18] [--networks regnetx_002 ...]

CRT from a ResNet-20 or another teacher on 32x32 images. The yardstick is a loop as in the published
repositories: float32, NCHW, a DataLoader with workers that augments image by image, the teacher with its
BatchNorms, one `.item()` per statistic and step. Ours is `crt.training.loop.train` with
`crt.training.batches.Batches`, as the student stage runs it, in the precision that it chooses
(`runtime.precision: auto`), in float32, with `runtime.compile`, and with the teacher's logits from a bank
(`bank.views`). Each loop has a process of its own, ours with the memory settings of the stages
(`crt.memory`). In every round each trains for --steps steps, one after the other; the table has the medians
of the rounds' ratios. Compiling and writing the bank are not timed, the share of the peak is of the best
matrix product between the rounds. Run it on a quiet machine.
"""

import argparse
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from crt.bank import Replayed, write_bank
from crt.config import Augment, Recipe, Runtime
from crt.data.store import Store
from crt.devices import choose_device, has_bfloat16_units
from crt.memory import keep_freed_memory
from crt.methods.base import Teacher
from crt.methods.crt import crt
from crt.models.build import build_model
from crt.spec import ImageSpec
from crt.training.batches import Batches
from crt.training.fit import frozen_teacher
from crt.training.loop import train
from crt.training.numerics import choose_precision, start_fabric

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ["cifar_resnet20", "resnet18", "convnext_atto", "regnetx_002"]
SIGMA, SIZE = 0.25, 32
CPU_WORKERS = 2  # of the yardstick's DataLoader


def network(arch: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(arch, ImageSpec.numbered(10, SIZE, 3), None, [0.5] * 3, [0.25] * 3)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images augmented one by one, as torchvision's CIFAR-10 with the field's transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(SIZE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def field(
    arch: str,
    teacher_arch: str,
    images: np.ndarray,
    labels: np.ndarray,
    batch: int,
    steps: int,
    device: torch.device,
) -> Callable[[], float]:
    """The yardstick: a function that trains for `steps` steps and returns images per second."""
    student, teacher = network(arch).to(device).train(), network(teacher_arch).to(device).eval()
    loader = DataLoader(
        Pictures(images, labels), batch, shuffle=True, num_workers=CPU_WORKERS, drop_last=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def forever() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = forever()
    totals = {"loss": 0.0, "agreement": 0.0, "accuracy": 0.0}

    def step() -> None:
        x, y = (part.to(device) for part in next(batches))
        x = x + torch.randn_like(x) * SIGMA
        with torch.no_grad():
            target = teacher(x)
        output = student(x)
        loss = (output - target).norm(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals["loss"] += loss.item()
        totals["agreement"] += (output.argmax(1) == target.argmax(1)).float().mean().item()
        totals["accuracy"] += (output.argmax(1) == y).float().mean().item()

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return batch * steps / (time.perf_counter() - start)

    step()  # starts the workers
    return run


def ours(
    arch: str,
    teacher_arch: str,
    images: np.ndarray,
    labels: np.ndarray,
    batch: int,
    steps: int,
    runtime: Runtime,
    bank: Path | None,
) -> Callable[[], float]:
    """The student stage's loop: a function that trains for an epoch to warm up and one that counts."""
    keep_freed_memory()
    device, model = choose_device(runtime.device), network(arch)
    fabric = start_fabric(device, choose_precision(runtime.precision, model, (3, SIZE, SIZE), device))
    frozen = frozen_teacher(network(teacher_arch).to(fabric.device))
    count = batch * steps
    aside = np.zeros(count, bool)
    store = Store(
        Path("made up"), images[:count], labels[:count], ImageSpec.numbered(10, SIZE, 3), "0" * 64, aside
    )
    how = Augment(crop_padding=4, crop_area=1.0, flip=True)
    teacher, moves = Teacher(frozen), None
    if bank is not None:
        settings: dict[str, Any] = {"seed": 0, "how": how}
        write_bank(
            frozen, "", store, bank, bank.with_name("work"), views=2, sigma=SIGMA, device=fabric.device,
            **settings,
        )  # fmt: skip
        teacher = Replayed(frozen, [store], [bank], **settings)
        moves = teacher.moves
    batches = Batches([store], batch, **how.model_dump(), seed=0, device=fabric.device, moves=moves)
    recipe = Recipe(
        key="benchmark", arch=arch, arch_args={}, epochs=2, batch_size=batch, optimizer="sgd", lr=0.01,
        weight_decay=1e-4, scheduler="cosine", warmup_epochs=0, clip_grad=None,
    )  # fmt: skip

    def run() -> float:
        folder = Path(tempfile.mkdtemp())
        try:
            progress = train(
                model, crt(teacher=teacher, alpha=1.0), batches, recipe, name=arch, sigma=SIGMA, seed=0,
                fabric=fabric, compile_model=runtime.compile, work=folder / "work", log=folder / "log.tsv",
            )  # fmt: skip
        finally:
            shutil.rmtree(folder)
        return recipe.epochs * count / progress.seconds

    return run


def serve(pipe: Connection, make: Callable[..., Callable[[], float]], *arguments: Any) -> None:
    """A process' work: build a loop, run it whenever asked, and answer with images per second."""
    run = make(*arguments)
    pipe.send(0.0)
    while pipe.recv():
        pipe.send(run())


@contextmanager
def in_a_process(make: Callable[..., Callable[[], float]], *arguments: Any) -> Iterator[Callable[[], float]]:
    """The loop that `make` builds, in a process of its own."""
    own, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(other, make, *arguments))
    process.start()
    other.close()  # so that the death of the process ends `recv`
    own.recv()

    def run() -> float:
        own.send(True)
        return own.recv()

    try:
        yield run
    finally:
        own.send(False)
        process.join()


def operations(arch: str, teacher: str | None) -> float:
    """Floating-point operations of one training step per image, the teacher's passes too if it runs.

    A backward pass counts as two forward passes. (torch's counter takes grouped convolutions' weight
    gradients for those of dense ones, up to 65 times too many.)
    """
    images = torch.rand(2, 3, SIZE, SIZE)
    student, frozen = network(arch).train(), None if teacher is None else network(teacher).eval()
    with FlopCounterMode(display=False) as forward:  # building a network runs it too: not in here
        student(images)
    with FlopCounterMode(display=False) as teaching:
        if frozen is not None:
            frozen(images)
    return (3 * forward.get_total_flops() + teaching.get_total_flops()) / 2


def peak(device: torch.device) -> float:
    """Floating-point operations per second of large float32 matrix products."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.rand(size, size, device=device)
    seconds = []
    for _ in range(7):
        _wait(device)
        start = time.perf_counter()
        a @ a
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--batch", type=int, default=128, help="the paper's is 128; our recipes with SGD have 64"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--teacher", default="cifar_resnet20")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    args = parser.parse_args()
    device = torch.device(args.device)
    variants = {
        "ours": ("auto", False, False),
        "compiled": ("auto", True, False),
        "with a bank": ("auto", False, True),
    }
    if has_bfloat16_units(device):
        variants["in float32"] = ("float32", False, False)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(5000, args.batch * args.steps), SIZE, SIZE, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, len(images))
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    lines = [
        "# Images per second of a CRT training step",
        "",
        f"Teacher {args.teacher}, 32x32 images, batch {args.batch}, {args.steps} steps in each of "
        f"{args.rounds} rounds. {name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__.split('+')[0]}. Ratios are medians over the rounds; the peak, in "
        "GFLOP/s, is of a large float32 matrix product between the rounds.",
        "",
        "| student | field's loop | "
        + " | ".join(f"{variant} | ratio" for variant in variants)
        + " | peak | share of it: field's, ours, with a bank |",
        "|---" * (4 + 2 * len(variants)) + "|",
    ]
    scratch = tempfile.TemporaryDirectory()
    for arch in args.networks:
        common = (arch, args.teacher, images, labels, args.batch, args.steps)
        rounds, peaks = [], []
        with ExitStack() as stack:
            runs = {"field": stack.enter_context(in_a_process(field, *common, device))}
            for variant, (precision, compiled, banked) in variants.items():
                runtime = Runtime(
                    device=args.device, processes=1, precision=precision, compile=compiled, workers=0
                )
                bank = Path(scratch.name) / arch if banked else None
                runs[variant] = stack.enter_context(in_a_process(ours, *common, runtime, bank))
            for _ in range(args.rounds):
                rounds.append({name: run() for name, run in runs.items()})
                peaks.append(peak(device))
        median = {name: statistics.median(one[name] for one in rounds) for name in runs}
        cells = [arch, f"{median['field']:,.0f}"]
        for variant in variants:
            ratio = statistics.median(one[variant] / one["field"] for one in rounds)
            cells += [f"{median[variant]:,.0f}", f"{ratio:.2f}"]
        work, alone = operations(arch, args.teacher), operations(arch, None)
        shares = [median["field"] * work, median["ours"] * work, median["with a bank"] * alone]
        cells.append(f"{max(peaks) / 1e9:,.0f}")
        cells.append(", ".join(f"{share / max(peaks):.0%}" for share in shares))
        lines.append("| " + " | ".join(cells) + " |")
        print("\n".join(lines[4:]), flush=True)
    text = "\n".join(lines) + "\n"
    kind = "cpu_bfloat16" if device.type == "cpu" and has_bfloat16_units(device) else device.type
    of = "" if args.teacher == "cifar_resnet20" else f"_{args.teacher}"
    of += "" if args.batch == 128 else f"_batch{args.batch}"
    (Path(__file__).parent / "results" / f"training_{kind}{of}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
