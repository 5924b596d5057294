"""What a project's user can do about a file that the library misses."""

from pathlib import Path

from crt.errors import FileError, UserError

_FOLDERS = ("banks", "certificates", "data", "models", "prepared", "results")


def explained(error: UserError) -> str:
    """The error's message; for a missing or damaged file of the project, with the command that makes it."""
    folder = _folder_of(error.path) if isinstance(error, FileError) else None
    if folder is None:
        return str(error)
    if folder == "data":
        return f"{error} (`dvc pull` gets what is recorded; `crt get-data` and `crt ingest` add data)"
    return f"{error} (`dvc repro` makes it, `dvc pull` gets it)"


def _folder_of(path: Path) -> str | None:
    """The project's folder that holds the path; None: it lies elsewhere."""
    return next((part for part in reversed(path.parts) if part in _FOLDERS), None)
