"""Batches of training images from prepared drops: shuffled, augmented, on the device.

Order and augmentation depend on (seed, epoch) alone, never on what was drawn before: a run that continues at
an epoch's start needs no generator's state. Images that fit into memory are held on the device as uint8;
others stay memory-mapped and a thread reads the next batches while the network computes.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from crt.data.store import Shards, Store
from crt.errors import UserError
from crt.methods.base import Batch
from crt.training.augment import Moves, augment, draw_moves
from crt.training.seeds import derive_seed

RESIDENT_SHARE = 0.5  # of the device's free memory; more than that stays on disk
READ_AHEAD = 3  # batches


class Batches:
    """The images of several drops, without those set aside for validation, as batches of one epoch at a time.

    A last batch that is not full is left out of its epoch (other images in each epoch), unless there is no
    full one: then all images are the one batch. Several processes share every batch: each gets its equal part
    of the images, with the augmentation that one process would give them.

    Attributes:
        count: Images that training uses.
        batch_size: Images of a batch, of all processes together.
        steps: Batches of an epoch.

    Raises:
        UserError: Fewer than two images for each process (BatchNorm needs two), or a batch that cannot be
            shared equally.
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
        labeled_only: bool = False,
        resident: bool | None = None,
        rank: int = 0,
        world_size: int = 1,
        moves: Callable[[Tensor, int], Moves] | None = None,
    ) -> None:
        """Draws nothing yet.

        Args:
            stores: The prepared drops.
            batch_size: Images of a batch, of all processes together.
            crop_padding: See `crt.training.augment.draw`.
            flip: See there.
            crop_area: See there.
            seed: What order and augmentation follow from.
            device: Where the batches are.
            labeled_only: Leave out images without a label.
            resident: Hold the images on the device; None: if they fit.
            rank: The number of this process.
            world_size: The number of processes.
            moves: What happens in an epoch to images int64 [n], by their number in the concatenated drops;
                None: it is drawn for each epoch.
        """
        self._labels = torch.from_numpy(np.concatenate([store.labels for store in stores]))
        used = ~torch.from_numpy(np.concatenate([store.validation for store in stores]))
        if labeled_only:
            used &= self._labels >= 0
        self._used = used.nonzero()[:, 0]
        self.count = len(self._used)
        if self.count < 2 * world_size:
            what = "labeled training images" if labeled_only else "training images"
            needed = "2 are" if world_size == 1 else f"{2 * world_size} (2 for each process) are"
            raise UserError(f"{stores[0].path.parent} holds {self.count} {what}: at least {needed} needed")
        if batch_size % world_size:
            raise UserError(
                f"{world_size} processes cannot share batches of {batch_size} images equally: "
                "set batch_size to a multiple of the number of processes"
            )
        self.batch_size = min(batch_size, self.count - self.count % world_size)
        self.steps = self.count // self.batch_size
        self._rank, self._world_size = rank, world_size
        self._crop_padding, self._crop_area, self._flip = crop_padding, crop_area, flip
        self._moves = moves
        self._seed = seed
        self._device = device
        self._on_disk = Shards([store.images for store in stores])
        if resident is None:
            resident = self._on_disk.nbytes <= RESIDENT_SHARE * _free_bytes(device)
        self._images = torch.from_numpy(np.asarray(self._on_disk)).to(device) if resident else None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process' part of each batch of an epoch (from 0)."""
        order, moves = self._drawn(epoch)
        mine = torch.arange(len(order)).view(self.steps, self._world_size, -1)[:, self._rank].flatten()
        rows, moves = order[mine], moves[mine].to(self._device)
        labels = self._labels[rows].to(self._device)
        size = self.batch_size // self._world_size
        parts = rows.split(size)
        for step, (part, images) in enumerate(zip(parts, self._raw(parts), strict=True)):
            now = slice(step * size, (step + 1) * size)
            augmented = augment(images, self._crop_padding, moves[now])
            yield Batch(augmented, labels[now], epoch + step / self.steps, part)

    def _drawn(self, epoch: int) -> tuple[Tensor, Moves]:
        """Of all processes: image numbers int64 [n] and what happens to each, n = steps * batch_size."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "batches", epoch))
        order = self._used[torch.randperm(self.count, generator=generator)[: self.steps * self.batch_size]]
        if self._moves is not None:
            return order, self._moves(order, epoch)
        return order, draw_moves(len(order), self._crop_padding, self._crop_area, self._flip, generator)

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


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
