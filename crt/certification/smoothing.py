"""The smoothed classifier g(x) = argmax_c P[f(x + sigma * N(0, I)) = c] (Cohen et al. 2019)."""

import operator
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crt.certification import bounds
from crt.certification.certificate import Certificate
from crt.certification.noise import LEVELS, rounded_gaussian
from crt.certification.procedures import (
    Procedure,
    certify,
    estimate_adaptive,
    estimate_exact,
    predict,
    select,
    select_clear,
)
from crt.certification.stopping import LEAST_ADAPTIVE_ALPHA, costly_radii, stopping_table
from crt.certification.votes import DTYPES, Precision, VoteCounter, certified_network, run_procedures
from crt.devices import choose_device
from crt.errors import UserError, WrongTypeError
from crt.inference.fold import fold_batchnorm

MOST_DRAWS = 10_000_000  # of an image; more take GBs for the bookkeeping of a batch
# Gray levels that a pixel may be off a whole one: what rounding k / 255 to float32 makes, and no more.
OFF_GRID = 1e-3

Pixels = NDArray[np.uint8]  # [H, W, C]


class SmoothedClassifier:
    """A torch module, smoothed: `SmoothedClassifier(model, sigma=0.25).certify(images)`.

    The module maps images [B, C, H, W] in [0,1] to logits [B, K] and does its own normalization. It is
    copied, put into eval mode, and its BatchNorms are folded. Images are whole gray levels, k / 255; noise is
    whole multiples of a gray level's fraction, exactly the rounded Gaussian (`crt.certification.noise`), and
    never clipped.

    Each call of `certify` or `predict` draws its noise from a fresh secret seed, unless one is given: who
    supplies images must not know the noise that they will meet.

    Attributes:
        last_seed: The seed of the last call: pass it as `seed` to get the same answers again. None before the
            first.
        warnings: Of radii that cost most of the draws, or that cannot be certified.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> smoothed = SmoothedClassifier(model, sigma=0.25, n=1000)
        >>> len(smoothed.certify(torch.zeros(3, 1, 4, 4)))
        3
    """

    def __init__(
        self,
        model: nn.Module,
        sigma: float,
        *,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        radii: Sequence[float] | None = None,
        seed: int | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "float32",
        compile: bool = False,  # noqa: A002
        batch_size: int | None = None,
    ) -> None:
        """Smooth a module.

        Args:
            model: Images [B, C, H, W] in [0,1] -> logits [B, K]; it stays as it is.
            sigma: Standard deviation of the noise, [0,1] pixel units.
            n0: Draws that select a class in exact mode. Adaptive mode takes from 32 to 1,024, until a class
                leads clearly.
            n: Draws that estimate its probability; in adaptive mode the most that an image takes.
            alpha: Chance of a false certificate, per image.
            radii: None for exact mode. In adaptive mode the l2 radii to report, [0,1] pixel units:
                certificates say which of them (and 0) is the largest that holds.
            seed: None for a fresh secret one with each call, or a whole number below 2^128.
            device: auto, cpu, mps, cuda or cuda:<number>; the noise is the same everywhere.
            precision: float32, bfloat16 or int8: part of the classifier that is certified.
            compile: Whether the network is compiled.
            batch_size: Rows of every forward pass; None: chosen from the device and the shape of the images.

        Raises:
            UserError: A value that cannot certify anything, or a network whose BatchNorms normalize by the
                batch.
        """
        self.sigma, self.alpha = _number("sigma", sigma), _alpha(alpha)
        self._law = rounded_gaussian(self.sigma)
        self._n0, self._n = _count("n0", n0, MOST_DRAWS), _count("n", n, MOST_DRAWS)
        if n < bounds.least_draws(self.alpha):
            raise UserError(
                f"n={n} is too small for alpha={alpha}, every image would abstain: give at least "
                f"{bounds.least_draws(self.alpha)}"
            )
        self._radii = None if radii is None else _radii(radii, self.alpha)
        self.warnings = [] if self._radii is None else costly_radii(self._radii, self.sigma, n, self.alpha)
        for text in self.warnings:
            warnings.warn(text, stacklevel=2)
        if precision not in DTYPES:
            raise UserError(f"precision is {precision!r}: choose one of {', '.join(DTYPES)}")
        self.seed = self.last_seed = _seed(seed)
        self._batch_size = None if batch_size is None else _count("batch_size", batch_size, MOST_DRAWS)
        self._device = choose_device(device) if isinstance(device, str) else device
        self._model = fold_batchnorm(model)
        self._precision, self._compile = precision, compile
        self._counter: VoteCounter | None = None

    def certify(self, images: Tensor, labels: Tensor | None = None) -> list[Certificate]:
        """Certify images, float [B, C, H, W], whole gray levels k / 255.

        With `labels` [B], whole numbers, images whose selected class misses theirs are not estimated.

        Raises:
            UserError: Images of another shape, outside [0,1] or between gray levels; labels that do not fit
                them.
        """
        _check_batch(images)
        known = [None] * len(images) if labels is None else _labels(labels, len(images))
        return _in_order(self.certify_each(zip(images, known, strict=True)))

    def certify_each(
        self, images: Iterable[tuple[Tensor, int | None]]
    ) -> Iterator[tuple[int, Certificate, float]]:
        """Certify a stream of (image [C, H, W], label or None).

        Yields (place, certificate, seconds) as they are decided.
        """
        pixels = ((gray_levels(image, place), label) for place, (image, label) in enumerate(images))
        return self.certify_pixels(pixels)

    def certify_pixels(
        self, images: Iterable[tuple[Pixels, int | None]], context: str | None = None
    ) -> Iterator[tuple[int, Certificate, float]]:
        """As `certify_each`, of uint8 images [H, W, C].

        context: what the noise depends on beside them, None for the seed.
        """
        return self._run(images, self._certify, context or self._fresh_seed())

    def predict(self, images: Tensor, n: int = 1_000) -> list[int]:
        """The class of each image under g, or ABSTAIN, from n draws.

        images: float [B, C, H, W], whole gray levels k / 255.
        """
        _check_batch(images)
        draws = _count("n", n, MOST_DRAWS)
        pixels = ((gray_levels(image, place), None) for place, image in enumerate(images))
        return _in_order(
            self._run(pixels, lambda _label, charge: predict(draws, self.alpha, charge), self._fresh_seed())
        )

    def counter(self, shape: Sequence[int]) -> VoteCounter:
        """What counts the votes for images of a shape [C, H, W]: made, and checked, for the first of them."""
        if self._counter is None or self._counter.shape != tuple(shape):
            network = certified_network(
                self._model, shape, self.sigma, self._device, self._precision, self._compile
            )
            self._counter = VoteCounter(
                network, shape, self._law, self._device, self._precision, self._batch_size
            )
        return self._counter

    def charge(self, shape: Sequence[int]) -> float:
        """What a class's probability may differ by between the noise as drawn and rounded Gaussian noise."""
        return self._law.charge(int(np.prod(shape)))

    def _fresh_seed(self) -> str:
        self.last_seed = secrets.randbits(128) if self.seed is None else self.seed
        return f"seed {self.last_seed:#x}"

    def _certify(self, label: int | None, charge: float) -> Procedure:
        if self._radii is None:
            exact = partial(estimate_exact, self._n, self.alpha, self.sigma, charge)
            return certify(partial(select, self._n0), exact, label)
        table = stopping_table(self._radii, self.sigma, self._n, self.alpha, charge)
        return certify(select_clear, partial(estimate_adaptive, table), label)

    def _run(
        self,
        images: Iterable[tuple[Pixels, int | None]],
        procedure: Callable[[int | None, float], Procedure],
        context: str,
    ) -> Iterator[tuple[int, Any, float]]:
        """Run a procedure for each image on the one counter of their shape."""
        stream = iter(images)
        for first in stream:
            H, W, C = first[0].shape
            charge = self.charge((C, H, W))
            tasks = (
                (place, pixels, procedure(label, charge))
                for place, (pixels, label) in enumerate(chain([first], stream))
            )
            yield from run_procedures(self.counter((C, H, W)), tasks, context)


