"""`crt releases`: the versions of the artifact `student`, with their metrics and what they changed."""

import json
import sys
from typing import Any

from crt.commands.tables import as_text
from crt.config import Anchored
from crt.errors import UserError
from crt.history import parse_history, version_of
from crt.project import Project
from crt.project.releases import (
    Release,
    candidates,
    lightweight_tags,
    list_releases,
    of_lightweight,
)
from crt.report import formats


def show_releases(project: Project, *, json_lines: bool = False) -> None:
    """Print one line per release: version, day, origin, metrics and verdict; `*` marks the pinned one.

    Below it stand the anchor in use and how many students the pinned release has been compared with.
    """
    releases = list_releases(project)
    if (tags := lightweight_tags(project)) and not json_lines:
        print(of_lightweight(tags), file=sys.stderr)
    if not releases and not json_lines:
        print("no release yet: `crt release` makes one of the student in models/")
        return
    rows = [_row(project, release) for release in releases]
    if json_lines:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    import pandas as pd

    baseline = project.params.pinned.get("baseline")
    pinned = [baseline is not None and release.ref == baseline.ref for release in releases]
    radii = list(dict.fromkeys(radius for row in rows for radius in row["certified_accuracy"]))
    table = pd.DataFrame(
        {
            "version": row["version"],
            "day": row["created"][:10],
            "commit": row["commit"][:8],
            "architecture": row["arch"] or formats.MISSING,
            "drops": _drops(row["drops"]),
            "ACR": formats.radius(row["acr"]),
            "since anchor": _since_anchor(row),
            **{f"at {radius}": formats.percent(row["certified_accuracy"].get(radius)) for radius in radii},
            "gate": row["gate"] or formats.MISSING,
        }
        for row in rows
    )
    table.index = pd.Index(["*" if one else "" for one in pinned])
    print(as_text(table))
    if isinstance(baseline, Anchored):
        reason = baseline.anchor.reason or "the first of its chain"
        print(f"anchor: {version_of(baseline.anchor.ref)} ({reason}); since anchor: change of ACR from it")
    for release, one in zip(releases, pinned, strict=True):
        count = candidates(project, release) if one else None
        if count:
            students = "1 student that was" if count == 1 else f"{count} students that were"
            print(f"{release.version} is the baseline of {students} committed since")


def _row(project: Project, release: Release) -> dict[str, Any]:
    # Before the metrics were few, all of them stood where the few stand now.
    metrics = _at(project, release.tag, "results/certify/student.json")
    metrics |= _at(project, release.tag, "results/certify/details/student.json")
    gate = _at(project, release.tag, "results/gate.json")
    return {
        "version": release.version,
        "created": release.created.isoformat(timespec="seconds"),
        "commit": release.commit,
        "ref": release.ref,
        "arch": release.facts.get("arch"),
        "sigma": release.facts.get("sigma"),
        "drops": release.facts.get("drops", []),
        "acr": metrics.get("acr"),
        "certified_accuracy": metrics.get("certified_accuracy", {}),
        "gate": gate.get("verdict"),
        "baseline": release.facts.get("baseline"),
        "candidates": release.facts.get("candidates"),
        **_past(project, release),
    }


def _past(project: Project, release: Release) -> dict[str, Any]:
    """What the release's own entry in its history says of the releases before it; None where it has none."""
    names = ("change", "anchor", "reason", "since_anchor", "begins")
    try:
        text = project.git("show", f"{release.tag}:./results/gate/history.json")
        found = parse_history(text.encode()).releases[-1].model_dump(include=set(names))
    except (UserError, ValueError):
        found = dict.fromkeys(names)
    return found if release.facts.get("begins") is None else found | {"begins": release.facts["begins"]}


def _since_anchor(row: dict[str, Any]) -> str:
    change = row["since_anchor"]
    return formats.MISSING if change is None else formats.radius_difference(change["acr"])


def _drops(names: list[str]) -> str:
    if not names:
        return formats.MISSING
    return names[0] if len(names) == 1 else f"{len(names)}, to {names[-1]}"


def _at(project: Project, tag: str, path: str) -> dict[str, Any]:
    """A JSON file as it was when that was released; empty where there was none."""
    try:
        found = json.loads(project.git("show", f"{tag}:./{path}"))
    except (UserError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
