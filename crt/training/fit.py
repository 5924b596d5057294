"""Train one model of the pipeline, a teacher or a student, from prepared drops to its model folder and results."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crt.bank import BankBatches
from crt.config import Config, MethodSettings, Recipe, Student
from crt.data.store import Store, open_store
from crt.errors import MissingFileError
from crt.files import write_text
from crt.inference.fold import fold_batchnorm
from crt.methods import build_method, needs_labels, takes_teacher
from crt.models.build import BaseClassifier, build_model
from crt.models.checkpoint import (
    ModelInfo,
    load_info,
    load_model,
    model_fingerprint,
    package_versions,
    save_model,
)
from crt.spec import check_fits, check_same
from crt.training.batches import Batches, derive_seed, mean_and_std
from crt.training.loop import train
from crt.training.numerics import precision_of, start_fabric


@dataclass(frozen=True)
class Files:
    """Where a model's outputs go, and the scratch folder for resuming, removed once they are written."""

    model: Path
    log: Path
    results: Path
    times: Path
    work: Path


def fit(
    name: str,
    config: Config,
    recipe: Recipe,
    method: MethodSettings,
    drops: Sequence[Path],
    teacher: Path | None,
    files: Files,
    init: Path | None = None,
    banks: Sequence[Path] | None = None,
) -> None:
    """Train `recipe`'s network by `method` on the prepared `drops`; `teacher` and `init` are model folders.

    banks: the drops' banks of the teacher's logits, for a method that takes them; None: the teacher runs in every step.

    Writes the model folder, the log of the epochs (TSV) and the results (JSON): the last epoch's means over the
    training batches, the seconds, images per second, number of parameters, of epochs, of images and of those left out since
    the method needs labels, whether it started from `init`'s weights, how many views of an image the banks hold, and the
    precision.

    Under torchrun the processes train together, and rank 0 writes.

    A teacher is of no use to some methods, and then left alone. So is an `init` of another architecture, which
    standard error says: then training starts from random weights, as without.

    Raises:
        UserError: drops, teacher or init are missing, do not fit each other or the parameters, or the loss is not finite.
    """
    stores = [open_store(drop) for drop in drops]
    _check_same(stores)
    first = stores[0]
    if not takes_teacher(method.name):
        teacher = None
    fabric = start_fabric(config.runtime, False)
    replay = banks is not None and method.name == "crt"
    precision = precision_of(config.runtime, False, fabric.device)
    teacher_model = None
    if teacher is not None:
        teacher_model = load_teacher(teacher, first, config.sigma, fabric.device)

    settings = method.model_dump(exclude={"name"})
    train_method = build_method(method.name, settings, teacher_model)
    start = None if init is None else _load_init(init, recipe, first, config.sigma)
    if start is None:
        init = None
        mean, std = mean_and_std(stores)
        torch.manual_seed(derive_seed(config.seed, "weights"))
        model = build_model(recipe.arch, first.spec, recipe.arch_args, mean, std)
    else:
        model, start_info = start
        mean, std = start_info.mean, start_info.std  # a part of the function that its weights were made for
        recipe = _shortened(recipe)
    loading: dict[str, Any] = {
        **config.data.augment.model_dump(),
        "seed": config.seed,
        "device": fabric.device,
        "labelled_only": needs_labels(method.name),
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
    }
    batches: Batches
    if replay:
        assert banks is not None
        assert teacher_model is not None, "crt has a teacher"
        bank = BankBatches(stores, banks, recipe.batch_size, **loading)
        bank.check(teacher_model, config.sigma)
        batches, views = bank, bank.views
    else:
        batches, views = Batches(stores, recipe.batch_size, **loading), 0
    progress = train(
        model,
        train_method,
        batches,
        recipe,
        name=name,
        sigma=config.sigma,
        seed=config.seed,
        fabric=fabric,
        compile_model=config.runtime.compile,
        work=files.work,
        log=files.log,
    )
    if fabric.global_rank > 0:
        return
    info = ModelInfo(
        arch=recipe.arch,
        arch_args=recipe.arch_args,
        spec=first.spec,
        mean=mean,
        std=std,
        sigma=config.sigma,
        method=method.name,
        data_fingerprint=fingerprint(stores),
        teacher_fingerprint=None if teacher is None else model_fingerprint(teacher),
        seed=config.seed,
        versions=package_versions(),
        init_fingerprint=None if init is None else model_fingerprint(init),
    )
    save_model(files.model, model, info)
    aside = sum(int(store.validation.sum()) for store in stores)
    results: dict[str, Any] = {
        **{part: value for part, value in progress.rows[-1].items() if part not in ("epoch", "lr")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": recipe.epochs,
        "images": batches.count,
        "validation_left_out": aside,
        "unlabelled_left_out": sum(len(store) for store in stores) - aside - batches.count,
        "warm_start": init is not None,
        "bank_views": views,
        "precision": precision,
    }
    seen = batches.steps * batches.batch_size * recipe.epochs
    times = {
        "seconds": progress.seconds,
        "images_per_second": seen / progress.seconds,
        "device": fabric.device.type,
    }
    write_text(files.times, json.dumps(times, indent=2) + "\n")
    write_text(files.results, json.dumps(results, indent=2) + "\n")
    shutil.rmtree(files.work, ignore_errors=True)


def fingerprint(stores: Sequence[Store]) -> str:
    """SHA-256, hex, of the drops' fingerprints in their order."""
    return hashlib.sha256("".join(store.fingerprint for store in stores).encode()).hexdigest()


def _check_same(stores: Sequence[Store]) -> None:
    first = stores[0]
    for store in stores[1:]:
        check_fits(
            str(store.path), store.spec, str(first.path), first.spec, "prepare both again", resize=True
        )


def _check_fits(what_it_is: str, info: ModelInfo, store: Store, sigma: float, remedy: str) -> None:
    """Hold a model to the data and the noise that it is to be used with."""
    check_fits(what_it_is, info.spec, str(store.path), store.spec, remedy)
    check_same(what_it_is, info.sigma, "this training", sigma, "sigma", remedy)


def _load_init(
    folder: Path, recipe: Recipe, store: Store, sigma: float
) -> tuple[BaseClassifier, ModelInfo] | None:
    """The model that training starts from, in train mode; None: its architecture is another one."""
    info = load_info(folder)
    if (info.arch, info.arch_args) != (recipe.arch, recipe.arch_args):
        print(
            f"student.init is a {info.arch} and the student a {recipe.arch}, or their arguments differ: "
            f"training starts from random weights, for {recipe.epochs} epochs",
            file=sys.stderr,
        )
        return None
    _check_fits(
        f"the release {folder}", info, store, sigma, "set student.init to another release, or to null"
    )
    model, _ = load_model(folder)
    return model.train(), info


def _shortened(recipe: Recipe) -> Recipe:
    """The recipe of training that starts from trained weights."""
    assert isinstance(recipe, Student), "only a student starts from another model"
    return recipe.model_copy(update={"epochs": recipe.init_epochs, "lr": recipe.init_lr, "warmup_epochs": 0})


def load_teacher(folder: Path, store: Store, sigma: float, device: torch.device) -> nn.Module:
    """The frozen teacher, made fast; it must have been made for these data and this noise."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing: train the teacher first", folder)
    model, info = load_model(folder)
    _check_fits(
        f"the teacher {folder}",
        info,
        store,
        sigma,
        "choose another teacher",
    )
    return frozen_teacher(model.to(device))


def frozen_teacher(model: nn.Module) -> nn.Module:
    """A copy of `model` that only infers, made fast: BatchNorm folded, channels-last in memory."""
    return fold_batchnorm(model).to(memory_format=torch.channels_last)
