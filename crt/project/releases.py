"""Releases: the versions of the artifact `student` that are registered as GTO tags.

A release is one annotated tag, `student@v1.2.0`, on the commit whose dvc.lock names its weights. The tag's
message holds the facts as JSON; metrics and parameters are the files of that commit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from crt.errors import UserError
from crt.project.repository import Project

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
        """The git tag: student@v1.0.0."""
        return f"{ARTIFACT}@{self.version}"

    @property
    def ref(self) -> str:
        """The model reference that names it in this repository, pinned to its weights' bytes."""
        pin = f"#sha256={self.facts['weights_sha256']}" if "weights_sha256" in self.facts else ""
        return f"registry:{self.tag}{pin}"


def list_releases(project: Project) -> list[Release]:
    """Registered versions, the newest first (by version); those withdrawn with `gto deprecate` are left out.

    Raises:
        UserError: it is no git repository.
    """
    return [
        Release(v.version, v.commit_hexsha, v.created_at, _facts(project, f"{ARTIFACT}@{v.version}"))
        for v in _versions(project)
    ]


def next_version(project: Project, bump: Literal["major", "minor", "patch"]) -> str:
    """The version after the newest, counting those that were withdrawn; v1.0.0 after none."""
    from gto.versions import SemVer

    used = _versions(project, active_only=False)
    if not used:
        return FIRST
    return str(SemVer(used[0].version).bump(**{f"bump_{part}": part == bump for part in PARTS}).version)


def withdrawn_at(project: Project, commit: str) -> str | None:
    """The withdrawn version of that commit, which GTO would have come back under its old name."""
    for version in _versions(project, active_only=False):
        if version.commit_hexsha == commit and not version.is_active:
            return str(version.version)
    return None


def _versions(project: Project, active_only: bool = True) -> list[Any]:
    """GTO's versions, the newest first."""
    from gto.registry import GitRegistry

    project.git("rev-parse", "--git-dir")
    with GitRegistry.from_url(str(project.root.resolve())) as registry:
        artifact = registry.find_artifact(ARTIFACT, create_new=True)
        return list(artifact.get_versions(active_only=active_only))


def find_release(project: Project, version: str) -> Release:
    """The release of that version; `latest` is the newest.

    Raises:
        UserError: there is none; those that there are are listed.
    """
    found = list_releases(project)
    if not found:
        raise UserError(
            f"{project.root.resolve()} has no release yet: make one with `crt release`, or `git fetch --tags`"
        )
    for release in found:
        if version in ("latest", release.version):
            return release
    known = ", ".join(release.version for release in found)
    raise UserError(
        f"there is no release {version!r}: choose one of {known}, latest, none or a model reference "
        "(path:PLACE#sha256=..., registry:...), or `git fetch --tags`"
    )


def _facts(project: Project, tag: str) -> dict[str, Any]:
    """The JSON below the first line of the tag's message."""
    _, _, body = project.git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}").partition("\n")
    try:
        found = json.loads(body.partition("-----BEGIN")[0])  # a signature may follow
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
