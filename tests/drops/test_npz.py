import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_drops import CLASSES

from crt.drops.npz import open_images, write_npz
from crt.errors import UserError


class Boom:
    """Would leave a trace if it were ever unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@given(
    count=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([None, 1, 3]),
    compressed=st.booleans(),
)
def test_reads_what_numpy_wrote(tmp_path_factory, count, height, width, channels, compressed):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    shape = (count, height, width) if channels is None else (count, height, width, channels)
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    labels = rng.integers(-1, 5, count).astype(np.int16)
    (np.savez_compressed if compressed else np.savez)(path, images=images, labels=labels)
    opened = open_images(path, CLASSES * 2)
    assert opened.count == count
    assert opened.labels.dtype == np.int64
    assert np.array_equal(opened.labels, labels)
    assert np.array_equal(
        np.stack(list(opened.images())), images.reshape(count, height, width, channels or 1)
    )


def test_numpy_reads_what_we_wrote_and_the_bytes_repeat(tmp_path):
    images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for name in "ab":
        write_npz(tmp_path / f"{name}.npz", images=images, labels=np.array([1, 0]))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert np.array_equal(read["images"], images)
        assert np.array_equal(read["labels"], [1, 0])
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_no_labels_means_unlabeled(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 2, 2), np.uint8))
    assert open_images(tmp_path / "a.npz", CLASSES[:2]).labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("name", ["images", "labels"])
def test_pickled_objects_are_refused_and_never_loaded(tmp_path, name):
    arrays = {"images": np.zeros((1, 2, 2), np.uint8), "labels": np.array([0])}
    arrays[name] = np.array([Boom()], dtype=object)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=f"`{name}` holds pickled Python objects"):
        open_images(tmp_path / "a.npz", CLASSES[:2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.float32)}, "float32"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, r"\[2, 4, 4, 2\]"),
        ({"images": np.zeros((4, 4), np.uint8)}, r"\[4, 4\]"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "empty"),
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "no array `images`"),
        ({"images": np.zeros((2, 4, 4), np.uint8).T}, "Fortran"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0.0, 1.0])}, "float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0])}, r"integers \[2\]"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 3])}, "first 3 at index 1"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([-2, 0])}, "first -2 at index 0"),
        (
            {"images": np.zeros((1, 4, 4), np.uint8), "labels": np.array([2**64 - 1], np.uint64)},
            "first 18446744073709551615",
        ),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        open_images(tmp_path / "a.npz", CLASSES)
    assert "a.npz" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"PK\x03\x04 but no archive"])
def test_no_archive(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a.npz is no readable .npz archive"):
        open_images(tmp_path / "a.npz", CLASSES[:2])


def test_damaged_pixels_are_found(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, images=np.zeros((50, 8, 8), np.uint8))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        list(open_images(path, CLASSES[:2]).images())


def test_header_that_promises_more_than_there_is(tmp_path):
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue() + bytes(640))
    with pytest.raises(UserError, match="end early"):
        open_images(tmp_path / "a.npz", CLASSES[:2])


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.zeros((2000, 160, 160), np.uint8))  # 51 MB
    tracemalloc.start()
    count = sum(1 for _ in open_images(path, CLASSES[:2]).images())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 25 << 20


def test_labels_of_numbered_classes_that_are_not_in_numeric_order(tmp_path):
    """Label 2 is the class that stands third, but who wrote it means the class 2."""
    classes = sorted(map(str, range(12)))
    write_npz(tmp_path / "a.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.array([0, -1, 2]))
    with pytest.raises(UserError, match=r"label 2 is .* named '10', .* deliver class folders"):
        open_images(tmp_path / "a.npz", classes)
    for fine in (sorted(classes, key=int), [*classes[:2], "2", *classes[3:-1], "x"]):
        assert open_images(tmp_path / "a.npz", fine).labels.tolist() == [0, -1, 2]
    write_npz(tmp_path / "b.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 1]))
    assert open_images(tmp_path / "b.npz", classes).labels.tolist() == [
        0,
        1,
    ]  # in their places in both orders
