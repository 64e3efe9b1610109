"""`Table` -> text for a terminal, and Markdown."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from attnbench.records import Status
from attnbench.tables.axes import said
from attnbench.tables.table import Entry, Grid, Table, clean

LARGEST_GRID = 200
"""Cells of a table at the most; on a terminal a larger one becomes a line a cell."""
MOST_NOTES = 20
"""Reasons below a table on a terminal; the files hold all."""
_GAP = 2
_BOLD, _DIM, _RED, _GREEN, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[1;32m", "\x1b[0m"
_ALARMING = (Status.WRONG, Status.IMPOSSIBLE, Status.CRASHED, Status.FAILED)


def _title(table: Table) -> str:
    return f"{table.title}, in {table.unit}" if table.unit else table.title


def _labels(grid: Grid, table: Table) -> tuple[list[str], list[list[str]]]:
    """Names of the leading columns, and what stands in them; with the units where rows have their own."""
    units = not table.unit and not grid.by_column
    rows = [[clean(v) or "-" for v in row] + [grid.units.get(row, "")] * units for row in grid.rows]
    return [*grid.row_axes, *["unit"] * units], rows


# ---------------------------------------------------------------- Markdown


def _escaped(text: str) -> str:
    """Text that Markdown, with tables and HTML, shows as it is."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # `a_b` is safe, `_a_` is not


def markdown(table: Table) -> str:
    """The whole table as GitHub's Markdown."""
    lines = [f"# {_escaped(_title(table))}", ""]
    if table.common:
        lines += [_escaped(", ".join(table.common)), ""]
    for grid in table.grids:
        if grid.caption:
            lines += [f"## {_escaped(grid.caption)}", ""]
        lines += [*_markdown_grid(grid, table), ""]
    if not table.grids:
        lines += ["No cells.", ""]
    if table.legend:
        lines += [_escaped("; ".join(table.legend)), ""]
    lines += [f"- [{number}] {_escaped(note)}" for number, note in enumerate(table.notes, 1)]
    lines += [f"- no column: {_escaped(line)}" for line in table.absent]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_grid(grid: Grid, table: Table) -> Iterator[str]:
    names, labels = _labels(grid, table)
    heads = []
    for column in grid.columns:
        head = ", ".join(map(said, grid.column_axes, column))
        unit = grid.units.get(column) if grid.by_column and not table.unit else None
        heads.append(_escaped(f"{head}, {unit}" if unit else head))
    yield f"| {' | '.join([*map(_escaped, names), *heads])} |"
    yield f"|{'---|' * len(names)}{'---:|' * len(heads)}"
    for row, label in zip(grid.rows, labels, strict=True):
        entries = [_markdown_entry(grid.entries.get((row, column))) for column in grid.columns]
        yield f"| {' | '.join([*map(_escaped, label), *entries])} |"


def _markdown_entry(entry: Entry | None) -> str:
    if entry is None:
        return ""
    value = f"**{entry.value}**" if entry.mark == "*" else f"{entry.mark}{entry.value}"
    return value + entry.detail


# ---------------------------------------------------------------- text


def text(table: Table, *, width: int = 100, color: bool = False) -> str:
    """The table for a terminal of `width` columns: in parts, or on its side, where it is too wide.

    With more than `LARGEST_GRID` cells a line for each. `color` adds ANSI sequences.
    """

    def painted(line: str, paint: str) -> str:
        return f"{paint}{line}{_PLAIN}" if color else line

    def wrapped(line: str, hang: int = 0) -> list[str]:
        return textwrap.wrap(line, max(width, 40), subsequent_indent=" " * hang, break_on_hyphens=False)

    lines = [painted(line, _BOLD) for line in wrapped(_title(table))]
    together = ", ".join(table.common).replace(" ", "\xa0").replace(",\xa0", ", ")  # no break within an item
    lines += [line.replace("\xa0", " ") for line in wrapped(together)]
    long = sum(len(grid.entries) for grid in table.grids) > LARGEST_GRID
    for grid in table.grids:
        if grid.caption:
            lines += ["", *(painted(line, _BOLD) for line in wrapped(clean(grid.caption)))]
        lines += ["", *(_listed(grid, color) if long else _drawn(grid, table, width, color))]
    lines.append("")
    below = [line for item in table.legend for line in wrapped(item, 2)]
    if not long:
        for place, note in enumerate(table.notes[:MOST_NOTES], 1):
            below += wrapped(f"[{place}] {note}", 4)
        if len(table.notes) > MOST_NOTES:
            below.append(f"... and {len(table.notes) - MOST_NOTES} more reasons in results.csv")
    for line in table.absent:
        below += wrapped(f"no column: {clean(line)}", 4)
    lines += [painted(line, _DIM) for line in below]
    return "\n".join(lines if table.grids else [*lines, "no cells"]).rstrip()


