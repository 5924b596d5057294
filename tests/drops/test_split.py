"""The side of an image follows from what it shows."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from raw_drops import pixels
from sklearn.datasets import load_sample_images

from crt.drops.split import content_key, in_validation


@pytest.fixture(scope="module")
def photos():
    """400 overlapping sections of two photographs, uint8 [96, 96, 3]."""
    rng = np.random.default_rng(0)
    found = []
    for picture in load_sample_images().images:
        for _ in range(200):
            side = int(rng.integers(96, 320))
            top, left = (int(rng.integers(0, length - side)) for length in picture.shape[:2])
            section = Image.fromarray(picture[top : top + side, left : left + side])
            found.append(np.asarray(section.resize((96, 96), Image.Resampling.BILINEAR)))
    return found


def as_jpeg(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return np.asarray(Image.open(stream))


def scaled(image):
    return np.asarray(Image.fromarray(image).resize((64, 64)).resize((96, 96)))


def brighter(image):
    return np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)


def less_contrast(image):
    return (image * 0.9).astype(np.uint8)


@pytest.mark.parametrize("copy", [as_jpeg, scaled, brighter, less_contrast])
def test_near_copies_fall_on_the_same_side(photos, copy):
    """Sides chosen independently of each other would agree for a tenth of the images that are set aside."""
    same = [content_key(image) == content_key(copy(image)) for image in photos]
    assert np.mean(same) > 0.9
    copies = [copy(image) for image in photos if in_validation(image, 0.1)]
    assert np.mean([in_validation(image, 0.1) for image in copies]) > 0.8


def test_different_pictures_are_told_apart_and_the_share_is_kept(photos):
    assert len({content_key(image) for image in photos}) > 250
    rng = np.random.default_rng(1)
    blobs = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        )
        for _ in range(2000)
    ]  # fmt: skip
    assert abs(np.mean([in_validation(blob[..., None], 0.1) for blob in blobs]) - 0.1) < 0.03


def test_tiny_images_are_told_apart_by_their_pixels():
    image = pixels(0, 15, 15, 1)
    other = image.copy()
    other[7, 7] ^= 1
    assert content_key(image) == content_key(image.copy())
    assert content_key(image) != content_key(other)
    assert len({content_key(pixels(seed, 8, 8, 1)) for seed in range(500)}) == 500
    aside = np.mean([in_validation(pixels(seed, 8, 8, 1), 0.1) for seed in range(4000)])
    assert abs(aside - 0.1) < 0.02


@given(
    st.integers(0, 2**32),
    st.sampled_from([8, 16, 17, 33]),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1),
)
def test_a_larger_share_keeps_what_a_smaller_one_chose(seed, size, share, part):  # fmt: skip
    image = pixels(seed, size, size, 3)
    assert not in_validation(image, share * part) or in_validation(image, share)
    assert not in_validation(image, 0.0)


def test_the_sides_are_the_same_everywhere():
    """Values that were written down once: another version or machine that chooses otherwise moves images."""
    y, x = np.mgrid[:40, :40]
    rings, waves = ((x - 9) ** 2 + 2 * (y - 25) ** 2) % 256, (x * x * y + 7 * x) // 9 % 256
    assert content_key(rings.astype(np.uint8)[..., None]).hex() == "5f56"
    assert content_key(waves.astype(np.uint8)[..., None]).hex() == "0031"
    assert [seed for seed in range(40) if in_validation(pixels(seed, 8, 8, 1), 0.1)] == [7, 11, 38]
    assert [seed for seed in range(40) if in_validation(pixels(seed, 32, 32, 3), 0.1)] == [24, 26, 36]
