"""The report itself."""

from collections.abc import Collection, Sequence

from csvreport.columns import Style, column_style, column_total
from csvreport.errors import ReportError
from csvreport.table import Table, read_table

_GAP = "  "


def report(text: str, total: Collection[str] = (), sort_by: str | None = None, delimiter: str = ",") -> str:
    """The CSV data `text` as a table.

    total: names of the columns that are summed up in a last row
    sort_by: name of the column by which rows are ordered; None keeps their order
    """
    table = read_table(text, delimiter)
    if sort_by is not None:
        table = _sorted(table, sort_by)
    styles = [column_style(table.column(name)) for name in table.names]
    body = [[style.text(cell) for style, cell in zip(styles, row, strict=True)] for row in table.rows]
    foot = _total_row(table, styles, total)
    widths = [max(map(len, column)) for column in zip(table.names, *body, *foot, strict=True)]
    rule = _GAP.join("-" * width for width in widths)
    lines = [_line(table.names, styles, widths), rule, *(_line(row, styles, widths) for row in body)]
    if foot:
        lines += [rule, *(_line(row, styles, widths) for row in foot)]
    return "\n".join(lines)


def _sorted(table: Table, name: str) -> Table:
    keys = table.column(name)
    order = sorted(range(len(keys)), key=lambda number: (isinstance(keys[number], str), keys[number]))
    return Table(table.names, [table.rows[number] for number in order])


def _total_row(table: Table, styles: Sequence[Style], total: Collection[str]) -> list[list[str]]:
    """The row of totals, in a list that is empty when none is asked for."""
    if not total:
        return []
    sums = {name: column_total(name, table.column(name)) for name in total}
    cells = [style.text(sums[name]) if name in sums else "" for name, style in zip(table.names, styles, strict=True)]
    if table.names[0] in sums:
        raise ReportError("the first column has no total, because it holds the word 'total'")
    return [["total", *cells[1:]]]


def _line(cells: Sequence[str], styles: Sequence[Style], widths: Sequence[int]) -> str:
    padded = (style.pad(cell, width) for cell, style, width in zip(cells, styles, widths, strict=True))
    return _GAP.join(padded).rstrip()
