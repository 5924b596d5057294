"""The exceptions for what a caller can put right."""

from pathlib import Path


class UserError(ValueError):
    """A wrong input. The message is one sentence that names the argument or file and the remedy.

    Entry points (`crt.cli`, `stages/`) print it without a traceback and exit with status 1.
    """


class WrongTypeError(UserError, TypeError):
    """An argument of the wrong type, such as a list where a tensor belongs."""


class MissingFileError(UserError):
    """A file or folder that is needed is not there.

    Attributes:
        path: What is missing. A caller that knows how it is made can say so.
    """

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[type["MissingFileError"], tuple[str, Path]]:
        return type(self), (str(self), self.path)
