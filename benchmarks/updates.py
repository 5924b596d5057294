"""Updates that hold on to the release: certificates lost over five deliveries at method.keep = 0, 0.3, 1.

    OMP_NUM_THREADS=1 python benchmarks/updates.py --images CIFAR10 --work DIR

CIFAR10 is a folder with one folder of images for each class under `train/`; about 90 minutes of one core. Of
its images, in a random order, the first part trains the teacher; the next is certified and trains nothing;
the others are the student's first drop and the deliveries. After each delivery every chain trains its release
on all drops so far. An interrupted run goes on where it was, a training that was cut off from its start: then
its CPU seconds are whole.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from certified import certified_metrics
from PIL import Image

from crt.config import Config
from crt.drops.prepare import prepare_drop
from crt.evaluation.betting import mean_interval
from crt.evaluation.certificates import Certificates, read_certificates
from crt.evaluation.paired import pair
from crt.files import write_text
from crt.methods.base import Batch, Method, Teacher
from crt.methods.crt import crt
from crt.models.build import build_model
from crt.project import Project
from crt.spec import ImageSpec
from crt.training.fit import Files, Job, fit, frozen_teacher, student_job, teacher_job

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "results" / "updates.md"
SIGMA = 0.25
RADII = [0.0, 0.25, 0.5]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Plan:
    """How many images, epochs and draws; the defaults are what the table is made with."""

    teacher_images: int = 8000
    validation: int = 500
    first: int = 2000
    delivery: int = 400
    deliveries: int = 5
    teacher_epochs: int = 10
    first_epochs: int = 15
    update_epochs: int = 3
    n0: int = 32
    n: int = 400
    rounds: int = 15
    keeps: tuple[float, ...] = (0.0, 0.3, 1.0)


@cache
def config(plan: Plan, keep: float = 0.0) -> Config:
    """What all trainings share; `keep` is the weight of the distance to the release."""
    return Project(ROOT).composed(
        [
            "teacher=gaussian",
            f"teacher.epochs={plan.teacher_epochs}",
            "teacher.batch_size=64",
            "student=timm",
            "student.arch=cifar_resnet20",
            f"student.epochs={plan.first_epochs}",
            f"student.init_epochs={plan.update_epochs}",
            "student.batch_size=64",
            "student.lr=0.1",
            "data.augment.crop_padding=4",
            "data.augment.flip=true",
            "runtime.device=cpu",
            f"method.keep={keep}",
        ]
    )[1]


def make_drops(images: Path, work: Path, plan: Plan) -> dict[str, Path]:
    """The plan's drops, prepared, by name: disjoint, in a random order of the images; what is there stays."""
    classes = sorted(folder.name for folder in (images / "train").iterdir() if folder.is_dir())
    files = [
        (path, k) for k, name in enumerate(classes) for path in sorted((images / "train" / name).iterdir())
    ]
    sizes = {"teacher": plan.teacher_images, "validation": plan.validation, "drop-0": plan.first}
    sizes |= {f"drop-{number}": plan.delivery for number in range(1, plan.deliveries + 1)}
    if sum(sizes.values()) > len(files):
        sys.exit(f"{images} holds {len(files)} training images: {sum(sizes.values())} are needed")
    order = iter(np.random.default_rng(0).permutation(len(files)))
    paths = {}
    for name, size in sizes.items():
        chosen = [files[next(order)] for _ in range(size)]
        paths[name] = work / "prepared" / name
        if paths[name].is_dir():
            continue
        raw = work / "raw" / name
        raw.mkdir(parents=True, exist_ok=True)
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in chosen])
        np.savez(raw / "images.npz", images=pixels, labels=np.array([label for _, label in chosen]))
        spec = ImageSpec.numbered(len(classes), pixels.shape[1], 3)
        prepare_drop(raw, paths[name], spec=spec, workers=1)
    return paths


