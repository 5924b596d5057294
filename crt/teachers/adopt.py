"""Make a fetched model the teacher: fetch, recognize, check on this data, write as a model folder.

What is recognized is told on standard error, and recorded in the model folder and in the results.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crt.config import Config, FetchedTeacher
from crt.data.statistics import mean_and_std
from crt.data.store import Store, open_store
from crt.errors import UserError, first_ten
from crt.files import write_text
from crt.models.build import ENSEMBLE, BaseClassifier, Normalize
from crt.models.checkpoint import ModelInfo, load_info, load_model, save_model
from crt.references.fetch import sha256_of
from crt.references.locate import Reference, discard, locate, parse, weights_of
from crt.spec import check_fits, to_unit
from crt.teachers.check import Probe, cause, noisy_accuracy
from crt.teachers.ensemble import combine
from crt.teachers.normalization import Candidate, Evidence, clear_choice, normalizations, weigh
from crt.teachers.published import Published, build, foreign, in_order, recognize
from crt.teachers.safe_load import load_checkpoint
from crt.training.seeds import derive_seed

PROBE_IMAGES = 1000
STATISTICS_IMAGES = 512

Model = tuple[BaseClassifier, ModelInfo]


def adopt(
    teacher: FetchedTeacher,
    config: Config,
    drop: Path,
    root: Path,
    work: Path,
    device: torch.device,
    *,
    folder: Path,
    results: Path,
) -> None:
    """Fetch the teacher, check it on a prepared drop, and write its model folder and the results.

    Nothing is written unless all is well.

    Args:
        teacher: Where it is, and what its file does not say.
        config: Sigma and seed.
        drop: The prepared drop that it is checked on.
        root: The folder that `path:` references are relative to.
        work: The folder for downloads, removed at the end.
        device: Where it is checked.
        folder: Where the model goes.
        results: Where the facts go, JSON.

    Raises:
        UserError: It cannot be fetched, is no classifier of these images, something must be given that the
            file does not say, or it cannot be used at `config.sigma`; the likely cause is named.
    """
    refs = [teacher.ref] if teacher.ref is not None else teacher.refs  # one is given: see FetchedTeacher
    store = open_store(drop)
    probe = _probe(store, config.seed, device)
    members: list[Model] = []
    found: list[dict[str, Any]] = []
    for text in refs:
        ref = parse(text, teacher.sha256)
        place = locate(ref, root, work)
        model, info, facts = _one(ref, place, teacher, config, store, probe)
        members.append((model, info))
        found.append(facts)
    facts = found[0]
    model, info = members[0]
    if len(members) > 1:
        model, info = combine(members)
        value = noisy_accuracy(model, probe, config.sigma)
        _say(f"ensemble of {len(members)}: {_percent(value)} of noisy training images right")
        facts = {"noisy_accuracy": value, "members": found}
    facts["noisy_images"] = len(probe.labels)
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    save_model(folder, model, info)
    write_text(results, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    discard(work)


def _one(
    ref: Reference, place: Path, teacher: FetchedTeacher, config: Config, store: Store, probe: Probe
) -> tuple[BaseClassifier, ModelInfo, dict[str, Any]]:
    """One model, checked; its description; what was found."""
    sha256 = _pinned(ref, place)
    _say(f"{ref.text} (SHA-256 {sha256})")
    choices = normalizations(store.spec.channels, mean_and_std([store]))
    if place.is_dir():
        model, info = _our_own(place, store, probe.images.device)
        evidence: list[Evidence] = []
        how = "of the model folder"
    else:
        model, info, evidence, how = _published(ref.text, place, teacher, config, store, probe, choices)
    classes = info.spec.classes
    info = replace(info, source={**(info.source or {}), "ref": ref.text, "sha256": sha256})
    value = noisy_accuracy(model, probe, config.sigma)
    facts = {
        "noisy_accuracy": value,
        "ref": ref.text,
        "sha256": sha256,
        "arch": info.arch,
        "classes": list(info.spec.classes),
        "sigma": info.sigma,
        "mean": info.mean,
        "std": info.std,
        "normalization": how,
        "evidence": {e.candidate.name: {"sigma": e.sigma, "mismatch": e.mismatch} for e in evidence},
    }
    named = ", ".join(classes[:3])
    _say(f"{info.arch} with {len(classes)} classes ({named}, ...), trained with sigma {info.sigma:g}")
    _say(f"normalization {how}: mean {_numbers(info.mean)}, std {_numbers(info.std)}")
    _say(f"{_percent(value)} of {len(probe.labels)} noisy training images right at sigma {config.sigma:g}")

    def other_normalizations() -> dict[str, float]:
        if info.arch == ENSEMBLE:
            return {}
        return {
            f"{c.name}: mean {_numbers(c.mean)}, std {_numbers(c.std)}": noisy_accuracy(
                BaseClassifier(Normalize(c.mean, c.std).to(probe.images.device), model.network),
                probe,
                config.sigma,
            )
            for c in choices
        }

    if info.sigma != config.sigma:
        raise UserError(
            f"the teacher {ref.text} was trained with sigma {info.sigma:g} and is to be used at "
            f"{config.sigma:g}: set sigma to {info.sigma:g}, or take another teacher"
        )
    wrong = cause(model, probe, config.sigma, store.spec.classes, value, other_normalizations)
    if wrong is not None:
        raise UserError(f"the teacher {ref.text} cannot be used here: {wrong}")
    return model, info, facts


def _pinned(ref: Reference, place: Path) -> str:
    """The SHA-256 of the weights, which a reference to a file that can change must state."""
    sha256 = sha256_of(weights_of(place))
    if ref.form == "path" and ref.sha256 is None:
        raise UserError(
            f"teacher reference {ref.text!r} can change: its SHA-256 is {sha256} now; if that is the file "
            "you mean, set teacher.sha256 to it, or write it behind the reference as #sha256=..."
        )
    return sha256


def _our_own(folder: Path, store: Store, device: torch.device) -> Model:
    info = load_info(folder)
    check_fits(f"the model {folder}", info.spec, str(store.path), store.spec, "take a teacher of this data")
    model, info = load_model(folder)
    return model.to(device), info


def _published(
    source: str,
    file: Path,
    teacher: FetchedTeacher,
    config: Config,
    store: Store,
    probe: Probe,
    choices: Sequence[Candidate],
) -> tuple[BaseClassifier, ModelInfo, list[Evidence], str]:
    found = recognize(load_checkpoint(file), source, teacher.arch, teacher.arch_args, teacher.entry)
    _say(f"recognized {found.arch} ({found.layout})")
    found = _with_classes(found, source, teacher, store)
    network = build(found, source, store.spec).to(probe.images.device)
    left_alone = found.left_alone + foreign(found.tensors, network.state_dict())
    if left_alone:
        _say(f"left alone, as no part of the network: {first_ten(left_alone)}")
    given = _given(teacher, found, store.spec.channels)
    if given is not None:
        choices = [given[0], *choices]
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "statistics"))
    evidence = weigh(network, probe.images[:STATISTICS_IMAGES], choices, generator)
    _show(evidence)
    chosen = given or _told(source, evidence)
    candidate, how = chosen
    sigma = _sigma(source, teacher, evidence, candidate)
    model = BaseClassifier(Normalize(candidate.mean, candidate.std), network).to(probe.images.device).eval()
    info = ModelInfo(
        arch=found.arch,
        arch_args=found.arch_args,
        spec=store.spec,
        mean=list(candidate.mean),
        std=list(candidate.std),
        sigma=sigma,
        method="published",
        data_fingerprint="unknown",
        teacher_fingerprint=None,
        seed=None,
        versions={},
        source={"layout": found.layout, "epoch": str(found.epoch), "normalization": how},
    )
    return model, info, evidence, how


def _with_classes(found: Published, source: str, teacher: FetchedTeacher, store: Store) -> Published:
    """The checkpoint with its outputs in the order of data/classes.txt."""
    classes = store.spec.classes
    if found.num_classes != len(classes):
        raise UserError(
            f"{source} has {found.num_classes} outputs and data/classes.txt has {len(classes)} classes: "
            "take a teacher of these classes"
        )
    if teacher.classes is None:
        _say("its outputs are taken to be in the order of data/classes.txt (else set teacher.classes)")
        return found
    if sorted(teacher.classes) != sorted(classes):
        different = sorted(set(teacher.classes) ^ set(classes))
        raise UserError(
            "teacher.classes and data/classes.txt name different classes "
            f"({', '.join(different[:3]) or 'one twice'}): give the same names"
        )
    return in_order(found, teacher.classes, classes)


def _given(teacher: FetchedTeacher, found: Published, channels: int) -> tuple[Candidate, str] | None:
    """The normalization layer that the parameters give, or else the file; None: neither does."""
    for front, name, how in (
        (
            None if teacher.mean is None or teacher.std is None else (teacher.mean, teacher.std),
            "given",
            "as given",
        ),
        (found.front, "in the file", "as in the file"),
    ):
        if front is not None:
            mean, std = (tuple(values) if len(values) > 1 else tuple(values) * channels for values in front)
            if not len(mean) == len(std) == channels or min(std) <= 0:
                raise UserError(
                    f"the normalization {name} does not fit {channels} channels: "
                    "set teacher.mean and teacher.std"
                )
            return Candidate(name, mean, std), how
    return None


def _told(source: str, evidence: Sequence[Evidence]) -> tuple[Candidate, str]:
    """The normalization layer that the first BatchNorm's statistics show."""
    best = clear_choice(evidence)
    if best is None:
        near = "; ".join(
            f"{e.candidate.name} (mean {_numbers(e.candidate.mean)}, std {_numbers(e.candidate.std)})"
            for e in evidence[:2]
        )
        why = (
            f"its statistics fit several: {near}"
            if evidence
            else "it has no BatchNorm whose statistics could tell it"
        )
        raise UserError(
            f"{source} does not hold its normalization layer, and {why}; set teacher.mean and teacher.std"
        )
    return best.candidate, best.candidate.name


