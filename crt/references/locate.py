"""Resolve a model reference to a model folder, or to a file of weights, on this machine. Imports no torch."""

import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crt.errors import UserError

if TYPE_CHECKING:
    from crt.references.fetch_dvc import Released

FORMS = (
    "path:PLACE",
    "https://...",
    "hf://REPO@REVISION/FILE",
    "registry:[REPOSITORY:]ARTIFACT@VERSION",
    "dvc:URL",
)
INFO, WEIGHTS = "model.json", "model.safetensors"  # of a model folder; crt.models.checkpoint imports torch
_PIN = "#sha256="


@dataclass(frozen=True)
class Reference:
    """A model reference: its form, the rest of it, and the SHA-256 that pins it, if it has one."""

    text: str
    form: str
    rest: str
    sha256: str | None


def parse(text: str, sha256: str | None = None) -> Reference:
    """Read a reference.

    Args:
        text: The reference, perhaps with its SHA-256 behind it: `path:teacher.pth#sha256=<hex>`.
        sha256: The SHA-256, where it is given apart.

    Raises:
        UserError: An unknown form, no SHA-256, or two different ones.
    """
    ref, pin, behind = text.partition(_PIN)
    form, colon, rest = ref.partition(":")
    if pin and sha256 is not None and behind != sha256:
        raise UserError(
            f"model reference {text!r} and sha256 {sha256} contradict each other: give one of them"
        )
    expected = behind if pin else sha256
    if expected is not None and re.fullmatch(r"[0-9a-f]{64}", expected) is None:
        raise UserError(
            f"sha256 {expected!r} of model reference {ref!r} is no SHA-256: give its 64 hexadecimal digits"
        )
    if not colon or not rest or form not in ("path", "https", "http", "hf", "registry", "dvc"):
        raise UserError(
            f"model reference {ref!r} has an unknown form: write {', '.join(FORMS[:-1])} or {FORMS[-1]}"
        )
    return Reference(ref, form, rest, expected)


def locate(ref: Reference, root: Path, work: Path) -> Path:
    """The model folder, or the file of weights, that `ref` names.

    `path:` is relative to `root`. What lies elsewhere is fetched into `work`, where it is found again, or for
    the hub into the hub's own cache. A SHA-256 is that of the file, or of a folder's weights.

    Raises:
        UserError: It is not there or cannot be fetched, it is not pinned where its source can change, or its
            hash is another one.
    """
    if ref.form == "path":
        place = root / ref.rest
        if not place.is_file() and not (place / INFO).is_file():
            raise UserError(
                f"model reference {ref.text!r}: {place} is no file and holds no {INFO}: "
                "check the path, and that its data is on this machine"
            )
        return _checked(ref, place)
    target = work / hashlib.sha256(f"{ref.text} {ref.sha256}".encode()).hexdigest()[:16]
    if ref.form == "hf":
        return _from_hub(ref)
    if ref.form == "registry":
        return _from_registry(ref, root, target)
    if ref.sha256 is None:
        raise UserError(
            f"model reference {ref.text!r} can change: write #sha256=<hex> behind it, the hash of the file "
            "of weights, or give sha256 beside it"
        )
    if ref.form in ("https", "http"):
        from crt.references.fetch import download

        if not target.is_file():
            download(ref.text, target, ref.sha256)
        return target
    if not target.exists():
        from crt.references.fetch_dvc import get_url

        get_url(ref.rest, root, target)
    return _checked(ref, target)


def weights_of(place: Path) -> Path:
    """The file of weights: in a model folder, or the file itself."""
    return place / WEIGHTS if place.is_dir() else place


def copy_model(text: str, root: Path, folder: Path, work: Path) -> None:
    """Copy the model that a reference names into `folder`, which is there.

    Raises:
        UserError: See `parse` and `locate`; or it is no model folder.
    """
    source = locate(parse(text), root, work)
    if not source.is_dir():
        raise UserError(f"model reference {text!r} is a file: name a model folder, with {INFO} and {WEIGHTS}")
    for name in (INFO, WEIGHTS):
        shutil.copyfile(source / name, folder / name)


def discard(work: Path) -> None:
    """Remove what was fetched."""
    if work.is_dir():
        shutil.rmtree(work)
    else:
        work.unlink(missing_ok=True)


def _checked(ref: Reference, place: Path) -> Path:
    from crt.references.fetch import sha256_of

    if ref.sha256 is not None:
        file = weights_of(place)
        found = sha256_of(file)
        if found != ref.sha256:
            if ref.form != "path":
                discard(place.resolve())  # in the hub's cache, `place` is a link
            raise UserError(
                f"model reference {ref.text!r}: {file} has SHA-256 {found} instead of {ref.sha256}; "
                "check the reference and the hash"
            )
    return place


def _from_hub(ref: Reference) -> Path:
    from crt.references.fetch_hub import get_hub_file, is_commit

    match = re.fullmatch(r"//([\w.-]+(?:/[\w.-]+)?)(?:@([^/]+))?/(.+)", ref.rest)
    if match is None or ".." in ref.rest.split("/"):
        raise UserError(f"model reference {ref.text!r} has an unknown form: write {FORMS[2]}")
    repo, revision, file = match.groups()
    if revision is None:
        raise UserError(
            f"model reference {ref.text!r} has no revision: write hf://{repo}@REVISION/{file}, "
            "best a commit hash"
        )
    if ref.sha256 is None and not is_commit(revision):
        raise UserError(
            f"model reference {ref.text!r} can change, since {revision!r} is no commit hash: give that, "
            "or write #sha256=<hex> behind it"
        )
    place, stated = get_hub_file(repo, file, revision)
    return _checked(replace(ref, sha256=ref.sha256 or stated), place)


def release_of(ref: Reference, root: Path) -> "Released":
    """The version that a reference of the form `registry:` names.

    Raises:
        UserError: There is no such repository, artifact or version.
    """
    from crt.references.fetch_dvc import Released

    name, at, version = ref.rest.rpartition("@")
    if not at or ":" in version or "/" in version:  # the @ of git@host:path, or none
        name, version = ref.rest, ""
    repo, _, artifact = name.rpartition(":")
    is_url = "://" in repo or re.match(r"[\w.-]+@[\w.-]+:", repo) is not None
    return Released(repo if is_url else str((root / repo).resolve()), artifact, version or None)


def _from_registry(ref: Reference, root: Path, target: Path) -> Path:
    if not target.exists():
        release_of(ref, root).copy(target)
    return _checked(ref, target)
