"""The certificates file: one tab-separated row per image, and a JSON beside it that says how they were made."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crt.certification.certificate import Row
from crt.errors import UserError

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "name", "n_a", "n", "p_lower", "status")


def write_table(
    out: Path, rows: Sequence[Row], labels: Sequence[int], names: Sequence[str], facts: dict[str, Any]
) -> None:
    """Write rows to `out` and `facts` to the .json beside it; labels and names are of the whole store, by idx.

    Numbers have full precision; what a row does not claim is empty. Both files appear whole or not at all.

    Raises:
        UserError: they cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        c, label = row.certificate, labels[row.idx]
        numbers = (row.idx, label, c.predict, c.radius, int(row.correct(label)), round(row.seconds, 6))
        writer.writerow((*numbers, names[row.idx], c.n_a, c.n, c.p_lower, c.status))
    _replace(out.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    _replace(out, text.getvalue())


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): mend that and run the same command again"
        ) from error
