"""Results -> rows of plain values by name, which figures, tables and the saved CSV share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from attnbench import results
from attnbench.estimates import Interval
from attnbench.peaks import Peaks
from attnbench.problem import Direction, Problem
from attnbench.records import Accuracy, Result, Run, Status
from attnbench.tables.axes import JOB_AXES, PROBLEM_AXES, said, values_of
from attnbench.tables.contests import by_time, combined, contest, of_time, uncertainty
from attnbench.tables.reasons import kind, reasons, short
from attnbench.units import bytes_text, rate_text, seconds_text
from attnbench.verify import FACTORS

FIGURES = ("time", "ratio", "winners", "throughput", "memory", "workspace", "accuracy")
"""Names of the figures, in their order on the page."""
FILTERS = ("implementation", "run", "mask", "dtype", "direction", "heads", "head_dim", "seqlen", "modifiers")
"""What a reader may filter by first; other axes that vary follow."""
PANEL_LINE = 34
"""Characters in a line of a panel's heading."""

Row = dict[str, Any]
"""The columns of `results.csv`, None for what is not there, and the names that `_derived` adds."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run under a name that no other run of the report has."""

    name: str
    run: Run
    results: Sequence[Result]


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that a report draws and lists."""

    rows: tuple[Row, ...]
    names: tuple[str, ...]
    """Implementations, those with a time first; a place is a colour and a shape."""
    filters: Mapping[str, tuple[str, ...]]
    """Axis -> its values, where it has several."""
    common: tuple[str, ...]
    """What all cells have in common."""
    reasons: tuple[tuple[str, str], ...]
    """Status and words of each reason; a row's `note` is an index."""
    roofs: tuple[Row, ...] = ()
    """Corners of the roofs, for the figure of throughput."""
    machines: tuple[str, ...] = ()
    """Whose peaks the roofs are."""


def content(sources: Sequence[Source], peaks: Mapping[tuple[str, int], Peaks]) -> Content:
    """The rows of some runs; `peaks` are those of a device's model with so many threads (0 on CUDA).

    Raises `UserError` for a problem that is none.
    """
    found = [(source, result) for source in sources for result in source.results]
    axes = [{"run": source.name, **values_of(result)} for source, result in found]
    varied = [name for name in ("run", *JOB_AXES, *PROBLEM_AXES) if len({a[name] for a in axes}) > 1]
    panels = [name for name in varied if name != "seqlen"]
    base = {result.cell.key: result for result in sources[0].results}
    notes = reasons([result for _, result in found])
    numbers = {key: place for place, key in enumerate(notes)}
    marks: dict[tuple[object, ...], str] = {}
    for source in sources:
        standings = by_time(source.results)
        marks |= {(source.name, *key): mark for key, mark in standings.marks.items()}
    contests: dict[object, int] = {}
    places: dict[str, int] = {}
    rows: list[Row] = []
    for (source, result), axis in zip(found, axes, strict=True):
        panel = _panel(axis, panels)
        row: Row = {name: None if v == "" else v for name, v in results.row(result, source.run).items()}
        row |= {name: axis[name] for name in (*varied, "heads", "seqlen") if name not in row}
        row |= _derived(result, row)
        row |= {
            "run": source.name,
            "panel": panel,
            "panel_at": places.setdefault(panel, len(places)),
            "contest": contests.setdefault((source.name, contest(result)), len(contests)),
            "mark": marks.get((source.name, *result.cell.key), ""),
            "note": numbers[kind(result)] if result.status is not Status.OK else None,
            "roof": " · ".join([row["dtype"], *(said(a, axis[a]) for a in JOB_AXES[:2] if a in varied)]),
        }
        if source is not sources[0] and (before := base.get(result.cell.key)) is not None:
            row |= _ratio(result, before)
        rows.append(row)
    timed = dict.fromkeys(row["implementation"] for row in rows if row["median_s"] is not None)
    lines, machines = _roofs(rows, peaks)
    return Content(
        rows=tuple(rows),
        names=tuple({**timed, **dict.fromkeys(row["implementation"] for row in rows)}),
        filters=_filters(rows, varied),
        common=tuple(
            said(name, axes[0][name])
            for name in (*JOB_AXES, *PROBLEM_AXES)
            if name not in varied and axes[0][name]
        ),
        reasons=tuple((str(note.status), short(note.cells[0].reason, 400)) for note in notes.values()),
        roofs=lines,
        machines=machines,
    )


