"""Releases: the versions of the artifact `student` that are registered as GTO tags.

A release is one annotated tag, `student@v1.2.0`, on the commit whose dvc.lock names its weights. The tag's
message holds the facts as JSON; metrics and parameters are the files of that commit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from crt.errors import UserError, first_ten
from crt.history import parse_history
from crt.project.repository import Project
from crt.references.fetch_dvc import facts_of

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

    @property
    def certificates_ref(self) -> str | None:
        """The reference to its certificates, as an anchor is pinned; None: its tag does not name them."""
        digest = self.facts.get("certificates_sha256")
        return None if digest is None else f"registry:{self.tag}#sha256={digest}"

    @property
    def anchor(self) -> dict[str, Any] | None:
        """The anchor of its successors: its own, or itself where its chain begins; None: there is none."""
        anchor = self.facts.get("anchor")
        if isinstance(anchor, dict):
            return anchor
        return None if self.certificates_ref is None else {"ref": self.certificates_ref, "reason": None}


def list_releases(project: Project, *, prereleases: bool = False) -> list[Release]:
    """Registered versions, the newest first (by version); those withdrawn with `gto deprecate` are left out.

    Args:
        project: The repository.
        prereleases: Also those that were registered by hand, such as v2.0.0-rc.1: they never passed a gate.

    Raises:
        UserError: it is no git repository.
    """
    return [
        Release(v.version, v.commit_hexsha, v.created_at, _facts(project, f"{ARTIFACT}@{v.version}"))
        for v in _versions(project)
        if prereleases or not _is_prerelease(v)
    ]


def next_version(project: Project, bump: Literal["major", "minor", "patch"]) -> str:
    """The version after the newest, counting those that were withdrawn; v1.0.0 after none."""
    from gto.versions import SemVer

    used = [version for version in _versions(project, active_only=False) if not _is_prerelease(version)]
    if not used:
        return FIRST
    return str(SemVer(used[0].version).bump(**{f"bump_{part}": part == bump for part in PARTS}).version)


def withdrawn_at(project: Project, commit: str) -> str | None:
    """The withdrawn version of that commit, which GTO would have come back under its old name."""
    for version in _versions(project, active_only=False):
        if version.commit_hexsha == commit and not version.is_active:
            return str(version.version)
    return None


def check_tags(project: Project) -> None:
    """Refuse a clone that lacks tags of releases, as a shallow one does: its next release would be the first.

    Raises:
        UserError: The remote that HEAD's branch follows, or else origin, has releases that this clone has
            not, or the clone is shallow and the remote cannot be asked.
    """
    remotes = project.git("remote").split()
    branch = project.git("branch", "--show-current").strip()
    follows = project.git("for-each-ref", "--format=%(upstream:remotename)", f"refs/heads/{branch}").strip()
    remote = follows or ("origin" if "origin" in remotes else "")
    if not remote:
        return
    try:
        there = project.git("ls-remote", "--tags", "--refs", remote, f"refs/tags/{ARTIFACT}@*")
    except UserError as error:
        if is_shallow(project):
            raise UserError(
                f"this clone is shallow, and {remote} cannot be asked for the releases that it may lack "
                f"({error}): `git fetch --unshallow --tags`, then run again"
            ) from None
        return  # `git push --atomic` will refuse a version that is there already
    here = set(project.git("tag", "--list", f"{ARTIFACT}@*").split())
    lacking = [name for line in there.splitlines() if (name := line.partition("refs/tags/")[2]) not in here]
    if lacking:
        raise UserError(
            f"{remote} has releases that this clone lacks ({first_ten(lacking)}): "
            "`git fetch --tags`, then run again"
        )


def is_shallow(project: Project) -> bool:
    """Whether git's history is cut off here."""
    return project.git("rev-parse", "--is-shallow-repository").strip() == "true"


def candidates(project: Project, baseline: Release) -> int | None:
    """How many students were compared with a release and committed; None: git's history is cut off here."""
    if is_shallow(project):
        return None
    seen = set()
    name = "results/gate/history.json"
    for commit in project.git("log", "--format=%H", f"{baseline.commit}..HEAD", "--", name).split():
        try:
            last = parse_history(project.git("show", f"{commit}:./{name}").encode()).releases[-1]
        except (UserError, ValueError):  # removed in that commit, or in conflict
            continue
        if last.baseline == baseline.version:
            seen.add(last.model)
    return len(seen)


def _versions(project: Project, active_only: bool = True) -> list[Any]:
    """GTO's versions, the newest first."""
    from gto.registry import GitRegistry

    project.git("rev-parse", "--git-dir")
    with GitRegistry.from_url(str(project.root.resolve())) as registry:
        artifact = registry.find_artifact(ARTIFACT, create_new=True)
        return list(artifact.get_versions(active_only=active_only))


def _is_prerelease(version: Any) -> bool:
    return "-" in version.version


def lightweight_tags(project: Project) -> list[str]:
    """Tags that have a release's name and no message: `git tag` without -a made them, and they are none."""
    form = "--format=%(objecttype) %(refname:short)"
    tags = project.git("for-each-ref", form, f"refs/tags/{ARTIFACT}@*").splitlines()
    return [tag.partition(" ")[2] for tag in tags if tag.startswith("commit ")]


def of_lightweight(tags: list[str]) -> str:
    """What to do about `lightweight_tags`, in a sentence."""
    return (
        f"{', '.join(tags)} has no message, so it is no release: "
        f"`git tag -a -f {tags[0]} {tags[0]}^{{}} -m MESSAGE` makes it one"
    )


def find_release(project: Project, version: str) -> Release:
    """The release of that version; `latest` is the newest, but no prerelease.

    Raises:
        UserError: there is none; those that there are are listed.
    """
    if f"{ARTIFACT}@{version}" in lightweight_tags(project):
        raise UserError(of_lightweight([f"{ARTIFACT}@{version}"]))
    found = list_releases(project)
    if not found and version == "latest":
        raise UserError(
            f"{project.root.resolve()} has no release yet: make one with `crt release`, or `git fetch --tags`"
        )
    for release in [*found, *list_releases(project, prereleases=True)]:
        if version in ("latest", release.version):
            return release
    known = ", ".join(release.version for release in found)
    raise UserError(
        f"there is no release {version!r}: choose one of {known}, latest, none or a model reference "
        "(path:PLACE#sha256=..., registry:...), or `git fetch --tags`"
    )


def _facts(project: Project, tag: str) -> dict[str, Any]:
    """What the tag's message says."""
    return facts_of(project.git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}"))
