"""A bank of the teacher's logits: computed once for some views of each image, replayed for every student.

A view is an image's crop, flip and noise. It follows from (seed, drop, number of the view, number of the
image) alone, on every device and in any order. A new drop adds the logits of its own views, and a student
that trains from the bank never runs the teacher.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from crt.config import Augment, Config
from crt.data.store import Store, open_store
from crt.devices import choose_device
from crt.errors import UserError
from crt.files import replacing, replacing_file, write_json
from crt.methods.base import Batch, Teacher
from crt.models.checkpoint import model_fingerprint
from crt.training.augment import Moves, augment, draw_moves
from crt.training.fit import load_teacher
from crt.training.resume import resume_folder
from crt.training.seeds import derive_seed

INFO = "bank.json"
BATCH = 256  # images in a forward pass of the teacher
CHECKED = 64  # images of each view whose logits are compared with the teacher's
TOLERANCE = 0.01  # of the largest logit; other hardware and other numbers of threads round differently
CODE = (
    "bank.py",
    "training/augment.py",
    "training/seeds.py",
    "inference/fold.py",
    "models",
    "data",
    "spec.py",
)

GOLDEN = -7046029254386353131  # SplitMix64's constants (Steele, Lea and Flood 2014), as signed numbers
MIX = ((30, -4658895280553007687), (27, -7723592293110705685))


@dataclass(frozen=True)
class View:
    """A drop's images as training shows them once: each cropped, perhaps mirrored, with noise of its own.

    Attributes:
        store: The drop.
        moves: What happens to each image, in the order of the drop.
        key: What the noise follows from, besides the image's number.
        crop_padding: As in `crt.training.augment.draw`.
    """

    store: Store
    moves: Moves
    key: int
    crop_padding: int

    @classmethod
    def of(cls, store: Store, number: int, seed: int, how: Augment) -> "View":
        """The drop's view of this number, from 0."""
        drop = int(store.fingerprint[:15], 16)
        generator = torch.Generator().manual_seed(derive_seed(seed, "view", drop, number))
        moves = draw_moves(len(store), how.crop_padding, how.crop_area, how.flip, generator)
        return cls(store, moves, derive_seed(seed, "view noise", drop, number), how.crop_padding)

    def noise(self, rows: Tensor, device: torch.device) -> Tensor:
        """Standard normal noise of the images `rows` int64 [n]: float32 [n, C, H, W], channels-last."""
        _, height, width, channels = self.store.images.shape
        noise = normal(self.key, rows.to(device), height * width * channels)
        return noise.view(len(rows), height, width, channels).permute(0, 3, 1, 2)

    def noised(self, rows: Tensor, sigma: float, device: torch.device) -> Tensor:
        """The images `rows` int64 [n] as a student sees them: float32 [n, C, H, W]."""
        images = torch.from_numpy(np.array(self.store.images[rows.numpy()])).to(device)
        images = augment(images, self.crop_padding, self.moves[rows].to(device))
        return images + sigma * self.noise(rows, device)


def training_rows(store: Store) -> Tensor:
    """The numbers of the drop's images that are not set aside for validation: int64 [n]."""
    return torch.from_numpy(np.flatnonzero(~store.validation))


