"""Five deliveries of data: what retraining costs, and what it gives, from scratch and from the last release.

    python benchmarks/retraining.py --teacher models/teacher --prepared prepared [--per-drop 5000]
        [--work DIR]

Takes `--per-drop` images for each of five drops from the prepared training set, at random. Rows: CRT from
random weights on all drops so far; CRT started from the student of the drop before, which was warm-started
too or trained from random weights; direct robust training on all drops. An interrupted run goes on where it
was. The teacher is a model folder for the same classes and sigma.
"""

import argparse
import itertools
import json
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from certified import certified_metrics

from crt.config import Config
from crt.data.store import Store, open_store
from crt.drops.prepare import prepare_drop
from crt.files import write_text
from crt.models.checkpoint import load_info
from crt.project import Project
from crt.training.fit import Files, fit, student_job

ROOT = Path(__file__).resolve().parents[1]
DROPS = 5
EPOCHS, INIT_EPOCHS, BATCH = 15, 3, 64
N, IMAGES = 1000, 500
RECIPE = [
    "student=timm",
    "student.arch=cifar_resnet20",
    f"student.epochs={EPOCHS}",
    f"student.init_epochs={INIT_EPOCHS}",
    f"student.batch_size={BATCH}",
    "student.lr=0.1",
    "student.weight_decay=5e-4",
    "data.augment.crop_padding=4",
    "data.augment.flip=true",
]


@dataclass(frozen=True)
class Row:
    """One trained model: how, on the first `drops` drops, and the row whose model it starts from."""

    label: str
    method: str
    drops: int
    init: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return "-".join([self.label, str(self.drops), *self.changes])


ROWS = [
    Row("scratch", "crt", 1),
    Row("warm", "crt", 2, "scratch-1"),
    Row("warm", "crt", 3, "warm-2"),
    Row("warm", "crt", 4, "warm-3"),
    Row("warm", "crt", 5, "warm-4"),
    Row("warm", "crt", 5, "warm-4", changes=("student.init_lr=0.1",)),
    Row("scratch", "crt", 5),
    Row("scratch", "crt", 4),
    Row("warm, after one from scratch", "crt", 5, "scratch-4"),
    # A SmoothMix epoch costs 7 CRT epochs (benchmarks/results/methods.md): two of them cost what `scratch`
    # does. Its warm-up, 10 of the published 150 epochs, is shortened as much.
    Row("direct smoothmix", "smoothmix", 5, changes=("student.epochs=2", "method.warmup_epochs=0")),
    Row("direct consistency", "consistency", 5),
]


def make_drops(sources: list[Store], per_drop: int, folder: Path) -> list[Path]:
    """Five prepared drops of random images of the sources; what is there stays."""
    starts = np.cumsum([0, *(len(store) for store in sources)])
    order = np.random.default_rng(0).permutation(starts[-1])
    if DROPS * per_drop > len(order):
        sys.exit(f"{len(order)} images are too few for {DROPS} drops of {per_drop}")
    paths = []
    for d in range(DROPS):
        path = folder / f"drop-{d + 1}"
        paths.append(path)
        if path.is_dir():
            continue
        chosen = np.sort(order[d * per_drop : (d + 1) * per_drop])
        parts = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in itertools.pairwise(starts)]
        raw = folder / "raw" / path.name
        raw.mkdir(parents=True, exist_ok=True)
        np.savez(
            raw / "images.npz",
            images=np.concatenate([s.images[p] for s, p in zip(sources, parts, strict=True)]),
            labels=np.concatenate([s.labels[p] for s, p in zip(sources, parts, strict=True)]),
        )
        prepare_drop(raw, path, spec=replace(sources[0].spec, resize="none"))
    return paths


