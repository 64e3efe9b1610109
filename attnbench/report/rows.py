"""Results -> rows of plain values by name, which figures, tables and the saved CSV share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from attnbench import results
from attnbench.estimates import Interval
from attnbench.problem import Direction, Problem
from attnbench.records import Result, Run, Status, budget_share
from attnbench.tables.axes import JOB_AXES, PROBLEM_AXES, said, values_of
from attnbench.tables.contests import by_time, combined, contest, of_time, uncertainty
from attnbench.tables.reasons import kind, reasons, short
from attnbench.units import bytes_text, rate_text, seconds_text

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


def content(sources: Sequence[Source]) -> Content:
    """The rows of some runs. Raises `UserError` for a problem that is none."""
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
        "share": budget_share(result.accuracy, Direction(row["direction"])) if result.accuracy else None,
        "ratio": None,
        "ratio_low": None,
        "ratio_high": None,
    }


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