def normal(key: int, rows: Tensor, count: int) -> Tensor:
    """`count` standard normal numbers for each of `rows` int64 [n]: float32 [n, count], on their device.

    They depend on (key, row) alone: SplitMix64, started at a hash of both, and Box and Muller's transform.
    """
    start = _mixed(key + rows * GOLDEN)
    steps = torch.arange(1, math.ceil(count / 2) + 1, device=rows.device)
    bits = _mixed(start[:, None] + steps * GOLDEN)
    # Two numbers of 24 bits; the first one in (0, 1), so that its logarithm is finite.
    radius = ((_shifted(bits, 40).float() + 0.5) * 2**-24).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFF).float() * (2 * math.pi * 2**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def _mixed(bits: Tensor) -> Tensor:
    """SplitMix64's hash of 64 bits; int64, whose products wrap around."""
    for shift, factor in MIX:
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right, zeros from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


class Replayed(Teacher):
    """A teacher whose logits are read from the drops' banks, a view in each epoch.

    Which is the first follows from the number of images: short retrainings after one delivery and the next
    see other views. Training must show the images as the view does: `Batches(..., moves=replayed.moves)`.

    Attributes:
        views: How many there are; epochs take them in turn.
    """

    def __init__(
        self, network: nn.Module, stores: Sequence[Store], folders: Sequence[Path], *, seed: int, how: Augment
    ) -> None:
        """Opens the banks.

        Args:
            network: The teacher, to compare the logits with.
            stores: The drops.
            folders: Their banks, in the same order.
            seed: The seed that the banks were made with.
            how: The augmentation that they were made with.

        Raises:
            UserError: A bank is missing or damaged.
        """
        super().__init__(network)
        self._stores, self._folders, self._seed, self._how = list(stores), list(folders), seed, how
        self._banks = [_open(folder, len(store)) for folder, store in zip(folders, stores, strict=True)]
        self._starts = np.cumsum([0, *(len(store) for store in stores)])
        self.views = min(len(bank) for bank in self._banks)
        self._first = derive_seed(seed, "first view", int(self._starts[-1])) % self.views
        self._opened: tuple[int, list[View]] = (-1, [])

    def moves(self, rows: Tensor, epoch: int) -> Moves:
        """What happens in this epoch to images int64 [n], by their number in the concatenated drops."""
        return Moves.join([view.moves for view in self._views_of(epoch)])[rows]

    def noised(self, batch: Batch, sigma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The batch's images with the view's noise, and the logits that the teacher gave for them."""
        assert batch.rows is not None, "Batches gives the images' numbers"
        device, epoch = batch.images.device, int(batch.epoch)
        noise = torch.empty_like(batch.images)
        logits = torch.empty(len(batch.rows), self._banks[0][0].shape[1])
        for drop, places, rows in self._by_drop(batch.rows):
            noise[places.to(device)] = self._views_of(epoch)[drop].noise(rows, device)
            logits[places] = torch.from_numpy(self._banks[drop][self._number(epoch)][rows.numpy()])
        return batch.images + sigma * noise, logits.to(device)

    def check(self, sigma: float, device: torch.device) -> None:
        """Compare the banks with the teacher: some logits of each view must be what it gives here.

        Raises:
            UserError: They are not.
        """
        for store, bank, folder in zip(self._stores, self._banks, self._folders, strict=True):
            rows = training_rows(store)
            rows = rows[:: max(1, len(rows) // CHECKED)]
            if not len(rows):
                continue
            for number, held in enumerate(bank):
                view = View.of(store, number, self._seed, self._how)
                with torch.inference_mode():
                    logits = self.network(view.noised(rows, sigma, device)).float().cpu().numpy()
                if not np.abs(logits - held[rows.numpy()]).max() <= TOLERANCE * np.abs(logits).max():
                    raise UserError(
                        f"{folder} does not hold this teacher's logits under these settings: "
                        "record it again, or train without a bank"
                    )

    def _number(self, epoch: int) -> int:
        return (self._first + epoch) % self.views

    def _views_of(self, epoch: int) -> list[View]:
        """The drops' views of an epoch; those of the last one asked for are kept."""
        if self._opened[0] != epoch:
            views = [View.of(store, self._number(epoch), self._seed, self._how) for store in self._stores]
            self._opened = epoch, views
        return self._opened[1]

    def _by_drop(self, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each drop with some of the images: its number, their places in `rows`, their numbers there."""
        drops = np.searchsorted(self._starts, rows.numpy(), side="right") - 1
        for drop in np.unique(drops):
            places = torch.from_numpy(np.flatnonzero(drops == drop))
            yield int(drop), places, rows[places] - int(self._starts[drop])


def record(config: Config, drop: Path, teacher: Path, folder: Path, work: Path) -> None:
    """Write the bank of one drop: the teacher's logits for `config.bank.views` views of each training image.

    Images that are set aside for validation have NaN.

    Args:
        config: Seed, sigma, augmentation, number of views and device.
        drop: The prepared drop.
        teacher: The teacher's model folder.
        folder: Where the bank goes.
        work: The folder for resume files: a recording that was killed continues there.

    Raises:
        UserError: Drop or teacher are missing or do not fit each other.
    """
    store, fingerprint = open_store(drop), model_fingerprint(teacher)
    device = choose_device(config.runtime.device)
    how, sigma, seed, views = config.data.augment, config.sigma, config.seed, config.bank.views
    facts = [how.model_dump(), sigma, seed, views, device.type, store.fingerprint, fingerprint]
    network = load_teacher(teacher, store, sigma, device)
    write_bank(
        network,
        fingerprint,
        store,
        folder,
        resume_folder(work, f"bank-{drop.name}", facts, CODE),
        views=views,
        sigma=sigma,
        seed=seed,
        how=how,
        device=device,
    )


def write_bank(
    network: nn.Module,
    fingerprint: str,
    store: Store,
    folder: Path,
    work: Path,
    *,
    views: int,
    sigma: float,
    seed: int,
    how: Augment,
    device: torch.device,
) -> None:
    """`record` for a network and a drop in memory; finished views are kept in `work` until all are there.

    Args:
        network: The teacher.
        fingerprint: The teacher's, which the bank names.
        store: The drop.
        folder: Where the bank goes.
        work: The folder for resume files.
        views: The number of views.
        sigma: Standard deviation of the noise, [0,1] pixel units.
        seed: What the views follow from.
        how: The augmentation.
        device: Where the teacher runs.
    """
    work.mkdir(parents=True, exist_ok=True)
    paths = [work / f"view-{number:04d}.npy" for number in range(views)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    rows = training_rows(store)
    batches = rows.split(BATCH) if len(rows) else ()
    with tqdm(
        total=views * len(batches),
        initial=(views - len(missing)) * len(batches),
        desc="bank",
        unit="batch",
        file=sys.stderr,
        mininterval=1,
    ) as bar:
        for number in missing:
            view = View.of(store, number, seed, how)
            logits = np.full((len(store), len(store.spec.classes)), np.nan, np.float32)
            for rows in batches:
                with torch.inference_mode():
                    logits[rows.numpy()] = network(view.noised(rows, sigma, device)).float().cpu().numpy()
                bar.update()
            with replacing_file(paths[number]) as aside, aside.open("wb") as file:
                np.save(file, logits)
    with replacing(folder) as aside:
        for path in paths:
            shutil.move(path, aside / path.name)
        facts = {"views": views, "sigma": sigma, "teacher_fingerprint": fingerprint}
        write_json(aside / INFO, {**facts, "data_fingerprint": store.fingerprint})
    shutil.rmtree(work, ignore_errors=True)


def _open(folder: Path, count: int) -> list[np.ndarray]:
    """The views of one drop's bank, memory-mapped: float32 [N, K] each."""
    remedy = "record it again, or train without a bank"
    try:
        views = json.loads((folder / INFO).read_text(encoding="utf-8"))["views"]
        bank = [np.load(folder / f"view-{view:04d}.npy", mmap_mode="r") for view in range(views)]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{folder} is missing or damaged ({error}): {remedy}") from None
    if not bank or any(view.shape[:1] != (count,) or view.dtype != np.float32 for view in bank):
        raise UserError(f"{folder} does not hold logits of the {count} images of its drop: {remedy}")
    return bank
