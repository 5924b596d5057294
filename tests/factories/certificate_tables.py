"""Certificates files for the tests of evaluation and report."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import beta, norm

from crt.certification.table import COLUMNS

SETTINGS: dict[str, Any] = {
    "sigma": 0.25,
    "alpha": 0.001,
    "n0": 100,
    "n": 1000,
    "mode": "exact",
    "radii": [0.0, 0.25, 0.5],
    "stride": 1,
    "max_images": None,
    "skip_misclassified": True,
    "model_fingerprint": "a" * 64,
    "data_fingerprint": "b" * 64,
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "batch_size": 64,
    "other_batch_size": {"rows": 128, "batch_size": 32, "differing": 1},
    "noise": {
        "kind": "integer",
        "bits": "Philox4x64-10",
        "depends_on": ["model_fingerprint", "pixels"],
        "seed": None,
    },
    "versions": {"torch": "2.9"},
    "seconds": 12.0,
    "forward_passes": 5000,
}


def image(number: int) -> str:
    """What stands for an image's pixels."""
    return f"{number:032x}"


def certified(
    idx: int, radius: float, label: int = 3, predict: int = 3, p_lower: float | None = None
) -> list[str]:
    bound = norm.cdf(radius / SETTINGS["sigma"]) if p_lower is None else p_lower
    correct = str(int(label == predict))
    return [
        *map(str, (idx, label, predict)),
        repr(radius),
        correct,
        "0.5",
        f"image{idx}.png",
        "990",
        "1000",
        repr(float(bound)),
        "certified",
        image(idx),
    ]


def abstained(idx: int, label: int = 3) -> list[str]:
    return [
        str(idx),
        str(label),
        "-1",
        "0.0",
        "0",
        "0.5",
        f"image{idx}.png",
        "500",
        "1000",
        "0.45",
        "abstained",
        image(idx),
    ]


def misclassified(idx: int, label: int = 3, predict: int = 4) -> list[str]:
    return [
        str(idx),
        str(label),
        str(predict),
        "",
        "0",
        "0.1",
        f"image{idx}.png",
        "0",
        "0",
        "",
        "misclassified",
        image(idx),
    ]


def from_votes(idx: int, n_a: int, label: int = 3, predict: int = 3, n: int = 1000) -> list[str]:
    """The row that exact certification writes for `n_a` votes of `n`."""
    p_lower = float(beta.ppf(SETTINGS["alpha"], n_a, n - n_a + 1)) if n_a else 0.0
    if p_lower < 0.5:
        return abstained(idx, label)
    return certified(idx, float(SETTINGS["sigma"] * norm.ppf(p_lower)), label, predict, p_lower)


def write_table(tsv: Path, rows: Sequence[Sequence[str]], **settings: Any) -> Path:
    """Write a certificates file and the settings beside it."""
    tsv.parent.mkdir(parents=True, exist_ok=True)
    with tsv.open("w", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    tsv.with_suffix(".json").write_text(json.dumps(SETTINGS | settings))
    return tsv


def without_noise(tsv: Path) -> Path:
    """The same file with settings as version 0.1.0 wrote them, which gave its noise no name."""
    path = tsv.with_suffix(".json")
    settings = json.loads(path.read_text())
    del settings["noise"]
    path.write_text(json.dumps(settings))
    return tsv
