"""The smoothed classifier g(x) = argmax_c P[f(x + sigma * N(0, I)) = c] of Cohen, Rosenfeld and Kolter (2019)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from crt.certification import bounds
from crt.certification.certificate import Certificate
from crt.certification.procedures import Procedure, certify, estimate_adaptive, estimate_exact, predict
from crt.certification.votes import (
    DTYPES,
    Precision,
    VoteCounter,
    certified_network,
    run_procedures,
)
from crt.devices import choose_device
from crt.errors import UserError
from crt.inference.fold import fold_batchnorm

MOST_DRAWS = 10_000_000  # of an image; more take GBs for the bookkeeping of a batch


class SmoothedClassifier:
    """A torch module, smoothed: `SmoothedClassifier(model, sigma=0.25).certify(images)`.

    The module maps images [B, C, H, W] in [0,1] to logits [B, K] and does its own normalisation. It is copied, put into eval
    mode, and its BatchNorms are folded. Noise is added to the [0,1] image and never clipped. An image's noise depends only
    on its pixels, `seed` and the kind of device.
    """

    def __init__(
        self,
        model: nn.Module,
        sigma: float,
        *,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        radii: Sequence[float] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        compile: bool = False,  # noqa: A002
        batch_size: int | None = None,
    ) -> None:
        """n0 and n: draws that select a class and that estimate its probability; alpha: chance of a false certificate.

        radii: None for exact mode. In adaptive mode the l2 radii to report, [0,1] pixel units: n is then the most draws that
        an image takes, and certificates say which of the radii (and 0) is the largest that holds.

        Raises:
            UserError: a value that cannot certify anything.
        """
        if not 0 < sigma < float("inf"):
            raise UserError(f"sigma is {sigma}: give a positive number in [0,1] pixel units")
        if not 0 < alpha < 1:
            raise UserError(f"alpha is {alpha}: give a probability between 0 and 1, such as 0.001")
        if n0 < 1:
            raise UserError(f"n0 is {n0}: give at least one draw to select a class")
        if n < bounds.least_draws(alpha):
            raise UserError(
                f"n={n} is too small for alpha={alpha}, every image would abstain: give at least {bounds.least_draws(alpha)}"
            )
        if max(n0, n) > MOST_DRAWS:
            raise UserError(f"n0={n0} and n={n}: give at most {MOST_DRAWS:,} draws")
        self.sigma, self.alpha, self.seed = sigma, alpha, seed
        if radii is not None and not all(0 <= r < float("inf") for r in radii):
            raise UserError(f"radii are {list(radii)}: give l2 radii of 0 or more in [0,1] pixel units")
        if radii is None:
            estimate: Callable[[int], Procedure] = partial(estimate_exact, n, alpha, sigma)
        else:
            estimate = partial(estimate_adaptive, bounds.stopping_table(radii, sigma, n, alpha))
        self._certify = partial(certify, n0, estimate)
        if precision not in DTYPES:
            raise UserError(f"precision is {precision!r}: choose one of {', '.join(DTYPES)}")
        self._device = choose_device(device) if isinstance(device, str) else device
        self._model = fold_batchnorm(model)
        self._precision: Precision = precision
        self._compile = compile
        self._batch_size = batch_size
        self._counter: VoteCounter | None = None

    def certify(self, images: Tensor, labels: Tensor | None = None) -> list[Certificate]:
        """Certify images, float [B, C, H, W] in [0,1]. With `labels` [B], images that miss theirs are not estimated.

        Raises:
            UserError: images of another shape, outside [0,1] or not finite.
        """
        known = [None] * len(images) if labels is None else labels.tolist()
        return _in_order(self.certify_each(zip(images, known, strict=True)))

    def certify_each(
        self, images: Iterable[tuple[Tensor, int | None]]
    ) -> Iterator[tuple[int, Certificate, float]]:
        """Certify a stream of (image [C, H, W], label or None); yields (place, certificate, seconds) as they are decided."""
        return self._run((image, self._certify(label)) for image, label in images)

    def predict(self, images: Tensor, n: int = 1_000) -> list[int]:
        """The class of each image under g, or ABSTAIN, from n draws; images float [B, C, H, W] in [0,1]."""
        return _in_order(self._run((image, predict(n, self.alpha)) for image in images))

    def _run(self, tasks: Iterable[tuple[Tensor, Procedure]]) -> Iterator[tuple[int, Any, float]]:
        """Check the images and run their procedures on the one counter of their shape."""
        checked = (
            (place, check_image(image, place), procedure) for place, (image, procedure) in enumerate(tasks)
        )
        for first in checked:
            shape = first[1].shape
            if self._counter is None or self._counter.shape != shape:
                network = certified_network(
                    self._model, shape, self.sigma, self._device, self._precision, self._compile
                )
                self._counter = VoteCounter(
                    network, shape, self.sigma, self._device, self._precision, self._batch_size
                )
            yield from run_procedures(self._counter, chain([first], checked), self.seed)


def check_image(image: Tensor, place: int) -> Tensor:
    """The image, if it is float [C, H, W], finite and in [0,1].

    Raises:
        UserError: it is not.
    """
    if not isinstance(image, Tensor):
        raise UserError(f"image {place} is a {type(image).__name__}: give a torch tensor, float [B, C, H, W]")
    if image.ndim != 3 or not image.is_floating_point():
        raise UserError(
            f"image {place} is {image.dtype} {list(image.shape)}: give float images [B, C, H, W], for stored bytes divided by 255"
        )
    low, high = image.aminmax()
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise UserError(
            f"image {place} has values from {float(low):g} to {float(high):g}: give pixels in [0,1], unnormalised and finite"
        )
    return image


def _in_order(results: Iterable[tuple[int, Any, float]]) -> list[Any]:
    return [result for _, result, _ in sorted(results, key=itemgetter(0))]
