"""Training methods: one file each, one interface (`crt.methods.base`)."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from crt.errors import UserError
from crt.methods import catrs, consistency, crt, gaussian, macer, smoothadv, smoothmix
from crt.methods.base import Method

# A method `name` is a module with a factory of the same name and NEEDS_LABELS.
METHODS: dict[str, ModuleType] = {
    "catrs": catrs,
    "consistency": consistency,
    "crt": crt,
    "gaussian": gaussian,
    "macer": macer,
    "smoothadv": smoothadv,
    "smoothmix": smoothmix,
}


def build_method(name: str, settings: Mapping[str, Any], teacher: nn.Module | None) -> Method:
    """The method `name` with its settings; `teacher` goes to the methods that learn from one (`crt`, `catrs`).

    Raises:
        UserError: an unknown name, or a method that needs a teacher and got none.
    """
    factory: Callable[..., Method] = getattr(_module(name), name)
    if name == "catrs":  # its own settings say whether it needs one
        return factory(**settings, teacher=teacher)
    if name != "crt":
        return factory(**settings)
    if teacher is None:
        raise UserError("method crt needs a teacher: train the teacher first (`dvc repro teacher`)")
    return factory(teacher, **settings)


def needs_labels(name: str) -> bool:
    """Whether the method learns nothing from images without labels alone."""
    return bool(_module(name).NEEDS_LABELS)


def _module(name: str) -> ModuleType:
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown: choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name]
