import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_drops import store_of

from crt.data.statistics import mean_and_std
from crt.data.store import Store
from crt.errors import UserError
from crt.training.batches import Batches
from crt.training.seeds import derive_seed

CPU = torch.device("cpu")


def store(
    tmp_path, count: int, size: int = 4, channels: int = 1, first: int = 0, labels=None, validation=()
) -> Store:
    """Image i is filled with the value first + i, but for its corner, which is 255."""
    images = np.empty((count, size, size, channels), np.uint8)
    images[:] = (first + np.arange(count))[:, None, None, None]
    images[:, 0, 0] = 255
    file = tmp_path / f"{first}-{count}-{size}.npy"
    np.save(file, images)
    return store_of(
        np.load(file, mmap_mode="r"),
        np.arange(first, first + count) if labels is None else labels,
        path=tmp_path / "drop",
        validation=validation,
    )


def batches(stores, batch_size, seed=0, crop_padding=0, flip=False, **more) -> Batches:
    return Batches(stores, batch_size, crop_padding=crop_padding, flip=flip, seed=seed, device=CPU, **more)


def labels_of(loader: Batches, epoch: int) -> list[int]:
    return [int(label) for batch in loader.epoch(epoch) for label in batch.labels]


@pytest.mark.parametrize("resident", [True, False])
def test_every_image_comes_once_with_its_label(tmp_path, resident):
    stores = [store(tmp_path, 7), store(tmp_path, 5, first=7)]
    seen = []
    for batch in batches(stores, 4, resident=resident).epoch(0):
        images, labels = batch.images, batch.labels
        assert images.shape == (4, 1, 4, 4)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.equal(images[:, 0, 3, 3], labels.float() / 255)
        assert torch.equal(images[:, 0, 0, 0], torch.ones(4))
        seen += labels.tolist()
    assert sorted(seen) == list(range(12))


def test_order_depends_on_seed_and_epoch_alone(tmp_path):
    drop = store(tmp_path, 40)
    loader = batches([drop], 8)
    first = labels_of(loader, 3)
    assert labels_of(loader, 4) != first
    assert labels_of(loader, 3) == first
    assert labels_of(batches([drop], 8), 3) == first
    assert labels_of(batches([drop], 8, seed=1), 3) != first


def test_a_last_partial_batch_is_left_out_and_differs_between_epochs(tmp_path):
    loader = batches([store(tmp_path, 11)], 4)
    assert loader.steps == 2
    left_out = [set(range(11)) - set(labels_of(loader, epoch)) for epoch in range(5)]
    assert all(len(images) == 3 for images in left_out)
    assert len(set(map(frozenset, left_out))) > 1


def test_fewer_images_than_a_batch_are_one_batch(tmp_path):
    loader = batches([store(tmp_path, 3)], 8)
    assert loader.steps == 1
    assert sorted(labels_of(loader, 0)) == [0, 1, 2]


def test_one_image_is_too_few(tmp_path):
    with pytest.raises(UserError, match="1 training images: at least 2"):
        batches([store(tmp_path, 1)], 8)


