"""Decided images on disk while a run goes on: what a kill or a full disk leaves is read back, the rest is repeated."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crt.certification.certificate import Certificate, Row
from crt.errors import UserError


class Journal:
    """Rows of one run, one JSON line each, in one file per process."""

    def __init__(self, work_dir: Path, facts: dict[str, Any], process: int) -> None:
        """facts: all that rows depend on. Rows of other facts lie in another folder and are never read."""
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.folder = work_dir / key[:32]
        self._path = self.folder / f"rows-{process}.jsonl"

    def read(self) -> dict[int, Row]:
        """All rows of all processes, also of an earlier run with another number of them, by idx."""
        rows = (row for path in self.folder.glob("rows-*.jsonl") for row in _read(path))
        return {row.idx: row for row in rows}

    def append(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Write rows as they come; each is in the file before it is passed on.

        Raises:
            UserError: the file cannot be written, for one because the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends a line that a kill has torn
                for row in rows:
                    file.write(json.dumps([row.idx, row.seconds, asdict(row.certificate)]) + "\n")
                    file.flush()
                    yield row
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written ({error.strerror}): "
                "mend that and run the same command again, finished images are kept"
            ) from error

    def remove(self) -> None:
        """Forget the rows; the work folder goes too, unless another run has rows in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()


def _read(path: Path) -> Iterator[Row]:
    """The whole rows of a file; torn lines are passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            idx, seconds, certificate = json.loads(line)
            yield Row(idx, Certificate(**certificate), seconds)
        except (ValueError, TypeError):
            continue
