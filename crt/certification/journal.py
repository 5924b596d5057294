"""Decided images on disk: what a kill or a full disk leaves is read back.

A later run takes over what has not changed. Rows lie in a folder for all that they depend on beside the
image, one JSON line each, in one file per process.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import crt
from crt.certification.certificate import Certificate
from crt.errors import UserError

KEPT = 20  # folders: the classifiers and settings that were used last
CODE = ("certification", "inference", "models", "spec.py")  # all that certification computes with


class Decided(NamedTuple):
    """An image's certificate and the seconds that it took."""

    certificate: Certificate
    seconds: float


class Journal:
    """The rows of one classifier under one set of settings, by the image that they are of."""

    def __init__(self, root: Path, facts: dict[str, Any], process: int) -> None:
        """Open the folder of these facts.

        facts: all that rows depend on beside the image. Rows of other facts lie in another folder and are
        never read.
        """
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._root, self.folder = root, root / key[:32]
        self._path = self.folder / f"rows-{process}.jsonl"

    def read(self) -> dict[str, Decided]:
        """All rows of all processes, also of earlier runs with another number of them, by image."""
        paths = sorted(self.folder.glob("rows-*.jsonl"))
        return {image: decided for path in paths for image, decided in _read(path)}

    def append(self, rows: Iterable[tuple[str, Decided]]) -> Iterator[tuple[str, Decided]]:
        """Write rows as they come; each is in the file before it is passed on.

        Raises:
            UserError: the file cannot be written, for one because the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends a line that a kill has torn
                for image, decided in rows:
                    file.write(json.dumps([image, decided.seconds, asdict(decided.certificate)]) + "\n")
                    file.flush()
                    yield image, decided
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written ({error.strerror}): "
                "free space or fix its permissions and run the same command again, finished images are kept"
            ) from error

    def keep(self) -> None:
        """Keep these rows for later runs, and of the others those that were used last."""
        if self.folder.exists():
            os.utime(self.folder)
        folders = sorted(self._root.glob("*/"), key=lambda folder: folder.stat().st_mtime)
        for folder in folders[:-KEPT]:
            shutil.rmtree(folder, ignore_errors=True)


def code_fingerprint() -> str:
    """SHA-256 of the code that decides certificates: of certification, and of all that it computes with."""
    package, digest = Path(crt.__file__).parent, hashlib.sha256()
    for name in CODE:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Iterator[tuple[str, Decided]]:
    """The whole rows of a file; torn lines are passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            image, seconds, certificate = json.loads(line)
            yield str(image), Decided(Certificate(**certificate), float(seconds))
        except (ValueError, TypeError):
            continue
