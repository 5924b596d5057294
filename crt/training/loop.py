"""The one training loop. It does not know which method, network or data it runs."""

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn
from tqdm import tqdm

from crt.config import Recipe
from crt.devices import compiled
from crt.errors import UserError
from crt.files import write_text
from crt.methods.base import Method
from crt.training.batches import Batches
from crt.training.resume import load_state, save_state
from crt.training.seeds import derive_seed

CHECKPOINT_SECONDS = 20.0  # at most one checkpoint in so many seconds


@dataclass(frozen=True)
class Progress:
    """What a run has done.

    Attributes:
        rows: One for each epoch: the columns of the log.
        seconds: What these epochs took, interruptions left out.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model: nn.Module,
    method: Method,
    batches: Batches,
    recipe: Recipe,
    *,
    name: str,
    sigma: float,
    seed: int,
    fabric: Fabric,
    compile_model: bool,
    work: Path,
    log: Path,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Progress:
    """Train `model` in place for `recipe.epochs` epochs, from `work`'s checkpoint where there is one.

    All randomness of an epoch follows from (seed, epoch), so a run that was killed and continues ends with
    the weights of one that ran through (same device and settings). Several processes (torchrun) each train on
    their part of every batch, with noise of their own, and average their gradients; BatchNorm's statistics
    are of a process' own part, as in torch's DistributedDataParallel, and rank 0's are kept. Rank 0 writes.

    Args:
        model: The network to train.
        method: The objective.
        batches: The images.
        recipe: Optimizer, learning rate and epochs.
        name: The model's name in messages (`teacher`, `student`).
        sigma: Standard deviation of the noise, [0,1] pixel units.
        seed: What all draws follow from.
        fabric: Device, precision and processes.
        compile_model: Whether torch.compile is used.
        work: The folder of the checkpoint.
        log: A TSV, written after each epoch, with one row for each.
        checkpoint_seconds: At most one checkpoint is written in so many seconds.

    Raises:
        UserError: The loss is not finite, or a checkpoint cannot be written.
    """
    run = _Run(model, method, batches, recipe, sigma, seed, fabric, compile_model)
    progress = run.load(work)
    saved = time.monotonic()
    with _bar(name, recipe.epochs, batches.steps, len(progress.rows), fabric.global_rank > 0) as bar:
        for epoch in range(len(progress.rows), recipe.epochs):
            start = time.monotonic()
            row = run.epoch(epoch, name, bar)
            progress = Progress([*progress.rows, row], progress.seconds + time.monotonic() - start)
            bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, loss {row['loss']:.4f}", refresh=False)
            if fabric.global_rank > 0:
                continue
            write_text(log, _tsv(progress.rows))
            if time.monotonic() - saved >= checkpoint_seconds and epoch + 1 < recipe.epochs:
                run.save(work, progress)
                saved = time.monotonic()
    return progress


def _bar(name: str, epochs: int, steps: int, done: int, hidden: bool) -> "tqdm[Any]":
    """The progress bar on standard error."""
    return tqdm(
        total=epochs * steps,
        initial=done * steps,
        desc=name,
        unit="step",
        file=sys.stderr,
        mininterval=1.0,
        disable=hidden,
    )


class _Run:
    """Model, optimizer and schedule in their wrappers for device and processes, and the training step."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        batches: Batches,
        recipe: Recipe,
        sigma: float,
        seed: int,
        fabric: Fabric,
        compile_model: bool,
    ) -> None:
        model.to(device=fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.method, self.batches, self.recipe = model, method, batches, recipe
        self.sigma, self.seed, self.fabric = sigma, seed, fabric
        self.optimizer = _optimizer(model, recipe)
        self.scheduler = _scheduler(self.optimizer, recipe, batches.steps)
        # The wrapper adds the precision's context and makes all processes start from the same weights.
        self.wrapped: _FabricModule
        self.wrapped_optimizer: _FabricOptimizer
        self.wrapped, self.wrapped_optimizer = fabric.setup(
            compiled(model, fabric.device) if compile_model else model, self.optimizer
        )
        self.wrapped.train()
        self.generator = torch.Generator(fabric.device)

    def epoch(self, epoch: int, name: str, bar: "tqdm[Any]") -> dict[str, float]:
        """Train for one epoch: the means over its batches, and the last learning rate."""
        fabric, steps = self.fabric, self.batches.steps
        own = (fabric.global_rank,) if fabric.global_rank else ()  # one process draws what rank 0 draws
        torch.manual_seed(derive_seed(self.seed, "network", epoch, *own))  # dropout, stochastic depth
        self.generator.manual_seed(derive_seed(self.seed, "noise", epoch, *own))
        values: list[Tensor] = []  # one row per step, on the device; read once per epoch
        parts: list[str] = []
        for step, batch in enumerate(self.batches.epoch(epoch)):
            self.scheduler.step_update(epoch * steps + step)
            self.wrapped_optimizer.zero_grad()
            # Gradients are averaged once, after all passes: methods that attack run several per step.
            with fabric.no_backward_sync(self.wrapped):
                with fabric.autocast():
                    loss = self.method(self.wrapped, batch, self.sigma, self.generator)
                fabric.backward(loss.total)
            _average_gradients(self.model, fabric)
            if self.recipe.clip_grad is not None:
                fabric.clip_gradients(
                    self.wrapped,
                    self.wrapped_optimizer,
                    max_norm=self.recipe.clip_grad,
                    error_if_nonfinite=False,
                )
            self.wrapped_optimizer.step()
            parts = list(loss.parts)
            values.append(torch.stack([loss.total.detach(), *loss.parts.values()]))
            bar.update()
        lr = self.optimizer.param_groups[0]["lr"]
        table = fabric.all_gather(torch.stack(values)).flatten(0, -2).cpu()
        _check_finite(table[:, 0].view(-1, steps), name, epoch, self.recipe.lr)
        means = table.double().nanmean(0).tolist()  # NaN: a batch in which a part is not defined
        return {"epoch": epoch + 1, "lr": lr, **dict(zip(["loss", *parts], means, strict=True))}

    def load(self, work: Path) -> Progress:
        """Continue from the checkpoint in `work`, if there is one."""
        state = load_state(work, self.fabric.device)
        if state is None:
            return Progress()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return Progress(state["rows"], state["seconds"])

    def save(self, work: Path, progress: Progress) -> None:
        """Write the checkpoint."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_state(work, {**state, "rows": progress.rows, "seconds": progress.seconds})


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    # timm's "sgd" has Nesterov's momentum; the field's recipes (Cohen et al. 2019 and after) have not.
    name = "momentum" if recipe.optimizer == "sgd" else recipe.optimizer
    # All parameters in one pass; timm's own optimizers (lamb, lion) have no such form.
    fused = {"fused": True} if recipe.optimizer in ("sgd", "adamw") else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt=name, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=0.9, **fused
    )
    return optimizer


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """The learning rate as a function of the step: cosine to 0, or x0.1 at 1/2 and 3/4 of the steps."""
    from timm.scheduler import create_scheduler_v2

    # timm's milestones are in epochs, and a drop comes one step before them.
    drops = [(math.ceil(recipe.epochs * steps * share) + 0.5) / steps for share in (1 / 2, 3 / 4)]
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.scheduler,
        num_epochs=recipe.epochs,
        decay_milestones=drops,
        warmup_epochs=recipe.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return scheduler


def _average_gradients(model: nn.Module, fabric: Fabric) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    if fabric.world_size == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    mean = fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _check_finite(losses: Tensor, name: str, epoch: int, lr: float) -> None:
    """losses: [processes, steps] of the epoch."""
    bad = (~losses.isfinite()).any(0).nonzero()
    if len(bad):
        step = epoch * losses.shape[1] + int(bad[0]) + 1
        raise UserError(
            f"the {name}'s loss is not finite at step {step} (epoch {epoch + 1}, {name}.lr {lr:g}): "
            f"lower {name}.lr, lengthen {name}.warmup_epochs or set {name}.clip_grad, e.g. to 1.0"
        )


def _tsv(rows: list[dict[str, float]]) -> str:
    import pandas as pd

    text: str = pd.DataFrame(rows).to_csv(sep="\t", index=False, float_format="%.6g", lineterminator="\n")
    return text
