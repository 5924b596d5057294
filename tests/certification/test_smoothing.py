"""The smoothed classifier end to end, on classifiers whose certified radius has a closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from crt.certification.certificate import ABSTAIN
from crt.certification.smoothing import SmoothedClassifier
from crt.errors import UserError

SHAPE = (2, 4, 4)


class HalfSpace(nn.Module):
    """f(x) = [w.x + b > 0]: the certified radius is the distance to the hyperplane, |w.x + b| / |w|."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * scale)

    def forward(self, x: Tensor) -> Tensor:
        side = ((x - 0.5) * self.w).flatten(1).sum(1)
        return torch.stack([-side, side], dim=1)

    def distance(self, images: Tensor) -> Tensor:
        logits = self(images)
        return (logits[:, 1] / self.w.norm()).double()


def at_distances(distances: list[float]) -> Tensor:
    """Images at given distances from the hyperplane."""
    w = HalfSpace().w
    return torch.stack([0.5 + w / w.norm() * distance for distance in distances])


@pytest.mark.parametrize("radii", [None, [0.1, 0.2, 0.3, 0.4]], ids=["exact", "adaptive"])
def test_no_radius_exceeds_the_true_one_beyond_alpha(radii: list[float] | None) -> None:
    """Many seeds at each distance, some of them just below a reported radius, where adaptive mode could err."""
    alpha, runs = 0.05, 150
    distances = [0.02, 0.0999, 0.15, 0.1999, 0.2999, 0.5]
    images, wrong = at_distances(distances), [0] * len(distances)
    model = HalfSpace()
    for seed in range(runs):
        smoothed = SmoothedClassifier(model, 0.25, n=400, alpha=alpha, radii=radii, seed=seed, batch_size=200)
        for place, certificate in enumerate(smoothed.certify(images)):
            claimed = certificate.radius if certificate.predict == 1 else 0.0
            wrong[place] += certificate.predict == 0 or claimed > distances[place] + 1e-6
    assert max(wrong) <= binom.ppf(1 - 1e-5, runs, alpha)


def test_exact_mode_converges_to_the_true_radius() -> None:
    images = at_distances([-0.4, -0.1, 0.1, 0.25, 0.5])
    gaps = []
    for n in (1_000, 10_000, 100_000):
        certificates = SmoothedClassifier(HalfSpace(), 0.25, n=n, batch_size=500).certify(images)
        assert [certificate.predict for certificate in certificates] == [0, 0, 1, 1, 1]
        gaps.append(
            max(
                d - c.radius
                for d, c in zip(HalfSpace().distance(images).abs().tolist(), certificates, strict=True)
            )
        )
    assert 0 < gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 0.012


def test_adaptive_mode_finds_the_place_among_the_radii() -> None:
    images = at_distances([-0.4, 0.03, 0.1, 0.3, 0.9])
    smoothed = SmoothedClassifier(HalfSpace(), 0.25, radii=[0.25, 0.5, 0.75], batch_size=512)
    certificates = smoothed.certify(images)
    assert [certificate.radius for certificate in certificates] == [0.25, 0.0, 0.0, 0.25, 0.75]
    assert sum(certificate.n for certificate in certificates) < 5 * 20_000


def test_the_radius_scales_with_sigma() -> None:
    """Far from the boundary all votes agree, and the radius is sigma times a number."""
    image = at_distances([5.0])
    narrow, wide = (
        SmoothedClassifier(HalfSpace(), sigma, n=1_000).certify(image.clamp(0, 1))[0] for sigma in (0.1, 0.2)
    )
    assert wide.radius == pytest.approx(2 * narrow.radius, rel=1e-12)
    assert narrow.n_a == wide.n_a == 1_000


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_radius_does_not_depend_on_the_scale_of_the_logits(scale: float) -> None:
    images = at_distances([0.1, 0.3])
    plain, scaled = (SmoothedClassifier(HalfSpace(s), 0.25, n=2_000).certify(images) for s in (1.0, scale))
    assert [c.n_a for c in plain] == [c.n_a for c in scaled]


