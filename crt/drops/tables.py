"""Tables of text as programs and spreadsheets write them: commas, semicolons or tabs, a BOM, blanks."""

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crt.errors import UserError

_DELIMITERS = "\t;,|"
_BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # Excel's "Unicode text"


@dataclass(frozen=True)
class Table:
    """The lines of a table below its first one, which names the columns.

    Attributes:
        path: The file.
        columns: The names, without blanks around them.
        rows: The number of each line, from 1, and its cells, without blanks around them, one for each column.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]

    def place(self, *names: str) -> int | None:
        """The number of the column that has the first of these names that there is, in any case."""
        columns = [column.casefold() for column in self.columns]
        return next((columns.index(name) for name in names if name in columns), None)


def read_table(path: Path) -> Table:
    """Read a table whose first line names the columns.

    Raises:
        UserError: It is no text in UTF-8 (or UTF-16 with a BOM), is empty, or has more cells than columns.
    """
    lines = list(_lines(path))
    if not lines:
        raise UserError(f"{path} is empty: give a table whose first line names its columns")
    columns = lines[0][1]
    while columns and not columns[-1]:
        columns.pop()
    rows = []
    for number, cells in lines[1:]:
        if any(cells[len(columns) :]):
            raise UserError(
                f"{path}, line {number}: it has {len(cells)} cells for {len(columns)} columns: "
                "quote cells with commas"
            )
        rows.append((number, (cells + [""] * len(columns))[: len(columns)]))
    return Table(path, columns, rows)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, with their numbers."""
    text = read_text(path)
    first = next((line.strip() for line in text.splitlines() if line.strip(_DELIMITERS + " ")), "")
    if not first:
        return
    named = first.casefold().startswith("sep=") and len(first) == 5  # Excel's own first line
    delimiter = first[4] if named else max(_DELIMITERS, key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if named and stripped[:1] == [first.rstrip(delimiter)]:
                named = False
            elif any(stripped):
                yield reader.line_num, stripped
    except csv.Error as error:
        raise UserError(f"{path} is no table ({error}): write it again") from None


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        UserError: It is neither in UTF-8 nor in UTF-16 with a BOM.
    """
    content = path.read_bytes()
    encoding = _BOMS.get(content[:2], "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}): save it again, "
            "in a spreadsheet as `CSV UTF-8`"
        ) from None
    if "\0" in text:
        raise UserError(f"{path} is no text: give a table as a spreadsheet exports it")
    return text
