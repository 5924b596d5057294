"""A tiny training run: 24 images of two classes, a network with BatchNorm and dropout."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crt.config import Recipe, Runtime
from crt.data.batches import Batches
from crt.data.store import Store
from crt.methods.gaussian import gaussian
from crt.training.loop import Progress, train
from crt.training.numerics import start_fabric

RECIPE: dict[str, Any] = {
    "key": "toy",
    "arch": "toy",
    "arch_args": {},
    "epochs": 6,
    "batch_size": 8,
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 1e-4,
    "scheduler": "cosine",
    "warmup_epochs": 1,
    "clip_grad": 1.0,
}


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{**RECIPE, **changes})


def store() -> Store:
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = rng.integers(0, 256, (24, 6, 6, 1), dtype=np.uint8)
    images[labels == 1, :3] //= 4  # class 1 is dark above
    return Store(Path("toy"), images, labels, ["0", "1"], "f", 6, 1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(8 * 36, 2),
    )


def batches(size: int = 8, **changes: Any) -> Batches:
    settings = {"crop_padding": 1, "flip": True, "seed": 3, "device": torch.device("cpu"), **changes}
    return Batches([store()], size, **settings)


def run(work: Path, model: nn.Module | None = None, method: Any = None, **changes: Any) -> Progress:
    """Train the toy; `work` gets the resume file and log.tsv beside it."""
    settings = recipe(**{key: changes.pop(key) for key in list(changes) if key in RECIPE})
    runtime = Runtime(device="cpu", precision=changes.pop("precision", "float32"), compile=False, workers=0)
    return train(
        network() if model is None else model,
        method or gaussian(),
        changes.pop("batches", None) or batches(settings.batch_size),
        settings,
        **{
            "name": "student",
            "sigma": 0.25,
            "seed": 3,
            "fabric": start_fabric(runtime),
            "compile_model": False,
            "work": work,
            "log": work.parent / "log.tsv",
            "checkpoint_seconds": 0.0,
            **changes,
        },
    )
