"""Counting votes: noisy copies of many images through one network in full batches, on the device.

The host learns the counts once per round; within a round nothing waits for it.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from crt.certification.noise import BLOCK, fill_block, image_key
from crt.certification.procedures import Draws, Procedure
from crt.errors import UserError
from crt.inference.int8 import quantize

Precision = Literal["float32", "bfloat16", "int8"]
# Of what the network takes.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
BATCHES_PER_ROUND = 32  # a round ends in a partial batch: 32 full ones before it make that cost about 1.5 %


def device_name(device: torch.device) -> str:
    """The kind of device, as far as it changes noise and rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


class Request(NamedTuple):
    """Draws of one image; `image` float32 [C, H, W] on the device, `key` from `noise.image_key`."""

    image: Tensor
    key: int
    draws: Draws


def certified_network(
    folded: nn.Module,
    shape: torch.Size,
    sigma: float,
    device: torch.device,
    precision: Precision,
    compile_network: bool,
) -> nn.Module:
    """The very function whose votes are counted: a network from `fold_batchnorm` in its precision and memory layout.

    Precision, folding and compilation change logits, so they are part of the classifier that is certified, and the
    classifier to deploy. shape: [C, H, W] of the images; sigma: of their noise (both matter to int8 alone).

    Raises:
        UserError: the precision does not suit network, device or compilation.
    """
    if precision == "int8":
        if device.type != "cpu":
            raise UserError("precision int8 is for CPUs: set certify.precision to bfloat16 on other devices")
        if compile_network:
            raise UserError("precision int8 is not compiled: set runtime.compile to false")
        folded = quantize(folded, shape, sigma)
    network = folded.to(device=device, dtype=DTYPES[precision]).to(memory_format=torch.channels_last)
    return torch.compile(network, dynamic=False) if compile_network else network  # type: ignore[return-value]


