"""Results -> `Table`: every cell in its place, its number in a fitting unit or the reason why there is none."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attnbench.estimates import Interval
from attnbench.records import Result, Status
from attnbench.tables.axes import FOOTPRINT, Label, Layout, layout, said, values_of
from attnbench.tables.contests import NOISY, Key, contest, likeliest_baseline, noisy, uncertainty
from attnbench.tables.quantities import Quantity, legend, quantity
from attnbench.tables.reasons import kind, reasons, without_absent
from attnbench.units import bytes_text, fitting_unit


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands in one place of a grid."""

    status: Status
    value: str
    """A number, or the status in words."""
    detail: str = ""
    """Behind the value: half the interval, or the number of a note."""
    mark: str = ""
    """`*` for the best right value among the implementations of a problem, or `?` where that is not sure; `≈`
    for one that cannot be told apart from it."""
    unit: str = ""
    beside: str = ""
    """Where the table is one of times: the workspace of the same cell."""


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
    """Implementations that can nothing here, and therefore have no column."""
    below: "tuple[Table, ...]" = ()
    """Further tables of the same file, with the same common axes and notes."""

    @property
    def size(self) -> int:
        return sum(len(grid.entries) for grid in self.grids)


By = tuple[str, str] | None
"""Axes of rows and of columns, see `axes`."""


def timing(results: Sequence[Result], *, by: By = None, baseline: str | None = None) -> Table:
    """Times: problems down, implementations across (the baseline first), or the two axes of `by`.

    Where there is a baseline, the table of speed-ups is `below`.
    """
    made = table("time", results, by=by, baseline=baseline)
    names = {result.cell.implementation for result in results if result.status is Status.OK}
    if baseline not in names or len(names) == 1:
        return made
    speedup = table("speedup", results, by=by, baseline=baseline)
    return replace(made, below=(replace(speedup, common=(), notes=(), absent=()),))


def memory(results: Sequence[Result], *, by: By = None, baseline: str | None = None) -> Table:
    """Workspaces, in the shape of `timing`, with the bytes of inputs and of outputs beside each problem."""
    return table("memory", results, by=by, baseline=baseline)


def table(view: str, results: Sequence[Result], *, by: By = None, baseline: str | None = None) -> Table:
    """One of `VIEWS`. Without a baseline that has a time, speed-ups are against what is right most often.

    Raises `UserError` for an unknown view.
    """
    if view == "speedup" and baseline not in {r.cell.implementation for r in results if r.timing}:
        baseline = likeliest_baseline(results)
    of = quantity(view, results, baseline)
    shown, absent = without_absent(results)
    order = {contest(result): place for place, result in reversed([*enumerate(results)])}
    shown.sort(key=lambda r: (order[contest(r)], r.cell.implementation != baseline))
    cells = [values_of(result) for result in shown]
    if view == "memory":
        _add_footprints(cells, shown)
    place = layout(cells, by)
    standings, ends = of.standings(shown), reasons(shown)
    numbers: dict[Key, Interval] = {
        r.cell.key: found for r in shown if r.status is Status.OK and (found := of.interval(r)) is not None
    }

    def entry(result: Result, unit: str, size: float) -> Entry:
        if result.status is not Status.OK:
            detail = f" [{ends[kind(result)].number}]"
            return Entry(status=result.status, value=result.status.value, detail=detail)
        found = numbers.get(result.cell.key)
        if found is None:
            return Entry(status=result.status, value=of.missing)
        return Entry(
            status=result.status,
            value=of.text(found.location / size),
            detail=uncertainty(found) + (f" {NOISY}" if of.timed and noisy(result) else ""),
            mark=standings.marks.get(result.cell.key, ""),
            unit=unit,
            beside=bytes_text(result.memory.workspace_bytes) if view == "time" and result.memory else "",
        )

    parts: dict[Label, list[tuple[Label, Label, Result]]] = defaultdict(list)
    for cell, result in zip(cells, shown, strict=True):
        part, row, column = (
            tuple(cell[a] for a in side) for side in (place.split, place.rows, place.columns)
        )
        parts[part].append((row, column, result))
    grids = tuple(
        replace(_grid(part, place, of, numbers, entry, by), caption=", ".join(map(said, place.split, label)))
        for label, part in parts.items()
    )
    units = {unit for grid in grids for unit in grid.units.values()}
    pairs = {axis for cell in cells for axis in ("heads", "seqlen", "head_dim") if "/" in cell[axis]}
    graded = of.timed and any(noisy(r) for r in shown)
    bare = any(r.timing and r.timing.ci95_low_s is None for r in shown)
    lines = (
        *legend(of, standings, [*numbers.values()], bare, graded),
        "a/b: of queries/of keys and values" if pairs & {"heads", "seqlen"} else "",
        "head_dim a/b: of q and k/of v" if "head_dim" in pairs else "",
    )
    return Table(
        title=of.title,
        common=tuple(said(axis, cells[0][axis]) for axis in place.common),
        legend=tuple(filter(None, lines)),
        unit=units.pop() if len(units) == 1 else "",
        grids=grids,
        notes=tuple(end.note for end in ends.values()),
        absent=tuple(absent),
    )


def _add_footprints(cells: Sequence[dict[str, str]], results: Sequence[Result]) -> None:
    """Gives every cell the bytes of its inputs and of its outputs, as measured by any implementation."""
    found = {
        contest(r): (bytes_text(r.memory.input_bytes), bytes_text(r.memory.output_bytes))
        for r in results
        if r.memory
    }
    for cell, result in zip(cells, results, strict=True):
        cell.update(zip(FOOTPRINT, found.get(contest(result), ("", "")), strict=True))


def _grid(
    part: Sequence[tuple[Label, Label, Result]],
    place: Layout,
    of: Quantity,
    numbers: Mapping[Key, Interval],
    entry: Callable[[Result, str, float], Entry],
    by: By,
) -> Grid:
    """A grid of (row, column, result); implementations that compete with each other share a unit."""
    by_column = "implementation" in place.rows
    values: dict[Label, list[float]] = defaultdict(list)
    for row, column, result in part:
        if found := numbers.get(result.cell.key):
            values[column if by_column else row].append(found.location)
    units = {  # fitting the middle between the smallest and the largest
        label: fitting_unit([math.sqrt(min((v for v in ours if v > 0), default=0) * max(ours))], of.units)
        for label, ours in values.items()
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


def _ordered(labels: Iterable[Label], by: By) -> tuple[Label, ...]:
    """Each label once: in the plan's order, or sorted by axis where axes were asked for.

    An axis of numbers goes by number, any other one in the order in which its values come.
    """
    found = tuple(dict.fromkeys(labels))
    if by is None:
        return found
    ranks = []
    for values in zip(*found, strict=True):
        numeric = all(value.isdecimal() for value in values)
        ranks.append({v: int(v) if numeric else at for at, v in enumerate(dict.fromkeys(values))})
    return tuple(sorted(found, key=lambda label: [rank[v] for rank, v in zip(ranks, label, strict=True)]))
