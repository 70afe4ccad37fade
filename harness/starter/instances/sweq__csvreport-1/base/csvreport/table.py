"""Tables as read from CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from csvreport.errors import ReportError

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """Named columns, and rows with one cell for each of them."""

    names: list[str]
    rows: list[list[Cell]]

    def column(self, name: str) -> list[Cell]:
        """The cells of one column, from top to bottom; raises `ReportError` when there is no such column."""
        if name not in self.names:
            raise ReportError(f"no column {name!r}; there are {', '.join(self.names)}")
        position = self.names.index(name)
        return [row[position] for row in self.rows]


def read_table(text: str, delimiter: str = ",") -> Table:
    """The table written as `text`, whose first line holds the names of the columns.

    Lines without any cell are passed over.
    """
    lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter) if line]
    if not lines:
        raise ReportError("no line with the names of the columns")
    names, *rows = lines
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise ReportError(f"row {number} has {len(row)} cells instead of {len(names)}")
    return Table([name.strip() for name in names], [[parse_cell(cell) for cell in row] for row in rows])


def parse_cell(text: str) -> Cell:
    """The cell as a number if it is one, otherwise its text without the spaces around it."""
    text = text.strip()
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
