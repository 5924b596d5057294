"""What breaks a certificate that is proved over real numbers and computed in floats does not break ours."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn

from crt.certification import bounds
from crt.certification.certificate import ABSTAIN
from crt.certification.smoothing import SmoothedClassifier

SIGMAS = [0.12, 0.25, 0.5, 1.0]
PIXELS, LOOKED_AT = 3 * 32 * 32, 512


def edge(sigma: float) -> float:
    """The power of two between the two images; noise below its negative must be common enough."""
    return 0.5 if sigma >= 0.25 else 0.25


class LowBits(nn.Module):
    """Class 1 where a noisy pixel in (-e, -e/4] is an odd multiple of e * 2^-24, the last bit just below e.

    In floating point, the noise that leads there lies in [-2e, -e) and is a multiple of twice that bit. So
    the sum tells, without error, whether the pixel itself has the bit, whatever the noise (Voracek and Hein
    2023).
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.edge = edge(sigma)

    def forward(self, x: Tensor) -> Tensor:
        v = x.flatten(1)[:, :LOOKED_AT]
        bits = (v.double() * 2**24 / self.edge).long()
        odd = ((bits % 2 == 1) & (v > -self.edge) & (v <= -self.edge / 4)).any(1).float()
        return torch.stack([1 - odd, odd], 1)


class Scrambled(nn.Module):
    """A class that hangs on every bit of the first noisy pixels."""

    def forward(self, x: Tensor) -> Tensor:
        bits = x.flatten(1)[:, :LOOKED_AT].contiguous().view(torch.int32).long()
        mixed = (bits * 2654435761 % 2**32) >> 13 & 1
        share = mixed.float().mean(1)
        return torch.stack([share, 1 - share], 1)


def two_images(sigma: float) -> tuple[Tensor, float]:
    """Two images, even and odd in the sense of `LowBits` where it looks, and their distance."""
    above = math.ceil(edge(sigma) * 255)
    images = torch.full((2, PIXELS), above / 255)  # a multiple of e * 2^-23
    images[1, :LOOKED_AT] = (above - 1) / 255
    bits = images.double() * 2**24 / edge(sigma)
    assert bits[0, 0] % 2 == 0
    assert bits[1, 0] % 2 == 1
    return images.view(2, 3, 32, 32), math.sqrt(LOOKED_AT) / 255


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_attack_works_on_noise_in_floating_point(sigma: float) -> None:
    """Why noise is in whole numbers: both images get a radius beyond the other one, for different classes."""
    images, distance = two_images(sigma)
    generator, radii = torch.Generator().manual_seed(0), []
    for truth, image in enumerate(images):
        noisy = image + sigma * torch.randn(1_000, 3, 32, 32, generator=generator)
        votes = int((LowBits(sigma)(noisy).argmax(1) == truth).sum())
        radii.append(bounds.radius(max(bounds.lower_bound(votes, 1_000, 0.001), 0.5), sigma))
    assert min(radii) > distance


@pytest.mark.parametrize("kind", ["low bits", "scrambled"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_no_module_can_tell_the_image_from_the_noise(sigma: float, kind: str) -> None:
    """The two certificates do not contradict each other: classes differ only if both radii end before."""
    model = LowBits(sigma) if kind == "low bits" else Scrambled()
    images, distance = two_images(sigma)
    smoothed = SmoothedClassifier(model, sigma, n=1_000, seed=1, device="cpu")
    one, other = smoothed.certify(images)
    if ABSTAIN not in (one.predict, other.predict) and one.predict != other.predict:
        assert max(one.radius, other.radius) < distance


class Linear(nn.Module):
    """[w . x > t]: the true radius of an image is its distance to the hyperplane."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(PIXELS, generator=torch.Generator().manual_seed(0)))
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1).double() @ self.w.double() - self.threshold).float()
        return torch.stack([-side, side], 1)


@pytest.mark.slow
@pytest.mark.parametrize("radii", [None, (0.1, 0.2)], ids=["exact", "adaptive"])
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_false_certificates_of_a_linear_classifier_in_3072_dimensions(
    sigma: float, radii: tuple[float, float] | None
) -> None:
    """Both modes err with probability near alpha.

    Exact: claims beyond the true distance. Adaptive: the larger radius, which is just not true.
    """
    alpha, runs, n = 0.05, 400, 300
    image = torch.full((1, 3, 32, 32), 128 / 255)
    w = Linear(0).w.double()
    distance = 0.2 - 1e-6
    model = Linear(float(w.sum() * 128 / 255 - distance * w.norm()))
    images = image.repeat(runs, 1, 1, 1).view(runs, -1)
    generator = np.random.default_rng(0)
    for row in images:  # other images at the same distance: pixels are moved along pairs that cancel
        i, j = generator.choice(PIXELS, 2, replace=False)
        row[i] += 1 / 255
        row[j] += 1 / 255
    moved = ((images.double() @ w) - model.threshold) / w.norm()
    smoothed = SmoothedClassifier(model, sigma, n=n, alpha=alpha, radii=radii, seed=3, device="cpu")
    wrong = 0
    for certificate, truth in zip(
        smoothed.certify(images.view(runs, 3, 32, 32)), moved.tolist(), strict=True
    ):
        assert truth > 0
        wrong += certificate.predict == 0 or (certificate.predict == 1 and certificate.radius > truth)
    assert wrong <= binom.ppf(1 - 1e-5, runs, alpha)
    if radii is None:
        assert wrong >= binom.ppf(1e-4, runs, 0.6 * alpha)  # the bound is used, not only kept


def test_rounded_noise_votes_as_gaussian_noise_does() -> None:
    """A linear classifier's vote is the normal probability of its distance, to within the noise of votes."""
    w = Linear(0).w.double()
    n, sigma = 20_000, 0.25
    for distance in (0.05, 0.2, 0.4):
        model = Linear(float(w.sum() * 128 / 255 - distance * w.norm()))
        smoothed = SmoothedClassifier(model, sigma, n=n, seed=5, device="cpu")
        (certificate,) = smoothed.certify(torch.full((1, 3, 32, 32), 128 / 255))
        p = norm.cdf(distance / sigma)
        assert abs(certificate.n_a - n * p) < 4.5 * math.sqrt(n * p * (1 - p))
