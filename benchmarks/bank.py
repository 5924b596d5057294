"""ACR of students that learn from a bank of the teacher's logits, by its views, against a live teacher.

    python benchmarks/bank.py [--seeds 3] [--student regnet]

On the pipeline's digits: needs models/teacher and prepared/ (`dvc repro`). A seed sets the student's initial
weights, order, augmentation and noise, and the bank's views; differences are taken at equal seeds.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path

from certified import certified_metrics

from crt.bank import record
from crt.project import Project
from crt.training.fit import Files, fit, student_job

ROOT = Path(__file__).resolve().parents[1]
VIEWS = [0, 5, 15, 45]  # 0: a live teacher
N = 1000


def run(views: int, seed: int, student: str, folder: Path) -> float:
    """Train one student, certify it, and return its ACR."""
    bank = ["bank=logits", f"bank.views={views}"] if views else ["bank=none"]
    config = Project(ROOT).composed([f"student={student}", f"seed={seed}", *bank])[1]
    teacher = ROOT / "models/teacher"
    drops = [ROOT / "prepared/train" / drop for drop in config.data.drops]
    banks = [folder / f"bank-{drop.name}" for drop in drops] if views else None
    for drop, out in zip(drops, banks or [], strict=banks is not None):
        record(config, drop, teacher, out, folder / "work")
    files = Files.of("student", folder / "work", folder)
    fit(student_job(config, drops, teacher, banks=banks), files)
    metrics = certified_metrics(files.model, ROOT / "prepared/test", folder / "certificates.tsv", config, n=N)
    return float(metrics["acr"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--student", default="regnet")
    args = parser.parse_args()
    found: dict[int, list[float]] = {views: [] for views in VIEWS}
    for seed in range(args.seeds):
        for views in VIEWS:
            with tempfile.TemporaryDirectory() as folder:
                found[views].append(run(views, seed, args.student, Path(folder)))
            print(f"seed {seed}, {views} views: ACR {found[views][-1]:.4f}", flush=True)
    config = Project(ROOT).composed([f"student={args.student}"])[1]
    lines = [
        "# Students from a bank of the teacher's logits",
        "",
        f"Digits, student {args.student}, {config.student.epochs} epochs, teacher {config.teacher.key}; "
        f"exact certification with n = {N:,}. Mean of {args.seeds} seeds; difference to the live teacher "
        "at equal seeds, with its standard error.",
        "",
        "| views of an image | ACR | difference |",
        "|---|---|---|",
    ]
    for views, acr in found.items():
        differences = [one - live for one, live in zip(acr, found[0], strict=True)]
        cell = ""
        if views and len(differences) > 1:
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            cell = f"{statistics.mean(differences):+.4f} ± {error:.4f}"
        lines.append(f"| {views or 'live teacher'} | {statistics.mean(acr):.4f} | {cell} |")
    text = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "bank.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
