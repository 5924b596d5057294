"""The noise that an image meets: whole numbers, exactly the rounded Gaussian, the same bits on every device.

An image is whole gray levels k of 1/255. Noise is whole multiples J of a step h = 1/(255 m),
J = round(sigma z / h) with z standard normal. The network sees float32(k m + J) * float32(h): the sum of two
whole numbers is exact, so the noisy image is a function of k m + J and nothing of the image leaks past the
noise through rounding. Since x lies on the grid, rounding x + sigma z to it gives x + J h: Cohen's theorem
holds for the network behind that rounding, over the real numbers.

J is drawn from 64 random bits u as the number of thresholds 2^64 Phi((j + 1/2) h / sigma) that are not above
u. Nearly always the first 16 bits decide, by a table.

The bits are Philox4x64-10's (Salmon et al. 2011): block i of stream t of a stage is the cipher of the counter
(1 + i, t, stage, 0) under the image's 128-bit key. Pixel e of draw d takes the 16-bit word 16 b d + e of the
streams 0 to 3, most significant first, where b blocks of 16 words hold an image. So a draw depends on key,
stage and number alone.
"""

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crt.certification.procedures import Draws, Stage
from crt.errors import UserError

KIND = "integer"  # how certificates name this noise; that of earlier versions had no name
BIT_SOURCE = "Philox4x64-10"
LEVELS = 255
LEAST_SIGMA, MOST_SIGMA = 0.002, 10.0  # half a gray level, and what 16 bits hold
COARSEST = 32  # steps that sigma has at least
REACH = 9.3  # standard deviations that noise reaches: further out lies 1.4e-20
WORDS = 16  # 16-bit words in a block of the generator
UNDECIDED = -(2**15)  # of a table's entry: a threshold lies within these 16 bits


@dataclass(frozen=True)
class RoundedGaussian:
    """The law of J for one sigma, ready to be drawn from.

    Attributes:
        sigma: Standard deviation of the noise before rounding, [0,1] pixel units.
        fineness: m, steps in a gray level.
        reach: J lies in -reach..reach.
        thresholds: uint64 [2 reach], ascending: J = number of thresholds <= u, minus reach.
        coarse: uint32 [2 reach], their first 32 bits.
        table: int16 [65536], J by the first 16 bits of u, or UNDECIDED.
        below: int16 [65536], thresholds in the cells before a cell, minus reach.
        deviation: Bound of the total variation between the law drawn from and the rounded Gaussian, per
            pixel.
    """

    sigma: float
    fineness: int
    reach: int
    thresholds: NDArray[np.uint64]
    coarse: NDArray[np.uint32]
    table: NDArray[np.int16]
    below: NDArray[np.int16]
    deviation: float

    @property
    def step(self) -> float:
        """h, in [0,1] pixel units: a float32 number."""
        return float(np.float32(1 / (LEVELS * self.fineness)))

    def charge(self, pixels: int) -> float:
        """The total variation of a draw of so many numbers: what a class probability may differ by."""
        return pixels * self.deviation * (1 + 1e-9)


@functools.lru_cache(maxsize=8)
def rounded_gaussian(sigma: float) -> RoundedGaussian:
    """The law for noise of standard deviation sigma, in [0,1] pixel units.

    Raises:
        UserError: sigma is too small for gray levels to hide in the noise, or too large for 16-bit noise.
    """
    if not LEAST_SIGMA <= sigma <= MOST_SIGMA:
        raise UserError(
            f"sigma is {sigma}: give a number from {LEAST_SIGMA} (half a gray level) to {MOST_SIGMA:g}, in "
            "[0,1] pixel units"
        )
    import mpmath

    fineness = 1
    while LEVELS * fineness * sigma < COARSEST:
        fineness *= 2
    with mpmath.workdps(50):
        steps = mpmath.mpf(sigma) * LEVELS * fineness  # the standard deviation
        reach = int(mpmath.ceil(steps * REACH))
        upper = [mpmath.ncdf((j + mpmath.mpf("0.5")) / steps) for j in range(reach)]
        cumulative = [1 - p for p in reversed(upper)] + upper
        thresholds = np.array([int(mpmath.floor(p * 2**64)) for p in cumulative], dtype=np.uint64)
        tails = 2 * (1 - mpmath.ncdf((reach + mpmath.mpf("0.5")) / steps))
        deviation = float(tails + len(thresholds) * mpmath.mpf(2) ** -64)
    cells, first = np.arange(2**16), (thresholds >> np.uint64(48)).astype(np.int64)
    below = np.searchsorted(first, cells) - reach
    decided = np.searchsorted(first, cells, side="right") - reach == below
    table = np.where(decided, below, UNDECIDED).astype(np.int16)
    coarse = (thresholds >> np.uint64(32)).astype(np.uint32)
    return RoundedGaussian(
        sigma, fineness, reach, thresholds, coarse, table, below.astype(np.int16), deviation
    )


