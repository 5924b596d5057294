"""Certifying a prepared test set: one row per image, streamed, resumable, sharded by image."""

import hashlib
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import crt
from crt.certification.certificate import Row
from crt.certification.journal import Journal
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.table import write_table
from crt.certification.votes import Precision, device_name
from crt.data.store import Store
from crt.devices import choose_device
from crt.errors import UserError
from crt.models.checkpoint import ModelInfo
from crt.processes import finished_together, rank, world_size
from crt.spec import check_fits, to_unit


@dataclass(frozen=True)
class Settings:
    """How a test set is certified. Equal settings, model, data and kind of device give equal certificates."""

    sigma: float  # [0,1] pixel units
    mode: Literal["exact", "adaptive"]
    n0: int
    n: int
    alpha: float
    radii: tuple[float, ...]  # to report, ascending, [0,1] pixel units
    seed: int
    stride: int  # every stride-th image
    max_images: int | None
    skip_misclassified: bool
    allow_sigma_mismatch: bool
    precision: Precision
    compile: bool
    device: str  # auto, cpu, mps, cuda, cuda:<number>
    batch_size: int | None


def certify_store(
    model: nn.Module,
    info: ModelInfo,
    model_fingerprint: str,
    store: Store,
    settings: Settings,
    out_tsv: Path,
    work_dir: Path,
) -> None:
    """Certify the images of a store; write their certificates to `out_tsv` and how they were made to the .json beside it.

    Decided images are kept in `work_dir` until the files are written. After a kill at any moment the same call goes on
    there and ends with the same file, times apart. Under torchrun each process certifies its share and rank 0 writes.

    Raises:
        UserError: model, data and settings do not fit, the disk is full, or a process was lost.
    """
    warnings = _check(info, store, settings)
    device = choose_device(settings.device)
    facts = asdict(settings) | {
        "device": device_name(device),
        "model_fingerprint": model_fingerprint,
        "data_fingerprint": store.fingerprint,
        "versions": {"crt": crt.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    journal = Journal(work_dir, facts | {"code": _code_fingerprint()}, rank())
    images = range(len(store))[:: settings.stride][: settings.max_images]
    with finished_together():
        mine = images[rank() :: world_size()]
        done = journal.read()
        todo = [idx for idx in mine if idx not in done]
        new = journal.append(_certify(model, store, todo, settings, device)) if todo else iter(())
        _show(new, [done[idx] for idx in mine if idx in done], len(mine), store.labels, settings)
    if rank() == 0:
        rows = journal.read()
        missing = [idx for idx in images if idx not in rows]
        if missing:
            raise UserError(
                f"{len(missing)} images are not certified, the first is {missing[0]}: "
                "run the same command again, finished images are kept"
            )
        ordered = [rows[idx] for idx in images]
        spent = {
            "warnings": warnings,
            "seconds": sum(row.seconds for row in ordered),
            "forward_passes": sum(settings.n0 + row.certificate.n for row in ordered),
        }
        write_table(out_tsv, ordered, store.labels.tolist(), store.names, facts | spent)
        journal.remove()


def _check(info: ModelInfo, store: Store, settings: Settings) -> list[str]:
    """What makes certificates doubtful, in words.

    Raises:
        UserError: model, data and settings do not fit together.
    """
    check_fits("the model", info.spec, str(store.path), store.spec, "certify a model of this data set")
    unlabelled = int((store.labels[:: settings.stride][: settings.max_images] < 0).sum())
    if unlabelled:
        raise UserError(f"{store.path} has {unlabelled} unlabelled images: certify on labelled ones only")
    if info.sigma == settings.sigma:
        return []
    mismatch = f"the model was trained with sigma {info.sigma:g} and is certified with {settings.sigma:g}"
    if not settings.allow_sigma_mismatch:
        raise UserError(
            f"{mismatch}: set sigma to {info.sigma:g}, or certify.allow_sigma_mismatch to true if that is meant"
        )
    return [mismatch]


def _certify(
    model: nn.Module, store: Store, idxs: Sequence[int], settings: Settings, device: torch.device
) -> Iterator[Row]:
    """Certify the images at `idxs`; rows come as they are decided, in no particular order."""
    smoothed = SmoothedClassifier(
        model,
        settings.sigma,
        n0=settings.n0,
        n=settings.n,
        alpha=settings.alpha,
        radii=settings.radii if settings.mode == "adaptive" else None,
        seed=settings.seed,
        device=device,
        precision=settings.precision,
        compile=settings.compile,
        batch_size=settings.batch_size,
    )
    images = (
        (to_unit(store.images[idx]), int(store.labels[idx]) if settings.skip_misclassified else None)
        for idx in idxs
    )
    for place, certificate, seconds in smoothed.certify_each(images):
        yield Row(idxs[place], certificate, seconds)


def _show(
    new: Iterator[Row], done: Sequence[Row], total: int, labels: np.ndarray, settings: Settings
) -> None:
    """Draw the rows through, with a line on standard error: images, time left, certified accuracy so far, passes per second."""
    right, shown, passes, began = [0] * len(settings.radii), 0, 0, time.perf_counter()

    def count(row: Row) -> None:
        nonlocal shown
        shown += 1
        if row.correct(labels[row.idx]):
            for place, radius in enumerate(settings.radii):
                right[place] += (row.certificate.radius or 0.0) >= radius

    for row in done:
        count(row)
    with tqdm(total=total, initial=len(done), unit="image", desc="certify", disable=rank() > 0) as bar:
        for row in new:
            count(row)
            passes += settings.n0 + row.certificate.n
            bar.update()
            accuracy = " ".join(
                f"{radius:g}:{hits / shown:.1%}" for radius, hits in zip(settings.radii, right, strict=True)
            )
            speed = passes / (time.perf_counter() - began)
            bar.set_postfix_str(f"certified {accuracy}, {speed:,.0f} passes/s", refresh=False)


def _code_fingerprint() -> str:
    """SHA-256 of the code that decides certificates."""
    package = Path(crt.__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted((package / "certification").glob("*.py")), package / "inference" / "fold.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
