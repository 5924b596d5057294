"""Data at ImageNet's scale: preparing folders of JPEGs, a second drop, and how many images the loader gives.

    python benchmarks/data.py [--images 100000] [--second 10000] [--size 256] [--work DIR]

Writes made-up JPEGs into class folders (cheap to make, costly to decode as photographs), prepares them as two
drops as the stage `prepare` does, and loads an epoch's part with resized crops and flips. Needs about 220 KB
of disk per image of 256 pixels; what lies in --work already is used again, and is left there.
"""

import argparse
import os
import platform
import resource
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from crt.data.store import open_store
from crt.drops.prepare import prepare_drop
from crt.spec import ImageSpec
from crt.training.batches import Batches

CLASSES = 100
BATCH, LOADED = 128, 50  # images per batch, batches that are timed


def write_class(folder: Path, numbers: range, size: int) -> None:
    """JPEGs of low-frequency color and fine grain, like photographs in the size of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (size, size, 1), dtype=np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:07d}.jpg", quality=90)


def write_drop(folder: Path, numbers: range, size: int) -> None:
    if folder.is_dir():
        return
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    per_class = -(-len(numbers) // CLASSES)
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(
                write_class, aside / f"class{k:03d}", numbers[k * per_class : (k + 1) * per_class], size
            )
            for k in range(CLASSES)
        ]
        for job in tqdm(jobs, desc=f"JPEGs of {folder.name}"):
            job.result()
    aside.rename(folder)


def gigabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


def peak_memory() -> float:
    """GB: of this process, and of the largest of its workers."""
    return (
        sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1e6
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--second", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--work", type=Path, default=Path(".work/data"))
    args = parser.parse_args()
    drops = {"first": range(args.images), "second": range(args.images, args.images + args.second)}
    spec = ImageSpec.numbered(CLASSES, args.size, 3, "crop")
    rows = []
    for name, numbers in drops.items():
        raw, out = args.work / "raw" / name, args.work / "prepared" / name
        write_drop(raw, numbers, args.size)
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        prepare_drop(raw, out, spec=spec)
        seconds = time.perf_counter() - start
        rows.append(
            f"| {name} | {len(numbers):,} | {gigabytes(raw):.2f} | {seconds:,.0f} | "
            f"{len(numbers) / seconds:,.0f} | {gigabytes(out):.2f} | {peak_memory():.2f} |"
        )
        print(rows[-1], file=sys.stderr)
    stores = [open_store(args.work / "prepared" / name) for name in drops]
    lines = [
        "# Data at scale",
        "",
        f"Made-up JPEGs of {args.size} pixels in {CLASSES} class folders. {platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__.split('+')[0]}. "
        "Memory: the peak of the process and of its largest worker.",
        "",
        "| drop | images | JPEGs, GB | prepare, s | images/s | arrays, GB | memory, GB |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Loading both, batches of {BATCH}, resized crops (area 0.08 to 1) and flips, in random order from "
        "the memory map:",
        "",
        "| pass | images/s |",
        "|---|---|",
    ]
    loader = Batches(
        stores, BATCH, crop_padding=0, crop_area=0.08, flip=True, seed=0, device=torch.device("cpu"),
        resident=False,
    )  # fmt: skip
    for number in (1, 2):
        batches = loader.epoch(0)
        next(batches)
        count = min(LOADED, loader.steps - 1)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        speed = count * BATCH / (time.perf_counter() - start)
        lines.append(f"| {'first' if number == 1 else 'the same again'} | {speed:,.0f} |")
    text = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "data.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