def certify(folder: Path, test: Path, out: Path, config: Config) -> dict[str, float]:
    stride = max(1, len(open_store(test)) // IMAGES)
    metrics = certified_metrics(
        folder,
        test,
        out,
        config,
        n=N,
        stride=stride,
        max_images=IMAGES,
        skip_misclassified=True,
        precision="int8",
    )
    return {"acr": metrics["acr"], **{f"at {r}": v for r, v in metrics["certified_accuracy"].items()}}


def run(row: Row, drops: list[Path], test: Path, teacher: Path, work: Path) -> dict[str, float]:
    """Train and certify one row, or read what an earlier run found."""
    folder = work / row.key
    found = folder / "found.json"
    if found.is_file():
        return json.loads(found.read_text())
    config = Project(ROOT).composed([*RECIPE, f"method={row.method}", *row.changes])[1]
    files = Files.of("student", folder / "work", folder)
    if not files.results.is_file():
        init = work / row.init / "models/student" if row.init else None
        fit(student_job(config, drops[: row.drops], teacher, init), files)
    results, times = (json.loads(file.read_text()) for file in (files.results, files.times))
    outcome = {
        **certify(files.model, test, folder / "certificates.tsv", config),
        "seconds": times["seconds"],
        "epochs": results["epochs"],
        "images": row.drops * len(open_store(drops[0])),
    }
    write_text(found, json.dumps(outcome, indent=2))
    return outcome


def table(outcomes: dict[str, dict[str, float]], teacher: dict[str, float], what: str) -> str:
    lines = [
        "# Five deliveries of data",
        "",
        what,
        "",
        "| training | drops | epochs | image-epochs | training, s | ACR | share of from-scratch ACR | "
        + " | ".join(f"certified {key}" for key in teacher if key != "acr")
        + " |",
        "|---" * (7 + len(teacher) - 1) + "|",
    ]
    rows = [("teacher", "", "", "", "", teacher, "")]
    for row in ROWS:
        if (found := outcomes.get(row.key)) is None:
            continue
        scratch = outcomes.get(f"scratch-{row.drops}")
        share = f"{found['acr'] / scratch['acr']:.3f}" if scratch and row.label != "scratch" else ""
        rows.append(
            (
                ", ".join([row.label, *row.changes]),
                str(row.drops),
                f"{found['epochs']:.0f}",
                f"{found['epochs'] * found['images']:,.0f}",
                f"{found['seconds']:,.0f}",
                found,
                share,
            )
        )
    for *cells, values, share in rows:
        certified = [f"{values[key]:.3f}" for key in teacher if key != "acr"]
        lines.append("| " + " | ".join([*cells, f"{values['acr']:.4f}", share, *certified]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, default=Path("models/teacher"))
    parser.add_argument("--prepared", type=Path, default=Path("prepared"))
    parser.add_argument("--per-drop", type=int, default=5000)
    parser.add_argument("--work", type=Path, default=Path(".work/retraining"))
    args = parser.parse_args()
    sources = [open_store(path.parent) for path in sorted((args.prepared / "train").glob("*/meta.json"))]
    drops = make_drops(sources, args.per_drop, args.work)
    test = args.prepared / "test"
    config = Project(ROOT).composed(RECIPE)[1]
    known = args.work / "teacher.json"
    if not known.is_file():
        write_text(
            known, json.dumps(certify(args.teacher, test, args.work / "teacher" / "certificates.tsv", config))
        )
    info = load_info(args.teacher)
    what = (
        f"`cifar_resnet20`, batch {BATCH}, SGD at 0.1 (0.05 from a release), cosine, sigma {info.sigma:g}; "
        f"teacher: {info.arch}, {info.method}. {args.per_drop:,} images per drop; {IMAGES} test images, "
        f"exact certification in int8 with n = {N:,}, alpha = 0.001. One seed. "
        f"torch {torch.__version__.split('+')[0]}, {platform.machine()}, "
        f"{os.environ.get('OMP_NUM_THREADS', os.cpu_count())} thread(s)."
    )
    outcomes: dict[str, dict[str, float]] = {}
    for row in ROWS:
        outcomes[row.key] = run(row, drops, test, args.teacher, args.work)
        text = table(outcomes, json.loads(known.read_text()), what)
        write_text(ROOT / "benchmarks" / "results" / "retraining.md", text)
    print(text)


if __name__ == "__main__":
    main()
