"""Train one model, a teacher or a student, from prepared drops to its model folder and results."""

import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from crt.config import Augment, Config, MethodSettings, Recipe, Runtime, TrainedTeacher
from crt.data.statistics import mean_and_std
from crt.data.store import Store, open_store
from crt.devices import choose_device
from crt.errors import MissingFileError, UserError, first_ten
from crt.files import write_json
from crt.inference.fold import fold_batchnorm
from crt.methods import base as methods
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
from crt.training.augment import Moves
from crt.training.batches import Batches
from crt.training.loop import CHECKPOINT_SECONDS, Progress, train
from crt.training.numerics import choose_precision, start_fabric
from crt.training.resume import resume_folder
from crt.training.seeds import derive_seed

# What decides the weights, besides the method's own file; errors, files and the like change no value.
CODE = ("training", "methods/base.py", "methods/shared", "models", "inference/fold.py", "data", "spec.py")


@dataclass(frozen=True)
class Files:
    """Where a training's outputs go.

    Attributes:
        model: The model folder.
        log: The log of the epochs, TSV.
        results: Facts of the training, JSON. It, the log and the model have equal bytes after equal
            trainings.
        times: Seconds, images per second and device, JSON.
        work: The folder for resume files; what this training leaves there is removed at its end.
    """

    model: Path
    log: Path
    results: Path
    times: Path
    work: Path

    @classmethod
    def of(cls, role: str, work: Path, root: Path = Path()) -> "Files":
        """Where a project has them."""
        results = root / "results"
        return cls(
            root / "models" / role,
            results / role / "training.tsv",
            results / f"{role}.json",
            root / "times" / f"{role}.json",
            work,
        )


