"""Training methods: one file each, one interface (`crt.methods.base`)."""

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from crt.errors import UserError
from crt.methods import catrs, consistency, crt, gaussian, macer, smoothadv, smoothmix
from crt.methods.base import Method

# A method is a module that holds NEEDS_LABELS and a factory of the module's name.
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
    """The method `name` with its settings; `teacher` goes to the methods that can learn from one.

    Raises:
        UserError: an unknown name, or a method that needs a teacher and got none.
    """
    if takes_teacher(name):
        return _factory(name)(**settings, teacher=teacher)
    return _factory(name)(**settings)


def takes_teacher(name: str) -> bool:
    """Whether the method can learn from a teacher."""
    return "teacher" in inspect.signature(_factory(name)).parameters


def needs_labels(name: str) -> bool:
    """Whether the method has no use for images without a label."""
    return bool(METHODS[name].NEEDS_LABELS)


def _factory(name: str) -> Callable[..., Method]:
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown: choose one of {', '.join(METHODS)}")
    factory: Callable[..., Method] = getattr(METHODS[name], name)
    return factory
