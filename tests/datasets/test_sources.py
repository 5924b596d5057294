import gzip
import hashlib
import pickle
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from crt.datasets.sources import FASHION_MNIST_CLASSES, write_cifar10, write_digits, write_fashion_mnist
from crt.errors import UserError

# The committed sample: `crt get-data digits` must give these very bytes on every machine.
DIGITS = {
    "classes.txt": "7427877c40fb0361401248f9c96abe6117396bc6ab16811b5b1706274c02443e",
    "test/digits.npz": "0f00be30bd76bdda0395b9555012d9662eb58e39bec65e66cbcb5e6d71a954bd",
    "train/2025-01/digits.npz": "b6f5d2e671d5d7972b69b8383df2b1e47532b8d0c4a04fbfa312a603fb4ba6a3",
    "train/2025-02/digits.npz": "a08bdfa3638dc93c8d993a2d55ea636996841139dd478baabe002a74ddd46435",
    "train/2025-03/digits.npz": "2aef81d706f4c3eb6bb913b577ad6dd9da09aa9e264fd9bd1c348b7963e12fbf",
}


def read(path):
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def test_digits_are_the_same_bytes_everywhere(tmp_path):
    found = write_digits(tmp_path)
    assert (found.channels, found.image_size, found.drops) == (1, 8, ["2025-01", "2025-02", "2025-03"])
    files = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == DIGITS


def test_digits_are_scikit_learns_each_once_and_balanced(tmp_path):
    write_digits(tmp_path)
    digits = load_digits()
    expected = Counter(
        (label, image.tobytes())
        for image, label in zip(
            (digits.images * 255 / 16).round().astype(np.uint8), digits.target, strict=True
        )
    )
    found: Counter = Counter()
    sizes = {}
    for path in tmp_path.rglob("*.npz"):
        images, labels = read(path)
        found.update((label, image.tobytes()) for image, label in zip(images, labels, strict=True))
        sizes[path.parent.name] = np.bincount(labels, minlength=10)
    assert found == expected
    assert sizes.pop("test").tolist() == [36] * 10
    for counts in sizes.values():
        assert counts.sum() == 479
        assert (np.abs(counts - sum(sizes.values()) / 3) < 1).all()


def fashion_files(folder: Path, packed: bool, train=60, test=20) -> dict:
    rng = np.random.default_rng(0)
    arrays = {}
    for stem, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        arrays[stem] = (images, labels)
        contents = {
            f"{stem}-images-idx3-ubyte": struct.pack(">HBB3I", 0, 8, 3, count, 28, 28) + images.tobytes(),
            f"{stem}-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes(),
        }
        for name, content in contents.items():
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)
    return arrays


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist(tmp_path, packed):
    (tmp_path / "idx").mkdir()
    arrays = fashion_files(tmp_path / "idx", packed)
    found = write_fashion_mnist(tmp_path / "out", tmp_path / "idx")
    assert (found.channels, found.image_size, found.drops, found.left_out) == (1, 28, ["base"], [])
    assert (
        (tmp_path / "out" / "classes.txt").read_text().splitlines() == FASHION_MNIST_CLASSES == found.classes
    )
    for part, stem in (("train/base", "train"), ("test", "t10k")):
        images, labels = read(tmp_path / "out" / part / "fashion_mnist.npz")
        assert np.array_equal(images, arrays[stem][0])
        assert labels.tolist() == arrays[stem][1].tolist()


def test_training_images_of_the_test_set_are_left_out_and_named(tmp_path):
    (tmp_path / "idx").mkdir()
    arrays = fashion_files(tmp_path / "idx", packed=False)
    path = tmp_path / "idx" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[16 + 3 * 784 : 16 + 4 * 784] = arrays["t10k"][0][7].tobytes()
    path.write_bytes(bytes(content))
    found = write_fashion_mnist(tmp_path / "out", tmp_path / "idx")
    assert found.left_out == ["train/base#3"]
    images, labels = read(tmp_path / "out" / "train" / "base" / "fashion_mnist.npz")
    assert np.array_equal(images, np.delete(arrays["train"][0], 3, axis=0))
    assert labels.tolist() == np.delete(arrays["train"][1], 3).tolist()


