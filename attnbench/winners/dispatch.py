"""A ranking as a table that a program loads to choose an implementation: Python, JSON or CSV."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attnbench import __version__
from attnbench.errors import UserError
from attnbench.problem import Problem
from attnbench.results import csv_text, problem_axes
from attnbench.tables.axes import JOB_AXES
from attnbench.tables.contests import of_time
from attnbench.winners.ranking import Contest, Ranking

LENGTHS = ("seqlen_q", "seqlen_kv")
ANSWER = (
    *("implementation", "verdict", "tied", "unknown", "median_s", "ci95_low_s", "ci95_high_s"),
    *("workspace_bytes", "problem"),
)
_AS = (("head_dim_v", "head_dim"), ("kv_dtype", "dtype"))
"""Axes that are left out where they are always the same as another one."""


def _axes(one: Contest) -> dict[str, Any]:
    """The values by which a program chooses, as it has them: numbers as such."""
    problem, axes = Problem.parse(one.cell.problem), problem_axes(one.cell.problem)
    lengths = {name: axes.pop(name) for name in LENGTHS}
    return {
        **{name: getattr(one.cell, name) for name in JOB_AXES},
        **axes,
        "descale": problem.descale.value,
        "scale": problem.scale,
        "dropout": problem.dropout,
        "shared_kv": problem.shared_kv,
        **lengths,
    }


def _entry(one: Contest) -> dict[str, Any]:
    best = one.ranked[0]
    time = of_time(best)
    assert time is not None
    return {
        **_axes(one),
        "implementation": best.cell.implementation,
        "verdict": one.verdict.value,
        "tied": [result.cell.implementation for result in one.tied],
        "unknown": [result.cell.implementation for result in one.unknown],
        "median_s": time.location,
        "ci95_low_s": time.low,
        "ci95_high_s": time.high,
        "workspace_bytes": best.memory.workspace_bytes if best.memory else None,
        "problem": one.cell.problem,
    }


def dispatch(ranking: Ranking, dialect: str, run_id: str) -> str:
    """The dispatch table in one of `DIALECTS`. Problems for which nobody was ranked have no entry.

    Raises `UserError` where there is none at all.
    """
    entries = [_entry(one) for one in ranking.contests if one.ranked]
    if not entries:
        raise UserError(
            "there is nothing to dispatch to: no implementation was ranked for any problem",
            hint="`attnbench best` without --emit says why",
        )
    return DIALECTS[dialect](entries, run_id)


def _split(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Axes by which the entries differ, and the values of the others."""
    equal = [name for name, other in _AS if all(entry[name] == entry[other] for entry in entries)]
    names = [name for name in entries[0] if name not in (*ANSWER, *equal)]
    axes = [name for name in names if len({entry[name] for entry in entries}) > 1]
    if len({tuple(entry[axis] for axis in axes) for entry in entries}) < len(entries):
        axes.append("problem")  # batches of unequal lengths
    return axes, {name: entries[0][name] for name in names if name not in axes}


def _json(entries: Sequence[Mapping[str, Any]], run_id: str) -> str:
    axes, fixed = _split(entries)
    kept = [{k: entry[k] for k in dict.fromkeys((*axes, *ANSWER))} for entry in entries]
    made = {"attnbench": __version__, "run": run_id, "fixed": fixed, "axes": axes, "entries": kept}
    return json.dumps(made, indent=1) + "\n"


def _csv(entries: Sequence[Mapping[str, Any]], run_id: str) -> str:
    rows = [
        {"run": run_id, **entry, **{k: " ".join(entry[k]) for k in ("tied", "unknown")}} for entry in entries
    ]
    return csv_text([*rows[0]], rows)


_MODULE = '''\
"""Which attention implementation to call: the fastest right one of each problem of a run, by `attnbench best`."""

import math

RUN = {run!r}
FIXED = {fixed}
"""What all problems have in common."""
AXES = {axes!r}
"""What a key of TABLE holds, in order."""
TABLE = {table}
"""Key -> implementation, verdict (`sure`, `tied`, `only one` or `unsure`), and those as fast."""


def best(**axes):
    """The implementation for a problem of the table. KeyError for another one, TypeError for unknown axes."""
    return TABLE[_key(axes)][0]


def nearest(**axes):
    """As `best`, for the nearest lengths that were measured; all else must be in the table. ValueError for a length of 0."""
    key = _key(axes)
    lengths = [place for place, axis in enumerate(AXES) if axis in {lengths!r}]
    for place in lengths:
        if not key[place] or key[place] < 0:
            raise ValueError(f"{{AXES[place]}} must be above 0, got {{key[place]!r}}")

    def far(other):
        if any(not b if place in lengths else a != b for place, (a, b) in enumerate(zip(key, other))):
            return math.inf
        return sum(abs(math.log(key[place] / other[place])) for place in lengths)

    found = min(TABLE, key=far)
    if far(found) == math.inf:
        raise KeyError(key)
    return TABLE[found][0]


def _key(axes):
    if unknown := axes.keys() - FIXED.keys() - set(AXES):
        raise TypeError(f"no axis {{', '.join(sorted(unknown))}}; there are {{', '.join((*AXES, *FIXED))}}")
    if missing := [axis for axis in AXES if axis not in axes]:
        raise TypeError(f"{{', '.join(missing)}} must be given")
    if other := {{name: axes[name] for name in FIXED if name in axes and axes[name] != FIXED[name]}}:
        raise KeyError(f"not in the table: {{other}}")
    return tuple(axes[axis] for axis in AXES)
'''


def _literal(pairs: Mapping[Any, Any]) -> str:
    """A dict as source, a line an item."""
    return "\n".join(["{", *(f"    {key!r}: {value!r}," for key, value in pairs.items()), "}"])


def _python(entries: Sequence[Mapping[str, Any]], run_id: str) -> str:
    axes, fixed = _split(entries)
    table = {
        tuple(entry[axis] for axis in axes): (entry["implementation"], entry["verdict"], (*entry["tied"],))
        for entry in entries
    }
    return _MODULE.format(
        run=run_id, fixed=_literal(fixed), axes=(*axes,), table=_literal(table), lengths=LENGTHS
    )


DIALECTS: Mapping[str, Callable[[Sequence[Mapping[str, Any]], str], str]] = {
    "python": _python,
    "json": _json,
    "csv": _csv,
}
