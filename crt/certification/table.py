"""The certificates file: a tab-separated row per image, and a JSON beside it on how they were made."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crt.certification.certificate import Row
from crt.errors import UserError
from crt.files import write_json, write_text

COLUMNS = (
    "idx",
    "label",
    "predict",
    "radius",
    "correct",
    "time",
    "name",
    "n_a",
    "n",
    "p_lower",
    "status",
    "image",
)


def write_table(
    out: Path, rows: Sequence[Row], labels: Sequence[int], names: Sequence[str], facts: dict[str, Any]
) -> None:
    """Write rows to `out` and `facts` to the .json beside it.

    Labels and names are of the whole store, by idx. Numbers have full precision; what a row does not claim is
    empty. Both files appear whole or not at all.

    Raises:
        UserError: they cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        c, label = row.certificate, labels[row.idx]
        numbers = (row.idx, label, c.predict, c.radius, int(c.correct(label)), round(row.seconds, 6))
        writer.writerow((*numbers, names[row.idx], c.n_a, c.n, c.p_lower, c.status, row.image))
    try:
        write_json(out.with_suffix(".json"), facts)
        write_text(out, text.getvalue())
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): free space or fix its permissions and run the same "
            "command again"
        ) from error
