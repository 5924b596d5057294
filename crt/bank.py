"""A bank of the teacher's logits: computed once for some views of each image, replayed for every student.

A view is an image's crop, flip and noise; it follows from (seed, drop, number of the view). Noise comes in chunks of images,
each with a generator of its own, so that training can take the chunks in any order and draw the same noise again. A new drop
adds the logits of its own views, and a student that trains from the bank never runs the teacher.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from crt.config import Config
from crt.data.store import Store
from crt.errors import UserError
from crt.files import partial, replacing, write_text
from crt.training.augment import Moves, augment, draw
from crt.training.batches import Batches, derive_seed

INFO = "bank.json"
CHUNK = 64  # images whose noise comes from one generator
AT_ONCE = 4  # chunks in a forward pass of the teacher
TOLERANCE = 0.01  # of the largest logit; other hardware and other numbers of threads round differently


@dataclass(frozen=True)
class Chunk:
    """Some images of a drop in one view: their numbers int64 [n], what happens to each, the noise's seed."""

    rows: Tensor
    moves: Moves
    seed: int


def chunks_of(store: Store, view: int, seed: int, settings: dict[str, Any]) -> list[Chunk]:
    """One view of each training image of a drop, in an order of its own; settings: of `crt.training.augment.draw`."""
    drop = int(store.fingerprint[:15], 16)
    generator = torch.Generator().manual_seed(derive_seed(seed, "view", drop, view))
    rows = torch.from_numpy(np.flatnonzero(~store.validation))
    rows = rows[torch.randperm(len(rows), generator=generator)]
    moves = draw(len(rows), **settings, generator=generator)
    return [
        Chunk(
            rows[start : start + CHUNK],
            moves[start : start + CHUNK],
            derive_seed(seed, "view noise", drop, view, start),
        )
        for start in range(0, len(rows), CHUNK)
    ]


def noise_of(chunk: Chunk, shape: Sequence[int], device: torch.device) -> Tensor:
    """The chunk's standard normal noise: float32 [n, C, H, W], channels-last in memory; shape: of an image [H, W, C]."""
    generator = torch.Generator(device).manual_seed(chunk.seed)
    noise = torch.empty((len(chunk.rows), *shape), device=device).normal_(generator=generator)
    return noise.permute(0, 3, 1, 2)


