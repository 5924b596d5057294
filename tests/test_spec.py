import doctest
import pickle

import numpy as np
import pytest
import torch

from crt import spec as module
from crt.errors import MissingFileError, UserError, WrongTypeError
from crt.spec import ImageSpec, check_fits, to_unit

CIFAR = ImageSpec.numbered(10, size=32, channels=3, resize="crop")


def test_the_examples_run():
    assert doctest.testmod(module).failed == 0


def test_a_spec_knows_its_shape_and_is_a_value():
    assert CIFAR.shape == (3, 32, 32)
    assert ImageSpec(["a", "b"], 8, 1) == ImageSpec(("a", "b"), 8, 1, "none")
    assert len({ImageSpec(["a", "b"], 8, 1), ImageSpec(("a", "b"), 8, 1)}) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((), 8, 1), "classes is empty: give the name of each class"),
        ((("a",), 0, 1), "size is 0 and channels is 1: give numbers of 1 or more"),
        ((("a",), 8, 0), "size is 8 and channels is 0: give numbers of 1 or more"),
        ((("a",), 8, 1, "stretch"), "resize is 'stretch': choose one of none, crop, squash"),
    ],
)
def test_impossible_specs(values, message):
    with pytest.raises(UserError, match=message):
        ImageSpec(*values)


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 5, 4, 3), (2, 5, 4, 1)])
def test_pixels_become_a_networks_input(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = np.moveaxis(pixels, -1, -3) / np.float32(255)
    for given in (pixels, torch.from_numpy(pixels)):
        images = to_unit(given)
        assert images.dtype == torch.float32
        np.testing.assert_array_equal(images.numpy(), expected)
    batch = pixels if len(shape) == 4 else pixels[None]
    assert to_unit(batch).is_contiguous(memory_format=torch.channels_last)


def test_stored_pixels_are_left_alone(tmp_path, recwarn):
    np.save(tmp_path / "images.npy", np.full((2, 4, 4, 3), 255, np.uint8))
    stored = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert (to_unit(stored[1]) == 1).all()
    mirrored = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)[:, ::-1]
    assert to_unit(mirrored)[0, 0, 1] == 0
    assert mirrored[0, 1, 0] == 0
    assert not recwarn.list  # torch warns of arrays that cannot be written


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 1)), torch.zeros(2, 2, 1), [[[0]]]])
def test_only_bytes_are_pixels(pixels):
    with pytest.raises(WrongTypeError, match="give uint8 pixels"):
        to_unit(pixels)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (ImageSpec.numbered(10, 32, 1), r"channels \(3 and 1\)"),
        (ImageSpec.numbered(10, 28, 3), r"image size \(32 and 28\)"),
        (ImageSpec.numbered(9, 32, 3), r"the number of classes \(10 and 9\)"),
        (ImageSpec(("0", "2", "1", *"3456789"), 32, 3), r"class 1 \('1' and '2'\)"),
    ],
)
def test_the_first_difference_is_named(other, difference):
    with pytest.raises(UserError, match=f"^the model and the data differ in {difference}: take another$"):
        check_fits("the model", CIFAR, "the data", other, "take another")


def test_ways_to_resize_are_compared_on_demand():
    squashed = ImageSpec.numbered(10, 32, 3, "squash")
    check_fits("a", CIFAR, "b", squashed, "take another")
    with pytest.raises(UserError, match=r"a and b differ in resize \(crop and squash\): take another"):
        check_fits("a", CIFAR, "b", squashed, "take another", resize=True)


def test_errors_are_the_built_in_kinds(tmp_path):
    assert issubclass(UserError, ValueError)
    assert issubclass(WrongTypeError, TypeError)
    missing = pickle.loads(pickle.dumps(MissingFileError("a is missing: get it", tmp_path)))
    assert (str(missing), missing.path) == ("a is missing: get it", tmp_path)
