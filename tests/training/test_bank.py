"""The bank holds what the teacher would say of the very images that training shows."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_drops import spec_of, store_of
from torch import nn

from crt.bank import CHUNK, BankBatches, write_bank
from crt.data.store import Store
from crt.errors import UserError
from crt.methods.base import Batch
from crt.methods.crt import crt
from crt.project import Project

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIGMA = 0.25
AUGMENT = {"crop_padding": 1, "flip": True, "seed": 3, "device": CPU}
CONFIG = Project(ROOT).composed(
    ["seed=3", "bank.views=3", "data.augment.flip=true", "data.augment.crop_padding=1", f"sigma={SIGMA}"],
)[1]


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
    write_bank(by or teacher(), "t", of, CONFIG, CPU, folder, folder.with_name(folder.name + "-work"))
    return folder


@pytest.fixture
def stores() -> list[Store]:
    """Two drops: some chunks and a part of one; less than a chunk."""
    return [store("a", 2 * CHUNK + 9), store("b", 20)]


@pytest.fixture
def folders(stores, tmp_path) -> list[Path]:
    return [bank(tmp_path / one.path.name, one) for one in stores]


def test_targets_are_the_teachers_logits_of_the_noised_images(stores, folders):
    batches = BankBatches(stores, folders, 32, **AUGMENT)
    assert (batches.steps, batches.views) == (157 // 32, 3)
    seen = []
    for epoch in range(4):
        noises = []
        for images, labels, noise, target in batches.epoch(epoch):
            assert images.shape == noise.shape == (32, 1, 6, 6)
            assert labels.shape == (32,)
            noisy = images + SIGMA * noise
            torch.testing.assert_close(target, teacher()(noisy.contiguous()), rtol=1e-5, atol=1e-6)
            noises.append(noise)
        seen.append(torch.cat(noises).flatten(1))
    assert abs(seen[0].mean()) < 0.1
    assert abs(seen[0].std() - 1) < 0.1
    assert len(torch.unique(seen[0], dim=0)) == len(seen[0]), "each image has noise of its own"
    # Epoch 3 shows the first epoch's view again (but for other images that make no full batch), in another order.
    kept = {tuple(row) for row in seen[0].tolist()}
    again = [tuple(row) in kept for row in seen[3].tolist()]
    assert sum(again) >= len(again) - 32
    assert not torch.equal(seen[0], seen[3])
    assert not any(tuple(row) in kept for row in seen[1].tolist())


def test_an_epoch_shows_each_image_once(stores, folders):
    batches = BankBatches(stores, folders, 157, crop_padding=0, flip=False, seed=4, device=CPU)
    ((images, labels, _, _),) = batches.epoch(1)
    whole = np.concatenate([one.images for one in stores]).reshape(157, -1)
    shown = (images * 255).round().flatten(1).numpy()
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, whole.astype(float).tolist()))
    by_pixels = {tuple(row): i for i, row in enumerate(whole.astype(float).tolist())}
    numbers = [by_pixels[tuple(row)] for row in shown.tolist()]
    assert labels.tolist() == np.concatenate([one.labels for one in stores])[numbers].tolist()


def test_validation_images_have_no_logits_and_are_not_shown(tmp_path):
    """Of the third drop all images are set aside."""
    aside = [[0, 5, CHUNK], [], list(range(7))]
    stores = [
        store(name, count, validation)
        for name, count, validation in zip("abc", (CHUNK + 9, 20, 7), aside, strict=True)
    ]
    folders = [bank(tmp_path / one.path.name, one) for one in stores]
    for one, folder in zip(stores, folders, strict=True):
        missing = np.isnan(np.load(folder / "view-0000.npy"))
        np.testing.assert_array_equal(missing.all(1), one.validation)
        np.testing.assert_array_equal(missing.any(1), one.validation)
    batches = BankBatches(stores, folders, 10, **AUGMENT)
    batches.check(teacher(), SIGMA)
    assert batches.count == CHUNK + 9 + 20 - 3
    shown = list(batches.epoch(0))
    assert sum(len(images) for images, *_ in shown) == 90
    for images, _, noise, targets in shown:
        torch.testing.assert_close(teacher()(images + SIGMA * noise), targets)


def test_two_processes_share_the_batches_of_one(stores, folders):
    whole = BankBatches(stores, folders, 32, **AUGMENT).epoch(1)
    halves = [BankBatches(stores, folders, 32, rank=r, world_size=2, **AUGMENT).epoch(1) for r in range(2)]
    for one, *parts in zip(whole, *halves, strict=True):
        for value, *shares in zip(one, *parts, strict=True):
            assert torch.equal(torch.cat(shares), value)


def test_crt_does_not_run_the_teacher(stores, folders):
    class Absent(nn.Module):
        def forward(self, images):
            raise AssertionError("the teacher was run")

    images, labels, noise, target = next(iter(BankBatches(stores, folders, 32, **AUGMENT).epoch(0)))
    loss = crt(teacher=Absent(), alpha=1.0)(
        teacher(1), Batch(images, labels, 0.0, noise, target), SIGMA, None
    )
    by_hand = (teacher(1)((images + SIGMA * noise).contiguous()) - target).norm(dim=1).mean()
    torch.testing.assert_close(loss.total, by_hand)


def test_a_killed_bank_goes_on_with_the_views_that_are_missing(stores, tmp_path):
    whole = bank(tmp_path / "whole", stores[0])
    half, calls = tmp_path / "half", 0

    class Dies(nn.Module):
        def forward(self, images):
            nonlocal calls
            calls += 1
            if calls == 2:
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
    batches = BankBatches(stores, folders, 32, **AUGMENT)
    batches.check(teacher(), SIGMA)
    for wrong in (teacher(1), nn.Sequential(teacher(), nn.Softmax(1))):
        with pytest.raises(
            UserError, match=r"a does not hold this teacher's logits.*bank@a.*bank.views to 0"
        ):
            batches.check(wrong, SIGMA)
    with pytest.raises(UserError, match="does not hold this teacher's logits"):
        batches.check(teacher(), 2 * SIGMA)


@pytest.mark.parametrize("damage", ["NaN", "shuffled"])
@pytest.mark.parametrize("view", [0, 2])
def test_every_view_is_compared(stores, folders, view, damage):
    file = folders[1] / f"view-{view:04d}.npy"
    logits = np.load(file)
    np.save(file, logits * np.nan if damage == "NaN" else np.roll(logits, 1, axis=0))
    with pytest.raises(UserError, match=f"{folders[1].name} does not hold this teacher's logits"):
        BankBatches(stores, folders, 32, **AUGMENT).check(teacher(), SIGMA)


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
    with pytest.raises(UserError, match=r"dvc repro --force --single-item bank@") as caught:
        BankBatches(stores, folders, 32, **AUGMENT)
    assert "\n" not in str(caught.value)