def test_only_labeled_images_on_request(tmp_path):
    drop = store(tmp_path, 6, labels=[0, -1, 2, -1, 4, 5])
    assert sorted(labels_of(batches([drop], 2), 0)) == [-1, -1, 0, 2, 4, 5]
    assert sorted(labels_of(batches([drop], 2, labeled_only=True), 0)) == [0, 2, 4, 5]
    with pytest.raises(UserError, match="0 labeled training images"):
        batches([store(tmp_path, 3, labels=[-1] * 3)], 2, labeled_only=True)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(2, 7),
    channels=st.sampled_from([1, 3]),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    epoch=st.integers(0, 100),
    resident=st.booleans(),
)
def test_each_image_is_a_crop_of_the_padded_one_perhaps_mirrored(
    tmp_path_factory, size, channels, padding, flip, epoch, resident
):
    rng = np.random.default_rng(size)
    images = rng.integers(1, 256, (6, size, size, channels), dtype=np.uint8)
    drop = store_of(images, np.arange(6))
    loader = batches([drop], 3, crop_padding=padding, flip=flip, resident=resident)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for batch in loader.epoch(epoch):
        for image, label in zip(batch.images, batch.labels, strict=True):
            pixels = (image.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
            views = [
                padded[label, y : y + size, x : x + size]
                for y in range(2 * padding + 1)
                for x in range(2 * padding + 1)
            ]
            if flip:
                views += [view[:, ::-1] for view in views]
            assert any(np.array_equal(pixels, view) for view in views)


def test_crops_and_flips_are_uniform(tmp_path):
    drop = store(tmp_path, 100, size=3)  # the corner shows where an image went
    corners: dict[tuple[int, int] | None, int] = {}
    loader = batches([drop], 100, crop_padding=1, flip=True)
    for epoch in range(60):
        for batch in loader.epoch(epoch):
            for image in batch.images:
                where = (image[0] == 1).nonzero()
                key = tuple(where[0].tolist()) if len(where) else None
                corners[key] = corners.get(key, 0) + 1
    # Unflipped, the corner goes to rows and columns 1, 0 or out of the image; flipped, to columns 1, 2 or
    # out.
    expected = {
        None: 5 / 9,
        (0, 0): 1 / 18,
        (1, 0): 1 / 18,
        (0, 1): 2 / 18,
        (1, 1): 2 / 18,
        (0, 2): 1 / 18,
        (1, 2): 1 / 18,
    }
    assert set(corners) == set(expected)
    for key, share in expected.items():
        assert corners[key] / 6000 == pytest.approx(share, abs=5 * (share * (1 - share) / 6000) ** 0.5)


@pytest.mark.parametrize("resident", [True, False])
def test_validation_images_are_left_out(tmp_path, resident):
    stores = [
        store(tmp_path, 6, labels=[0, -1, 2, 3, -1, 5], validation=[0, 3]),
        store(tmp_path, 3, first=6, validation=[7 - 6]),
    ]
    loader = batches(stores, 2, resident=resident)
    assert loader.count == 6
    assert sorted(labels_of(loader, 0)) == [-1, -1, 2, 5, 6, 8]
    assert sorted(labels_of(batches(stores, 2, resident=resident, labeled_only=True), 0)) == [2, 5, 6, 8]
    with pytest.raises(UserError, match="holds 1 training images"):
        batches([store(tmp_path, 3, validation=[0, 2])], 2)


def test_memory_mapped_and_resident_images_give_the_same_batches(tmp_path):
    stores = [store(tmp_path, 20, channels=3), store(tmp_path, 30, channels=3, first=20)]
    one, other = (
        list(batches(stores, 8, crop_padding=2, flip=True, resident=r).epoch(5)) for r in (True, False)
    )
    for batch, same in zip(one, other, strict=True):
        assert torch.equal(batch.images, same.images)
        assert torch.equal(batch.labels, same.labels)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_that_is_left_early_leaves_no_thread(tmp_path):
    import threading

    before = threading.active_count()
    epoch = batches([store(tmp_path, 200)], 2, resident=False).epoch(0)
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


def test_an_error_of_the_reading_thread_reaches_the_loop(tmp_path):
    drop = store(tmp_path, 20)
    broken = replace(drop, images=drop.images[:10])  # fewer images than labels
    with pytest.raises(IndexError):
        list(batches([broken], 4, resident=False).epoch(0))


def test_memory_does_not_grow_with_a_sparse_file_larger_than_memory(tmp_path):
    """64 GiB of images in a file without blocks: they are not held, and batches come at once."""
    count, shape = 350_000, (256, 256, 3)
    images = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.uint8, shape=(count, *shape))
    images[7] = 9
    drop = store_of(images, np.arange(count))
    loader = batches([drop], 4)
    batch = next(loader.epoch(0))
    assert batch.images.shape == (4, 3, 256, 256)
    assert batch.labels.max() < count


def test_mean_and_std_are_exact_over_all_drops(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (n, 5, 5, 3), dtype=np.uint8) for n in (3, 10)]
    drops = [store_of(part) for part in parts]
    mean, std = mean_and_std(drops, chunk=4)
    pixels = np.concatenate(parts).reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-12)


def test_mean_and_std_are_of_the_training_images(tmp_path):
    drop = store(tmp_path, 8, validation=[0, 3, 7])
    used = [drop.images[[1, 2, 4, 5, 6]]]
    expected = mean_and_std([store_of(used[0])])
    assert mean_and_std([drop], chunk=3) == expected


def test_a_constant_channel_gets_std_1(tmp_path):
    drop = store_of(np.full((3, 2, 2, 1), 51, np.uint8))
    assert mean_and_std([drop]) == ([0.2], [1.0])


def test_seeds_differ_by_purpose_epoch_and_seed():
    seeds = {derive_seed(s, p, e) for s in range(4) for p in ("noise", "batches") for e in range(50)}
    assert len(seeds) == 4 * 2 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(2**63 - 1, "noise", 0) == derive_seed(2**63 - 1, "noise", 0)


LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from crt.training.batches import Batches
from crt.data.store import Store
from crt.spec import ImageSpec
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images = np.load(sys.argv[1], mmap_mode="r")
spec = ImageSpec(("0",), images.shape[1], 3)
store = Store(Path("large"), images, np.zeros(len(images), np.int64), spec, "f", np.zeros(len(images), bool))
loader = Batches([store], 64, crop_padding=0, crop_area=0.5, flip=True, seed=0, device=torch.device("cpu"))
for step, batch in enumerate(loader.epoch(0)):
    assert batch.images.shape == (64, 3, 224, 224)
    assert (batch.images == 0).all()
    if step == 4:
        break
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
def test_a_set_far_larger_than_memory_is_read_from_disk(tmp_path):
    """A sparse file of at least twice the machine's memory: nothing but batches and indices is held."""
    bytes_wanted = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = bytes_wanted // (224 * 224 * 3)
    file = tmp_path / "images.npy"
    try:
        np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, 224, 224, 3)).flush()
    except OSError as error:
        pytest.skip(
            f"this file system holds no file of {bytes_wanted / 2**30:.0f} GiB, not even a sparse one: "
            f"{error}"
        )
    assert file.stat().st_blocks * 512 < 2**20, "the file is not sparse"
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(file)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.8, "GiB"
