"""Certified Robustness Transfer: certifiably robust image classifiers at the cost of plain training.

Example:
    >>> import torch
    >>> from crt import ImageSpec, SmoothedClassifier, build_model
    >>> model = build_model("cifar_resnet20", ImageSpec(("cat", "dog"), size=32, channels=3))
    >>> images = torch.randint(256, (2, 3, 32, 32)) / 255
    >>> len(SmoothedClassifier(model, sigma=0.25, n=1_000).certify(images))
    2
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crt.certification.certificate import Certificate as Certificate
    from crt.certification.smoothing import SmoothedClassifier as SmoothedClassifier
    from crt.methods.base import Method as Method
    from crt.models.build import build_model as build_model
    from crt.models.checkpoint import load_model as load_model
    from crt.spec import ImageSpec as ImageSpec

    __version__: str

# Imported when they are first used: torch takes seconds, and the commands that need none of this start
# without it.
_PLACES = {
    "Certificate": "crt.certification.certificate",
    "ImageSpec": "crt.spec",
    "Method": "crt.methods.base",
    "SmoothedClassifier": "crt.certification.smoothing",
    "build_model": "crt.models.build",
    "load_model": "crt.models.checkpoint",
}

__all__ = [
    "Certificate",
    "ImageSpec",
    "Method",
    "SmoothedClassifier",
    "__version__",
    "build_model",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module 'crt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    """The installed distribution's version; in a source tree that was never installed, pyproject.toml's."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    try:
        return version("certified-robustness-transfer")
    except PackageNotFoundError:
        project = Path(__file__).parent.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