def gray_levels(image: Tensor, place: int) -> Pixels:
    """The uint8 pixels [H, W, C] of an image, float [C, H, W] of whole gray levels k / 255.

    Raises:
        UserError: It is no such image; `place` names it.
    """
    if not isinstance(image, Tensor):
        raise WrongTypeError(
            f"image {place} is a {type(image).__name__}: give a torch tensor, float [B, C, H, W]"
        )
    if image.ndim != 3 or not image.is_floating_point():
        wrong = UserError if image.is_floating_point() else WrongTypeError
        raise wrong(
            f"image {place} is {image.dtype} {list(image.shape)}: give float images [B, C, H, W], for stored "
            "bytes divided by 255"
        )
    levels = image.detach().to("cpu", torch.float64) * LEVELS
    low, high = levels.aminmax()
    if not (low >= -OFF_GRID and high <= LEVELS + OFF_GRID):  # NaN fails both
        raise UserError(
            f"image {place} has values from {float(low) / LEVELS:.9g} to {float(high) / LEVELS:.9g}: "
            "give pixels in [0,1], unnormalized and finite"
        )
    whole = levels.round()
    off = float((levels - whole).abs().max())
    if off > OFF_GRID:
        raise UserError(
            f"image {place} has pixels between two gray levels, up to {off:.2g} of one: certificates are of "
            "8-bit images, give (images * 255).round() / 255 in float32"
        )
    return whole.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _check_batch(images: Any) -> None:
    if not isinstance(images, Tensor):
        raise WrongTypeError(
            f"images are a {type(images).__name__}: give a torch tensor, float [B, C, H, W] in [0,1]"
        )
    if images.ndim != 4:
        hint = ", a single one as image[None]" if images.ndim == 3 else ""
        raise UserError(
            f"images are {images.dtype} {list(images.shape)}: give float images [B, C, H, W]{hint}"
        )


