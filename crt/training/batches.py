"""Batches of training images from prepared drops: shuffled, augmented, on the device; nothing per image in Python.

Order and augmentation depend on (seed, epoch) alone, never on what was drawn before: a run that goes on at an epoch's
start needs no generator's state. Images that fit into memory are held on the device as uint8; others stay
memory-mapped and a thread reads the next batches while the network computes.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crt.data.store import Shards, Store
from crt.errors import UserError
from crt.training.augment import Moves, augment, draw

RESIDENT_SHARE = 0.5  # of the device's free memory; more than that stays on disk
READ_AHEAD = 3  # batches


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(seed, "noise", epoch)`; equal on every machine."""
    words = [part if isinstance(part, int) else int.from_bytes(part.encode(), "big") for part in purpose]
    state = np.random.SeedSequence([seed, *words]).generate_state(2, np.uint32)
    return int(state[0]) << 31 ^ int(state[1])


class Batches:
    """The images of several drops as batches of one epoch at a time, those apart that are set aside for validation.

    A last batch that is not full is left out of its epoch (other images in each epoch), unless there is no full one:
    then all images are the one batch. Several processes share every batch: each gets its equal part of the images, with
    the augmentation that one process would give them.

    Raises:
        UserError: fewer than two images for each process (BatchNorm needs two), or a batch that cannot be shared equally.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        batch_size: int,
        *,
        crop_padding: int,
        flip: bool,
        crop_area: float = 1.0,
        seed: int,
        device: torch.device,
        labelled_only: bool = False,
        resident: bool | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """crop_padding, flip, crop_area: see `crt.training.augment.draw`; labelled_only: leave out images without a label; resident: hold the images on the device, None: if they fit."""
        self._stores = stores
        self._starts = np.cumsum([0, *(len(store) for store in stores)])
        self._labels = torch.from_numpy(np.concatenate([store.labels for store in stores]))
        used = ~torch.from_numpy(np.concatenate([store.validation for store in stores]))
        if labelled_only:
            used &= self._labels >= 0
        self._used = used.nonzero()[:, 0]
        self.count = len(self._used)
        if self.count < 2 * world_size:
            what = "labelled training images" if labelled_only else "training images"
            needed = "2 are" if world_size == 1 else f"{2 * world_size} (2 for each process) are"
            raise UserError(f"{stores[0].path.parent} holds {self.count} {what}: at least {needed} needed")
        if batch_size % world_size:
            raise UserError(
                f"{world_size} processes cannot share batches of {batch_size} images equally: "
                "set batch_size to a multiple of the number of processes"
            )
        self.batch_size = min(batch_size, self.count - self.count % world_size)  # of all processes together
        self._rank, self._world_size = rank, world_size
        self.steps = self.count // self.batch_size
        self._moves: dict[str, Any] = {"crop_padding": crop_padding, "crop_area": crop_area, "flip": flip}
        self._crop_padding = crop_padding
        self._seed = seed
        self._device = device
        self._on_disk = Shards([store.images for store in stores])
        if resident is None:
            resident = self._on_disk.nbytes <= RESIDENT_SHARE * _free_bytes(device)
        self._images = torch.from_numpy(np.asarray(self._on_disk)).to(device) if resident else None

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """Images float32 [B, C, H, W] in [0,1] (channels-last in memory) and labels int64 [B], on the device.

        B is this process' part of `batch_size`.
        """
        yield from self._of(*self._drawn(epoch))

    def _drawn(self, epoch: int) -> tuple[Tensor, Moves]:
        """Of all processes: image numbers int64 [n] and what happens to each, n = steps * batch_size."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "batches", epoch))
        order = self._used[torch.randperm(self.count, generator=generator)[: self.steps * self.batch_size]]
        return order, draw(len(order), **self._moves, generator=generator)

    def _of(self, order: Tensor, moves: Moves) -> Iterator[tuple[Tensor, Tensor]]:
        """This process' part of the batches of these images."""
        mine = self._mine(torch.arange(len(order)))
        labels, moves = self._labels[order[mine]].to(self._device), moves[mine].to(self._device)
        size = self.batch_size // self._world_size
        for step, images in enumerate(self._raw(order[mine].split(size))):
            now = slice(step * size, (step + 1) * size)
            yield augment(images, self._crop_padding, moves[now]), labels[now]

    def _mine(self, values: Tensor) -> Tensor:
        """This process' part of each batch: [..., steps * batch_size] -> [..., steps * B]."""
        parts = values.unflatten(-1, (self.steps, self._world_size, -1))
        return parts[..., self._rank, :].flatten(-2)

    def _raw(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """uint8 [B, H, W, C] on the device for each tensor of indices."""
        if self._images is not None:
            for index in indices:
                yield self._images[index.to(self._device)]
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(self._read, index.numpy()) for index in indices[:READ_AHEAD])
            try:
                for step in range(len(indices)):
                    images = waiting.popleft().result()
                    if step + READ_AHEAD < len(indices):
                        waiting.append(pool.submit(self._read, indices[step + READ_AHEAD].numpy()))
                    yield images.to(self._device, non_blocking=True)
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, index: np.ndarray) -> Tensor:
        """Images by their number in the concatenated drops, read in the order in which they lie on disk."""
        order = np.argsort(index)
        out = np.empty((len(index), *self._on_disk.shape[1:]), np.uint8)
        out[order] = self._on_disk[index[order]]
        images = torch.from_numpy(out)
        return images.pin_memory() if self._device.type == "cuda" else images


def mean_and_std(stores: Sequence[Store], chunk: int = 4096) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of all training pixels, in [0,1] units; exact, in one pass over the files.

    A channel without any variation gets a standard deviation of 1.
    """
    channels = stores[0].spec.channels
    counts = np.zeros((channels, 256), np.int64)
    for store in stores:
        for start in range(0, len(store), chunk):
            used = ~store.validation[start : start + chunk]
            part = store.images[start : start + chunk][used].reshape(-1, channels)
            counts += np.stack([np.bincount(part[:, c], minlength=256) for c in range(channels)])
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist()


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
