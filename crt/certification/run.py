"""Certifying a prepared test set: one row per image, streamed, resumable, sharded by image.

An image is certified once for one classifier and one set of settings: rows are kept outside of any pipeline
by all that they depend on, so a test set that has grown costs its new images, and an image that stands in it
twice costs one.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from tqdm import tqdm

import crt
from crt.certification import noise
from crt.certification.certificate import Certificate, Row
from crt.certification.journal import Decided, Journal, code_fingerprint
from crt.certification.smoothing import SmoothedClassifier
from crt.certification.table import write_table
from crt.certification.votes import VoteCounter, device_name
from crt.data.store import Store
from crt.devices import choose_device
from crt.errors import UserError, first_ten
from crt.models.checkpoint import ModelInfo
from crt.processes import finished_together, rank, world_size
from crt.spec import check_fits, check_same

if TYPE_CHECKING:
    from crt.config import Certify

# Options that decide which images are certified, or that stand in the facts as what they amount to.
NOT_OF_A_ROW = ("stride", "max_images", "split", "images", "allow_sigma_mismatch", "batch_size")
PACKAGES = ("numpy", "scipy", "timm", "torch")


def certify_store(
    model: nn.Module,
    info: ModelInfo,
    model_fingerprint: str,
    store: Store,
    options: "Certify",
    out_tsv: Path,
    kept: Path,
    *,
    sigma: float,
    seed: int | None = None,
    device: str = "auto",
    compile: bool = False,  # noqa: A002
) -> None:
    """Certify the images of a store; write `out_tsv`, and how it was made to the .json beside it.

    Decided images are kept in `kept`. After a kill at any moment the same call goes on there and ends with
    the same file, times apart; later calls take over the images whose pixels, classifier and settings are the
    same. Under torchrun each process certifies its share and rank 0 writes.

    Args:
        model: The base classifier.
        info: Its description.
        model_fingerprint: Of its weights and architecture; the noise depends on it.
        store: The images.
        options: How they are certified: the section `certify` of params.yaml.
        out_tsv: Where the certificates go.
        kept: The folder for decided images.
        sigma: Standard deviation of the noise, [0,1] pixel units.
        seed: None: an image's noise is fixed by the model, sigma, mode, alpha, n and its pixels, so nobody
            can choose it. A number is part of that as well, and the certificates say so.
        device: auto, cpu, mps, cuda or cuda:<number>.
        compile: Whether the network is compiled.

    Raises:
        UserError: model, data and settings do not fit, the disk is full, or a process was lost.
    """
    hashes = {idx: image_hash(store.images[idx]) for idx in range(len(store))[:: options.stride]}
    images = chosen_images(hashes, options.max_images)
    warnings = _check(info, store, images, sigma, options.allow_sigma_mismatch)
    smoothed = _smoothed(model, options, sigma, device, compile)
    counter = smoothed.counter(store.spec.shape)
    noise_depends_on = _noise_depends_on(model_fingerprint, sigma, options, seed)
    facts = _facts(smoothed, counter, options, noise_depends_on) | {"sigma": sigma, "compile": compile}
    journal = Journal(kept, _facts_of_a_row(facts), rank())
    keys = {idx: f"{hashes[idx]} {store.labels[idx] if options.skip_misclassified else ''}" for idx in images}
    first = {keys[idx]: idx for idx in reversed(images)}  # of equal images
    with finished_together():
        _certify_share(smoothed, store, journal, first, options, json.dumps(noise_depends_on))
    if rank() != 0:
        return
    done = journal.read()
    made = {
        "data_fingerprint": store.fingerprint,
        "other_batch_size": counter.check and asdict(counter.check),
        "warnings": warnings + smoothed.warnings,
    } | _spent(done, first)
    rows = _rows(done, hashes, keys)
    write_table(out_tsv, rows, store.labels.tolist(), store.names, facts | made)
    journal.keep()


def chosen_images(hashes: Mapping[int, str], max_images: int | None) -> list[int]:
    """The numbers of at most so many images: those with the smallest hashes, in ascending order.

    So they are a sample of all classes, since test sets are often sorted by class, and nearly all of them
    stay when the test set grows.

    Args:
        hashes: Each image's hash, by its number.
        max_images: None: all.
    """
    return sorted(sorted(hashes, key=lambda idx: (hashes[idx], idx))[:max_images])


def _rows(done: dict[str, Decided], hashes: dict[int, str], keys: dict[int, str]) -> list[Row]:
    """One row per image, of equal images the same.

    Raises:
        UserError: images are missing, because a process was lost.
    """
    if missing := [idx for idx, key in keys.items() if key not in done]:
        raise UserError(
            f"{len(missing)} images are not certified, the first is {missing[0]}: "
            "run the same command again, finished images are kept"
        )
    return [Row(idx, hashes[idx], *done[key]) for idx, key in keys.items()]


def _spent(done: dict[str, Decided], images: Iterable[str]) -> dict[str, float]:
    """What the images took; equal images count once."""
    once = [done[image] for image in images if image in done]
    return {
        "seconds": sum(decided.seconds for decided in once),
        "forward_passes": sum(decided.certificate.n0 + decided.certificate.n for decided in once),
    }


def _smoothed(
    model: nn.Module,
    options: "Certify",
    sigma: float,
    device: str,
    compile: bool,  # noqa: A002
) -> SmoothedClassifier:
    return SmoothedClassifier(
        model,
        sigma,
        n0=options.n0,
        n=options.n,
        alpha=options.alpha,
        radii=options.radii if options.mode == "adaptive" else None,
        device=choose_device(device),
        precision=options.precision,
        compile=compile,
        batch_size=options.batch_size,
    )


def _noise_depends_on(
    model_fingerprint: str, sigma: float, options: "Certify", seed: int | None
) -> dict[str, Any]:
    """What fixes an image's noise, beside its pixels."""
    fixed = {
        "model_fingerprint": model_fingerprint,
        "sigma": sigma,
        "mode": options.mode,
        "alpha": options.alpha,
        "n": options.n,
    }
    return fixed if seed is None else fixed | {"seed": seed}


