"""The one interface of all training methods, and finding a method by its name.

A method is a module of this package with

- `NEEDS_LABELS`: whether it has no use for images without a label;
- `TEACHER`: None where it learns alone; "logits" where it asks a teacher by `Teacher.noised` only, so that
  recorded logits can take the teacher's place; "network" where it runs the teacher on images of its own;
- `RELEASE`, where it is stated and true: an update can hold on to the release that it starts from;
- a factory of the module's name, which takes the method's settings (and the keywords `teacher` unless TEACHER
  is None and `release` where RELEASE is true) and returns a `Method`.

No module is imported before its method is asked for.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

import crt.methods
from crt.errors import UserError


@dataclass(frozen=True)
class Batch:
    """What a training step sees: clean images, before any noise.

    Attributes:
        images: float [B, C, H, W] in [0,1].
        labels: int64 [B], -1 = unlabeled.
        epoch: Epochs done so far, with a fraction within the epoch; for warm-ups.
        rows: int64 [B] on the CPU, each image's number among all that training has; None where that is not
            known.
    """

    images: Tensor
    labels: Tensor
    epoch: float
    rows: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """The scalar to minimize and its named parts (detached scalars, for the log)."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Method(Protocol):
    """A training objective.

    Example:
        >>> def plain(model, batch, sigma, generator):
        ...     logits = model(add_noise(batch.images, sigma, generator))
        ...     return Loss(torch.nn.functional.cross_entropy(logits, batch.labels))
    """

    def __call__(self, model: nn.Module, batch: Batch, sigma: float, generator: torch.Generator, /) -> Loss:
        """The loss of one step.

        Args:
            model: In train mode.
            batch: The clean images.
            sigma: Standard deviation of the noise, [0,1] pixel units.
            generator: The source of all the method's draws, on the batch's device.
        """


class Teacher:
    """A network that a student learns from, or a release that it holds on to, asked in each step."""

    def __init__(self, network: nn.Module) -> None:
        """Puts `network` (images [B, C, H, W] -> logits [B, K]) into eval mode."""
        self.network = network.eval()

    @torch.no_grad()
    def noised(self, batch: Batch, sigma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The batch's images with one noise each [B, C, H, W], and the teacher's logits of them [B, K]."""
        images = add_noise(batch.images, sigma, generator)
        return images, self.logits(images)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The network's logits [B, K] of images [B, C, H, W], as they are, in float32 at least."""
        logits: Tensor = self.network(images)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Kind:
    """A method by its name: what it needs, and how it is made.

    Attributes:
        name: As in `find_method`.
        needs_labels: Whether it has no use for images without a label.
        teacher: What it asks of a teacher, see the module's text.
        release: Whether it can hold on to a release.
        factory: Takes the settings, and returns the method.
    """

    name: str
    needs_labels: bool
    teacher: Literal["logits", "network"] | None
    release: bool
    factory: Callable[..., Method]

    def build(
        self, settings: Mapping[str, Any], teacher: Teacher | None = None, release: Teacher | None = None
    ) -> Method:
        """The method with its settings; teacher and release go to those that can take one.

        Raises:
            UserError: The method needs a teacher and there is none.
        """
        networks = {"teacher": teacher} if self.teacher else {}
        if self.release:
            networks["release"] = release
        return self.factory(**settings, **networks)


def find_method(name: str) -> Kind:
    """A method by its name, e.g. `crt`; imports its module.

    Raises:
        UserError: There is no such method.
    """
    found = pkgutil.iter_modules(crt.methods.__path__)
    known = sorted(module.name for module in found if not module.ispkg and module.name != "base")
    if name not in known:
        raise UserError(f"method {name!r} is unknown: choose one of {', '.join(known)}")
    module = importlib.import_module(f"crt.methods.{name}")
    release = getattr(module, "RELEASE", False)
    return Kind(name, module.NEEDS_LABELS, module.TEACHER, release, getattr(module, name))


def standard_normal_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, I) draws of images' shape, type and memory format [B, C, H, W].

    They are drawn in the order of memory: torch's CPU kernel is eight times slower where that is not the
    order of axes, as in channels-last images.
    """
    noise = torch.empty_like(images)  # dense, whatever the memory format
    noise.as_strided((noise.numel(),), (1,)).normal_(generator=generator)
    return noise


def add_noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """images [B, C, H, W] + sigma * N(0, I): fresh draws, never clipped, as under a certificate."""
    return images + sigma * standard_normal_like(images, generator)
