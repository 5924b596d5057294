"""What is lost when students become the next students' teachers: three generations on the digits.

    python benchmarks/chain.py [--seeds 3]

Each generation's teacher is the student of the one before; beside it the same network taught by the first
teacher. Needs models/teacher and prepared/ (`dvc repro`). A seed sets the students' initial weights, order,
augmentation and noise.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path

from certified import certified_metrics

from crt.project import Project
from crt.training.fit import Files, fit, student_job

ROOT = Path(__file__).resolve().parents[1]
GENERATIONS = ["resnet", "convnext", "regnet"]
N = 1000


def train(student: str, teacher: Path, seed: int, folder: Path) -> Path:
    config = Project(ROOT).composed([f"student={student}", f"seed={seed}"])[1]
    drops = [ROOT / "prepared/train" / drop for drop in config.data.drops]
    files = Files.of("student", folder / "work", folder)
    fit(student_job(config, drops, teacher), files)
    return files.model


def acr(model: Path, out: Path) -> float:
    config = Project(ROOT).composed()[1]
    return float(certified_metrics(model, ROOT / "prepared/test", out, config, n=N)["acr"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    first = ROOT / "models/teacher"
    chained: dict[str, list[float]] = {student: [] for student in GENERATIONS}
    direct: dict[str, list[float]] = {student: [] for student in GENERATIONS}
    with tempfile.TemporaryDirectory() as scratch:
        top = acr(first, Path(scratch) / "teacher.tsv")
        for seed in range(args.seeds):
            teacher = first
            for number, student in enumerate(GENERATIONS):
                folder = Path(scratch) / f"{seed}-{student}"
                teacher = train(student, teacher, seed, folder)
                chained[student].append(acr(teacher, folder / "certificates.tsv"))
                if number == 0:
                    direct[student].append(chained[student][-1])
                else:
                    model = train(student, first, seed, folder / "direct")
                    direct[student].append(acr(model, folder / "direct" / "certificates.tsv"))
                print(
                    f"seed {seed}, {student}: {chained[student][-1]:.4f}, direct {direct[student][-1]:.4f}",
                    flush=True,
                )
    lines = [
        "# Three generations",
        "",
        f"Digits; share of the first teacher's ACR ({top:.4f}; exact certification with n = {N:,}). Mean of "
        f"{args.seeds} seeds, with "
        "its standard error.",
        "",
        "| generation | student | taught by the generation before | taught by the first teacher |",
        "|---|---|---|---|",
    ]
    for number, student in enumerate(GENERATIONS, start=1):
        cells = [_share(values, top) for values in (chained[student], direct[student])]
        lines.append(f"| {number} | {student} | {cells[0]} | {cells[1]} |")
    text = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "chain.md").write_text(text, encoding="utf-8")
    print(text)


def _share(values: list[float], top: float) -> str:
    shares = [value / top for value in values]
    if len(shares) == 1:
        return f"{shares[0]:.3f}"
    return f"{statistics.mean(shares):.3f} ± {statistics.stdev(shares) / math.sqrt(len(shares)):.3f}"


if __name__ == "__main__":
    main()
