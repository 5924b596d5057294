"""A tiny training run: 24 images of two classes, a network with BatchNorm and dropout.

It is a program too, for torchrun.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prepared_drops import spec_of, store_of
from safetensors.torch import save_file
from torch import nn

from crt.config import Recipe
from crt.data.store import Store
from crt.methods.base import Batch, Loss
from crt.methods.gaussian import gaussian
from crt.methods.smoothadv import smoothadv
from crt.processes import rank, world_size
from crt.training.batches import Batches
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
    return store_of(images, labels, spec=spec_of(images, 2))


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
    precision = changes.pop("precision", "float32")
    return train(
        network() if model is None else model,
        method or gaussian(),
        changes.pop("batches", None) or batches(settings.batch_size),
        settings,
        **{
            "name": "student",
            "sigma": 0.25,
            "seed": 3,
            "fabric": start_fabric(torch.device("cpu"), precision),
            "compile_model": False,
            "work": work,
            "log": work.parent / "log.tsv",
            "checkpoint_seconds": 0.0,
            **changes,
        },
    )


def smooth_network() -> nn.Module:
    """A network that treats each image alone, whatever its batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 2))


def main(folder: Path, method: str | None = None, die_in_epoch: int | None = None, **changes: Any) -> None:
    """Train with hardly any noise by `method`; without it, with noise and a network with BatchNorm."""
    attacked = smoothadv(attack="pgd", epsilon=0.5, steps=2, num_noise=2, warmup_epochs=0)
    inner = {None: gaussian(), "smoothadv": attacked}[method]

    def watched(model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator) -> Loss:
        if batch.epoch == 0:
            first = torch.randn(3, generator=torch.Generator().set_state(generator.get_state()))
            (folder / f"noise-{rank()}").write_text(str(first.tolist()))
        if die_in_epoch is not None and rank() == 1 and batch.epoch + 1 >= die_in_epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(model, batch, sigma, generator)

    model = network() if method is None else smooth_network()
    run(
        folder / "work",
        model,
        watched,
        batches=batches(rank=rank(), world_size=world_size()),
        sigma=0.25 if method is None else 1e-9,
        **changes,
    )
    if rank() == 0:
        save_file(model.state_dict(), folder / "weights.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
