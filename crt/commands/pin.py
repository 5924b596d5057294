"""`crt pin`: choose the release that students are compared with and that their training starts from."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from crt.config import Config
from crt.drops.layout import read_classes
from crt.errors import UserError
from crt.evaluation.anchor import apart
from crt.history import version_of
from crt.project import Project
from crt.project.choice import Choice, get
from crt.project.releases import (
    ARTIFACT,
    Release,
    check_tags,
    find_release,
    is_shallow,
    list_releases,
)
from crt.project.takeover import take_over
from crt.references.fetch import sha256_of
from crt.references.locate import locate, parse, weights_of

OWN = f"registry:{ARTIFACT}@"  # how references to this repository's releases begin


def pin(project: Project, what: str) -> None:
    """Pin a version of this repository (`v1.0.0`), the newest (`latest`), any model reference, or `none`.

    Raises:
        UserError: There is no such release, or the reference has an unknown form. Nothing is changed then.
    """
    take_over(project)
    ref = None if what == "none" else _reference(project, what)
    release = None if ref is None else _release_of(project, ref)
    choice = project.choice
    set_pins(choice, ref, release.anchor if release else None)
    project.choose(choice)
    print(f"{'nothing' if ref is None else ref} is pinned, as baseline and as start of training")
    if release:
        print(said_anchor(release))
    print("next: `dvc repro`, then `git commit` conf/, params.yaml and dvc.lock with the results")


def set_pins(choice: Choice, ref: str | None, anchor: Mapping[str, Any] | None = None) -> None:
    """Choose a release in all its roles, with the anchor of its successors; None: take that back."""
    for path in (("pinned",), ("certified", "baseline"), ("start", "init"), ("gate", "against")):
        choice.drop(path)
    if ref is not None:
        baseline = {"ref": ref} if anchor is None else {"ref": ref, "anchor": dict(anchor)}
        choice.put(("pinned",), {"init": {"ref": ref}, "baseline": baseline})
        choice.put(("certified", "baseline"), {})
        choice.put(("start", "init"), "init")
        choice.put(("gate", "against"), "baseline")


def unpin_misfits(project: Project, choice: Choice) -> None:
    """Take back pins of a release of this project that does not fit what is chosen now, and say it."""
    ref = get(choice.values, ("pinned", "baseline", "ref"))
    if ref is None or not str(ref).startswith(OWN):
        return
    config = project.composed(choice=choice)[1]
    for release in list_releases(project, prereleases=True):
        if release.ref == ref and (why := _misfit(project, release, config)):
            set_pins(choice, None)
            print(f"{release.tag} is no longer pinned: {why}; release with `crt release --bump major`")


def pin_newest(project: Project, choice: Choice) -> Release | None:
    """Choose the newest release, unless a reference from elsewhere is pinned; None: that changes nothing.

    Raises:
        UserError: The clone is shallow and lacks releases.
    """
    refs = {get(choice.values, ("pinned", role, "ref")) for role in ("init", "baseline")}
    current = get(choice.values, ("pinned", "baseline", "ref"))
    if not (project.root / ".git").exists() or (current is not None and not current.startswith(OWN)):
        return None
    if is_shallow(project):
        check_tags(project)
    releases = list_releases(project)
    if not releases or refs == {releases[0].ref}:
        return None
    if why := _misfit(project, releases[0], project.params):
        print(f"the newest release is not pinned: {why}")
        return None
    set_pins(choice, releases[0].ref, releases[0].anchor)
    return releases[0]


def _misfit(project: Project, release: Release, config: Config) -> str | None:
    """Why a release cannot be compared with what these parameters make, in words; None: no reason is known.

    Its commit's parameters and metrics say what it was made for, so that no model needs to be pulled.
    """
    data = config.data
    now: dict[str, Any] = {
        "image_size": data.image_size,
        "channels": data.channels,
        "sigma": config.sigma,
    }
    try:
        then = yaml.safe_load(project.git("show", f"{release.commit}:./params.yaml"))
        before = {key: then["data"][key] for key in ("image_size", "channels")} | {"sigma": then["sigma"]}
    except (UserError, yaml.YAMLError, KeyError, TypeError):  # made elsewhere, or by an older version
        return None
    with contextlib.suppress(UserError, ValueError, KeyError, TypeError):  # where both say their classes
        tested = json.loads(project.git("show", f"{release.commit}:./results/prepare/test.json"))
        before["classes"], now["classes"] = (
            list(tested["classes"]),
            read_classes(project.root / "data", data.num_classes),
        )
    return apart(now, before, release.version)


def said_anchor(release: Release) -> str:
    """The anchor that comes with a pinned release, in words."""
    if release.anchor is None:
        return f"{release.version} names no certificates, so it has no anchor (`crt anchor` chooses one)"
    reason = release.anchor["reason"] or "the first of its chain"
    return f"anchor: {version_of(release.anchor['ref'])} ({reason}; `crt anchor` chooses another)"


def _release_of(project: Project, ref: str) -> Release | None:
    """The release of this repository that a reference names; None: it names another model."""
    if not ref.startswith(OWN):
        return None
    tag = ref.partition("#")[0].removeprefix("registry:")
    return next((found for found in list_releases(project, prereleases=True) if found.tag == tag), None)


def _reference(project: Project, what: str) -> str:
    own, _, pinned = what.partition("#")
    if own.startswith(OWN) and not pinned:
        what = own.removeprefix(OWN)
    if ":" not in what:
        release = find_release(project, what.removeprefix(f"{ARTIFACT}@"))
        _check_there(project, release)
        if why := _misfit(project, release, project.params):
            raise UserError(
                f"{why}, so it can be neither compared with nor started from: leave it unpinned, and release "
                "with `crt release --bump major`"
            )
        return release.ref
    ref = parse(what)
    if ref.form == "path":
        place = locate(ref, project.root, project.root)
        if ref.sha256 is None:
            raise UserError(
                f"{what} can change, and then the gate would compare with another model: "
                f"write it as {what}#sha256={sha256_of(weights_of(place))}"
            )
    return what


def _check_there(project: Project, release: Release) -> None:
    """Make sure that a release's model can still be had, before it is pinned.

    Raises:
        UserError: DVC has it neither in its cache nor in its remote.
    """
    model = "models/student"
    try:
        recorded = f"{model}\n" in project.git("show", f"{release.commit}:./dvc.lock")
    except UserError:
        return  # a tag that was made by hand, elsewhere
    if recorded:
        try:
            project.read_at(release.commit, f"{model}/model.json")
        except UserError as error:
            raise UserError(
                f"{release.tag} cannot be pinned, since its model is gone ({error}): "
                "restore it with `dvc push` from a clone that has it (`dvc gc` keeps releases only with "
                "--all-tags)"
            ) from None
