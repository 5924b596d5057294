"""`crt releases` and what it reads: the versions of the artifact `student` that are registered as GTO tags.

A release is one annotated tag, `student@v1.2.0`, on the commit whose dvc.lock names its weights. The tag's message holds the
facts as JSON; metrics and parameters are the files of that commit.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from crt.commands.tables import aligned
from crt.errors import UserError
from crt.report import formats

ARTIFACT = "student"  # its name in dvc.yaml
FIRST = "v1.0.0"
PARTS = ("major", "minor", "patch")


@dataclass(frozen=True)
class Release:
    """A registered version, as its tag and its commit describe it."""

    version: str
    commit: str
    created: datetime
    facts: Mapping[str, Any]  # `crt.commands.release.facts`; empty for a tag that was made by hand

    @property
    def tag(self) -> str:
        return f"{ARTIFACT}@{self.version}"

    @property
    def ref(self) -> str:
        """The model reference that names it in this repository, pinned to its weights' bytes."""
        pin = f"#sha256={self.facts['weights_sha256']}" if "weights_sha256" in self.facts else ""
        return f"registry:{self.tag}{pin}"


def git(root: Path, *arguments: str) -> str:
    """Run git in `root`; its standard output.

    Raises:
        UserError: it failed, with its own words.
    """
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        if "not a git repository" in reason:
            raise UserError(
                f"{root.resolve()} is no git repository: releases are tags of one; run in a clone"
            )
        raise UserError(f"`git {' '.join(arguments)}` failed in {root.resolve()} ({reason})")
    return done.stdout


def list_releases(root: Path) -> list[Release]:
    """Registered versions, the newest first (by version); those withdrawn with `gto deprecate` are left out.

    Raises:
        UserError: `root` is no git repository.
    """
    return [
        Release(v.version, v.commit_hexsha, v.created_at, _facts(root, f"{ARTIFACT}@{v.version}"))
        for v in _versions(root)
    ]


def next_version(root: Path, bump: Literal["major", "minor", "patch"]) -> str:
    """The version after the newest, counting those that were withdrawn; v1.0.0 after none."""
    from gto.versions import SemVer

    used = _versions(root, active_only=False)
    if not used:
        return FIRST
    return str(SemVer(used[0].version).bump(**{f"bump_{part}": part == bump for part in PARTS}).version)


def withdrawn_at(root: Path, commit: str) -> str | None:
    """The withdrawn version of that commit, which GTO would have come back under its old name."""
    for version in _versions(root, active_only=False):
        if version.commit_hexsha == commit and not version.is_active:
            return str(version.version)
    return None


def _versions(root: Path, active_only: bool = True) -> list[Any]:
    """GTO's versions, the newest first."""
    from gto.registry import GitRegistry

    git(root, "rev-parse", "--git-dir")
    with GitRegistry.from_url(str(root.resolve())) as registry:
        artifact = registry.find_artifact(ARTIFACT, create_new=True)
        return list(artifact.get_versions(active_only=active_only))


def find_release(root: Path, version: str) -> Release:
    """The release of that version; `latest` is the newest.

    Raises:
        UserError: there is none; those that there are are listed.
    """
    found = list_releases(root)
    if not found:
        raise UserError(
            f"{root.resolve()} has no release yet: make one with `crt release`, or `git fetch --tags`"
        )
    for release in found:
        if version in ("latest", release.version):
            return release
    known = ", ".join(release.version for release in found)
    raise UserError(
        f"there is no release {version!r}: choose one of {known}, latest, none or a model reference "
        "(path:PLACE#sha256=..., registry:...), or `git fetch --tags`"
    )


def show_releases(root: Path, *, json_lines: bool = False) -> None:
    """Print one line per release: version, day, commit, architecture, drops, metrics, verdict; `*` marks the pinned one."""
    releases = list_releases(root)
    if not releases and not json_lines:
        print("no release yet: `crt release` makes one of the student in models/")
        return
    rows = [_row(root, release) for release in releases]
    if json_lines:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    pinned = _pinned(root)
    radii = list(dict.fromkeys(radius for row in rows for radius in row["certified_accuracy"]))
    lines = [
        ["", "version", "day", "commit", "architecture", "drops", "ACR", *(f"at {r}" for r in radii), "gate"]
    ]
    for release, row in zip(releases, rows, strict=True):
        accuracy = [formats.percent(row["certified_accuracy"].get(radius)) for radius in radii]
        lines.append(
            [
                "*" if release.ref == pinned else "",
                row["version"],
                row["created"][:10],
                row["commit"][:8],
                row["arch"] or formats.MISSING,
                _drops(row["drops"]),
                formats.radius(row["acr"]),
                *accuracy,
                row["gate"] or formats.MISSING,
            ]
        )
    for text in aligned(lines, left=len(lines[0])):
        print(text)


def _row(root: Path, release: Release) -> dict[str, Any]:
    metrics = _at(root, release.tag, "results/certify/student.json")
    gate = _at(root, release.tag, "results/gate.json")
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
    }


def _drops(names: list[str]) -> str:
    if not names:
        return formats.MISSING
    return names[0] if len(names) == 1 else f"{len(names)}, to {names[-1]}"


def _pinned(root: Path) -> str | None:
    from crt.commands.dataset import load_params

    return load_params(root).baseline.ref


def _at(root: Path, tag: str, path: str) -> dict[str, Any]:
    """A JSON file as it was when that was released; empty where there was none."""
    try:
        found = json.loads(git(root, "show", f"{tag}:{path}"))
    except (UserError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _facts(root: Path, tag: str) -> dict[str, Any]:
    """The JSON below the first line of the tag's message."""
    _, _, body = git(root, "for-each-ref", "--format=%(contents)", f"refs/tags/{tag}").partition("\n")
    try:
        found = json.loads(body.partition("-----BEGIN")[0])  # a signature may follow
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
