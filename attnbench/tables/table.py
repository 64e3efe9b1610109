"""Results -> `Table`: every cell in its place, its number in a fitting unit or the reason why there is none."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attnbench.records import Result, Status
from attnbench.tables.axes import FOOTPRINT, JOB_AXES, Label, Layout, layout, said, values_of
from attnbench.units import BYTE_UNITS, TIME_UNITS, bytes_text, fitting_unit, number

LONGEST_NOTE = 300
"""Characters of a reason below a table; the CSV holds more."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands in one place of a grid."""

    status: Status
    value: str
    """A number, or the status in words."""
    detail: str = ""
    """Behind the value: half the interval, or the number of a note."""
    mark: str = ""
    """`*` for the least right value among the implementations of a problem; `≈` for one that cannot be told
    apart from it."""
    alone: str = ""
    """The same with its unit or reason."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows and columns, and an entry wherever both have a cell; no two cells share a place."""

    caption: str = ""
    row_axes: tuple[str, ...]
    column_axes: tuple[str, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    entries: Mapping[tuple[Label, Label], Entry]
    units: Mapping[Label, str]
    """The unit of each row; of each column where the implementations stand in rows."""
    by_column: bool

    def transposed(self) -> "Grid":
        return replace(
            self,
            row_axes=self.column_axes,
            column_axes=self.row_axes,
            rows=self.columns,
            columns=self.rows,
            entries={(column, row): entry for (row, column), entry in self.entries.items()},
            by_column=not self.by_column,
        )


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in the parts that its axes split it into, and what holds for all of them."""

    title: str
    common: tuple[str, ...]
    """What all cells have in common."""
    legend: tuple[str, ...]
    unit: str
    """The unit of all numbers; empty where rows or columns have units of their own."""
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    """Reasons; the first is number 1."""
    absent: tuple[str, ...]
    """Implementations that have the same reason everywhere, and therefore no column."""


def _contest(result: Result) -> tuple[object, ...]:
    """What the implementations that compete with each other have in common."""
    return tuple(getattr(result.cell, name) for name in ("problem", *JOB_AXES))


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """What a table shows of a result."""

    title: str
    units: tuple[tuple[str, float], ...]
    value: Callable[[Result], float | None]
    """None where it was not measured."""
    detail: Callable[[Result], str]
    tied: Callable[[Result, Result], bool]
    legend: str


def _interval(result: Result) -> tuple[float, float] | None:
    timing = result.timing
    if timing is None or timing.ci95_low_s is None or timing.ci95_high_s is None:
        return None
    return timing.ci95_low_s, timing.ci95_high_s


def _half_width(result: Result) -> str:
    interval = _interval(result)
    if result.timing is None or interval is None:
        return ""
    percent = 50 * (interval[1] - interval[0]) / result.timing.median_s
    return f" ±{percent:.{1 if percent < 9.95 else 0}f}%"


def _overlap(result: Result, best: Result) -> bool:
    one, other = _interval(result), _interval(best)
    return one is not None and other is not None and one[0] <= other[1]


_TIME = _Quantity(
    title="Time of one call: median ± half of the 95 % interval",
    units=TIME_UNITS,
    value=lambda result: result.timing.median_s if result.timing else None,
    detail=_half_width,
    tied=_overlap,
    legend="* the fastest right answer; ≈ cannot be told apart from it: the intervals overlap",
)
_WORKSPACE = _Quantity(
    title="Workspace of one call: peak memory less inputs and outputs",
    units=BYTE_UNITS,
    value=lambda result: result.memory.workspace_bytes if result.memory else None,
    detail=lambda _: "",
    tied=lambda *_: False,
    legend="* the least workspace of a right answer",
)


def timing(
    results: Sequence[Result], *, by: tuple[str, str] | None = None, baseline: str | None = None
) -> Table:
    """Times: problems down, implementations across (the baseline first), or the two axes of `by`."""
    return _table(results, _TIME, by, baseline)


def memory(
    results: Sequence[Result], *, by: tuple[str, str] | None = None, baseline: str | None = None
) -> Table:
    """Workspaces, in the shape of `timing`, with the bytes of inputs and outputs beside each problem."""
    return _table(results, _WORKSPACE, by, baseline)


def _table(
    results: Sequence[Result], quantity: _Quantity, by: tuple[str, str] | None, baseline: str | None
) -> Table:
    shown, absent = _without_absent(results)
    order = {_contest(result): place for place, result in reversed([*enumerate(results)])}
    shown.sort(key=lambda r: (order[_contest(r)], r.cell.implementation != baseline))
    cells = [values_of(result) for result in shown]
    if quantity is _WORKSPACE:
        _add_footprints(cells, shown)
    place = layout(cells, by)
    marks, reasons = _marks(shown, quantity), _reasons(shown)

    def entry(result: Result, unit: str, size: float) -> Entry:
        value = quantity.value(result)
        if result.status is not Status.OK:
            reason = f"{result.status}: {short(result.reason, 60)}"
            detail = f" [{reasons[result.status, result.reason]}]"
            return Entry(status=result.status, value=result.status.value, detail=detail, alone=reason)
        if value is None:
            return Entry(status=result.status, value="not measured", alone="not measured")
        text, detail, mark = number(value / size), quantity.detail(result), marks.get(result.cell.key, "")
        alone = f"{mark}{text} {unit}{detail}"
        return Entry(status=result.status, value=text, detail=detail, mark=mark, alone=alone)

    parts: dict[Label, list[tuple[Label, Label, Result]]] = defaultdict(list)
    for cell, result in zip(cells, shown, strict=True):
        part, row, column = (
            tuple(cell[a] for a in side) for side in (place.split, place.rows, place.columns)
        )
        parts[part].append((row, column, result))
    grids = tuple(
        replace(_grid(part, place, quantity, entry, by), caption=", ".join(map(said, place.split, label)))
        for label, part in parts.items()
    )
    units = {unit for grid in grids for unit in grid.units.values()}
    pairs = {axis for cell in cells for axis in ("heads", "seqlen", "head_dim") if "/" in cell[axis]}
    open_ended = quantity is _TIME and any(r.timing and not _interval(r) for r in shown)
    legend = (
        quantity.legend if any(marks.values()) else "",
        "no ±: too few blocks for an interval" if open_ended else "",
        "a/b: of queries/of keys and values" if pairs & {"heads", "seqlen"} else "",
        "head_dim a/b: of q and k/of v" if "head_dim" in pairs else "",
    )
    return Table(
        title=quantity.title,
        common=tuple(said(axis, cells[0][axis]) for axis in place.common),
        legend=tuple(filter(None, legend)),
        unit=units.pop() if len(units) == 1 else "",
        grids=grids,
        notes=tuple(f"{status}: {short(reason, LONGEST_NOTE)}" for status, reason in reasons),
        absent=tuple(absent),
    )


def _without_absent(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The results that get a place in the table, and a line for each implementation that gets none."""
    if not any(result.status is Status.OK for result in results):
        return [*results], []
    ends: dict[str, Counter[tuple[Status, str]]] = defaultdict(Counter)
    for result in results:
        ends[result.cell.implementation][result.status, result.reason] += 1
    without = {
        name: f"{name}: {status}: {short(reason, LONGEST_NOTE)}"
        for name, found in ends.items()
        for status, reason in found
        if len(found) == 1 and status in (Status.UNSUPPORTED, Status.UNAVAILABLE)
    }
    return [r for r in results if r.cell.implementation not in without], [*without.values()]


def _add_footprints(cells: Sequence[dict[str, str]], results: Sequence[Result]) -> None:
    """Gives every cell the bytes of its inputs and outputs, as measured by any implementation."""
    found = {
        _contest(result): bytes_text(result.memory.input_bytes + result.memory.output_bytes)
        for result in results
        if result.memory
    }
    for cell, result in zip(cells, results, strict=True):
        cell[FOOTPRINT] = found.get(_contest(result), "")


def _marks(results: Sequence[Result], quantity: _Quantity) -> dict[tuple[object, ...], str]:
    """The mark of each cell key: the least right value of each contest, and what ties with it."""
    contests: dict[tuple[object, ...], list[tuple[float, Result]]] = defaultdict(list)
    for result in results:
        value = quantity.value(result)
        if result.status is Status.OK and value is not None:
            contests[_contest(result)].append((value, result))
    marks: dict[tuple[object, ...], str] = {}
    if len({result.cell.implementation for result in results}) > 1:
        for entered in contests.values():
            least, best = min(entered, key=lambda pair: pair[0])
            for value, result in entered:
                tied = "≈" if quantity.tied(result, best) else ""
                marks[result.cell.key] = "*" if value == least else tied
    return marks


def _reasons(results: Sequence[Result]) -> dict[tuple[Status, str], int]:
    """Reasons and their numbers, in the order of the table."""
    found = dict.fromkeys((r.status, r.reason) for r in results if r.status is not Status.OK)
    return {reason: place for place, reason in enumerate(found, 1)}


def _grid(
    part: Sequence[tuple[Label, Label, Result]],
    place: Layout,
    quantity: _Quantity,
    entry: Callable[[Result, str, float], Entry],
    by: tuple[str, str] | None,
) -> Grid:
    """A grid of (row, column, result); implementations that compete with each other share a unit."""
    by_column = "implementation" in place.rows
    values: dict[Label, list[float]] = defaultdict(list)
    for row, column, result in part:
        value = quantity.value(result)
        if result.status is Status.OK and value is not None:
            values[column if by_column else row].append(value)
    units = {  # fitting the middle between the smallest and the largest
        label: fitting_unit(
            [math.sqrt(min((v for v in found if v > 0), default=0) * max(found))], quantity.units
        )
        for label, found in values.items()
    }
    entries = {
        (row, column): entry(result, *units.get(column if by_column else row, ("", 1.0)))
        for row, column, result in part
    }
    return Grid(
        row_axes=place.rows,
        column_axes=place.columns,
        rows=_ordered((row for row, _, _ in part), by),
        columns=_ordered((column for _, column, _ in part), by),
        entries=entries,
        units={label: unit for label, (unit, _) in units.items()},
        by_column=by_column,
    )


def _ordered(labels: Iterable[Label], by: tuple[str, str] | None) -> tuple[Label, ...]:
    """Each label once: in the plan's order, or by number along a numeric axis that was asked for."""
    found = tuple(dict.fromkeys(labels))
    if by and all(label[0].isdecimal() for label in found):
        return tuple(sorted(found, key=lambda label: int(label[0])))
    return found


def short(text: str, width: int) -> str:
    """`clean` text of at most `width` characters."""
    line = clean(text)
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def clean(text: str) -> str:
    """One line without control characters: they could move a terminal's cursor, or end a Markdown table."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
