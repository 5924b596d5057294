"""Tables on the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def as_text(table: "pd.DataFrame") -> str:
    """A table of strings, two spaces between columns; the rows' names stand left, all else right."""
    widths = [1 + max(map(len, [column, *table[column]])) for column in table]
    return table.to_string(col_space=widths)
