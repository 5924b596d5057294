"""Resolve a model reference to a model folder."""

from pathlib import Path

from crt.errors import UserError

FORMS = ("path:FOLDER",)


def locate(ref: str, root: Path) -> Path:
    """The model folder that `ref` names; `path:` is relative to the repository's root.

    Raises:
        UserError: an unknown form, or no model folder there.
    """
    form, colon, rest = ref.partition(":")
    if not colon or form != "path" or not rest:
        raise UserError(f"model reference {ref!r} has an unknown form: write {' or '.join(FORMS)}")
    folder = root / rest
    if not (folder / "model.json").is_file():
        raise UserError(
            f"model reference {ref!r}: {folder} holds no model.json; check the path or `dvc pull` it"
        )
    return folder
