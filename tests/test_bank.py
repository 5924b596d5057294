"""The bank holds what the teacher would say of the very images that training shows."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_drops import spec_of, store_of
from scipy import stats
from torch import nn

from crt.bank import BATCH, Replayed, normal, write_bank
from crt.config import Augment
from crt.data.store import Store
from crt.errors import UserError
from crt.methods.base import Teacher
from crt.methods.crt import crt
from crt.training.batches import Batches

CPU = torch.device("cpu")
SIGMA, SEED, VIEWS = 0.25, 3, 3
HOW = Augment(crop_padding=1, crop_area=1.0, flip=True)
ODD = torch.Generator()  # a replayed teacher draws nothing


def store(name: str, count: int, validation=()) -> Store:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 6, 6, 1), dtype=np.uint8)
    fingerprint = hashlib.sha256(name.encode()).hexdigest()
    return store_of(
        images,
        np.arange(count) % 4,
        spec=spec_of(images, 4),
        path=Path(name),
        fingerprint=fingerprint,
        validation=validation,
    )


def teacher(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()


def bank(folder: Path, of: Store, by: nn.Module | None = None) -> Path:
    write_bank(
        by or teacher(), "t", of, folder, folder.with_name(folder.name + "-work"),
        views=VIEWS, sigma=SIGMA, seed=SEED, how=HOW, device=CPU,
    )  # fmt: skip
    return folder


def replayed(stores: list[Store], folders: list[Path], network: nn.Module | None = None) -> Replayed:
    return Replayed(network or teacher(), stores, folders, seed=SEED, how=HOW)


def batches(stores: list[Store], taught: Replayed, size: int = 32, **more) -> Batches:
    return Batches(stores, size, **HOW.model_dump(), seed=SEED, device=CPU, moves=taught.moves, **more)


@pytest.fixture
def stores() -> list[Store]:
    """Two drops: more than the teacher takes at once; fewer."""
    return [store("a", BATCH + 9), store("b", 20)]


@pytest.fixture
def folders(stores, tmp_path) -> list[Path]:
    return [bank(tmp_path / one.path.name, one) for one in stores]


def test_logits_are_the_teachers_of_the_noised_images(stores, folders):
    taught = replayed(stores, folders)
    shown = batches(stores, taught)
    assert (shown.steps, taught.views) == (285 // 32, VIEWS)
    seen, rows = [], []
    for epoch in range(4):
        noises, numbers = [], []
        for batch in shown.epoch(epoch):
            noisy, target = taught.noised(batch, SIGMA, ODD)
            assert noisy.shape == batch.images.shape == (32, 1, 6, 6)
            torch.testing.assert_close(target, teacher()(noisy.contiguous()), rtol=1e-5, atol=1e-6)
            noises.append((noisy - batch.images) / SIGMA)
            numbers.append(batch.rows)
        seen.append(torch.cat(noises).flatten(1))
        rows.append(torch.cat(numbers))
    assert abs(seen[0].mean()) < 0.1
    assert abs(seen[0].std() - 1) < 0.1
    assert len(torch.unique(seen[0], dim=0)) == len(seen[0]), "each image has noise of its own"
    assert not torch.equal(rows[0], rows[3]), "another order"
    first = dict(zip(rows[0].tolist(), seen[0], strict=True))
    again = [
        torch.allclose(noise, first[row], atol=1e-5)
        for row, noise in zip(rows[3].tolist(), seen[3], strict=True)
        if row in first
    ]
    assert len(again) > 200
    assert all(again), "after all views the first comes back"
    other = [
        torch.allclose(noise, first[row], atol=1e-5)
        for row, noise in zip(rows[1].tolist(), seen[1], strict=True)
        if row in first
    ]
    assert not any(other)


def test_an_epoch_shows_each_image_once(stores, folders):
    (batch,) = batches(stores, replayed(stores, folders), 285).epoch(1)
    assert sorted(batch.rows.tolist()) == list(range(285))
    labels = np.concatenate([one.labels for one in stores])
    assert batch.labels.tolist() == labels[batch.rows].tolist()


def test_validation_images_have_no_logits_and_are_not_shown(tmp_path):
    """Of the third drop all images are set aside."""
    aside = [[0, 5, 64], [], list(range(7))]
    stores = [
        store(name, count, validation)
        for name, count, validation in zip("abc", (73, 20, 7), aside, strict=True)
    ]
    folders = [bank(tmp_path / one.path.name, one) for one in stores]
    for one, folder in zip(stores, folders, strict=True):
        missing = np.isnan(np.load(folder / "view-0000.npy"))
        np.testing.assert_array_equal(missing.all(1), one.validation)
        np.testing.assert_array_equal(missing.any(1), one.validation)
    taught = replayed(stores, folders)
    taught.check(SIGMA, CPU)
    shown = batches(stores, taught, 10)
    assert shown.count == 73 + 20 - 3
    rows = []
    for batch in shown.epoch(0):
        noisy, target = taught.noised(batch, SIGMA, ODD)
        torch.testing.assert_close(teacher()(noisy.contiguous()), target, rtol=1e-5, atol=1e-6)
        rows += batch.rows.tolist()
    assert sorted(rows) == sorted(set(range(93)) - {0, 5, 64})


def test_two_processes_share_the_batches_of_one(stores, folders):
    taught = replayed(stores, folders)
    whole = batches(stores, taught).epoch(1)
    halves = [batches(stores, taught, rank=r, world_size=2).epoch(1) for r in range(2)]
    for one, *parts in zip(whole, *halves, strict=True):
        for value, *shares in zip(
            (one.images, *taught.noised(one, SIGMA, ODD)),
            *((part.images, *taught.noised(part, SIGMA, ODD)) for part in parts),
            strict=True,
        ):
            assert torch.equal(torch.cat(shares), value)


def test_crt_does_not_run_the_teacher(stores, folders):
    class Absent(nn.Module):
        def forward(self, images):
            raise AssertionError("the teacher was run")

    taught = replayed(stores, folders, Absent())
    batch = next(batches(stores, taught).epoch(0))
    loss = crt(teacher=taught, alpha=1.0)(teacher(1), batch, SIGMA, ODD)
    noisy, target = taught.noised(batch, SIGMA, ODD)
    by_hand = (teacher(1)(noisy.contiguous()) - target).norm(dim=1).mean()
    torch.testing.assert_close(loss.total, by_hand)


def test_a_replayed_teacher_is_one(stores, folders):
    """It can stand wherever a live one can, and leads to the same loss but for the draws."""
    batch = next(batches(stores, replayed(stores, folders)).epoch(0))
    live, recorded = (
        crt(teacher=taught, alpha=1.0)(teacher(1), batch, SIGMA, torch.Generator().manual_seed(0)).total
        for taught in (Teacher(teacher()), replayed(stores, folders))
    )
    assert recorded.item() == pytest.approx(live.item(), rel=0.1)


def test_noise_is_standard_normal_and_of_its_own_for_each_image():
    noise = normal(5, torch.arange(2000), 101)
    assert noise.shape == (2000, 101)
    assert noise.dtype == torch.float32
    values = noise.double().flatten().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(values)) < 5 * (24 / len(values)) ** 0.5
    for one, other in (
        (noise[:, :-1], noise[:, 1:]),  # neighbors in an image
        (noise[:, :50], noise[:, 51:101]),  # the two that are made of the same bits
        (noise[:-1], noise[1:]),  # neighbors among images
        (noise, normal(6, torch.arange(2000), 101)),  # another view
        (noise**2, normal(6, torch.arange(2000), 101) ** 2),
    ):
        r = np.corrcoef(one.double().flatten(), other.double().flatten())[0, 1]
        assert abs(r) < 5 / one.numel() ** 0.5
    assert torch.equal(normal(5, torch.tensor([7, 3]), 101), noise[[7, 3]]), (
        "of the image alone, in any order"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
def test_noise_is_the_same_on_a_gpu():
    rows = torch.arange(100)
    torch.testing.assert_close(normal(5, rows.cuda(), 300).cpu(), normal(5, rows, 300), rtol=1e-5, atol=1e-5)


def test_a_killed_bank_goes_on_with_the_views_that_are_missing(stores, tmp_path):
    whole = bank(tmp_path / "whole", stores[0])
    half, calls = tmp_path / "half", 0

    class Dies(nn.Module):
        def forward(self, images):
            nonlocal calls
            calls += 1
            if calls == 3:  # two calls a view
                raise KeyboardInterrupt
            return teacher()(images)

    with pytest.raises(KeyboardInterrupt):
        bank(half, stores[0], Dies())
    assert not half.exists()
    assert [file.name for file in (tmp_path / "half-work").iterdir()] == ["view-0000.npy"]
    bank(half, stores[0])
    assert sorted(file.name for file in half.iterdir()) == [
        "bank.json",
        *(f"view-000{v}.npy" for v in range(3)),
    ]
    for file in whole.iterdir():
        assert file.read_bytes() == (half / file.name).read_bytes()
    assert not (tmp_path / "half-work").exists()


def test_a_drops_views_do_not_depend_on_the_other_drops(stores, folders, tmp_path):
    alone = bank(tmp_path / "alone", stores[1])
    assert (alone / "view-0002.npy").read_bytes() == (folders[1] / "view-0002.npy").read_bytes()
    first = np.load(folders[0] / "view-0000.npy")
    assert len(np.unique(first, axis=0)) == len(first)


def test_another_teachers_bank_is_refused(stores, folders):
    replayed(stores, folders).check(SIGMA, CPU)
    for wrong in (teacher(1), nn.Sequential(teacher(), nn.Softmax(1))):
        with pytest.raises(UserError, match=r"a does not hold this teacher's logits.*record it again"):
            replayed(stores, folders, wrong).check(SIGMA, CPU)
    with pytest.raises(UserError, match="does not hold this teacher's logits"):
        replayed(stores, folders).check(2 * SIGMA, CPU)


def test_a_bank_of_another_seed_or_augmentation_is_refused(stores, folders):
    other = Augment(crop_padding=2, crop_area=1.0, flip=True)
    for taught in (
        Replayed(teacher(), stores, folders, seed=SEED + 1, how=HOW),
        Replayed(teacher(), stores, folders, seed=SEED, how=other),
    ):
        with pytest.raises(UserError, match="does not hold this teacher's logits"):
            taught.check(SIGMA, CPU)


@pytest.mark.parametrize("damage", ["NaN", "shuffled"])
@pytest.mark.parametrize("view", [0, 2])
def test_every_view_is_compared(stores, folders, view, damage):
    file = folders[1] / f"view-{view:04d}.npy"
    logits = np.load(file)
    np.save(file, logits * np.nan if damage == "NaN" else np.roll(logits, 1, axis=0))
    with pytest.raises(UserError, match=f"{folders[1].name} does not hold this teacher's logits"):
        replayed(stores, folders).check(SIGMA, CPU)


@pytest.mark.parametrize("damage", ["missing", "no view", "half", "no bank", "other drop"])
def test_a_damaged_bank_ends_in_one_sentence(damage, stores, folders):
    view = folders[1] / "view-0001.npy"
    if damage == "missing":
        shutil.rmtree(folders[1])
    elif damage == "no view":
        view.unlink()
    elif damage == "half":
        view.write_bytes(view.read_bytes()[:100])
    elif damage == "no bank":
        (folders[1] / "bank.json").write_text(json.dumps({"views": 0}))
    else:
        folders[1] = folders[0]
    with pytest.raises(UserError, match=r"record it again, or train without a bank") as caught:
        replayed(stores, folders)
    assert "\n" not in str(caught.value)
