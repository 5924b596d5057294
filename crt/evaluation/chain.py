"""The student's place in the chain of releases, for its history."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crt.errors import DamagedFileError
from crt.evaluation.certificates import Certificates
from crt.history import Change, Entry, History


def read_model(folder: Path) -> dict[str, Any]:
    """The model.json in a folder, of which architecture, classes, image size, channels and sigma are used.

    Raises:
        DamagedFileError: It is not JSON, or lacks one of them.
    """
    path = folder / "model.json"
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedFileError(f"{path} is not JSON ({error}): get the model again", path) from None
    needed = {"arch", "classes", "image_size", "channels", "sigma"}
    if not isinstance(found, dict) or not needed <= found.keys():
        raise DamagedFileError(f"{path} lacks one of {', '.join(sorted(needed))}: get the model again", path)
    return found


def entry(certificates: Certificates, model: Mapping[str, Any], **known: Any) -> Entry:
    """What a history says of one model: its results, and what else is known of it.

    Args:
        certificates: Its certificates.
        model: Its model.json.
        known: Fields of the entry; the others are None.

    Raises:
        DamagedFileError: A value is none that a history has; of the student, or of a model that was fetched.
    """
    nothing = dict.fromkeys(Entry.model_fields)
    results = {
        "arch": model["arch"],
        "sigma": model["sigma"],
        "acr": float(certificates.right_radius.mean()),
        "certified_accuracy": {
            str(radius): float(certificates.right_at(radius).mean()) for radius in certificates.radii
        },
        "model": certificates.settings.get("model_fingerprint"),
    }
    try:
        return Entry.model_validate(nothing | results | known)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DamagedFileError(
            f"{certificates.source}: {where} of this model cannot stand in a history of releases: "
            "certify it again",
            Path(certificates.source),
        ) from None


def candidate(
    student: Certificates,
    model: Mapping[str, Any],
    drops: Sequence[str],
    result: Mapping[str, Any],
    baseline: str | None,
) -> Entry:
    """The student's own entry, without a version and a date: it may never be released.

    Args:
        student: Its certificates.
        model: Its model.json.
        drops: The deliveries that it was trained on.
        result: What `crt.evaluation.gate.decide` found.
        baseline: The version that it was compared with; None: with none.
    """
    anchor = result.get("anchor")
    begins = None
    if baseline is None:
        begins = "no release was pinned"
    elif anchor is None:
        begins = "the baseline has no anchor"
    elif anchor["begins"] is not None:
        begins, anchor = anchor["begins"], None
    return entry(
        student,
        model,
        drops=list(drops),
        verdict=result["verdict"],
        baseline=baseline,
        change=_change(result.get("vs_baseline")),
        anchor=anchor["version"] if anchor else None,
        reason=anchor["reason"] if anchor else None,
        since_anchor=_change(result.get("vs_anchor")),
        begins=begins,
    )


def _change(differences: Mapping[str, Any] | None) -> Change | None:
    return None if differences is None else Change.model_validate(dict(differences))


def continued(before: History | None, *further: Entry) -> History:
    """A history with further entries."""
    return History(format=1, releases=[*(before.releases if before else ()), *further])