@dataclass(frozen=True)
class WarmStart:
    """The model that training starts from and, where the method can, holds on to; and the recipe for that.

    A model of another architecture is no start.

    Attributes:
        model: The model folder.
        recipe: The recipe of training that starts there.
    """

    model: Path
    recipe: Recipe


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        name: The model's name in messages (`teacher`, `student`).
        recipe: The network, optimizer, learning rate and epochs.
        method: The objective and its settings.
        drops: The prepared drops.
        teacher: The teacher's model folder, for methods that take one.
        start: Where training starts; None: random weights.
        banks: The drops' banks of the teacher's logits, for a method that takes them; None: the teacher runs
            in every step.
        augment: What happens to the images.
        sigma: Standard deviation of the noise, [0,1] pixel units.
        seed: What all draws follow from.
        runtime: Device, precision and processes.
    """

    name: str
    recipe: Recipe
    method: MethodSettings
    drops: Sequence[Path]
    teacher: Path | None
    start: WarmStart | None
    banks: Sequence[Path] | None
    augment: Augment
    sigma: float
    seed: int
    runtime: Runtime


@dataclass(frozen=True)
class Training:
    """All that the loop runs on, and what is written about it."""

    model: BaseClassifier
    method: methods.Method
    batches: Batches
    recipe: Recipe
    fabric: Fabric
    work: Path
    info: ModelInfo
    facts: dict[str, Any]


def teacher_job(config: Config, drop: Path) -> Job:
    """The training of the configuration's teacher on one prepared drop.

    Raises:
        UserError: The configuration's teacher is fetched.
    """
    recipe = config.teacher
    if not isinstance(recipe, TrainedTeacher):
        raise UserError("the configuration's teacher is fetched, not trained: choose one with a method")
    return _job("teacher", config, recipe, recipe.method, [drop])


def student_job(
    config: Config,
    drops: Sequence[Path],
    teacher: Path | None,
    init: Path | None = None,
    banks: Sequence[Path] | None = None,
) -> Job:
    """The training of the configuration's student. See `Job`.

    Args:
        config: The configuration.
        drops: The prepared drops.
        teacher: The teacher's model folder.
        init: The model folder that training starts from; None: random weights.
        banks: The drops' banks of the teacher's logits, in the drops' order; None: the teacher runs in every
            step.
    """
    recipe = config.student
    shorter = {"epochs": recipe.init_epochs, "lr": recipe.init_lr, "warmup_epochs": 0}
    start = None if init is None else WarmStart(init, recipe.model_copy(update=shorter))
    return _job("student", config, recipe, config.method, drops, teacher, start, banks)


def _job(
    name: str,
    config: Config,
    recipe: Recipe,
    method: MethodSettings,
    drops: Sequence[Path],
    teacher: Path | None = None,
    start: WarmStart | None = None,
    banks: Sequence[Path] | None = None,
) -> Job:
    shared = (config.data.augment, config.sigma, config.seed, config.runtime)
    return Job(name, recipe, method, drops, teacher, start, banks, *shared)


def fit(job: Job, files: Files, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
    """Train a model, and write it.

    The results are the last epoch's means over the training batches, the number of parameters, of epochs, of
    images and of those left out since the method needs labels, whether training started from another model's
    weights, how many views of an image the banks hold, and the precision.

    Under torchrun the processes train together, and rank 0 writes. A killed training continues from its last
    checkpoint.

    Args:
        job: What is trained. Its teacher is left alone by a method that learns without one. So is a start of
            another architecture, which standard error says: then training starts from random weights.
        files: Where the outputs go.
        checkpoint_seconds: At most one checkpoint is written in so many seconds.

    Raises:
        UserError: Drops, teacher, start or banks are missing, do not fit each other or the settings, or the
            loss is not finite.
    """
    training = prepare_training(job, files.work)
    progress = train(
        training.model,
        training.method,
        training.batches,
        training.recipe,
        name=job.name,
        sigma=job.sigma,
        seed=job.seed,
        fabric=training.fabric,
        compile_model=job.runtime.compile,
        work=training.work,
        log=files.log,
        checkpoint_seconds=checkpoint_seconds,
    )
    if training.fabric.global_rank == 0:
        save(training, progress, files)


def prepare_training(job: Job, work: Path) -> Training:
    """Everything up to the first step; `work` is the folder for the resume files of all trainings."""
    kind = methods.find_method(job.method.name)
    stores = [open_store(drop) for drop in job.drops]
    _check_same(stores)
    missing = _without_images(job.name, stores) if kind.needs_labels else []
    device = choose_device(job.runtime.device)
    network = _first_weights(job, stores)
    precision = choose_precision(job.runtime.precision, network.model, stores[0].spec.shape, device)
    fabric = start_fabric(device, precision)
    teacher, moves, views = _teacher(job, kind, stores, fabric.device)
    release = _release(network, kind, fabric.device)
    batches = Batches(
        stores,
        network.recipe.batch_size,
        **job.augment.model_dump(),
        seed=job.seed,
        device=fabric.device,
        labeled_only=kind.needs_labels,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        moves=moves,
    )
    info = _described(job, stores, network, None if teacher is None else job.teacher)
    aside = sum(int(store.validation.sum()) for store in stores)
    facts = {
        "parameters": sum(parameter.numel() for parameter in network.model.parameters()),
        "epochs": network.recipe.epochs,
        "images": batches.count,
        "validation_left_out": aside,
        "unlabelled_left_out": sum(len(store) for store in stores) - aside - batches.count,
        "warm_start": network.start is not None,
        "bank_views": views,
        "precision": precision,
    } | ({"classes_without_images": missing} if missing else {})
    sections = [part.model_dump() for part in (network.recipe, job.method, job.augment)]
    runtime = [fabric.device.type, fabric.world_size, job.runtime.compile]
    code = [*CODE, f"methods/{job.method.name}.py", *(["bank.py"] if views else [])]
    own = resume_folder(work, job.name, [asdict(info), facts, sections, runtime], code)
    method = kind.build(job.method.model_dump(exclude={"name"}), teacher, release)
    return Training(network.model, method, batches, network.recipe, fabric, own, info, facts)


@dataclass(frozen=True)
class _Network:
    """A network with its first weights, its normalization, its recipe and where the weights are from."""

    model: BaseClassifier
    mean: list[float]
    std: list[float]
    recipe: Recipe
    start: Path | None


def _first_weights(job: Job, stores: Sequence[Store]) -> _Network:
    """The network to train, in train mode on the CPU: from the job's start, or with random weights."""
    first, recipe, start = stores[0], job.recipe, job.start
    if start is not None:
        info = load_info(start.model)
        if (info.arch, info.arch_args) == (recipe.arch, recipe.arch_args):
            _check_fits(
                f"the start {start.model}", info, first, job.sigma, "start from another model, or from none"
            )
            model, _ = load_model(start.model)
            # The normalization is a part of the function that the weights were made for.
            return _Network(model.train(), info.mean, info.std, start.recipe, start.model)
        print(
            f"{start.model} is a {info.arch} and the {job.name} a {recipe.arch}, or their arguments differ: "
            f"training starts from random weights, for {recipe.epochs} epochs",
            file=sys.stderr,
        )
    mean, std = mean_and_std(stores)
    torch.manual_seed(derive_seed(job.seed, "weights"))
    model = build_model(recipe.arch, first.spec, recipe.arch_args, mean, std)
    return _Network(model, mean, std, recipe, None)


