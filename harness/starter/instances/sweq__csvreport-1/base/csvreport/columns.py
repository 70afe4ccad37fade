"""What a whole column needs to know before its cells can be printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csvreport.errors import ReportError
from csvreport.table import Cell


@dataclass(frozen=True)
class Style:
    """How the cells of a column are printed."""

    numeric: bool
    decimals: int = 0

    def text(self, cell: Cell) -> str:
        """The cell as it is printed, without padding."""
        return f"{cell:.{self.decimals}f}" if self.numeric else str(cell)

    def pad(self, text: str, width: int) -> str:
        """`text` at its side of a column that is `width` characters wide."""
        return text.rjust(width) if self.numeric else text.ljust(width)


def column_style(cells: Sequence[Cell]) -> Style:
    """The style for a column with these cells."""
    numeric = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
    has_decimals = any(isinstance(cell, float) for cell in cells)
    return Style(numeric, 2 if numeric and has_decimals else 0)


def column_total(name: str, cells: Sequence[Cell]) -> int | float:
    """The sum of the cells; raises `ReportError` when one of them is no number."""
    total: int | float = 0
    for number, cell in enumerate(cells, start=1):
        if isinstance(cell, str):
            raise ReportError(f"column {name!r}, row {number}: {cell!r} is no number")
        total += cell
    return total
