"""Get a pinned release: the model, and for the baseline its history and the anchor's certificates.

A release of this project is a commit, which holds more than the model. What the gate needs of it is fetched
here, so that no later stage reads git.
"""

from pathlib import Path

from crt import history
from crt.errors import UserError
from crt.files import replacing, write_text
from crt.references.fetch import sha256_of
from crt.references.locate import copy_model, discard, parse, release_of

ANCHOR = "anchor"  # the folder in the baseline's
MOST_BYTES = {"model.json": 2**24, "certificates.tsv": 2**30, "certificates.json": 2**24}


def copy_pinned(ref: str, root: Path, folder: Path, work: Path) -> None:
    """Copy a pinned model to `folder`.

    Args:
        ref: The model reference.
        root: What paths are relative to.
        folder: The model folder to be written.
        work: A folder for what is being fetched; it goes away.

    Raises:
        UserError: See `crt.references.locate`.
    """
    with replacing(folder) as aside:
        copy_model(ref, root, aside, work)
    discard(work)


def copy_baseline(ref: str, anchor: str | None, root: Path, folder: Path, work: Path) -> None:
    """Copy the pinned baseline to `folder`, with its history and the pinned anchor, where there are such.

    Args:
        ref: The model reference.
        anchor: The reference of the anchor, with the SHA-256 of its certificates.
        root: What paths are relative to.
        folder: The model folder to be written.
        work: A folder for what is being fetched; it goes away.

    Raises:
        UserError: See `crt.references.locate`; the history is damaged; or the anchor's certificates cannot be
            had.
    """
    with replacing(folder) as aside:
        copy_model(ref, root, aside, work)
        if parse(ref).form == "registry":
            _copy_history(ref, root, aside / history.NAME)
        if anchor is not None:
            _copy_anchor(anchor, root, aside / ANCHOR)
    discard(work)


def _copy_history(ref: str, root: Path, target: Path) -> None:
    release = release_of(parse(ref), root)
    if not release.copy_beside("results/gate/history.json", target, history.MOST_BYTES):
        return  # it was made before releases had a history
    try:
        written = history.parse_history(target.read_bytes())
        found = history.released(written, release.version, release.date, release.facts)
    except ValueError as error:
        raise UserError(
            f"{ref.partition('#')[0]} cannot be the baseline, since its history of releases is damaged "
            f"({error}): choose another release"
        ) from None
    write_text(target, found.model_dump_json(indent=2) + "\n")


def _copy_anchor(ref: str, root: Path, folder: Path) -> None:
    """What the gate reads of the anchor: its certificates, their settings, and the facts of its model."""
    wanted = parse(ref)
    release = release_of(wanted, root)
    for name, target in (
        ("models/student/model.json", "model.json"),
        ("certificates/student.tsv", "certificates.tsv"),
        ("certificates/student.json", "certificates.json"),
    ):
        if not release.copy_beside(name, folder / target, MOST_BYTES[target]):
            raise UserError(
                f"the anchor {wanted.text} has no {name}: "
                "choose another with `crt anchor VERSION --reason ...`"
            )
    found = sha256_of(folder / "certificates.tsv")
    if found != wanted.sha256:
        raise UserError(
            f"the certificates of the anchor {wanted.text} have SHA-256 {found} instead of {wanted.sha256}: "
            "choose another with `crt anchor VERSION --reason ...`"
        )