def noise_key(pixels: NDArray[np.uint8], context: str) -> int:
    """The 128 bits that key an image's noise: a hash of its pixels [H, W, C] and a context (a seed, say)."""
    digest = hashlib.sha256(f"crt {KIND} noise, {len(context)}: {context}, {pixels.shape}: ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:16], "little")


def words(key: int, stream: int, stage: Stage, first: int, blocks: int) -> NDArray[np.uint16]:
    """The 16-bit words of the blocks first..first+blocks-1 of a stream: uint16 [16 blocks]."""
    # NumPy counts up before each block, so its first block is that of first + 1.
    counter = np.array([first, stream, stage, 0], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    raw = generator.integers(2**64 - 1, size=4 * blocks, dtype=np.uint64, endpoint=True)  # all its bits
    return raw.astype("<u8", copy=False).view("<u2")


def draw(law: RoundedGaussian, key: int, stage: Stage, first: int, out: NDArray[np.int16]) -> None:
    """Write an image's noise J, draws first, first + 1, ..., into the rows of `out` [draws, numbers].

    The rows are contiguous.
    """
    draws, numbers = out.shape
    blocks = -(-numbers // WORDS)

    def stream(number: int) -> NDArray[np.uint16]:
        found = words(key, number, stage, first * blocks, draws * blocks)
        return found.reshape(draws, blocks * WORDS)[:, :numbers]

    top = stream(0)
    np.take(law.table, top, out=out, mode="wrap")
    flat = out.reshape(-1)
    undecided = np.flatnonzero(flat == UNDECIDED)
    if not len(undecided):
        return
    where = np.divmod(undecided, numbers)
    bits = top[where].astype(np.uint32) << np.uint32(16) | stream(1)[where]
    low = np.searchsorted(law.coarse, bits)
    high = np.searchsorted(law.coarse, bits, side="right")
    flat[undecided] = low - law.reach
    # About one in a million: a threshold lies within these 32 bits too.
    for place in np.flatnonzero(low != high):
        block, word = divmod((first + where[0][place]) * blocks * WORDS + where[1][place], WORDS)
        third, fourth = (int(words(key, number, stage, int(block), 1)[word]) for number in (2, 3))
        u = np.uint64(int(bits[place]) << 32 | third << 16 | fourth)
        flat[undecided[place]] = np.searchsorted(law.thresholds, u, side="right") - law.reach


class Piece(NamedTuple):
    """Rows of a batch: consecutive draws of one image."""

    levels: NDArray[np.int16]  # [H * W * C], steps: the image's k m
    key: int
    draws: Draws


class NoisyBatch:
    """A batch of noisy images that is filled again and again, on any device with the same bits.

    Attributes:
        images: float32 [B, C, H, W] on the device, channels-last in memory, never clipped.
    """

    def __init__(self, law: RoundedGaussian, size: int, shape: Sequence[int], device: torch.device) -> None:
        C, H, W = shape
        self._law = law
        self._flat = torch.zeros(size, H * W * C, device=device)
        self.images: Tensor = self._flat.view(size, H, W, C).permute(0, 3, 1, 2)
        self._kernel = None
        if device.type == "cuda" and find_spec("triton"):
            from crt.certification.noise_cuda import DeviceNoise

            self._kernel = DeviceNoise(law, device)
        else:
            self._host = self._flat if device.type == "cpu" else torch.zeros(self._flat.shape)
            self._noise = np.empty(self._flat.shape, np.int16)
            threads = torch.get_num_threads()
            self._threads = ThreadPoolExecutor(threads) if threads > 1 else None
            self._share = -(-size // threads)

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Write the noisy copies of the pieces into the first rows, one piece after the other."""
        if self._kernel:
            self._kernel.fill(self._flat, pieces)
            return
        tasks, row = list[tuple[Piece, int]](), 0
        for levels, key, (stage, start, stop) in pieces:
            for first in range(start, stop, self._share):
                last = min(first + self._share, stop)
                tasks.append((Piece(levels, key, Draws(stage, first, last)), row))
                row += last - first
        list(map(self._fill, tasks) if self._threads is None else self._threads.map(self._fill, tasks))
        if self._host is not self._flat:
            self._flat.copy_(self._host)

    def _fill(self, task: tuple[Piece, int]) -> None:
        (levels, key, (stage, start, stop)), row = task
        rows = slice(row, row + stop - start)
        noise = self._noise[rows]
        draw(self._law, key, stage, start, noise)
        noise += levels
        torch.mul(torch.from_numpy(noise), self._law.step, out=self._host[rows])
