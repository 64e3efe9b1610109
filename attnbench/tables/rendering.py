"""`Table` -> text for a terminal, and Markdown."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from attnbench.records import Status
from attnbench.tables.axes import said
from attnbench.tables.reasons import clean
from attnbench.tables.table import Entry, Grid, Table

LARGEST_GRID = 200
"""Cells of a table at the most; on a terminal a larger one becomes a line a cell."""
MOST_NOTES = 20
"""Reasons below a table on a terminal; the files hold all."""
_GAP = 2
_BOLD, _DIM, RED, GREEN, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[1;32m", "\x1b[0m"
_ALARMING = (Status.WRONG, Status.IMPOSSIBLE, Status.CRASHED, Status.FAILED)


def _title(table: Table) -> str:
    return f"{table.title}, in {table.unit}" if table.unit else table.title


def _own_units(grid: Grid, table: Table) -> bool:
    return not table.unit and any(grid.units.values())


def _labels(grid: Grid, table: Table) -> tuple[list[str], list[list[str]]]:
    """Names of the leading columns, and what stands in them; with the units where rows have their own."""
    units = _own_units(grid, table) and not grid.by_column
    rows = [[clean(v) or "-" for v in row] + [grid.units.get(row, "")] * units for row in grid.rows]
    return [*grid.row_axes, *["unit"] * units], rows


# ---------------------------------------------------------------- Markdown


def escaped(text: str) -> str:
    """Text that Markdown, with tables and HTML, shows as it is."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # `a_b` is safe, `_a_` is not


def markdown(table: Table) -> str:
    """The whole table as GitHub's Markdown, with those below it."""
    return "\n".join(["\n".join(_page(table, "#")), *("\n".join(_page(t, "##")) for t in table.below)])


def _page(table: Table, level: str) -> list[str]:
    lines = [f"{level} {escaped(_title(table))}", ""]
    if table.common:
        lines += [escaped(", ".join(table.common)), ""]
    for grid in table.grids:
        if grid.caption:
            lines += [f"{level}# {escaped(grid.caption)}", ""]
        lines += [*_markdown_grid(grid, table), ""]
    if not table.grids:
        lines += ["No cells.", ""]
    if table.legend:
        lines += [escaped("; ".join(table.legend)), ""]
    notes = [f"- [{number}] {escaped(note)}" for number, note in enumerate(table.notes, 1)]
    notes += [f"- no column: {escaped(line)}" for line in table.absent]
    return [*lines, *notes, *[""] * bool(notes)]


def _markdown_grid(grid: Grid, table: Table) -> Iterator[str]:
    names, labels = _labels(grid, table)
    heads = []
    for column in grid.columns:
        head = ", ".join(map(said, grid.column_axes, column))
        unit = grid.units.get(column) if grid.by_column and _own_units(grid, table) else None
        heads.append(escaped(f"{head}, {unit}" if unit else head))
    yield f"| {' | '.join([*map(escaped, names), *heads])} |"
    yield f"|{'---|' * len(names)}{'---:|' * len(heads)}"
    for row, label in zip(grid.rows, labels, strict=True):
        entries = [_markdown_entry(grid.entries.get((row, column))) for column in grid.columns]
        yield f"| {' | '.join([*map(escaped, label), *entries])} |"


def _markdown_entry(entry: Entry | None) -> str:
    if entry is None:
        return ""
    value = f"**{entry.value}**" if entry.mark == "*" else f"{entry.mark}{entry.value}"
    return value + entry.detail


# ---------------------------------------------------------------- text


