"""Small models and model folders for tests."""

from pathlib import Path
from typing import Any

import torch

from crt.models.build import BaseClassifier, build_model
from crt.models.checkpoint import ModelInfo, package_versions, save_model
from crt.spec import ImageSpec

GRAY8 = ImageSpec.numbered(10, size=8, channels=1)
RGB32 = ImageSpec.numbered(10, size=32, channels=3)


def describe(spec: ImageSpec = GRAY8, **changes: Any) -> ModelInfo:
    """The description of a ResNet-20 for images of `spec`, trained at sigma 0.25, but for the changes."""
    values: dict[str, Any] = {
        "arch": "cifar_resnet20",
        "arch_args": {},
        "spec": spec,
        "mean": [0.5] * spec.channels,
        "std": [0.2] * spec.channels,
        "sigma": 0.25,
        "method": "gaussian",
        "data_fingerprint": "d",
        "teacher_fingerprint": None,
        "seed": 0,
        "versions": package_versions(),
    }
    return ModelInfo(**values | changes)


def make_model(spec: ImageSpec = GRAY8, seed: int = 0, **changes: Any) -> tuple[BaseClassifier, ModelInfo]:
    """A network as `describe` says, in train mode, its random weights drawn from `seed`."""
    info = describe(spec, seed=seed, **changes)
    torch.manual_seed(seed)
    return build_model(info.arch, info.spec, info.arch_args, info.mean, info.std), info


def make_network(
    arch: str = "cifar_resnet20", spec: ImageSpec = RGB32, seed: int = 0, **arch_args: Any
) -> BaseClassifier:
    """Such a network without its description."""
    return make_model(spec, seed, arch=arch, arch_args=arch_args)[0]


def write_model(folder: Path, spec: ImageSpec = GRAY8, seed: int = 0, **changes: Any) -> Path:
    """The model folder of such a network."""
    save_model(folder, *make_model(spec, seed, **changes))
    return folder
