"""Counting votes: noisy copies of many images through one network in full batches, on the device.

The host learns the counts once per round; within a round nothing waits for it.
"""

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crt.certification.check import TOLERANCE, ShapeCheck, check_batch_norms, check_function, made_up_images
from crt.certification.noise import NoisyBatch, Piece, RoundedGaussian, noise_key
from crt.certification.procedures import Draws, Procedure
from crt.devices import compiled
from crt.errors import UserError
from crt.inference.int8 import quantize

Precision = Literal["float32", "bfloat16", "int8"]
# Of what the network takes.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
BATCHES_PER_ROUND = 32  # a round ends in a partial batch: 32 full ones before it make that cost about 1.5 %


def device_name(device: torch.device) -> str:
    """The kind of device, as far as it changes rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


class Request(NamedTuple):
    """Draws of one image: `levels` int16 [H * W * C], in steps of the noise; `key` from `noise.noise_key`."""

    levels: NDArray[np.int16]
    key: int
    draws: Draws


def certified_network(
    folded: nn.Module,
    shape: Sequence[int],
    sigma: float,
    device: torch.device,
    precision: Precision,
    compile_network: bool,
) -> nn.Module:
    """The very function whose votes are counted.

    It is a copy of a network from `fold_batchnorm` in its precision and layout.
    Precision, folding and compilation change logits, so they are part of the classifier that is certified,
    and the classifier to deploy. shape: [C, H, W] of the images; sigma: of their noise (both matter to int8
    alone).

    Raises:
        UserError: the precision does not suit network, device or compilation.
    """
    folded = copy.deepcopy(folded)
    if precision == "int8":
        if device.type != "cpu":
            raise UserError("precision int8 is for CPUs: set precision to bfloat16 on other devices")
        if compile_network:
            raise UserError("precision int8 is not compiled: set compile to false")
        folded = quantize(folded, torch.Size(shape), sigma)
    network = folded.to(device=device, dtype=DTYPES[precision]).to(memory_format=torch.channels_last)
    return compiled(network, device, dynamic=False) if compile_network else network


class VoteCounter:
    """Counts the classes that a network gives to noisy copies of images of one shape.

    Every forward pass has the same shape, [batch_size, C, H, W]: the last batch of a round carries rows that
    are not counted. So no kernel is chosen by how many draws are left, and compilation happens once.

    Attributes:
        batch_size: Rows of every forward pass.
        num_classes: K.
        check: What another size of the batch would change; None for a compiled network, where that is not
            looked at.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        law: RoundedGaussian,
        device: torch.device,
        precision: Precision,
        batch_size: int | None,
    ) -> None:
        """shape: [C, H, W]; law: of the noise; batch_size None: chosen from memory.

        Raises:
            UserError: the network does not map such images to logits, row by row, or a batch does not fit
                into memory.
        """
        self.network, self.law, self.device, self.dtype = network, law, device, DTYPES[precision]
        self.shape = tuple(shape)
        check_batch_norms(network)
        images = made_up_images(shape, law.sigma).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        self.batch_size = batch_size or self._fitting_batch_size(images)
        self._batch = NoisyBatch(law, self.batch_size, shape, device)
        with torch.inference_mode():
            self.num_classes = self._forward(self._batch.images).shape[1]
        compiled = hasattr(network, "_orig_mod")
        tolerance = TOLERANCE[self.dtype]
        self.check: ShapeCheck | None = check_function(
            network, self._forward, images, self.batch_size, tolerance, not compiled
        )

    @torch.inference_mode()
    def count(self, requests: list[Request]) -> list[list[int]]:
        """Votes per class [K] for each request. A draw whose logits hold a NaN is a vote for no class."""
        bins = self.num_classes + 1  # the last: no class
        sizes = torch.tensor([request.draws.stop - request.draws.start for request in requests])
        first_bin = torch.arange(len(requests)).mul_(bins).repeat_interleave(sizes)
        if self.device.type == "cuda":
            first_bin = first_bin.pin_memory()
        first_bin = first_bin.to(self.device, non_blocking=True)
        counts = torch.zeros(len(requests) * bins, dtype=torch.int64, device=self.device)
        ones = torch.ones(self.batch_size, dtype=torch.int64, device=self.device)
        done = 0
        for filled in self._batches(requests):
            logits = self._forward(self._batch.images)[:filled]
            votes = torch.where(logits.isnan().any(1), self.num_classes, logits.argmax(1))
            counts.scatter_add_(0, first_bin[done : done + filled] + votes, ones[:filled])
            done += filled
        return counts.view(len(requests), bins)[:, : self.num_classes].tolist()

    def _batches(self, requests: list[Request]) -> Iterator[int]:
        """Fill the batch again and again; yields the number of rows that count."""
        pieces, filled = list[Piece](), 0
        for levels, key, (stage, start, stop) in requests:
            while start < stop:
                end = min(stop, start + self.batch_size - filled)
                pieces.append(Piece(levels, key, Draws(stage, start, end)))
                start, filled = end, filled + end - start
                if filled == self.batch_size:
                    self._batch.fill(pieces)
                    yield filled
                    pieces, filled = [], 0
        if filled:
            self._batch.fill(pieces)
            yield filled

    def _forward(self, batch: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        try:
            logits = self.network(batch.to(self.dtype))
        except torch.OutOfMemoryError:
            raise UserError(
                f"a batch of {len(batch)} noisy images does not fit into memory: set batch_size to less"
            ) from None
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the model does not accept images of shape {list(self.shape)} ({reason}): give it the "
                "images it is made for"
            ) from error
        if (
            not isinstance(logits, Tensor)
            or logits.ndim != 2
            or len(logits) != len(batch)
            or logits.shape[1] < 2
        ):
            what = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"the model returns {what} for {len(batch)} images: certify a model that returns logits "
                f"[{len(batch)}, K], K >= 2"
            )
        return logits

    def _fitting_batch_size(self, images: Tensor) -> int:
        """The batch size when none is asked for: what the cache, on a GPU a quarter of memory, holds."""
        if self.device.type != "cuda":
            # Measured with ResNet-20: best where a batch has about 64 x 32 x 32 pixels, so that activations
            # stay in the cache; batches of 1,000 images of 32x32 take three times as long per image.
            return max(8, min(512, 64 * 32 * 32 // (self.shape[1] * self.shape[2])))
        probe = images[:64]
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        with torch.inference_mode():
            self._forward(probe)
        each = (torch.cuda.max_memory_allocated(self.device) - before) / len(probe)
        fits = torch.cuda.get_device_properties(self.device).total_memory / 4 / max(each, 1)
        # A power of two, so that small differences of what was measured do not change the shape, and with it
        # rounding.
        return 2 ** int(np.log2(min(max(fits, 64), 4096)))


@dataclass(eq=False)
class _Running:
    number: int
    request: Request
    procedure: Procedure
    seconds: float = 0.0


def run_procedures(
    counter: VoteCounter, tasks: Iterable[tuple[int, NDArray[np.uint8], Procedure]], context: str
) -> Iterator[tuple[int, Any, float]]:
    """Run many procedures at once; tasks are (number, pixels [H, W, C], procedure), taken as needed.

    A round serves the oldest procedures until its batches are full, so a few images with many draws left
    never leave the device idle, and a kill loses no more than the images of a round. Yields (number, result,
    seconds) as they end; seconds is the image's share of the rounds, by draws. context: what the noise
    depends on beside the pixels.
    """
    waiting, running = iter(tasks), list[_Running]()
    room = BATCHES_PER_ROUND * counter.batch_size
    while True:
        served, draws = list[_Running](), 0
        for task in running:
            if draws >= room:
                break
            served.append(task)
            draws += _size(task.request)
        while draws < room and (new := next(waiting, None)) is not None:
            number, pixels, procedure = new
            shape = (pixels.shape[2], *pixels.shape[:2])
            if shape != counter.shape:
                raise UserError(
                    f"image {number} has shape {list(shape)}, the first {list(counter.shape)}: give one shape"
                )
            levels = pixels.reshape(-1).astype(np.int16) * np.int16(counter.law.fineness)
            request = Request(levels, noise_key(pixels, context), next(procedure))
            running.append(_Running(number, request, procedure))
            served.append(running[-1])
            draws += _size(request)
        if not served:
            return
        began = time.perf_counter()
        votes = counter.count([task.request for task in served])
        per_draw = (time.perf_counter() - began) / draws
        for task, counts in zip(served, votes, strict=True):
            task.seconds += per_draw * _size(task.request)
            try:
                task.request = task.request._replace(draws=task.procedure.send(counts))
            except StopIteration as end:
                running.remove(task)
                yield task.number, end.value, task.seconds


def _size(request: Request) -> int:
    return request.draws.stop - request.draws.start
