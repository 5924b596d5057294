"""The noise: standard normal, a function of (seed, image, stage, draw), never the same twice within an image."""

import numpy as np
import torch
from scipy.stats import kstest

from crt.certification.noise import BLOCK, block_seed, fill_block, image_key
from crt.certification.procedures import Stage


def block(key: int, stage: Stage = Stage.ESTIMATION, number: int = 0) -> torch.Tensor:
    noise = torch.empty(BLOCK, 4, 4, 3)
    fill_block(noise, torch.Generator(), key, stage, number)
    return noise


def test_standard_normal() -> None:
    noise = torch.stack([block(7, number=number) for number in range(50)]).flatten().double().numpy()
    assert kstest(noise, "norm").pvalue > 1e-3
    assert abs(noise.std() - 1) < 0.01


def test_blocks_are_repeatable_whatever_the_generator_did_before() -> None:
    generator, noise = torch.Generator(), torch.empty(BLOCK, 4, 4, 3)
    fill_block(noise, generator, 7, Stage.ESTIMATION, 3)
    noise.normal_(generator=generator)
    fill_block(noise, generator, 7, Stage.ESTIMATION, 3)
    assert torch.equal(noise, block(7, Stage.ESTIMATION, 3))


def test_streams_are_uncorrelated() -> None:
    """Between neighbouring blocks, the two stages, and images: the seeds differ in few bits only."""
    streams = [block(key, stage, number) for key in (7, 8) for stage in Stage for number in range(4)]
    matrix = np.corrcoef(torch.stack(streams).flatten(1).numpy())
    off_diagonal = np.abs(matrix[~np.eye(len(matrix), dtype=bool)])
    assert off_diagonal.max() < 5 / np.sqrt(streams[0].numel())


def test_no_two_blocks_of_an_image_share_a_generator() -> None:
    """Torch's CPU generator takes 32 bits: 1,600 hashed seeds would collide in one image of 3,300."""
    for key in (0, 2**32 - 1, 0xDEADBEEF12345678):
        seeds = [block_seed(key, stage, number) for stage in Stage for number in range(20_000)]
        assert len({seed % 2**32 for seed in seeds}) == len(seeds)


def test_key_depends_on_pixels_and_seed_alone() -> None:
    pixels = torch.randint(
        0, 256, (5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    image = pixels[0].permute(2, 0, 1).float() / 255
    key = image_key(image, 0)
    assert 0 <= key < 2**64
    assert key == image_key(image.contiguous(), 0) == image_key(image.double(), 0)
    others = [image_key(other.permute(2, 0, 1).float() / 255, 0) for other in pixels[1:]]
    assert (
        len({key, *others, image_key(image, 1), image_key(image.flip(2), 0), image_key(image[:, :, :4], 0)})
        == 8
    )
    assert image_key(torch.zeros(1, 4, 2), 0) != image_key(torch.zeros(1, 2, 4), 0)