def _teacher(
    job: Job, kind: methods.Kind, stores: Sequence[Store], device: torch.device
) -> tuple[methods.Teacher | None, Callable[[Tensor, int], Moves] | None, int]:
    """The method's teacher, how it must see the images (None: as they come), and the views of its bank."""
    if kind.teacher is None or job.teacher is None:
        return None, None, 0
    network = load_teacher(job.teacher, stores[0], job.sigma, device)
    if job.banks is None or kind.teacher != "logits":
        return methods.Teacher(network), None, 0
    from crt.bank import Replayed  # here alone: a change of it does not concern training without a bank

    replayed = Replayed(network, stores, job.banks, seed=job.seed, how=job.augment)
    replayed.check(job.sigma, device)
    return replayed, replayed.moves, replayed.views


def _release(network: _Network, kind: methods.Kind, device: torch.device) -> methods.Teacher | None:
    """The model that training starts from, frozen, for a method that can hold on to it."""
    if network.start is None or not kind.release:
        return None
    return methods.Teacher(frozen_teacher(load_model(network.start)[0].to(device)))


def _described(job: Job, stores: Sequence[Store], network: _Network, teacher: Path | None) -> ModelInfo:
    """What is written beside the weights."""
    return ModelInfo(
        arch=network.recipe.arch,
        arch_args=network.recipe.arch_args,
        spec=stores[0].spec,
        mean=network.mean,
        std=network.std,
        sigma=job.sigma,
        method=job.method.name,
        data_fingerprint=fingerprint(stores),
        teacher_fingerprint=None if teacher is None else model_fingerprint(teacher),
        seed=job.seed,
        versions=package_versions(),
        init_fingerprint=None if network.start is None else model_fingerprint(network.start),
    )


def save(training: Training, progress: Progress, files: Files) -> None:
    """Write the model, its results and times, and remove the resume files."""
    save_model(files.model, training.model, training.info)
    # A mean of nothing, such as the accuracy where there are no labels, is null.
    means = {
        part: None if math.isnan(value) else value
        for part, value in progress.rows[-1].items()
        if part not in ("epoch", "lr")
    }
    write_json(files.results, {**means, **training.facts})
    batches, device = training.batches, training.fabric.device
    seen = batches.steps * batches.batch_size * training.recipe.epochs
    times = {
        "seconds": progress.seconds,
        "images_per_second": seen / progress.seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    write_json(files.times, times)
    shutil.rmtree(training.work, ignore_errors=True)


def load_teacher(folder: Path, store: Store, sigma: float, device: torch.device) -> nn.Module:
    """The frozen teacher, made fast; it must have been made for these images and this noise.

    Raises:
        UserError: It is missing or damaged, or made for others.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is missing: train or fetch the teacher first", folder)
    model, info = load_model(folder)
    _check_fits(f"the teacher {folder}", info, store, sigma, "choose another teacher")
    return frozen_teacher(model.to(device))


def frozen_teacher(model: nn.Module) -> nn.Module:
    """A copy of `model` that only infers, made fast: BatchNorm folded, channels-last in memory."""
    return fold_batchnorm(model).to(memory_format=torch.channels_last)


def fingerprint(stores: Sequence[Store]) -> str:
    """SHA-256, hex, of the drops' fingerprints in their order."""
    return hashlib.sha256("".join(store.fingerprint for store in stores).encode()).hexdigest()


def _without_images(name: str, stores: Sequence[Store]) -> list[str]:
    """The classes of which there is no image to learn from, by their names.

    Raises:
        UserError: All are of one class.
    """
    seen = {int(label) for store in stores for label in np.unique(store.labels[~store.validation])} - {-1}
    classes = stores[0].spec.classes
    there = ", ".join(str(store.path) for store in stores)
    if not seen:
        return []  # refused where the batches are made
    if len(seen) == 1:
        raise UserError(
            f"{there} has labeled images of the class {classes[seen.pop()]} alone, so the {name} would learn "
            "nothing: choose a drop of all classes (teacher.drop)"
        )
    missing = [classes[label] for label in range(len(classes)) if label not in seen]
    if missing:
        print(
            f"the {name} cannot learn the class {first_ten(missing)}: "
            f"{there} has no image of it (teacher.drop chooses another drop)",
            file=sys.stderr,
        )
    return missing


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