def _panel(axis: Mapping[str, str], names: Sequence[str]) -> str:
    """What a small multiple is of, in lines; with the queries where they are not as many as the keys."""
    parts = [said(name, axis[name]) for name in names if axis[name] or name in ("mask", "dtype")]
    if axis["seqlen_q"] != axis["seqlen_kv"]:
        parts.append("one query" if axis["seqlen_q"] == "1" else f"{axis['seqlen_q']} queries")
    elif not axis["seqlen_q"]:
        parts.append(short(axis["seqlen"], PANEL_LINE))
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        lines[-1:] = [joined] if len(joined) <= PANEL_LINE or not lines[-1] else [f"{lines[-1]},", part]
    return "\n".join(lines)


@lru_cache(maxsize=4096)
def _longest(text: str) -> int:
    return max((keys for _, keys in Problem.parse(text).sequences), default=0)


def _derived(result: Result, row: Row) -> Row:
    """Numbers and words that follow from one row."""
    time, memory, rate = of_time(result), result.memory, row["flops_per_s"]
    return {
        "precision": f"{row['dtype']}, {row['direction']}",
        "length": _longest(result.cell.problem),
        "time": None if time is None else f"{seconds_text(time.location)}{uncertainty(time)}",
        "rate": None if rate is None else rate_text(rate, "FLOP"),
        "workspace": None if memory is None else bytes_text(memory.workspace_bytes),
        "intensity": row["flops"] / row["least_bytes"] if row["flops"] and row["least_bytes"] else None,
        "share": None
        if result.accuracy is None
        else budget_share(result.accuracy, Direction(row["direction"])),
        "ratio": None,
        "ratio_low": None,
        "ratio_high": None,
    }


def budget_share(accuracy: Accuracy, direction: Direction) -> float:
    """The error over what is allowed: the larger of worst row and whole tensor; above 1 is wrong.

    With gradients a row holds the largest errors of several tensors, each with factors of its own: then it is the
    share of the loosest, and the true one may be larger.
    """
    plain = direction in (Direction.FORWARD, Direction.INFERENCE)
    row, rms = (max(f[i] for n, f in FACTORS.items() if not plain or n == "out") for i in (0, 1))
    return max(
        accuracy.row / (row * accuracy.yardstick_row),
        accuracy.rms / (rms * accuracy.yardstick_rms),
    )


def _ratio(result: Result, base: Result) -> Row:
    if result.timing is None or base.timing is None:
        return {}
    found: Interval = combined(result, base)
    return {"ratio": found.location, "ratio_low": found.low, "ratio_high": found.high}


def _filters(rows: Sequence[Row], varied: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Values by number where they are numbers, else in the order in which they come."""
    found = {}
    for name in (*FILTERS, *(name for name in varied if name not in FILTERS)):
        values = [*dict.fromkeys("" if row.get(name) is None else str(row.get(name)) for row in rows)]
        if all(value.isdecimal() for value in values):
            values.sort(key=int)
        if len(values) > 1:
            found[name] = tuple(values)
    return found


def _roofs(
    rows: Sequence[Row], peaks: Mapping[tuple[str, int], Peaks]
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The corners of each roof over the intensities that its rows have, with its bend."""
    lines, machines = [], {}
    for roof in dict.fromkeys(row["roof"] for row in rows):
        below = [row for row in rows if row["roof"] == roof and row["flops_per_s"] and row["intensity"]]
        keys = {machine(row) for row in below}
        known = peaks.get(keys.pop()) if len(keys) == 1 else None  # of several devices there is none
        if not below or known is None:
            continue
        most, rate = known.flops_limit(_dtype(below[0])), max(known.bytes_per_s.values(), default=None)
        if not most or not rate:
            continue
        machines[known.identity] = None
        low, high = (f(row["intensity"] for row in below) for f in (min, max))
        bend = most / rate
        ends = (min(low, bend) / 1.5, bend, max(high, bend) * 1.5)
        lines += [{"roof": roof, "intensity": x, "limit": min(most, rate * x)} for x in ends]
    return tuple(lines), tuple(machines)


def machine(row: Row) -> tuple[str, int]:
    """What peaks are known by: a device's model, and its threads where it is a CPU."""
    return row["device_name"] or "", 0 if row["device"].startswith("cuda") else row["threads"]


def _dtype(row: Row) -> Any:
    return Problem.parse(row["problem"]).dtype
