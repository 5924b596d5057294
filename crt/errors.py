"""The exceptions for what a caller can put right, and lists of names in their messages."""

from collections.abc import Sequence
from pathlib import Path


class UserError(ValueError):
    """A wrong input. The message is one sentence that names the argument or file and the remedy.

    Entry points (`crt.cli`, `stages/`) print it without a traceback and exit with status 1.
    """


class WrongTypeError(UserError, TypeError):
    """An argument of the wrong type, such as a list where a tensor belongs."""


class FileError(UserError):
    """A model folder, prepared drop or results file that cannot be used.

    Attributes:
        path: The file or folder. A caller that knows how it is made can name that remedy.
    """

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[type["FileError"], tuple[str, Path]]:
        return type(self), (str(self), self.path)


class MissingFileError(FileError):
    """It is not there."""


class DamagedFileError(FileError):
    """It is there, but its content is not what it should be, or of another version."""


def first_ten(names: Sequence[str], count: int | None = None) -> str:
    """The first ten names, and how many more there are; `count`: of all, where only some are listed."""
    more = (len(names) if count is None else count) - 10
    return ", ".join(names[:10]) + (f" and {more} more" if more > 0 else "")
