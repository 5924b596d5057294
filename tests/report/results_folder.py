"""The results of a whole pipeline, made up, for the tests of the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from certificate_tables import from_votes, misclassified, write_table

from crt.evaluation.anchor import Anchor
from crt.evaluation.certificates import read_certificates
from crt.evaluation.chain import candidate, continued, entry
from crt.evaluation.changed import changed_images
from crt.evaluation.gate import Margins, decide
from crt.evaluation.metrics import MetricFiles, write_metrics
from crt.evaluation.paired import pair
from crt.files import write_json, write_text
from crt.history import History

DROPS = ["2025-01", "2025-02", "2025-03"]
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def rows(quality: float, images: int, seed: int) -> list[list[str]]:
    difficulty = np.random.default_rng(7).normal(size=images)
    own = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-(quality + 2.2 * difficulty + own.normal(scale=0.4, size=images))))
    return [
        misclassified(i, label=i % 10, predict=(i + 1) % 10)
        if p[i] < 0.3
        else from_votes(i, own.binomial(1000, p[i]), i % 10, i % 10)
        for i in range(images)
    ]


def model(arch: str, method: str, classes: Sequence[str], teacher: str | None = None) -> dict[str, Any]:
    return {
        "format": 1,
        "arch": arch,
        "arch_args": {},
        "classes": list(classes),
        "image_size": 8,
        "channels": 1,
        "mean": [0.3],
        "std": [0.4],
        "resize": "none",
        "sigma": 0.25,
        "method": method,
        "data_fingerprint": "d" * 64,
        "teacher_fingerprint": teacher,
        "seed": 0,
        "versions": {"crt": "0.1.0", "torch": "2.9.0", "timm": "1.0.20"},
    }


def history(role: str, epochs: int = 40) -> str:
    noise = np.random.default_rng(len(role))
    parts = ["transfer", "agreement"] if role == "student" else ["xent", "consistency"]
    lines = ["\t".join(["epoch", "lr", "loss", *parts, "noisy_accuracy"])]
    for epoch in range(1, epochs + 1):
        progress = 1 - np.exp(-epoch / 8) + noise.normal(scale=0.01)
        values = [
            epoch,
            0.1,
            2.3 - 2 * progress,
            2 - 1.5 * progress,
            0.1 + 0.8 * progress,
            0.1 + 0.8 * progress,
        ]
        lines.append("\t".join(map(str, values)))
    return "\n".join(lines) + "\n"


def roles_of(baseline: float | None = 2.0) -> list[str]:
    return ["teacher", "student"] + ["baseline"] * (baseline is not None)


ROLES = roles_of()


def make_results(
    root: Path,
    *,
    baseline: float | None = 2.0,
    student: float = 2.2,
    images: int = 360,
    classes: Sequence[str] = CLASSES,
    margins: Margins = Margins(0.02, {}, 0.01),  # noqa: B008
    past: History | None = None,
    trained_on: Sequence[str] = DROPS,
    **settings: Any,
) -> Path:
    """Write all files that the report reads.

    `student` and `baseline` are qualities, None: no baseline is pinned. `past` is the baseline's history,
    which then is the anchor too; None: it has none.
    """
    certificates, results = root / "certificates", root / "results"
    write_table(certificates / "teacher.tsv", rows(2.3, images, 1), **settings)
    write_table(certificates / "student.tsv", rows(student, images, 2), **settings)
    if baseline is not None:
        write_table(certificates / "baseline.tsv", rows(baseline, images, 3), **settings)
    roles = roles_of(baseline)
    for role in roles:
        out = results / "certify"
        files = MetricFiles(
            metrics=out / f"{role}.json",
            details=out / "details" / f"{role}.json",
            curve=out / "curves" / f"{role}.csv",
            ecdf=out / "ecdf" / f"{role}.csv",
        )
        write_metrics(certificates / f"{role}.tsv", role, files)
    tables = {role: read_certificates(certificates / f"{role}.tsv") for role in roles}
    anchor = Anchor("v1.0.0", "the <best>") if past is not None else None
    gate = decide(
        tables["student"], tables.get("baseline"), tables["teacher"], margins, 0.95, classes, anchor
    )
    write_json(results / "gate/details.json", gate)
    changed = changed_images(pair(tables["student"], tables["baseline"]) if "baseline" in tables else None)
    changed.to_csv(certificates / "changed.tsv", sep="\t", index=False)
    write_json(results / "gate.json", {"verdict": gate["verdict"]})

    models = {
        "teacher": model("cifar_resnet20", "consistency", classes),
        "student": model("resnet18", "crt", classes, teacher="t" * 64),
        "baseline": model("resnet18", "crt", classes),
    }
    for role in roles:
        write_json(root / "models" / role / "model.json", models[role])
    before, version = past, None
    if baseline is not None:
        version, begins = "v1.0.0", "it was released without a history"
        before = past or continued(
            None, entry(tables["baseline"], models["baseline"], version=version, begins=begins)
        )
    last = candidate(tables["student"], models["student"], trained_on, gate, version)
    write_text(results / "gate/history.json", continued(before, last).model_dump_json(indent=2) + "\n")
    for role, parameters in (("teacher", 271_000), ("student", 11_170_000)):
        training = {
            "noisy_accuracy": 0.9,
            "parameters": parameters,
            "epochs": 40,
        }
        write_json(results / f"{role}.json", training)
        write_json(
            root / "times" / f"{role}.json", {"seconds": 83.2, "images_per_second": 4012.3, "device": "cpu"}
        )
        (results / role).mkdir()
        (results / role / "training.tsv").write_text(history(role))
    for place, drop in enumerate([*DROPS, "test"]):
        counts = {name: 40 + 3 * ((number * 7 + place) % 5) for number, name in enumerate(classes)}
        summary = {
            "images": sum(counts.values()) + 12 * (place == 2),
            "unlabelled": 12 * (place == 2),
            "classes": counts,
            "duplicates": place,
            "skipped": 0,
            "skipped_files": [],
            "ignored_files": 0,
        }
        path = results / "prepare" / f"{drop}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(summary, ensure_ascii=False))
    return root
