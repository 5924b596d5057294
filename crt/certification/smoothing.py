"""The smoothed classifier g(x) = argmax_c P[f(x + sigma * N(0, I)) = c] of Cohen, Rosenfeld and Kolter (2019)."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from crt.certification import bounds
from crt.certification.certificate import ABSTAIN, Certificate
from crt.certification.noise import Stage
from crt.certification.votes import (
    Draws,
    Precision,
    Procedure,
    VoteCounter,
    certified_network,
    run_procedures,
)
from crt.errors import UserError


def certify_exact(n0: int, n: int, alpha: float, sigma: float, label: int | None) -> Procedure:
    """CERTIFY (Cohen et al. 2019, section 3.2.2). With a `label`, an image that misses it is not estimated."""
    c = top_class((yield Draws(Stage.SELECTION, 0, n0)))
    if label is not None and c != label:
        return Certificate(c, None, 0, 0, None, "misclassified")
    n_a = (yield Draws(Stage.ESTIMATION, 0, n))[c]
    p_lower = bounds.lower_bound(n_a, n, alpha)
    if p_lower < 0.5:
        return Certificate(ABSTAIN, 0.0, n_a, n, p_lower, "abstained")
    return Certificate(c, bounds.radius(p_lower, sigma), n_a, n, p_lower, "certified")


def predict(n: int, alpha: float) -> Procedure:
    """PREDICT (Cohen et al. 2019, section 3.2.1): g(x), or ABSTAIN; wrong with probability <= alpha."""
    votes = yield Draws(Stage.SELECTION, 0, n)
    c = top_class(votes)
    runner_up = max(votes[:c] + votes[c + 1 :])
    return c if bounds.leads(votes[c], runner_up, alpha) else ABSTAIN


def top_class(votes: list[int]) -> int:
    """The most frequent class, the lowest among equals."""
    return votes.index(max(votes))


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
        seed: int = 0,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        compile: bool = False,  # noqa: A002
        batch_size: int | None = None,
    ) -> None:
        """n0 and n: draws that select a class and that estimate its probability; alpha: chance of a false certificate.

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
        self.sigma, self.alpha, self.seed = sigma, alpha, seed
        self._certify = partial(certify_exact, n0, n, alpha, sigma)
        self._device = torch.device(device)
        self._network = certified_network(model, self._device, precision, compile)
        self._precision: Precision = precision
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
                self._counter = VoteCounter(
                    self._network, shape, self.sigma, self._device, self._precision, self._batch_size
                )
            yield from run_procedures(self._counter, chain([first], checked), self.seed)


def check_image(image: Tensor, place: int) -> Tensor:
    """The image, if it is float [C, H, W], finite and in [0,1].

    Raises:
        UserError: it is not.
    """
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