def _sigma(source: str, teacher: FetchedTeacher, evidence: Sequence[Evidence], candidate: Candidate) -> float:
    best = next((e for e in evidence if e.candidate == candidate), None)
    if teacher.sigma is None:
        hint = (
            f" (its first BatchNorm's statistics fit {best.sigma:g} best)" if best and best.sigma > 0 else ""
        )
        raise UserError(
            f"{source} does not record the sigma of the noise it was trained with: set teacher.sigma{hint}"
        )
    return teacher.sigma


def _probe(store: Store, seed: int, device: torch.device) -> Probe:
    """Labeled images, spread over the drop."""
    labeled = [i for i, label in enumerate(store.labels.tolist()) if label >= 0]
    if len(labeled) < 2:
        raise UserError(
            f"{store.path} has no labeled images to check the teacher on: choose another teacher.drop"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe"))
    chosen = torch.randperm(len(labeled), generator=generator)[:PROBE_IMAGES].tolist()
    index = sorted(labeled[i] for i in chosen)
    images = to_unit(store.images[index])
    order = torch.randperm(len(index), generator=generator)  # a drop may be sorted by class
    noise = torch.randn(images.shape, generator=generator)
    labels = torch.from_numpy(store.labels[index])
    return Probe(images[order].to(device), labels[order].to(device), noise.to(device))


def _show(evidence: Sequence[Evidence]) -> None:
    if evidence:
        _say("first BatchNorm's statistics on noisy training images against what the file holds:")
        print(f"    {'normalization':28} {'sigma':>5}  mismatch", file=sys.stderr)
        for e in evidence:
            print(f"    {e.candidate.name:28} {e.sigma:5g}  {e.mismatch:.4g}", file=sys.stderr)


def _say(text: str) -> None:
    print(f"teacher: {text}", file=sys.stderr)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