class Normalized(nn.Module):
    """The half-space behind a normalization with another mean and std: the same function of the pixels."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std, self.inner = mean, std, HalfSpace()

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.std
        return self.inner(z * self.std + self.mean)


def test_normalization_inside_the_model_does_not_move_the_radius() -> None:
    images = at_distances([0.1, 0.3])
    certificates = [
        SmoothedClassifier(model, 0.25, n=2_000).certify(images)
        for model in (HalfSpace(), Normalized(0.4914, 0.2023))
    ]
    for plain, normalized in zip(*certificates, strict=True):
        assert plain.radius == pytest.approx(normalized.radius, abs=0.005)


def test_three_lines_for_anybody() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(32, 4)), torch.rand(3, *SHAPE)
    smoothed = SmoothedClassifier(model, sigma=0.25, n=1_000)
    certificates = smoothed.certify(images)
    assert len(certificates) == len(smoothed.predict(images)) == 3


def test_predict_agrees_with_the_side() -> None:
    images = at_distances([-0.4, -0.1, 0.0, 0.1, 0.5])
    assert SmoothedClassifier(HalfSpace(), 0.25).predict(images) == [0, 0, ABSTAIN, 1, 1]


def test_labels_save_the_draws_of_misclassified_images() -> None:
    images = at_distances([0.3, 0.3])
    right, wrong = SmoothedClassifier(HalfSpace(), 0.25, n=1_000).certify(images, torch.tensor([1, 0]))
    assert (right.status, right.n) == ("certified", 1_000)
    assert (wrong.status, wrong.predict, wrong.n, wrong.radius) == ("misclassified", 1, 0, None)


def test_certificates_depend_on_the_image_not_on_its_company() -> None:
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    smoothed = SmoothedClassifier(HalfSpace(), 0.25, n=1_000)
    together = smoothed.certify(images)
    assert smoothed.certify(images.flip(0)) == together[::-1]
    assert [smoothed.certify(image[None])[0] for image in images] == together
    assert smoothed.certify(images[:0]) == []


def test_other_shapes_after_each_other() -> None:
    smoothed = SmoothedClassifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 0.25, n=100)
    for size in (4, 6, 4):
        assert smoothed.certify(torch.rand(1, 3, size, size))[0].n == 100


IMAGE = torch.full(SHAPE, 0.5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGE[None] * 255, r"image 0 has values from 127\.5 to 127\.5: give pixels in \[0,1\]"),
        (IMAGE[None] - 0.6, r"from -0\.1 to -0\.1"),
        (torch.stack([IMAGE, IMAGE * math.nan]), "image 1 has values from nan to nan"),
        (torch.stack([IMAGE, IMAGE * math.inf]), "image 1 has values from inf to inf"),
        (
            (IMAGE[None] * 255).byte(),
            r"image 0 is torch\.uint8 \[2, 4, 4\]: give float images \[B, C, H, W\]",
        ),
        (IMAGE, r"image 0 is torch\.float32 \[4, 4\]"),
        (torch.zeros(1, 3, 4, 4), r"does not accept images of shape \[3, 4, 4\]"),
    ],
)
def test_images_that_do_not_fit(images: Tensor, message: str) -> None:
    smoothed = SmoothedClassifier(HalfSpace(), 0.25, n=100)
    for use in (smoothed.certify, smoothed.predict):
        with pytest.raises(UserError, match=message) as caught:
            use(images)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": 0.25, "alpha": 0.0}, "alpha is 0"),
        ({"sigma": 0.25, "alpha": 1.5}, r"alpha is 1\.5"),
        (
            {"sigma": 0.25, "n": 9},
            "n=9 is too small for alpha=0.001, every image would abstain: give at least 10",
        ),
        ({"sigma": 0.25, "n0": 0}, "n0 is 0"),
        ({"sigma": 0.25, "n": 10**14}, "give at most 10,000,000 draws"),
        ({"sigma": 0.25, "n0": 10**14}, "give at most 10,000,000 draws"),
        ({"sigma": 0.25, "radii": [-0.1]}, "radii are"),
    ],
)
def test_settings_that_cannot_certify(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SmoothedClassifier(HalfSpace(), **arguments)


def test_ten_draws_are_enough_to_certify() -> None:
    (certificate,) = SmoothedClassifier(HalfSpace(), 0.05, n=10).certify(at_distances([1.0]).clamp(0, 1))
    assert certificate.status == "certified"
    assert certificate.p_lower == pytest.approx(0.001**0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(precision: str, compiled: bool) -> None:
    """Another generator, so other votes; the same certificates in law, and votes that no batch size changes."""
    images = at_distances([-0.4, -0.1, 0.1, 0.25, 0.5])
    for batch_size in (None, 512):
        smoothed = SmoothedClassifier(
            HalfSpace(), 0.25, device="cuda", precision=precision, compile=compiled, batch_size=batch_size
        )
        certificates = smoothed.certify(images)
        assert [certificate.predict for certificate in certificates] == [0, 0, 1, 1, 1]
        for certificate, distance in zip(certificates, [0.4, 0.1, 0.1, 0.25, 0.5], strict=True):
            assert (
                distance - 0.03 < certificate.radius < distance + (1e-6 if precision == "float32" else 0.01)
            )
        if batch_size is None:
            votes = [certificate.n_a for certificate in certificates]
        elif precision == "float32":
            assert votes == [certificate.n_a for certificate in certificates]


def test_values_of_another_kind() -> None:
    with pytest.raises(UserError, match="precision is 'float16': choose one of float32"):
        SmoothedClassifier(HalfSpace(), 0.25, precision="float16")
    with pytest.raises(UserError, match="there is no device 'foo'"):
        SmoothedClassifier(HalfSpace(), 0.25, device="foo")
    with pytest.raises(UserError, match="image 0 is a ndarray: give a torch tensor"):
        SmoothedClassifier(HalfSpace(), 0.25).certify(np.zeros((1, 3, 4, 4)), None)
