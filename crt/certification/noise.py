"""The noise that an image meets: a function of (seed, image, draw) and of nothing else.

Draws come in blocks of BLOCK. Each block has a generator of its own, so a draw does not depend on batch size, order of the
images, number of processes or interruptions. (Devices have different generators: the CPU's noise is not the GPU's.)
"""

import hashlib

import torch
from torch import Tensor

from crt.certification.procedures import Stage

BLOCK = 64  # draws per generator; a multiple of 16, torch's unit of vectorised normal sampling


def image_key(image: Tensor, seed: int) -> int:
    """64 bits that identify an image under a run's seed, from its pixels rounded to 1/255.

    image: float [C, H, W] in [0,1]. Rounding makes the key of stored uint8 pixels and of their float form the same.
    """
    pixels = (image * 255).round().to(device="cpu", dtype=torch.uint8).contiguous()
    digest = hashlib.sha256(f"{seed} {tuple(image.shape)} ".encode() + pixels.numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little")


def block_seed(key: int, stage: Stage, block: int) -> int:
    """The seed of one block's generator.

    Torch's CPU generator keeps the low 32 bits of a seed. The odd factor permutes them, so no two blocks of one image
    share a generator up to 2^31 blocks per stage, which hashing alone would not promise.
    """
    return (key + (2 * block + stage) * 0x9E3779B97F4A7C15) % 2**64


def fill_block(noise: Tensor, generator: torch.Generator, key: int, stage: Stage, block: int) -> None:
    """Overwrite `noise` [BLOCK, ...] (contiguous, on the generator's device) with the block's standard normal draws."""
    seed = block_seed(key, stage, block)
    generator.manual_seed(seed - 2**64 if seed >= 2**63 else seed)
    noise.normal_(generator=generator)