def _facts(
    smoothed: SmoothedClassifier, counter: VoteCounter, options: "Certify", noise_depends_on: dict[str, Any]
) -> dict[str, Any]:
    """How certificates are made, as the .json beside them says it."""
    seed = noise_depends_on.get("seed")
    return options.model_dump() | {
        "device": device_name(counter.device),
        "batch_size": counter.batch_size,  # of the network that is certified, and to be deployed
        "model_fingerprint": noise_depends_on["model_fingerprint"],
        "noise": {
            "kind": noise.KIND,
            "bits": noise.BIT_SOURCE,
            "step": counter.law.step,
            "total_variation": smoothed.charge(counter.shape),
            "depends_on": [*noise_depends_on, "pixels"],
            "seed": None if seed is None else f"{seed:#x}, given by hand",
        },
        "versions": {name: version(name) for name in PACKAGES}
        | {"crt": crt.__version__, "python": platform.python_version()},
    }


def _facts_of_a_row(facts: dict[str, Any]) -> dict[str, Any]:
    """What decides one image's certificate, beside the image."""
    chosen = {key: value for key, value in facts.items() if key not in NOT_OF_A_ROW}
    chosen |= {"batch_size": facts["batch_size"], "code": code_fingerprint()}
    if facts["mode"] == "exact":
        del chosen["radii"]  # reported, and nothing else
    return chosen


def _certify_share(
    smoothed: SmoothedClassifier,
    store: Store,
    journal: Journal,
    first: dict[str, int],
    options: "Certify",
    noise_depends_on: str,
) -> None:
    """Certify this process's share of the images, less those that are in the journal, and keep them there.

    Args:
        smoothed: The classifier.
        store: The images.
        journal: Where decided images are kept.
        first: The number of each image in the store, by its key in the journal.
        options: How they are certified.
        noise_depends_on: What an image's noise depends on, beside its pixels.
    """

    def label(image: str) -> int:
        return int(store.labels[first[image]])

    mine = list(first)[rank() :: world_size()]
    done = journal.read()
    todo = [image for image in mine if image not in done]
    asked = (
        (store.images[first[image]], label(image) if options.skip_misclassified else None) for image in todo
    )
    rows = (
        (todo[place], Decided(certificate, seconds))
        for place, certificate, seconds in smoothed.certify_pixels(asked, noise_depends_on)
    )
    _show(
        journal.append(rows) if todo else iter(()),
        [(image, done[image]) for image in mine if image in done],
        len(mine),
        label,
        options.radii,
    )


def image_hash(pixels: np.ndarray) -> str:
    """What tells images apart: 128 bits of the hash of the pixels [H, W, C], hex."""
    digest = hashlib.sha256(f"{pixels.shape} ".encode() + np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:32]


def _check(
    info: ModelInfo, store: Store, images: Sequence[int], sigma: float, allow_sigma_mismatch: bool
) -> list[str]:
    """What makes certificates doubtful, in words.

    Raises:
        UserError: model, data and settings do not fit together.
    """
    check_fits("the model", info.spec, str(store.path), store.spec, "certify a model of this data set")
    labels = store.labels[list(images)]
    unlabeled = int((labels < 0).sum())
    if unlabeled:
        raise UserError(f"{store.path} has {unlabeled} unlabeled images: certify on labeled ones only")
    missing = [store.spec.classes[label] for label in np.setdiff1d(store.labels, labels) if label >= 0]
    warnings = []
    if missing:
        warnings.append(f"no image of the class {first_ten(missing)} is certified")
    if info.sigma == sigma:
        return warnings
    if not allow_sigma_mismatch:
        remedy = f"set sigma to {info.sigma:g}, or allow_sigma_mismatch to true if that is meant"
        check_same(
            "the model's training", f"{info.sigma:g}", "its certification", f"{sigma:g}", "sigma", remedy
        )
    return [*warnings, f"the model was trained with sigma {info.sigma:g} and is certified with {sigma:g}"]


def _show(
    new: Iterator[tuple[str, Decided]],
    done: Sequence[tuple[str, Decided]],
    total: int,
    label_of: Callable[[str], int],
    radii: Sequence[float],
) -> None:
    """Draw the rows through, with a line on standard error.

    It says images, time left, certified accuracy so far, passes per second.
    """
    right, shown, passes, began = [0] * len(radii), 0, 0, time.perf_counter()

    def count(image: str, certificate: Certificate) -> None:
        nonlocal shown
        shown += 1
        if certificate.correct(label_of(image)):
            for place, radius in enumerate(radii):
                right[place] += (certificate.radius or 0.0) >= radius

    for image, decided in done:
        count(image, decided.certificate)
    with tqdm(total=total, initial=len(done), unit="image", desc="certify", disable=rank() > 0) as bar:
        for image, (certificate, _) in new:
            count(image, certificate)
            passes += certificate.n0 + certificate.n
            bar.update()
            accuracy = " ".join(f"{r:g}:{hits / shown:.1%}" for r, hits in zip(radii, right, strict=True))
            speed = passes / (time.perf_counter() - began)
            bar.set_postfix_str(f"certified {accuracy}, {speed:,.0f} passes/s", refresh=False)