def found(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run wrote to `file`, or else what `make` finds now."""
    if not file.is_file():
        write_text(file, json.dumps(make(), indent=2))
    return json.loads(file.read_text(encoding="utf-8"))


def train(name: str, job: Job, folder: Path) -> dict[str, Any]:
    """CPU seconds and facts of one training, whose model goes to `folder`."""

    def make() -> dict[str, Any]:
        files = Files.of(name, folder / "work", folder)
        shutil.rmtree(folder, ignore_errors=True)
        start = time.process_time()
        fit(job, files)
        seconds = time.process_time() - start
        results = json.loads(files.results.read_text(encoding="utf-8"))
        return {
            "cpu_seconds": seconds,
            "image_epochs": results["images"] * results["epochs"],
            "release_right": results.get("release_right"),
        }

    return found(folder / "trained.json", make)


def certify(name: str, folder: Path, validation: Path, plan: Plan) -> dict[str, Any]:
    """ACR and certified accuracy at the radii."""

    def make() -> dict[str, Any]:
        metrics = certified_metrics(
            folder / "models" / name,
            validation,
            certificates(folder),
            config(plan),
            n0=plan.n0,
            n=plan.n,
            radii=RADII,
            skip_misclassified=True,
            precision="int8",
        )
        shares = metrics["certified_accuracy"]
        return {"acr": metrics["acr"], "certified": [shares[str(radius)] for radius in RADII]}

    return found(folder / "certified.json", make)


def certificates(folder: Path) -> Path:
    return folder / "certificates.tsv"


def compare(before: Path, after: Path) -> dict[str, list[int]]:
    """How many certificates the release had at each radius, and how many the update lost and gained."""
    both = pair(read_certificates(certificates(after)), read_certificates(certificates(before)))
    right = [both.right_at(radius) for radius in RADII]
    return {
        "held": [int(old.sum()) for _, old in right],
        "lost": [int((old & ~new).sum()) for new, old in right],
        "gained": [int((new & ~old).sum()) for new, old in right],
    }


def step_ratio(rounds: int = 15) -> float:
    """CPU time of a step with the release over that of the step without it that follows: the median."""
    spec = ImageSpec.numbered(10, 32, 3)
    student, teacher, release = (
        build_model("cifar_resnet20", spec, {}, [0.5] * 3, [0.25] * 3).to(memory_format=torch.channels_last)
        for _ in range(3)
    )
    batch = Batch(torch.rand(64, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(64) % 10, 0.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    taught, held = (Teacher(frozen_teacher(network)) for network in (teacher, release))
    methods = [crt(teacher=taught, alpha=1.0, keep=1.0, release=model) for model in (held, None)]

    def seconds(method: Method) -> float:
        start = time.process_time()
        optimizer.zero_grad()
        method(student, batch, SIGMA, generator).total.backward()
        optimizer.step()
        return time.process_time() - start

    times = [[seconds(method) for method in methods] for _ in range(rounds + 1)][1:]
    return median(with_release / without for with_release, without in times)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run(images: Path, work: Path, plan: Plan, out: Path) -> None:
    """All trainings that are missing, delivery after delivery; after each, the table goes to `out`."""
    drops = make_drops(images, work, plan)
    validation = drops["validation"]
    say("the teacher")
    teacher, first = work / "teacher", work / "release-0"
    taught = teacher / "models" / "teacher"
    train("teacher", teacher_job(config(plan), drops["teacher"]), teacher)
    say("the first release")
    train("student", student_job(config(plan), [drops["drop-0"]], taught), first)
    base = {"first release": certify("student", first, validation, plan)}
    say(f"first release: ACR {base['first release']['acr']:.4f}")
    ratio = found(work / "step.json", lambda: {"ratio": step_ratio(plan.rounds)})["ratio"]
    rows: list[dict[str, Any]] = []
    last = dict.fromkeys(plan.keeps, first)
    for number in range(1, plan.deliveries + 1):
        sofar = [drops[f"drop-{d}"] for d in range(number + 1)]
        for keep in plan.keeps:
            folder = work / f"keep-{keep:g}" / f"delivery-{number}"
            job = student_job(config(plan, keep), sofar, taught, last[keep] / "models" / "student")
            row = train("student", job, folder) | certify("student", folder, validation, plan)
            rows.append({"keep": keep, "delivery": number, **row, **compare(last[keep], folder)})
            last[keep] = folder
            write_text(out, table(rows, base, ratio, work, plan))
            lost, held = rows[-1]["lost"], rows[-1]["held"]
            say(f"delivery {number}, keep {keep:g}: ACR {row['acr']:.4f}, lost {lost} of {held}")
    base["teacher"] = certify("teacher", teacher, validation, plan)
    write_text(out, table(rows, base, ratio, work, plan))


def table(
    rows: list[dict[str, Any]], base: dict[str, dict[str, Any]], ratio: float, work: Path, plan: Plan
) -> str:
    """The results so far."""
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    planned = plan.deliveries * len(plan.keeps)
    partial = f"**Not finished: {len(rows)} of {planned} trainings of a delivery are in it.**"
    lines = [
        "# Updates that hold on to the release",
        "",
        *([partial, ""] if len(rows) < planned else []),
        f"`cifar_resnet20`, sigma {SIGMA}, batch 64, SGD, cosine. Teacher: Gaussian training, "
        f"{plan.teacher_epochs} epochs on {plan.teacher_images:,} images that no delivery holds. First "
        f"release: {plan.first_epochs} epochs on {plan.first:,} images at 0.1; then {plan.deliveries} "
        f"deliveries of {plan.delivery:,}, {plan.update_epochs} epochs each from 0.05 on all drops so far. "
        f"{plan.validation} images of the training set that train nothing, exact certification in int8 with "
        f"n0 = {plan.n0}, n = {plan.n}, alpha = 0.001. One seed, the same for every row, so chains see the "
        f"same images, order and noise. torch {torch.__version__.split('+')[0]}, {platform.machine()}, "
        f"{threads} thread(s).",
        "",
        ", ".join(
            f"{name}: ACR {row['acr']:.4f}, certified "
            + ", ".join(f"{share:.3f} at {r:g}" for r, share in zip(RADII, row["certified"], strict=True))
            for name, row in base.items()
        )
        + ".",
        "",
        "## Whole chains",
        "",
        "Sums over the deliveries that all chains have. ACR: the mean over these deliveries, and the "
        f"difference to keep 0, mean of images, with its paired {CONFIDENCE:.0%} interval. Cost: the "
        "training's CPU time over that of keep 0, the median of the deliveries. Measured apart, a training "
        f"step with the release costs {ratio:.2f} of one without, in CPU time (median of {plan.rounds} pairs "
        "of steps, each beside the other).",
        "",
        "| keep | deliveries | "
        + " | ".join(f"lost at {r:g}" for r in RADII)
        + " | "
        + " | ".join(f"gained at {r:g}" for r in RADII)
        + " | ACR | to keep 0 | cost |",
        "|---" * (6 + 2 * len(RADII) - 1) + "|",
        *summary(rows, work, plan),
        "",
        "## Deliveries",
        "",
        "Lost: of the certificates that the release before had.",
        "",
        "| delivery | keep | "
        + " | ".join(f"lost at {r:g}" for r in RADII)
        + " | "
        + " | ".join(f"gained at {r:g}" for r in RADII)
        + " | ACR | release right on noisy images | training, CPU s | ms per image |",
        "|---" * (6 + 2 * len(RADII)) + "|",
    ]
    for row in rows:
        cells = [f"{row['delivery']}", f"{row['keep']:g}"]
        cells += [f"{lost} of {held}" for lost, held in zip(row["lost"], row["held"], strict=True)]
        cells += [str(count) for count in row["gained"]]
        right = row["release_right"]
        cells += [f"{row['acr']:.4f}", "" if right is None else f"{right:.3f}"]
        seconds = row["cpu_seconds"]
        cells += [f"{seconds:,.0f}", f"{1000 * seconds / row['image_epochs']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary(rows: list[dict[str, Any]], work: Path, plan: Plan) -> list[str]:
    """One line for each chain, over the deliveries that all chains have."""
    done = {keep: {row["delivery"]: row for row in rows if row["keep"] == keep} for keep in plan.keeps}
    common = sorted(set.intersection(*(set(chain) for chain in done.values())))
    if not common:
        return []
    tables = {keep: [_certificates(work, keep, d) for d in common] for keep in plan.keeps}
    reach = tables[plan.keeps[0]][0].largest_radius
    lines, plain = [], plan.keeps[0]
    for keep, chain in done.items():
        cells = [f"{keep:g}", str(len(common))]
        for what in ("lost", "gained"):
            sums = np.sum([chain[d][what] for d in common], axis=0)
            base = np.sum([done[plain][d][what] for d in common], axis=0)
            cells += [
                f"{a} ({a / b - 1:+.0%})" if keep != plain and b else str(a)
                for a, b in zip(sums, base, strict=True)
            ]
        cells.append(f"{np.mean([chain[d]['acr'] for d in common]):.4f}")
        pairs = zip(tables[keep], tables[plain], strict=True)
        shares = (
            np.mean([np.subtract(mine.right_radius, other.right_radius) for mine, other in pairs], 0) / reach
        )
        mean, low, high = (reach * value for value in (shares.mean(), *mean_interval(shares, CONFIDENCE)))
        cells.append("" if keep == plain else f"{mean:+.4f} ({low:+.4f} to {high:+.4f})")
        cost = [chain[d]["cpu_seconds"] / done[plain][d]["cpu_seconds"] for d in common]
        cells.append(f"{median(cost):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _certificates(work: Path, keep: float, delivery: int) -> Certificates:
    return read_certificates(certificates(work / f"keep-{keep:g}" / f"delivery-{delivery}"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".work/updates"))
    args = parser.parse_args()
    run(args.images, args.work, Plan(), TABLE)
    print(TABLE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