def _cell_len(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int, right: bool) -> str:
    fill = " " * (width - _cell_len(text))
    return fill + text if right else text + fill


class _Column:
    """A column of text: heading and body as wide as their widest line, painted after padding."""

    def __init__(self, heading: Sequence[str], body: Sequence[str], right: bool) -> None:
        self.width = max(map(_cell_len, [*heading, *body]), default=0)
        self.heading = [_padded(line, self.width, right) for line in heading]
        self.body = [_padded(line, self.width, right) for line in body]


def _printed(columns: Sequence[_Column]) -> list[str]:
    rule = ["─" * column.width for column in columns]
    rows = [*zip(*(column.heading for column in columns), strict=True), rule]
    rows += zip(*(column.body for column in columns), strict=True)
    return [(" " * _GAP).join(["", *row]).rstrip() for row in rows]


def _leading(headings: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> list[_Column]:
    columns = [[*column] for column in zip(*rows, strict=True)]
    return [
        _Column(heading, body, right=all(v.isdecimal() for v in body))
        for heading, body in zip(headings, columns, strict=True)
    ]


def _drawn(grid: Grid, table: Table, width: int, color: bool) -> Iterator[str]:
    """The grid as it is where it fits, else on its side where that fits, else in parts."""
    leading, columns = _columns(grid, table, color)
    if _width([*leading, *columns]) > width:
        other = _columns(grid.transposed(), table, color)
        if _width([*other[0], *other[1]]) <= width:
            leading, columns = other
    while columns:
        fitting = 1
        while fitting < len(columns) and _width([*leading, *columns[: fitting + 1]]) <= width:
            fitting += 1
        yield from _printed([*leading, *columns[:fitting]])
        columns = columns[fitting:]
        if columns:
            yield ""


def _width(columns: Sequence[_Column]) -> int:
    return sum(_GAP + column.width for column in columns)


def _columns(grid: Grid, table: Table, color: bool) -> tuple[list[_Column], list[_Column]]:
    names, labels = _labels(grid, table)
    heads = [[clean(v) or "-" for v in column] for column in grid.columns]
    above = [*grid.column_axes]
    if grid.by_column and not table.unit:
        above.append("unit")
        heads = [[*h, grid.units.get(column, "")] for h, column in zip(heads, grid.columns, strict=True)]
    if grid.column_axes == ("implementation",):  # names speak for themselves
        above = []
    height = max(len(above) + bool(above), 1)
    headings = [[""] * (height - 1) + [name] for name in names]
    headings[0][: len(above)] = above
    columns = []
    for head, column in zip(heads, grid.columns, strict=True):
        entries = [grid.entries.get((row, column)) for row in grid.rows]
        body = _entry_texts(entries)
        made = _Column([*head, *[""] * (height - len(head))], body, right=True)
        if color:
            made.body = [_painted(line, e) for line, e in zip(made.body, entries, strict=True)]
        columns.append(made)
    return _leading(headings, labels), columns


def _entry_texts(entries: Sequence[Entry | None]) -> list[str]:
    """Numbers with their details one below the other."""
    detail = max((len(e.detail) for e in entries if e and e.status is Status.OK), default=0)
    return [
        ""
        if entry is None
        else f"{entry.mark}{entry.value}{entry.detail:<{detail if entry.status is Status.OK else 0}}"
        for entry in entries
    ]


def _painted(line: str, entry: Entry | None) -> str:
    if entry is None or (entry.status is Status.OK and entry.mark != "*"):
        return line
    paint = _GREEN if entry.status is Status.OK else _RED if entry.status in _ALARMING else _DIM
    words = line.rstrip()
    return f"{paint}{words}{_PLAIN}{line[len(words) :]}"


def _listed(grid: Grid, color: bool) -> list[str]:
    """A line for each cell."""
    places = [(r, c) for r in grid.rows for c in grid.columns if (r, c) in grid.entries]
    entries = [grid.entries[place] for place in places]
    headings = [[name] for name in (*grid.row_axes, *grid.column_axes)]
    leading = _leading(headings, [[clean(v) or "-" for v in (*row, *column)] for row, column in places])
    body = [f"{'' if entry.mark else ' '}{entry.alone}" for entry in entries]
    last = _Column([" result"], body, right=False)
    if color:
        last.body = [_painted(line, entry) for line, entry in zip(last.body, entries, strict=True)]
    return _printed([*leading, last])
