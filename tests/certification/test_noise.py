"""The noise: exactly the rounded Gaussian, and a function of (key, stage, draw).

Every implementation gives the same bits.
"""

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chisquare, norm

from crt.certification.noise import (
    UNDECIDED,
    NoisyBatch,
    Piece,
    RoundedGaussian,
    draw,
    noise_key,
    rounded_gaussian,
    words,
)
from crt.certification.procedures import Draws, Stage
from crt.errors import UserError

CPU = torch.device("cpu")
ALL = 2**64 - 1
ONES = (ALL,) * 4
PI_COUNTER = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
PI_KEY = (0x452821E638D01377, 0xBE5466CF34E90C6C)
# (counter, key, block) of Philox4x64-10, from the file kat_vectors of Random123 (Salmon et al. 2011).
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    (ONES, ONES[:2], (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)),
    (PI_COUNTER, PI_KEY, (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6)),
]  # fmt: skip


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Philox4x64-10 as it is published, with Python's whole numbers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ k, second & ALL, (first >> 64) ^ d ^ m, first & ALL
        k, m = (k + 0x9E3779B97F4A7C15) & ALL, (m + 0xBB67AE8584CAA73B) & ALL
    return [a, b, c, d]


@pytest.mark.parametrize(("counter", "key", "block"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], block: tuple[int, ...]) -> None:
    assert philox(counter, key) == list(block)
    before = sum(part << 64 * place for place, part in enumerate(counter)) - 1  # NumPy counts up first
    counter_before = np.array([(before >> 64 * place) & ALL for place in range(4)], np.uint64)
    raw = np.random.Philox(key=key[0] + (key[1] << 64), counter=counter_before).random_raw(4)
    assert raw.tolist() == list(block)


@pytest.mark.parametrize(("stream", "stage", "first"), [(0, 0, 0), (3, 1, 5), (1, 1, 2**40)])
def test_words_are_those_of_the_definition(stream: int, stage: int, first: int) -> None:
    key = 0x0123456789ABCDEF_FEDCBA9876543210
    found = words(key, stream, Stage(stage), first, 3)
    blocks = [philox((first + 1 + i, stream, stage, 0), (key & ALL, key >> 64)) for i in range(3)]
    assert found.tolist() == [
        (word >> 16 * i) & 0xFFFF for block in blocks for word in block for i in range(4)
    ]


