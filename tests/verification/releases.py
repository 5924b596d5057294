"""Small releases for the tests of `crt verify`: a network, its certificates and its test images."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_folders import make_model
from prepared_drops import write_prepared

from crt.certification.run import certify_store
from crt.config import Certify
from crt.data.store import open_store
from crt.evaluation.certificates import COLUMNS
from crt.models.checkpoint import load_model, model_fingerprint, save_model
from crt.spec import ImageSpec

SPEC = ImageSpec(("dark", "bright"), size=4, channels=1)
COUNT = 40


def options(**changes: Any) -> Certify:
    """Exact certification, 400 draws."""
    plain = {
        "mode": "exact", "n0": 32, "n": 400, "alpha": 0.001, "radii": [0.0, 0.1, 0.25], "stride": 1,
        "max_images": None, "skip_misclassified": True, "allow_sigma_mismatch": False, "precision": "float32",
        "batch_size": 256, "split": "test", "images": "prepared/test",
    }  # fmt: skip
    return Certify(**plain | changes)


def make_release(root: Path, **changes: Any) -> Path:
    """A release whose network tells dark images from bright ones; every tenth image has the wrong label."""
    model, info = make_model(
        SPEC, arch="resnet18", arch_args={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
    )
    rng = np.random.default_rng(0)
    levels = np.linspace(40, 215, COUNT)[:, None, None, None] + rng.integers(-9, 10, (COUNT, 4, 4, 1))
    images = levels.clip(0, 255).astype(np.uint8)
    labels = (np.arange(COUNT) >= COUNT // 2).astype(int)
    _fit(model, images, labels)
    labels[::10] = 1 - labels[::10]
    save_model(root / "models/student", model.eval(), info)
    write_prepared(root / "prepared/test", images, labels, SPEC)
    certify_store(
        load_model(root / "models/student")[0],
        info,
        model_fingerprint(root / "models/student"),
        open_store(root / "prepared/test"),
        options(**changes),
        root / "certificates/student.tsv",
        root / "kept",
        sigma=0.25,
        device="cpu",
    )
    return root


def _fit(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        noise = 0.25 * torch.randn(x.shape, generator=generator)
        torch.nn.functional.cross_entropy(model(x + noise), y).backward()
        optimizer.step()


def edit_rows(root: Path, edit: Callable[[dict[str, str]], None]) -> None:
    """Rewrite the table with its rows changed."""
    tsv = root / "certificates/student.tsv"
    with tsv.open(newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    for row in rows:
        edit(row)
    with tsv.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, dialect="excel-tab", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