def text(table: Table, *, width: int = 100, color: bool = False, notes: bool = True) -> str:
    """The table for a terminal of `width` columns, in parts or on its side where it is too wide.

    With more than `LARGEST_GRID` cells a line for each. `color` adds ANSI sequences; without `notes`, the
    reasons stay for `summary`.
    """

    def painted(line: str, paint: str) -> str:
        return f"{paint}{line}{_PLAIN}" if color else line

    def lines_of(line: str, hang: int = 0) -> list[str]:
        return wrapped(line, width, hang)

    lines = [painted(line, _BOLD) for line in lines_of(_title(table))]
    together = ", ".join(table.common).replace(" ", "\xa0").replace(",\xa0", ", ")  # no break within an item
    lines += [line.replace("\xa0", " ") for line in lines_of(together)]
    long = table.size > LARGEST_GRID
    for grid in table.grids:
        if grid.caption:
            lines += ["", *(painted(line, _BOLD) for line in lines_of(clean(grid.caption)))]
        lines += ["", *(_listed(grid, width, color) if long else _drawn(grid, table, width, color))]
    lines.append("")
    below = [line for item in table.legend for line in lines_of(item, 2)]
    for place, note in enumerate(table.notes[:MOST_NOTES] if notes else (), 1):
        below += lines_of(f"[{place}] {note}", 4)
    if notes and len(table.notes) > MOST_NOTES:
        below.append(f"... and {len(table.notes) - MOST_NOTES} more reasons in results.csv")
    for line in table.absent if notes else ():
        below += lines_of(f"no column: {clean(line)}", 4)
    lines += [painted(line, _DIM) for line in below]
    return "\n".join(lines if table.grids else [*lines, "no cells"]).rstrip()


def wrapped(line: str, width: int, hang: int = 0) -> list[str]:
    """A line in lines of `width` columns (40 at the least), all but the first `hang` columns to the right."""
    return textwrap.wrap(line, max(width, 40), subsequent_indent=" " * hang, break_on_hyphens=False)


def cell_len(text: str) -> int:
    """Columns that a text takes on a terminal."""
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int, right: bool) -> str:
    """`text` in `width` columns of a terminal."""
    fill = " " * (width - cell_len(text))
    return fill + text if right else text + fill


class Column:
    """A column of text: heading and body as wide as their widest line, painted after padding."""

    def __init__(self, heading: Sequence[str], body: Sequence[str], right: bool) -> None:
        self.width = max(map(cell_len, [*heading, *body]), default=0)
        self.heading = [padded(line, self.width, right) for line in heading]
        self.body = [padded(line, self.width, right) for line in body]


def printed(columns: Sequence[Column], captions: Sequence[str] = ()) -> list[str]:
    """Columns beside each other; where a row has a caption other than the one before, it goes above."""
    rule = ["─" * column.width for column in columns]
    heading = [
        row for row in zip(*(column.heading for column in columns), strict=True) if any(map(str.strip, row))
    ]
    rows = [*heading, rule]
    lines = [(" " * _GAP).join(["", *row]).rstrip() for row in rows]
    before = ""
    for place, row in enumerate(zip(*(column.body for column in columns), strict=True)):
        if captions and captions[place] != before:
            before = captions[place]
            lines.append(before)
        lines.append((" " * _GAP).join(["", *row]).rstrip())
    return lines