@pytest.mark.parametrize("damage", ["missing", "short", "long", "magic", "gzip", "text"])
def test_damaged_idx_files(tmp_path, damage):
    fashion_files(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "gzip":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "text":
        path.write_text("not found")
    else:
        changed = {"short": content[:-1], "long": content + b"x", "magic": b"\0\0\x0d" + content[3:]}[damage]
        path.write_bytes(gzip.compress(changed))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte(\.gz)?.* is (missing|damaged)"):
        write_fashion_mnist(tmp_path / "out", tmp_path)


def test_other_peoples_idx_files_are_not_fashion_mnist(tmp_path):
    fashion_files(tmp_path, packed=False)
    count = 60
    labels = np.full(count, 11, np.uint8)
    content = struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes()
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UserError, match="not Fashion-MNIST's"):
        write_fashion_mnist(tmp_path / "out", tmp_path)


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.large
@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist(tmp_path):
    found = write_fashion_mnist(tmp_path, DEBIAN)
    assert found.left_out == []
    for part, count in (("train/base", 60_000), ("test", 10_000)):
        images, labels = read(tmp_path / part / "fashion_mnist.npz")
        assert images.shape == (count, 28, 28)
        assert np.bincount(labels).tolist() == [count // 10] * 10


BATCHES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def cifar_rows(name: str, count: int = 12) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(BATCHES.index(name))
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), [
        int(label) for label in rng.integers(0, 10, count)
    ]


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes that Python 2's cPickle wrote for CIFAR-10's batches (protocol 2, byte strings)."""

    def string(text: bytes) -> bytes:
        return (
            b"U" + bytes([len(text)]) + text
            if len(text) < 256
            else b"T" + struct.pack("<i", len(text)) + text
        )

    integers = b"".join(b"K" + bytes([label]) for label in labels)
    dtype = (
        b"cnumpy\ndtype\n"
        + string(b"u1")
        + b"K\x00K\x01\x87R"
        + b"(K\x03"
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"M" + struct.pack("<H", data.shape[0]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
        + b"(K\x01" + shape + dtype + b"\x89" + string(data.tobytes()) + b"tb"
    )  # fmt: skip
    return (
        b"\x80\x02}("
        + string(b"batch_label") + string(b"training batch 1 of 5")
        + string(b"labels") + b"](" + integers + b"e"
        + string(b"data") + array
        + string(b"filenames") + b"](" + string(b"a.png") + b"e"
        + b"u."
    )  # fmt: skip


@pytest.fixture
def published(monkeypatch):
    """Stands for the authors' files: their MD5s are those of the batches that `cifar_folder` writes."""
    md5s = [
        [name, hashlib.md5(python2_pickle(*cifar_rows(name)), usedforsecurity=False).hexdigest()]
        for name in BATCHES
    ]
    monkeypatch.setattr(CIFAR10, "train_list", md5s[:5])
    monkeypatch.setattr(CIFAR10, "test_list", md5s[5:])


def cifar_folder(folder: Path, kind: str) -> Path:
    folder.mkdir()
    for name in BATCHES:
        data, labels = cifar_rows(name)
        if kind == "binary":
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            (folder / name).write_bytes(python2_pickle(data, labels))
    (folder / "readme.html").write_text("x")
    return folder


def packed(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(folder, folder.name)
    return folder.with_suffix(".tar.gz")


@pytest.mark.parametrize("in_archive", [True, False])
@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar10(tmp_path, published, kind, in_archive):
    source = cifar_folder(tmp_path / "cifar-10-batches", kind)
    found = write_cifar10(tmp_path / "out", packed(source) if in_archive else source)
    assert (found.channels, found.image_size) == (3, 32)
    assert found.drops == ["batch1", "batch2", "batch3", "batch4", "batch5"]
    assert found.classes[3] == "cat"
    for name in BATCHES:
        part = "test" if name == "test_batch" else f"train/batch{name[-1]}"
        images, labels = read(tmp_path / "out" / part / "cifar10.npz")
        data, expected = cifar_rows(name)
        assert labels.tolist() == expected
        assert images.shape == (12, 32, 32, 3)
        # A row holds the red, then the green, then the blue plane, each row by row.
        assert images[5, 3, 7].tolist() == [data[5, plane * 1024 + 3 * 32 + 7] for plane in range(3)]


class Boom:
    """Creates a file when it is unpickled."""

    def __init__(self, where: Path):
        self.where = where

    def __reduce__(self):
        return open, (str(self.where), "w")


@pytest.mark.parametrize("in_archive", [True, False])
def test_a_poisoned_batch_is_refused_and_not_unpickled(tmp_path, published, in_archive):
    source = cifar_folder(tmp_path / "cifar", "python")
    evil = pickle.dumps(Boom(tmp_path / "it_ran"))
    (source / "data_batch_3").write_bytes(evil)
    with pytest.raises(
        UserError, match=r"data_batch_3 has MD5 \w{32} instead of the published \w{32}"
    ) as error:
        write_cifar10(tmp_path / "out", packed(source) if in_archive else source)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "it_ran").exists()
    pickle.loads(evil)  # the attack is a real one
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", pickle.dumps({b"labels": [1]})])
def test_other_bytes_than_the_published_ones(tmp_path, published, content):
    source = cifar_folder(tmp_path / "cifar", "python")
    (source / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="test_batch has MD5"):
        write_cifar10(tmp_path / "out", source)


def test_the_published_hashes_are_torchvisions(tmp_path):
    """Without the fixture, made-up batches are refused."""
    with pytest.raises(UserError, match="instead of the published c99cafc152244af753f735de768cd75f"):
        write_cifar10(tmp_path / "out", cifar_folder(tmp_path / "cifar", "python"))


def test_damaged_binary_batch(tmp_path):
    source = cifar_folder(tmp_path / "cifar", "binary")
    for content in (bytes(3072), b"", bytes([10]) + bytes(3072)):
        (source / "data_batch_3.bin").write_bytes(content)
        with pytest.raises(UserError, match="data_batch_3 is damaged"):
            write_cifar10(tmp_path / "out", source)


def test_no_cifar10(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be read"):
        write_cifar10(tmp_path / "out", tmp_path / "nowhere")
    (tmp_path / "a.tar.gz").write_text("not an archive")
    with pytest.raises(UserError, match=r"a.tar.gz cannot be read"):
        write_cifar10(tmp_path / "out", tmp_path / "a.tar.gz")
    source = cifar_folder(tmp_path / "cifar", "binary")
    (source / "test_batch.bin").unlink()
    with pytest.raises(UserError, match="has no test_batch"):
        write_cifar10(tmp_path / "out", source)