def _labels(labels: Any, count: int) -> list[int]:
    if not isinstance(labels, Tensor):
        raise WrongTypeError(f"labels are a {type(labels).__name__}: give a tensor of whole numbers [B]")
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)} for {count} images: give a tensor of whole "
            f"numbers [{count}]"
        )
    return [int(label) for label in labels]


def _seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= _whole("seed", seed) < 2**128:
        raise UserError(f"seed is {seed}: give a whole number from 0 to 2**128 - 1, or None for a secret one")
    return seed


def _alpha(alpha: Any) -> float:
    if not bounds.LEAST_ALPHA <= _number("alpha", alpha) < 1:
        least = f"{bounds.LEAST_ALPHA:g}"
        raise UserError(f"alpha is {alpha}: give a probability from {least} to 1, such as 0.001")
    return float(alpha)


def _radii(radii: Any, alpha: float) -> tuple[float, ...]:
    if alpha < LEAST_ADAPTIVE_ALPHA:
        raise UserError(
            f"alpha is {alpha}: with radii give at least {LEAST_ADAPTIVE_ALPHA:g}, or leave radii out "
            "for exact mode"
        )
    try:
        found = tuple(float(r) for r in radii)
    except TypeError:
        raise WrongTypeError(f"radii are {radii!r}: give a list of l2 radii, such as [0.25, 0.5]") from None
    if not all(0 <= r < float("inf") for r in found):
        raise UserError(f"radii are {list(radii)}: give l2 radii of 0 or more in [0,1] pixel units")
    return found


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise WrongTypeError(f"{name} is {value!r}: give a whole number") from None


def _count(name: str, value: Any, most: int) -> int:
    if not 1 <= _whole(name, value) <= most:
        raise UserError(f"{name} is {value}: give a whole number from 1 to {most:,}")
    return int(value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise WrongTypeError(f"{name} is {value!r}: give a number") from None


def _in_order(results: Iterable[tuple[int, Any, float]]) -> list[Any]:
    return [result for _, result, _ in sorted(results, key=operator.itemgetter(0))]