class VoteCounter:
    """Counts the classes that a network gives to noisy copies of images of one shape.

    Every forward pass has the same shape, [batch_size, C, H, W]: the last batch of a round carries rows that are not
    counted. So no kernel is chosen by how many draws are left, and compilation happens once.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: torch.Size,
        sigma: float,
        device: torch.device,
        precision: Precision,
        batch_size: int | None,
    ) -> None:
        """shape: [C, H, W]; sigma in [0,1] pixel units; batch_size None: chosen from memory.

        Raises:
            UserError: the network does not map such images to logits, or a batch does not fit into memory.
        """
        C, H, W = shape
        self.network, self.sigma, self.device, self.dtype = network, sigma, device, DTYPES[precision]
        self.shape = shape
        # Channels-last memory: normal_ needs contiguous [N, H, W, C], the network sees [N, C, H, W].
        self._noise = torch.zeros(BLOCK, H, W, C, device=device)
        self._generator = torch.Generator(device)
        self.batch_size = batch_size or self._fitting_batch_size()
        self._batch = torch.zeros(self.batch_size, H, W, C, device=device).permute(0, 3, 1, 2)
        self.num_classes = self._forward(self._batch).shape[1]

    @torch.inference_mode()
    def count(self, requests: list[Request]) -> list[list[int]]:
        """Votes per class [K] for each request.

        Raises:
            UserError: logits that are not finite have no class.
        """
        sizes = torch.tensor([request.draws.stop - request.draws.start for request in requests])
        first_bin = torch.arange(len(requests)).mul_(self.num_classes).repeat_interleave(sizes)
        if self.device.type == "cuda":
            first_bin = first_bin.pin_memory()
        first_bin = first_bin.to(self.device, non_blocking=True)
        counts = torch.zeros(len(requests) * self.num_classes, dtype=torch.int64, device=self.device)
        ones = torch.ones(self.batch_size, dtype=torch.int64, device=self.device)
        done, finite = 0, torch.ones((), dtype=torch.bool, device=self.device)
        for filled in self._batches(requests):
            logits = self._forward(self._batch)
            finite &= logits.isfinite().all()
            votes = logits.argmax(dim=1)[:filled]
            counts.scatter_add_(0, first_bin[done : done + filled] + votes, ones[:filled])
            done += filled
        if not finite:
            raise UserError(
                "the model returns logits that are not finite: look for NaN in its weights, or overflow in its precision"
            )
        return counts.view(len(requests), self.num_classes).tolist()

    def _batches(self, requests: list[Request]) -> Iterator[int]:
        """Fill the batch with image + sigma * noise (never clipped), again and again; yields the number of rows that count."""
        noise, filled = self._noise.permute(0, 3, 1, 2), 0
        for image, key, (stage, start, stop) in requests:
            for block in range(start // BLOCK, -(-stop // BLOCK)):
                fill_block(self._noise, self._generator, key, stage, block)
                row, last = max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK)
                while row < last:
                    size = min(last - row, self.batch_size - filled)
                    rows = self._batch[filled : filled + size]
                    torch.add(image, noise[row : row + size], alpha=self.sigma, out=rows)
                    row, filled = row + size, filled + size
                    if filled == self.batch_size:
                        yield filled
                        filled = 0
        if filled:
            yield filled

    @torch.inference_mode()
    def _forward(self, batch: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]."""
        try:
            logits = self.network(batch.to(self.dtype))
        except torch.OutOfMemoryError:
            raise UserError(
                f"a batch of {len(batch)} noisy images does not fit into memory: set certify.batch_size to less"
            ) from None
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the model does not accept images of shape {list(self.shape)} ({reason}): give it the images it is made for"
            ) from error
        if (
            not isinstance(logits, Tensor)
            or logits.ndim != 2
            or len(logits) != len(batch)
            or logits.shape[1] < 2
        ):
            what = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"the model returns {what} for {len(batch)} images: certify a model that returns logits [{len(batch)}, K], K >= 2"
            )
        return logits

    def _fitting_batch_size(self) -> int:
        """The batch size when none is asked for: cache-sized on a CPU, otherwise what a quarter of the memory holds."""
        if self.device.type != "cuda":
            # Measured with ResNet-20: best where a batch has about 64 x 32 x 32 pixels, so that activations stay in the
            # cache; batches of 1,000 images of 32x32 take three times as long per image.
            return max(8, min(512, 64 * 32 * 32 // (self.shape[1] * self.shape[2])))
        probe = self._noise.permute(0, 3, 1, 2)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self._forward(probe)
        each = (torch.cuda.max_memory_allocated(self.device) - before) / len(probe)
        budget = torch.cuda.get_device_properties(self.device).total_memory / 4
        return int(min(max(budget / max(each, 1) // BLOCK * BLOCK, BLOCK), 4096))


@dataclass
class _Running:
    number: int
    image: Tensor
    key: int
    procedure: Procedure
    draws: Draws
    seconds: float = 0.0


def run_procedures(
    counter: VoteCounter, tasks: Iterable[tuple[int, Tensor, Procedure]], seed: int
) -> Iterator[tuple[int, Any, float]]:
    """Run many procedures at once; tasks are (number, image float32 [C, H, W], procedure), taken as needed.

    A round serves the oldest procedures until its batches are full, so a few images with many draws left never leave the
    device idle, and a kill loses no more than the images of a round. Yields (number, result, seconds) as they end; seconds
    is the image's share of the rounds, by draws.
    """
    waiting, running = iter(tasks), list[_Running]()
    while True:
        served, draws = list[_Running](), 0
        for task in running:
            if draws >= BATCHES_PER_ROUND * counter.batch_size:
                break
            served.append(task)
            draws += task.draws.stop - task.draws.start
        while draws < BATCHES_PER_ROUND * counter.batch_size and (new := next(waiting, None)) is not None:
            number, image, procedure = new
            if image.shape != counter.shape:
                raise UserError(
                    f"image {number} has shape {list(image.shape)}, the first {list(counter.shape)}: give one shape"
                )
            task = _Running(
                number, _to_device(image, counter.device), image_key(image, seed), procedure, next(procedure)
            )
            running.append(task)
            served.append(task)
            draws += task.draws.stop - task.draws.start
        if not served:
            return
        began = time.perf_counter()
        votes = counter.count([Request(task.image, task.key, task.draws) for task in served])
        per_draw = (time.perf_counter() - began) / draws
        for task, counts in zip(served, votes, strict=True):
            task.seconds += per_draw * (task.draws.stop - task.draws.start)
            try:
                task.draws = task.procedure.send(counts)
            except StopIteration as end:
                running.remove(task)
                yield task.number, end.value, task.seconds


def _to_device(image: Tensor, device: torch.device) -> Tensor:
    """float32 [C, H, W] in channels-last memory, as the batch has it."""
    return image.to(device, torch.float32).permute(1, 2, 0).contiguous().permute(2, 0, 1)
