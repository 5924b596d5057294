"""The one training loop. It does not know which method, network or data it runs."""

import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from crt.config import Recipe
from crt.errors import UserError
from crt.files import write_text
from crt.methods.base import Batch, Method
from crt.training.batches import Batches, derive_seed
from crt.training.resume import load_state, save_state

CHECKPOINT_SECONDS = 20.0  # at most one checkpoint in so many seconds

Row = dict[str, float]


@dataclass(frozen=True)
class Progress:
    """What a finished run reports: one row per epoch (the columns of its log) and the seconds that training took."""

    rows: list[Row]
    seconds: float


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

    All randomness of an epoch follows from (seed, epoch), so a run that was killed and goes on ends with the weights
    of one that ran through (same device and settings). `log` is a TSV with one row per epoch; `name` is the model's
    name in messages (`teacher`, `student`). Several processes (torchrun) each train on their part of every batch, with
    noise of their own, and average their gradients; BatchNorm's statistics are of a process' own part, as in torch's
    DistributedDataParallel, and rank 0's are kept. Rank 0 writes.

    Raises:
        UserError: the loss is not finite, or a checkpoint cannot be written.
    """
    device = fabric.device
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(model, recipe)
    scheduler = _scheduler(optimizer, recipe, batches.steps)
    # The wrapper adds the precision's context and makes all processes start from the same weights.
    wrapped, fabric_optimizer = fabric.setup(torch.compile(model) if compile_model else model, optimizer)

    rows: list[Row] = []
    seconds = 0.0
    state = load_state(work, device)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows, seconds = state["rows"], state["seconds"]
    generator = torch.Generator(device)
    rank, several = fabric.global_rank, fabric.world_size > 1
    own = (rank,) if rank else ()  # one process draws what rank 0 draws
    saved = time.monotonic()
    wrapped.train()
    with tqdm(
        total=recipe.epochs * batches.steps,
        initial=len(rows) * batches.steps,
        desc=name,
        unit="step",
        file=sys.stderr,
        mininterval=1.0,
        disable=rank > 0,
    ) as bar:
        for epoch in range(len(rows), recipe.epochs):
            start = time.monotonic()
            torch.manual_seed(derive_seed(seed, "network", epoch, *own))  # dropout, stochastic depth
            generator.manual_seed(derive_seed(seed, "noise", epoch, *own))
            values: list[Tensor] = []  # one row per step, on the device; read once per epoch
            parts: list[str] = []
            for step, (images, labels, *known) in enumerate(batches.epoch(epoch)):
                scheduler.step_update(epoch * batches.steps + step)
                batch = Batch(images, labels, epoch + step / batches.steps, *known)
                fabric_optimizer.zero_grad()
                # Gradients are averaged once, after all passes: methods that attack run several per step.
                with fabric.no_backward_sync(wrapped) if several else nullcontext():
                    with fabric.autocast():
                        loss = method(wrapped, batch, sigma, generator)
                    fabric.backward(loss.total)
                if several:
                    _average_gradients(model, fabric)
                if recipe.clip_grad is not None:
                    fabric.clip_gradients(
                        wrapped, fabric_optimizer, max_norm=recipe.clip_grad, error_if_nonfinite=False
                    )
                fabric_optimizer.step()
                parts = list(loss.parts)
                values.append(torch.stack([loss.total.detach(), *loss.parts.values()]))
                bar.update()
            lr = optimizer.param_groups[0]["lr"]
            table = fabric.all_gather(torch.stack(values)).flatten(0, -2).cpu()
            _check_finite(table[:, 0].view(-1, batches.steps), name, epoch, recipe.lr)
            seconds += time.monotonic() - start
            means = table.double().nanmean(0).tolist()  # NaN: a batch in which a part is not defined
            rows.append(
                {
                    "epoch": epoch + 1,
                    "lr": lr,
                    **dict(zip(["loss", *parts], means, strict=True)),
                }
            )
            if rank == 0:
                write_text(log, _tsv(rows))
            bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, loss {means[0]:.4f}", refresh=False)
            late = time.monotonic() - saved >= checkpoint_seconds
            if rank == 0 and late and epoch + 1 < recipe.epochs:
                save_state(
                    work,
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "rows": rows,
                        "seconds": seconds,
                    },
                )
                saved = time.monotonic()
    if rank == 0:
        write_text(log, _tsv(rows))
    return Progress(rows, seconds)


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


def _tsv(rows: list[Row]) -> str:
    lines = ["\t".join(rows[0])] if rows else []
    lines += ["\t".join(_text(value) for value in row.values()) for row in rows]
    return "\n".join(lines) + "\n"


def _text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
