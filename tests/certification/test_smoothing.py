"""The smoothed classifier end to end, on classifiers whose certified radius has a closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

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
    """Images near given distances from the hyperplane, of whole gray levels; `distance` says which."""
    w = HalfSpace().w
    images = torch.stack([0.5 + w / w.norm() * distance for distance in distances])
    return (images.clamp(0, 1) * 255).round() / 255


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_no_radius_exceeds_the_true_one_beyond_alpha(adaptive: bool) -> None:
    """Many seeds at each distance, all just below a reported radius, where adaptive mode could err."""
    alpha, runs = 0.05, 100
    images, model = at_distances([0.02, 0.1, 0.2, 0.3, 0.5]), HalfSpace()
    truth = model.distance(images).tolist()
    wrong, radii = [0] * len(truth), [r + 1e-4 for r in truth] if adaptive else None
    for seed in range(runs):
        smoothed = SmoothedClassifier(
            model, 0.25, n=400, alpha=alpha, radii=radii, seed=seed, device="cpu", batch_size=256
        )
        for place, certificate in enumerate(smoothed.certify(images)):
            claimed = certificate.radius if certificate.predict == 1 else 0.0
            wrong[place] += certificate.predict == 0 or claimed > truth[place] + 1e-6
    assert max(wrong) <= binom.ppf(1 - 1e-5, runs, alpha)


def test_exact_mode_converges_to_the_true_radius() -> None:
    images = at_distances([-0.4, -0.1, 0.1, 0.25, 0.5])
    gaps = []
    for n in (1_000, 10_000, 100_000):
        certificates = SmoothedClassifier(HalfSpace(), 0.25, n=n, seed=1, batch_size=500).certify(images)
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
    images = at_distances([-0.4, 0.03, 0.1, 0.3, 0.8])
    smoothed = SmoothedClassifier(
        HalfSpace(), 0.25, n=100_000, radii=[0.25, 0.5, 0.75], seed=1, batch_size=512
    )
    certificates = smoothed.certify(images)
    assert [certificate.radius for certificate in certificates] == [0.25, 0.0, 0.0, 0.25, 0.75]
    assert sum(certificate.n for certificate in certificates) < 5 * 20_000


def test_the_radius_scales_with_sigma() -> None:
    """Far from the boundary all votes agree, and the radius is sigma times a number."""
    narrow, wide = (
        SmoothedClassifier(HalfSpace(), sigma, n=1_000).certify(at_distances([5.0]))[0]
        for sigma in (0.1, 0.2)
    )
    assert wide.radius == pytest.approx(2 * narrow.radius, rel=1e-12)
    assert narrow.n_a == wide.n_a == 1_000


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_radius_does_not_depend_on_the_scale_of_the_logits(scale: float) -> None:
    images = at_distances([0.1, 0.3])
    plain, scaled = (
        SmoothedClassifier(HalfSpace(s), 0.25, n=2_000, seed=1).certify(images) for s in (1.0, scale)
    )
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
        SmoothedClassifier(model, 0.25, n=2_000, seed=1).certify(images)
        for model in (HalfSpace(), Normalized(0.4914, 0.2023))
    ]
    for plain, normalized in zip(*certificates, strict=True):
        assert plain.radius == pytest.approx(normalized.radius, abs=0.005)


def test_three_lines_for_anybody() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(32, 4)), torch.randint(0, 256, (3, *SHAPE)) / 255
    smoothed = SmoothedClassifier(model, sigma=0.25, n=1_000)
    certificates = smoothed.certify(images)
    assert len(certificates) == len(smoothed.predict(images)) == 3


def test_predict_agrees_with_the_side() -> None:
    images = at_distances([-0.4, -0.1, 0.1, 0.5])
    assert SmoothedClassifier(HalfSpace(), 0.25).predict(images) == [0, 0, 1, 1]
    undecided = torch.full((1, *SHAPE), 0.0)
    assert SmoothedClassifier(HalfSpace(scale=0.0), 0.25).predict(undecided) == [
        0
    ]  # equal logits: the lowest class


def test_labels_save_the_draws_of_misclassified_images() -> None:
    images = at_distances([0.3, 0.3])
    right, wrong = SmoothedClassifier(HalfSpace(), 0.25, n=1_000).certify(images, torch.tensor([1, 0]))
    assert (right.status, right.n) == ("certified", 1_000)
    assert (wrong.status, wrong.predict, wrong.n, wrong.radius) == ("misclassified", 1, 0, None)


def test_certificates_depend_on_the_image_not_on_its_company() -> None:
    images = torch.randint(0, 256, (8, *SHAPE), generator=torch.Generator().manual_seed(1)) / 255
    smoothed = SmoothedClassifier(HalfSpace(), 0.25, n=1_000, seed=7)
    together = smoothed.certify(images)
    assert smoothed.certify(images.flip(0)) == together[::-1]
    assert [smoothed.certify(image[None])[0] for image in images] == together
    assert smoothed.certify(images[:0]) == []


def test_other_shapes_after_each_other() -> None:
    smoothed = SmoothedClassifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 0.25, n=100)
    for size in (4, 6, 4):
        assert smoothed.certify(torch.zeros(1, 3, size, size))[0].n == 100


IMAGE = torch.full(SHAPE, 0.2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGE[None] * 255, r"image 0 has values from 51 to 51: give pixels in \[0,1\]"),
        (IMAGE[None] - 0.6, r"from -0\.4.* to -0\.4"),
        (IMAGE[None] + 0.80001, r"from 1\.00001.* to 1\.00001"),
        (torch.stack([IMAGE, IMAGE * math.nan]), "image 1 has values from nan to nan"),
        (torch.stack([IMAGE, IMAGE * math.inf]), "image 1 has values from inf to inf"),
        (torch.stack([IMAGE, IMAGE + 0.0005]), r"image 1 has pixels between two gray levels, up to 0\.1"),
        (IMAGE[None].half(), "between two gray levels"),
        (
            (IMAGE[None] * 255).byte(),
            r"image 0 is torch\.uint8 \[2, 4, 4\]: give float images \[B, C, H, W\]",
        ),
        (IMAGE, r"images are torch\.float32 \[2, 4, 4\]: give .* a single one as image\[None\]"),
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
        ({"sigma": 1e-9}, "sigma is 1e-09: give a number from 0.002"),
        ({"sigma": 1e39}, "sigma is 1e"),
        ({"sigma": "much"}, "sigma is 'much': give a number"),
        ({"sigma": 0.25, "n": 1e3}, r"n is 1000\.0: give a whole number"),
        ({"sigma": 0.25, "n0": 1.5}, r"n0 is 1\.5: give a whole number"),
        ({"sigma": 0.25, "batch_size": -3}, "batch_size is -3: give a whole number from 1"),
        ({"sigma": 0.25, "batch_size": 0}, "batch_size is 0"),
        ({"sigma": 0.25, "radii": 0.25}, r"radii are 0\.25: give a list"),
        (
            {"sigma": 0.25, "radii": [0.25], "alpha": 1e-13, "n": 100},
            "alpha is 1e-13: with radii give at least 1e-12",
        ),
        ({"sigma": 0.25, "seed": "abc"}, "seed is 'abc': give a whole number"),
        ({"sigma": 0.25, "seed": -1}, "seed is -1: give a whole number from 0 to"),
        ({"sigma": 0.25, "seed": 2**128}, "give a whole number from 0 to"),
        ({"sigma": 0.25, "alpha": 0.0}, "alpha is 0"),
        ({"sigma": 0.25, "alpha": 1.5}, r"alpha is 1\.5"),
        (
            {"sigma": 0.25, "n": 9},
            "n=9 is too small for alpha=0.001, every image would abstain: give at least 10",
        ),
        ({"sigma": 0.25, "n0": 0}, "n0 is 0"),
        ({"sigma": 0.25, "n": 10**14}, "give a whole number from 1 to 10,000,000"),
        ({"sigma": 0.25, "n0": 10**14}, "give a whole number from 1 to 10,000,000"),
        ({"sigma": 0.25, "radii": [-0.1]}, "radii are"),
    ],
)
def test_settings_that_cannot_certify(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SmoothedClassifier(HalfSpace(), **arguments)


def test_radii_near_the_ceiling_are_named() -> None:
    with pytest.warns(UserWarning, match=r"radius 0\.875 takes at least 34,624 of n=100,000 draws"):
        smoothed = SmoothedClassifier(HalfSpace(), 0.25, n=100_000, radii=[0.25, 0.875])
    assert len(smoothed.warnings) == 1
    assert SmoothedClassifier(HalfSpace(), 0.25, n=100_000, radii=[0.25, 0.75]).warnings == []
    assert SmoothedClassifier(HalfSpace(), 0.25, n=100_000).warnings == []


def test_ten_draws_are_enough_to_certify() -> None:
    (certificate,) = SmoothedClassifier(HalfSpace(), 0.05, n=10).certify(at_distances([1.0]))
    assert certificate.status == "certified"
    assert certificate.p_lower == pytest.approx(0.001**0.1, rel=1e-6)


@pytest.mark.parametrize("n", [0, -5, 2 * 10**10, 1e3])
def test_draws_that_cannot_predict(n: float) -> None:
    with pytest.raises(UserError, match=r"n is .*: give a whole number"):
        SmoothedClassifier(HalfSpace(), 0.25).predict(IMAGE[None], n=n)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.long), r"labels are torch\.int64 \[2, 1\] for 2 images"),
        (torch.zeros(3, dtype=torch.long), r"\[3\] for 2 images: give a tensor of whole numbers \[2\]"),
        (torch.zeros(2), r"labels are torch\.float32"),
        ([0, 0], "labels are a list: give a tensor"),
    ],
)
def test_labels_that_do_not_fit(labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SmoothedClassifier(HalfSpace(), 0.25, n=100).certify(torch.stack([IMAGE, IMAGE]), labels)


# who knows the noise


def test_each_call_has_secret_noise_that_can_be_used_again() -> None:
    images = at_distances([0.1] * 20)
    images[:, 0, 0, 0] = torch.arange(20) / 255
    smoothed = SmoothedClassifier(HalfSpace(), 0.25, n=1_000)
    assert smoothed.last_seed is None
    first = smoothed.certify(images)
    seed = smoothed.last_seed
    second = smoothed.certify(images)
    assert [c.n_a for c in first] != [c.n_a for c in second]
    assert seed is not None
    assert len({seed, smoothed.last_seed}) == 2
    assert min(seed, smoothed.last_seed or 0).bit_length() > 90
    assert SmoothedClassifier(HalfSpace(), 0.25, n=1_000, seed=seed).certify(images) == first
    smoothed.predict(images[:1])
    assert smoothed.last_seed not in (None, seed)


def test_equal_images_of_a_call_meet_equal_noise() -> None:
    images = at_distances([0.1, 0.1])
    first, second = SmoothedClassifier(HalfSpace(), 0.25, n=1_000).certify(images)
    assert first == second


class FirstPixel(nn.Module):
    """Looks at one pixel, and is wrong for it by a hair: no certificate for class 1 can be true."""

    def forward(self, x: Tensor) -> Tensor:
        side = x[:, 0, 0, 0] - 128.6 / 255  # P(class 1) = 0.4993 at level 128, sigma 0.25
        return torch.stack([-side, side], 1)


def test_a_search_for_a_lucky_image_finds_nothing_that_a_service_confirms() -> None:
    """The attacker tries images whose ignored pixels differ, with own noise; the service has other noise.

    With noise that is known beforehand, the images found would be certified again, every time.
    """
    alpha, tries, seed = 0.05, 400, 1
    images = torch.zeros(tries, 1, 4, 4)
    images[:, 0, 0, 0] = 128 / 255
    images.view(tries, -1)[:, 1:] = (torch.arange(tries)[:, None] >> torch.arange(15) & 1) / 255
    attacker = SmoothedClassifier(FirstPixel(), 0.25, n=400, alpha=alpha, seed=seed, device="cpu")
    lucky = torch.tensor([c.predict == 1 for c in attacker.certify(images)])
    assert 3 < lucky.sum() < 3 * alpha * tries  # alpha is what it is, over many images
    again = attacker.certify(images[lucky])
    assert all(c.predict == 1 for c in again)
    service = SmoothedClassifier(FirstPixel(), 0.25, n=400, alpha=alpha, device="cpu")
    confirmed = sum(c.predict == 1 for c in service.certify(images[lucky]))
    assert confirmed <= binom.ppf(1 - 1e-5, int(lucky.sum()), alpha)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(precision: str, compiled: bool) -> None:
    """The noise of a CPU, so the same votes up to rounding, which no batch size changes."""
    images = at_distances([-0.4, -0.1, 0.1, 0.25, 0.5])
    for batch_size in (None, 512):
        smoothed = SmoothedClassifier(
            HalfSpace(),
            0.25,
            n=100_000,
            seed=1,
            device="cuda",
            precision=precision,
            compile=compiled,
            batch_size=batch_size,
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
    with pytest.raises(TypeError, match="images are a ndarray: give a torch tensor"):
        SmoothedClassifier(HalfSpace(), 0.25).certify(np.zeros((1, 3, 4, 4)), None)
    with pytest.raises(TypeError, match="image 0 is a ndarray: give a torch tensor"):
        list(SmoothedClassifier(HalfSpace(), 0.25).certify_each([(np.zeros((3, 4, 4)), None)]))