def write_bank(
    teacher: nn.Module,
    teacher_fingerprint: str,
    store: Store,
    config: Config,
    device: torch.device,
    folder: Path,
    work: Path,
) -> None:
    """Compute the teacher's logits for `config.bank.views` views of each image of a drop, float32 [N, K] per view.

    Images that are set aside for validation have NaN.

    Finished views are kept in `work`; after a kill the same call goes on there. `teacher` is in eval mode, on `device`.

    Raises:
        UserError: the disk is full.
    """
    work.mkdir(parents=True, exist_ok=True)
    paths = [work / f"view-{view:04d}.npy" for view in range(config.bank.views)]
    settings = config.data.augment.model_dump()
    steps = -(-int((~store.validation).sum()) // (CHUNK * AT_ONCE))
    done = sum(path.is_file() for path in paths)
    bar = tqdm(
        total=len(paths) * steps,
        initial=done * steps,
        desc="bank",
        unit="batch",
        file=sys.stderr,
        mininterval=1,
    )
    with bar, torch.inference_mode():
        for view, path in enumerate(paths):
            if path.is_file():
                continue
            chunks = chunks_of(store, view, config.seed, settings)
            logits = np.full((len(store), len(store.spec.classes)), np.nan, np.float32)
            for start in range(0, len(chunks), AT_ONCE):
                now = chunks[start : start + AT_ONCE]
                images = [
                    view_of(store, chunk, settings["crop_padding"], config.sigma, device) for chunk in now
                ]
                logits[torch.cat([chunk.rows for chunk in now]).numpy()] = (
                    teacher(torch.cat(images)).cpu().numpy()
                )
                bar.update()
            aside = partial(path)
            with aside.open("wb") as file:
                np.save(file, logits)
            os.replace(aside, path)
    facts = {
        "views": config.bank.views,
        "device": device.type,
        "sigma": config.sigma,
        "teacher_fingerprint": teacher_fingerprint,
        "data_fingerprint": store.fingerprint,
    }
    with replacing(folder) as aside:
        for path in paths:
            shutil.move(path, aside / path.name)
        write_text(aside / INFO, json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(work, ignore_errors=True)


def view_of(store: Store, chunk: Chunk, crop_padding: int, sigma: float, device: torch.device) -> Tensor:
    """The chunk's noised images, as a student sees them: float32 [n, C, H, W]."""
    images = torch.from_numpy(np.array(store.images[chunk.rows.numpy()])).to(device)
    images = augment(images, crop_padding, chunk.moves.to(device))
    return images + sigma * noise_of(chunk, store.images.shape[1:], device)


class BankBatches(Batches):
    """Batches of one epoch at a time, with noise and the teacher's logits: each epoch replays the next view.

    Which is the first follows from the number of images: short retrainings after one delivery and the next see other views.
    Chunks of images come in another order in each epoch, so a batch is made of one or a few.
    """

    def __init__(
        self, stores: Sequence[Store], folders: Sequence[Path], batch_size: int, **settings: Any
    ) -> None:
        """folders: the drops' banks, in the order of `stores`; settings: as of `Batches`.

        Raises:
            UserError: a bank is missing or damaged, or see `Batches`.
        """
        super().__init__(stores, batch_size, **settings)
        self._folders = list(folders)
        self._banks = [_open(folder, len(store)) for folder, store in zip(folders, stores, strict=True)]
        self.views = min(len(bank) for bank in self._banks)
        self._first = derive_seed(self._seed, "first view", self.count) % self.views

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """Images and labels as `Batches.epoch`, noise float32 [B, C, H, W], the teacher's logits float32 [B, K]."""
        view = (self._first + epoch) % self.views
        chunks = [
            (d, chunk)
            for d, store in enumerate(self._stores)
            for chunk in chunks_of(store, view, self._seed, self._moves)
        ]
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "batches", epoch))
        chunks = [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]
        count = self.steps * self.batch_size
        order = torch.cat([chunk.rows + int(self._starts[d]) for d, chunk in chunks])[:count]
        moves = Moves.join([chunk.moves for _, chunk in chunks])[:count]
        size = self.batch_size // self._world_size
        for (images, labels), rows, noise in zip(
            self._of(order, moves),
            self._mine(order).split(size),
            self._noise([chunk for _, chunk in chunks]),
            strict=True,
        ):
            yield images, labels, noise, self._targets(rows.numpy(), view).to(self._device)

    def _noise(self, chunks: Sequence[Chunk]) -> Iterator[Tensor]:
        """This process' part of each batch's noise. All draw all of it, since a chunk's noise is drawn as a whole."""
        shape, size = self._stores[0].images.shape[1:], self.batch_size // self._world_size
        waiting = torch.empty(0)
        for chunk in chunks:
            noise = noise_of(chunk, shape, self._device)
            waiting = torch.cat([waiting, noise]) if len(waiting) else noise
            while len(waiting) >= self.batch_size:
                yield waiting[self._rank * size : (self._rank + 1) * size]
                waiting = waiting[self.batch_size :]

    def _targets(self, rows: np.ndarray, view: int) -> Tensor:
        """The teacher's logits of images by their number in the concatenated drops."""
        drop = np.searchsorted(self._starts, rows, side="right") - 1
        out = np.empty((len(rows), self._banks[0][view].shape[1]), np.float32)
        for d in np.unique(drop):
            mine = drop == d
            out[mine] = self._banks[d][view][rows[mine] - self._starts[d]]
        return torch.from_numpy(out)

    def check(self, teacher: nn.Module, sigma: float) -> None:
        """Hold the banks to the teacher: the logits of one chunk of each view must be what it gives here.

        Raises:
            UserError: they are not.
        """
        for store, bank, folder in zip(self._stores, self._banks, self._folders, strict=True):
            for view, held in enumerate(bank):
                chunks = chunks_of(store, view, self._seed, self._moves)
                if not chunks:  # all of its images are set aside
                    continue
                chunk = chunks[0]
                with torch.inference_mode():
                    images = view_of(store, chunk, self._crop_padding, sigma, self._device)
                    logits = teacher(images).float().cpu().numpy()
                kept = held[chunk.rows.numpy()]
                if not np.abs(logits - kept).max() <= TOLERANCE * np.abs(logits).max():
                    raise UserError(
                        f"{folder} does not hold this teacher's logits (another kind of device has other noise): "
                        f"write it here with `dvc repro --force --single-item bank@{folder.name}`, or set bank.views to 0"
                    )


def _open(folder: Path, count: int) -> list[np.ndarray]:
    """The views of one drop's bank, memory-mapped: float32 [N, K] each."""
    remedy = f"write it again with `dvc repro --force --single-item bank@{folder.name}`"
    try:
        views = json.loads((folder / INFO).read_text(encoding="utf-8"))["views"]
        bank = [np.load(folder / f"view-{view:04d}.npy", mmap_mode="r") for view in range(views)]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{folder} is missing or damaged ({error}): {remedy}") from None
    if not bank or any(view.shape[:1] != (count,) or view.dtype != np.float32 for view in bank):
        raise UserError(f"{folder} does not hold logits of the {count} images of its drop: {remedy}")
    return bank