def by_definition(law: RoundedGaussian, key: int, stage: Stage, number: int, pixel: int, numbers: int) -> int:
    """J of one pixel, from 64 bits and the thresholds alone."""
    place = -(-numbers // 16) * 16 * number + pixel
    u = 0
    for stream in range(4):
        block = philox((1 + place // 16, stream, stage, 0), (key & ALL, key >> 64))
        u = u << 16 | (block[place % 16 // 4] >> 16 * (place % 4)) & 0xFFFF
    return sum(int(t) <= u for t in law.thresholds) - law.reach


@pytest.mark.parametrize("sigma", [0.002, 0.12, 0.25, 1.0])
def test_draws_are_those_of_the_definition(sigma: float) -> None:
    law, key, numbers = rounded_gaussian(sigma), 12345 << 70, 37
    out = np.empty((40, numbers), np.int16)
    draw(law, key, Stage.ESTIMATION, 7, out)
    rng = np.random.default_rng(0)
    undecided = np.argwhere(law.table[first_words(key, 7, out.shape)] == UNDECIDED)
    assert len(undecided) > 3
    for row, pixel in [*undecided[:20], *np.column_stack([rng.integers(0, 40, 40), rng.integers(0, 37, 40)])]:
        expected = by_definition(law, key, Stage.ESTIMATION, 7 + int(row), int(pixel), numbers)
        assert out[row, pixel] == expected


def first_words(key: int, first: int, shape: tuple[int, int]) -> np.ndarray:
    draws, numbers = shape
    blocks = -(-numbers // 16)
    return words(key, 0, Stage.ESTIMATION, first * blocks, draws * blocks).reshape(draws, -1)[:, :numbers]


def test_bits_beyond_the_32nd_decide_where_they_must() -> None:
    """Thresholds that share their first 32, or 48, bits with the very numbers that are drawn."""
    law, key, numbers = rounded_gaussian(0.25), 99, 16
    bits = [
        int.from_bytes(b"".join(int(words(key, s, Stage.ESTIMATION, 0, 1)[e]).to_bytes(2) for s in range(4)))
        for e in range(numbers)
    ]
    for low in (16, 32):
        thresholds = np.sort(np.array([bit >> low << low | (1 << low - 1) for bit in bits], np.uint64))
        made_up = with_thresholds(law, thresholds)
        out = np.empty((1, numbers), np.int16)
        draw(made_up, key, Stage.ESTIMATION, 0, out)
        expected = [sum(int(t) <= bit for t in thresholds) - made_up.reach for bit in bits]
        assert out[0].tolist() == expected


def with_thresholds(law: RoundedGaussian, thresholds: np.ndarray) -> RoundedGaussian:
    first, cells, reach = (thresholds >> np.uint64(48)).astype(int), np.arange(2**16), len(thresholds) // 2
    below = np.searchsorted(first, cells) - reach
    table = np.where(np.searchsorted(first, cells, side="right") - reach == below, below, UNDECIDED)
    coarse = (thresholds >> np.uint64(32)).astype(np.uint32)
    return replace(
        law,
        reach=reach,
        thresholds=thresholds,
        coarse=coarse,
        table=table.astype(np.int16),
        below=below.astype(np.int16),
    )


# the law


@pytest.mark.parametrize("sigma", [0.002, 0.0314, 0.12, 0.25, 0.5, 1.0, 2.0])
def test_the_law_is_the_rounded_gaussian_up_to_the_stated_deviation(sigma: float) -> None:
    """P(J <= j) from the thresholds against the normal distribution with 50 digits.

    And the total variation from it.
    """
    law = rounded_gaussian(sigma)
    assert law.fineness == 1 or 32 <= 255 * law.fineness * sigma < 64
    assert law.step == np.float32(1 / (255 * law.fineness))
    with mpmath.workdps(50):
        steps = mpmath.mpf(sigma) * 255 * law.fineness
        drawn = [mpmath.mpf(0), *(mpmath.mpf(int(t)) / 2**64 for t in law.thresholds), mpmath.mpf(1)]
        meant = [mpmath.ncdf((j + mpmath.mpf(1) / 2) / steps) for j in range(-law.reach - 1, law.reach + 1)]
        differences = [
            abs((b - a) - (d - c)) for a, b, c, d in zip(drawn, drawn[1:], meant, meant[1:], strict=False)
        ]
        outside = meant[0] + 1 - meant[-1]
        variation = (mpmath.fsum(differences) + outside) / 2
    assert 0 < variation <= law.deviation < 1e-15
    assert law.charge(3072) < 1e-11


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_frequencies(sigma: float) -> None:
    """A million pixels, in 40 bins; mean and variance."""
    law = rounded_gaussian(sigma)
    out = np.empty((400, 2500), np.int16)
    draw(law, 2**127 + 1, Stage.SELECTION, 0, out)
    steps = sigma * 255 * law.fineness
    edges = np.round(norm.ppf(np.arange(1, 40) / 40) * steps).astype(int)
    counts = np.bincount(np.searchsorted(edges, out.ravel()), minlength=40)
    expected = np.diff(norm.cdf(np.array([-np.inf, *(edges + 0.5), np.inf]) / steps)) * out.size
    assert chisquare(counts, expected).pvalue > 1e-4
    assert abs(out.mean()) < 5 * steps / 1000
    assert out.var() == pytest.approx(steps**2 + 1 / 12, rel=0.01)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e-9, 0.0019, 10.1, 1e39, float("nan"), float("inf")])
def test_sigma_has_limits(sigma: float) -> None:
    with pytest.raises(UserError, match=r"sigma is .*: give a number from 0.002 \(half a gray level\) to 10"):
        rounded_gaussian(sigma)


def test_streams_are_uncorrelated() -> None:
    """Between neighboring draws, the two stages, and keys that differ in one bit."""
    law, streams = rounded_gaussian(0.25), []
    for key in (7, 7 ^ 1 << 64, 7 ^ 1 << 127):
        for stage in Stage:
            out = np.empty((4, 5_000), np.int16)
            draw(law, key, stage, 0, out)
            streams += list(out)
    matrix = np.corrcoef(np.array(streams))
    assert np.abs(matrix[~np.eye(len(matrix), dtype=bool)]).max() < 5 / np.sqrt(5_000)


# keys


def test_the_key_depends_on_pixels_shape_and_context_alone() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)
    key = noise_key(pixels, "seed 0x1")
    assert key == noise_key(np.asfortranarray(pixels), "seed 0x1")
    others = [
        noise_key(pixels, "seed 0x2"),
        noise_key(pixels, "seed 0x1 "),
        noise_key(pixels.reshape(4, 8, 3), "seed 0x1"),
        noise_key(pixels[::-1], "seed 0x1"),
        noise_key(pixels ^ np.uint8(1), "seed 0x1"),
    ]
    assert len({key, *others}) == 6
    assert max(key, *others).bit_length() > 120


def test_no_two_images_of_a_large_test_set_share_noise() -> None:
    """10,000 images of 32x32 with 100,000 draws: all keys differ, so no block of the generator comes twice.

    A block is a cipher of (number, stream, stage) under a key of 128 bits; within an image the numbers are
    counted.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10_000, 32, 32, 3), dtype=np.uint8)
    images[5_000:] = images[:5_000]
    images[5_000:, 0, 0, 0] ^= 1  # one gray level, in one pixel
    keys = {noise_key(image, "{}") for image in images}
    assert len(keys) == 10_000
    assert len({key >> 64 for key in keys}) == 10_000  # 64 bits of them differ already


# batches


def pieces(law: RoundedGaussian, numbers: int) -> list[Piece]:
    rng = np.random.default_rng(0)
    asked = [(Stage.ESTIMATION, 0, 1), (Stage.SELECTION, 63, 65), (Stage.ESTIMATION, 10**9, 10**9 + 1)]
    return [
        Piece(
            (rng.integers(0, 256, numbers) * law.fineness).astype(np.int16),
            int.from_bytes(rng.bytes(16)),
            Draws(*draws),
        )
        for draws in asked
    ]


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.25, 10.0])
def test_the_sum_is_exact(sigma: float) -> None:
    """A noisy image is (k m + J) * h in float32, of whole numbers: its low bits have nothing of the image."""
    law, shape = rounded_gaussian(sigma), (3, 5, 7)
    batch, asked = NoisyBatch(law, 8, shape, CPU), pieces(law, 105)
    batch.fill(asked)
    row = 0
    for levels, key, (stage, start, stop) in asked:
        out = np.empty((stop - start, 105), np.int16)
        draw(law, key, stage, start, out)
        whole = out.astype(np.int64) + levels
        assert np.abs(whole).max() < 2**15
        expected = whole.astype(np.float32) * np.float32(law.step)
        found = batch.images[row : row + stop - start].permute(0, 2, 3, 1).reshape(stop - start, -1)
        assert np.array_equal(found.numpy(), expected)
        row += stop - start
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_threads_change_nothing() -> None:
    law, before = rounded_gaussian(0.25), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            batch = NoisyBatch(law, 4, (1, 9, 5), CPU)
            batch.fill(pieces(law, 45))
            results.append(batch.images.clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernel's module, its kernel run by Triton's interpreter."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.find_spec("crt.certification.noise_cuda")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "noise_interpreted", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("sigma", "shape"), [(0.25, (3, 3, 5)), (0.1, (1, 4, 4))])
def test_the_kernel_has_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, sigma: float, shape: tuple[int, int, int]
) -> None:
    law, module = rounded_gaussian(sigma), interpreted(monkeypatch)
    monkeypatch.setattr(module, "BLOCKS", 4)  # the interpreter's time goes by lanes
    numbers = int(np.prod(shape))
    host, asked = NoisyBatch(law, 4, shape, CPU), pieces(law, numbers)
    host.fill(asked)
    found = torch.zeros(4, numbers)
    module.DeviceNoise(law, CPU).fill(found, asked)
    assert torch.equal(found, host.images.permute(0, 2, 3, 1).reshape(4, -1))


def test_the_kernel_decides_by_all_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    module, key = interpreted(monkeypatch), 99
    monkeypatch.setattr(module, "BLOCKS", 1)
    streams = [words(key, stream, Stage.ESTIMATION, 0, 1) for stream in range(4)]
    bits = [int.from_bytes(b"".join(int(s[e]).to_bytes(2) for s in streams)) for e in range(16)]
    thresholds = np.sort(np.array([bit ^ (bit & 1) for bit in bits] + [bit | 1 for bit in bits], np.uint64))
    law = with_thresholds(rounded_gaussian(0.25), thresholds)
    asked = [Piece(np.zeros(16, np.int16), key, Draws(Stage.ESTIMATION, 0, 1))]
    found, host = torch.zeros(1, 16), NoisyBatch(law, 1, (1, 4, 4), CPU)
    module.DeviceNoise(law, CPU).fill(found, asked)
    host.fill(asked)
    assert torch.equal(found, host.images.reshape(1, 16))
    expected = [sum(int(t) <= bit for t in thresholds) - law.reach for bit in bits]
    assert found[0].tolist() == pytest.approx([j * law.step for j in expected])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sigma", [0.002, 0.12, 0.25, 1.0])
def test_on_a_gpu_the_bits_are_those_of_the_cpu(sigma: float) -> None:
    law, shape = rounded_gaussian(sigma), (3, 32, 32)
    rng = np.random.default_rng(0)
    asked = [
        Piece(
            (rng.integers(0, 256, 3072) * law.fineness).astype(np.int16),
            int.from_bytes(rng.bytes(16)),
            Draws(Stage(number % 2), 1000 * number, 1000 * number + 100),
        )
        for number in range(10)
    ]
    host, device = (NoisyBatch(law, 1000, shape, place) for place in (CPU, torch.device("cuda")))
    host.fill(asked)
    device.fill(asked)
    assert torch.equal(host.images, device.images.cpu())
