"""The noise of `crt.certification.noise`, bit by bit, by one kernel on a CUDA device.

The tests run the kernel by Triton's interpreter on the CPU (TRITON_INTERPRET=1) and compare it with NumPy's
generator.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from crt.certification.noise import UNDECIDED, WORDS

if TYPE_CHECKING:
    from crt.certification.noise import Piece, RoundedGaussian

BLOCKS = 64  # of the generator, and so 1,024 numbers of an image, that one program makes


@triton.jit
def _stream(block, number, stage, key_low, key_high):
    """Philox4x64-10 of the counters (block + 1, number, stage, 0): four uint64 for each block."""
    zero = block * 0
    c0, c1, c2, c3 = block + 1, zero + number, zero + stage, zero
    k0, k1 = zero + key_low, zero + key_high
    for _ in tl.static_range(10):
        first, second = c0, c2
        c0 = tl.umulhi(second, zero + 0xCA5A826395121157) ^ c1 ^ k0
        c2 = tl.umulhi(first, zero + 0xD2E7470EE14C6C93) ^ c3 ^ k1
        c1 = second * 0xCA5A826395121157
        c3 = first * 0xD2E7470EE14C6C93
        k0 += 0x9E3779B97F4A7C15
        k1 += 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit
def _word(w0, w1, w2, w3, place: tl.constexpr):
    """The 16-bit word at `place` of the blocks, as int64."""
    if place < 4:
        w = w0
    elif place < 8:
        w = w1
    elif place < 12:
        w = w2
    else:
        w = w3
    return ((w >> (16 * (place % 4))) & 0xFFFF).to(tl.int64)


@triton.jit
def _fill(
    out, levels, keys, stages, piece_of_row, draw_of_row, table, below, thresholds, step, numbers,
    blocks_per_draw, HALVINGS: tl.constexpr, COUNT: tl.constexpr, REACH: tl.constexpr, UNSURE: tl.constexpr,
    LANES: tl.constexpr
):  # fmt: skip
    """Row program_id(0), blocks program_id(1) * LANES and on: out [B, numbers] = (levels + noise) * step."""
    row = tl.program_id(0).to(tl.int64)
    piece = tl.load(piece_of_row + row)
    key_low = tl.load(keys + 2 * piece).to(tl.uint64, bitcast=True)
    key_high = tl.load(keys + 2 * piece + 1).to(tl.uint64, bitcast=True)
    stage = tl.load(stages + piece).to(tl.uint64)
    own = tl.program_id(1) * LANES + tl.arange(0, LANES)
    block = (tl.load(draw_of_row + row) * blocks_per_draw + own).to(tl.uint64)
    a0, a1, a2, a3 = _stream(block, 0, stage, key_low, key_high)
    b0, b1, b2, b3 = _stream(block, 1, stage, key_low, key_high)
    c0, c1, c2, c3 = _stream(block, 2, stage, key_low, key_high)
    d0, d1, d2, d3 = _stream(block, 3, stage, key_low, key_high)
    for place in tl.static_range(16):
        number = own * 16 + place
        inside = number < numbers
        top = _word(a0, a1, a2, a3, place)
        noise = tl.load(table + top).to(tl.int32)
        unsure = (noise == UNSURE) & inside
        bits = (
            (top << 48)
            | (_word(b0, b1, b2, b3, place) << 32)
            | (_word(c0, c1, c2, c3, place) << 16)
            | _word(d0, d1, d2, d3, place)
        ) ^ (-(2**63))  # signed numbers in the same order
        # How many thresholds are not above the bits: between those before the cell and those through it.
        low = tl.load(below + top, mask=unsure, other=0).to(tl.int32) + REACH
        high = tl.load(below + tl.minimum(top + 1, 65535), mask=unsure, other=0).to(tl.int32) + REACH
        high = tl.where(top == 65535, COUNT, high)
        for _ in range(HALVINGS):
            middle = (low + high) // 2
            above = tl.load(thresholds + middle, mask=unsure & (low < high), other=0) > bits
            open_ = low < high
            high = tl.where(open_ & above, middle, high)
            low = tl.where(open_ & (above == 0), middle + 1, low)
        noise = tl.where(unsure, low - REACH, noise)
        level = tl.load(levels + piece.to(tl.int64) * numbers + number, mask=inside, other=0).to(tl.int32)
        tl.store(out + row * numbers + number, (level + noise).to(tl.float32) * step, mask=inside)


class DeviceNoise:
    """Fills batches on one device."""

    def __init__(self, law: "RoundedGaussian", device: torch.device) -> None:
        through = np.append(law.below[1:], np.int16(law.reach)).astype(np.int64)
        self._halvings = int(np.ceil(np.log2((through - law.below).max() + 1))) + 1
        self._law, self._device = law, device
        signed = law.thresholds ^ np.uint64(2**63)
        tables: Any = law.table, law.below, signed.view(np.int64)
        self._table, self._below, self._thresholds = (torch.from_numpy(t).to(device) for t in tables)

    def fill(self, out: Tensor, pieces: "Sequence[Piece]") -> None:
        """Write the pieces' noisy copies, one after the other, into the first rows of `out` [B, numbers]."""
        sizes = [piece.draws.stop - piece.draws.start for piece in pieces]
        draws = np.concatenate([np.arange(piece.draws.start, piece.draws.stop) for piece in pieces])
        keys = [[piece.key % 2**64, piece.key >> 64] for piece in pieces]
        numbers = out.shape[1]
        blocks = -(-numbers // WORDS)
        grid = (sum(sizes), -(-blocks // BLOCKS))
        _fill[grid](
            out,
            self._send(np.stack([piece.levels for piece in pieces])),
            self._send(np.array(keys, np.uint64).view(np.int64)),
            self._send(np.array([piece.draws.stage for piece in pieces], np.int64)),
            self._send(np.repeat(np.arange(len(pieces), dtype=np.int32), sizes)),
            self._send(draws),
            self._table,
            self._below,
            self._thresholds,
            self._law.step,
            numbers,
            blocks,
            HALVINGS=self._halvings,
            COUNT=len(self._law.thresholds),
            REACH=self._law.reach,
            UNSURE=UNDECIDED,
            LANES=BLOCKS,
        )

    def _send(self, array: np.ndarray) -> Tensor:
        """The array on the device, without waiting for it."""
        host = torch.from_numpy(array)
        return host.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else host
