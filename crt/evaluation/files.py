"""Small result files."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crt.data.files import write_text


def write_json(path: Path, content: Any) -> None:
    """Indented JSON; NaN and infinity are errors."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
    """Comma-separated numbers in full precision under one header line."""
    lines = [",".join(header)] + [",".join(repr(float(value)) for value in row) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def read_csv(path: Path, delimiter: str = ",") -> dict[str, list[str]]:
    """Columns by name."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = next(reader, [])
        rows = [row for row in reader if row]
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}