def _leading(headings: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> list[Column]:
    columns = [[*column] for column in zip(*rows, strict=True)]
    return [
        Column(heading, body, right=all(v.isdecimal() for v in body))
        for heading, body in zip(headings, columns, strict=True)
    ]


def _width(columns: Sequence[Column]) -> int:
    return sum(_GAP + column.width for column in columns)


def _captions(axes: Sequence[str], labels: Sequence[Sequence[str]], count: int) -> list[str]:
    """For each row its first `count` axes, in words."""
    if not count:
        return []
    return [", ".join(map(said, axes[:count], label)) for label in labels]


def _drawn(grid: Grid, table: Table, width: int, color: bool) -> list[str]:
    """The grid as it is where it fits, else with headings in several lines, or on its side, else in parts.

    In parts, its first axes may become captions of two rows or more each, where that takes fewer lines.
    """
    several = _columns(grid, table, color, broken=True)
    choices = [_columns(grid, table, color), several, _columns(grid.transposed(), table, color)]
    for leading, columns in choices:
        if _width([*leading, *columns]) <= width:
            return printed([*leading, *columns])
    leading, columns = several
    drawn = []
    for count in range(len(grid.row_axes)):
        captions = _captions(grid.row_axes, [[clean(v) for v in row] for row in grid.rows], count)
        groups = len([*groupby(captions)])
        if captions and (2 * groups > len(grid.rows) or max(map(cell_len, captions)) > width):
            break
        drawn.append(_in_parts(leading[count:], columns, captions, width))
    return min(drawn, key=len)


def _in_parts(
    leading: Sequence[Column], columns: Sequence[Column], captions: Sequence[str], width: int
) -> list[str]:
    lines: list[str] = []
    while columns:
        fitting = 1
        while fitting < len(columns) and _width([*leading, *columns[: fitting + 1]]) <= width:
            fitting += 1
        lines += [*[""] * bool(lines), *printed([*leading, *columns[:fitting]], captions)]
        columns = columns[fitting:]
    return lines


def _broken(name: str, width: int) -> list[str]:
    """A name in lines of `width` columns, broken after hyphens where that is possible."""
    lines = [""]
    for part in re.findall(r"[^-]*-|[^-]+$", name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _columns(
    grid: Grid, table: Table, color: bool, broken: bool = False
) -> tuple[list[Column], list[Column]]:
    names, labels = _labels(grid, table)
    entries = [[grid.entries.get((row, column)) for row in grid.rows] for column in grid.columns]
    bodies = [_entry_texts(column) for column in entries]
    heads = [[clean(v) or "-" for v in column] for column in grid.columns]
    above = [*grid.column_axes]
    if grid.by_column and _own_units(grid, table):
        above.append("unit")
        heads = [[*h, grid.units.get(column, "")] for h, column in zip(heads, grid.columns, strict=True)]
    if grid.column_axes == ("implementation",):  # names speak for themselves
        above = []
        if broken:
            heads = [_broken(h[0], max(map(cell_len, b))) for h, b in zip(heads, bodies, strict=True)]
    height = max(len(above) + bool(above), *map(len, heads), 1)
    headings = [[""] * (height - 1) + [name] for name in names]
    headings[0][: len(above)] = above
    columns = []
    for head, body, column in zip(heads, bodies, entries, strict=True):
        blank = [""] * (height - len(head))
        made = Column([*head, *blank] if above else [*blank, *head], body, right=True)
        if color:
            made.body = [_painted(line, e) for line, e in zip(made.body, column, strict=True)]
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
    paint = GREEN if entry.status is Status.OK else RED if entry.status in _ALARMING else _DIM
    return in_color(line, paint)


def in_color(line: str, paint: str) -> str:
    """A line in a colour, such as `RED`, but for the blanks behind it."""
    words = line.rstrip()
    return f"{paint}{words}{_PLAIN}{line[len(words) :]}"


def _listed(grid: Grid, width: int, color: bool) -> list[str]:
    """A line for each cell; its first axes become captions where they would make it too wide."""
    places = [(r, c) for r in grid.rows for c in grid.columns if (r, c) in grid.entries]
    entries = [grid.entries[place] for place in places]
    axes = (*grid.row_axes, *grid.column_axes)
    labels = [[clean(v) or "-" for v in (*row, *column)] for row, column in places]
    leading = _leading([[name] for name in axes], labels)
    units = [f" {entry.unit}" if entry.unit else "" for entry in entries]
    body = [f"{e.mark or ' '}{e.value}{unit}{e.detail}" for e, unit in zip(entries, units, strict=True)]
    last = [Column([" result"], body, right=False)]
    if any(entry.beside for entry in entries):
        last.append(Column(["workspace"], [entry.beside for entry in entries], right=True))
    count = 0
    while count < len(axes) - 1 and _width([*leading[count:], *last]) > width:
        count += 1
    if color:
        last[0].body = [_painted(line, entry) for line, entry in zip(last[0].body, entries, strict=True)]
    return printed([*leading[count:], *last], _captions(axes, labels, count))
