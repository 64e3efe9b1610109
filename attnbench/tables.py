"""Results -> tables that a person reads: `Table`, and its rendering as text and as Markdown."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, groupby
from typing import TYPE_CHECKING

from attnbench.costs import tensor_bytes
from attnbench.errors import UserError
from attnbench.problem import Problem, requests_text, suggestion
from attnbench.records import Result, Status
from attnbench.units import BYTE_UNITS, TIME_UNITS, bytes_text, fitting_unit, number

if TYPE_CHECKING:
    from rich.table import Table as RichTable

LARGEST_GRID = 200
"""Cells of a table at the most; on a terminal a larger one is a line a cell."""
MOST_NOTES = 20
"""Reasons below a table on a terminal; the files hold all."""
LONGEST_NOTE = 300
"""Characters of a reason below a table; the CSV holds more, the journal all of it."""

ATOMS = {
    "seqlen": ("seqlen_q", "seqlen_kv"),
    "heads": ("heads_q", "heads_kv"),
    "head_dims": ("head_dim", "head_dim_v"),
}
"""Axes that stand in one column, such as `32/8`, unless `by` names one of them."""
JOB_AXES = ("device", "threads", "cache", "clock")
PROBLEM_AXES = (
    *("mechanism", "direction", "layout", "batch", "heads", "head_dims", "seqlen", "dtype", "kv_dtype"),
    *("modifiers", "scale", "dropout", "shared_kv", "mask"),
)
AXES = (
    "problem",
    "implementation",
    *JOB_AXES,
    *PROBLEM_AXES,
    *(atom for pair in ATOMS.values() for atom in pair),
)
"""What `by` may name."""

Label = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands in one place of a grid."""

    value: str
    """A number, or a status."""
    detail: str = ""
    """Behind the value: the interval, or the number of a note."""
    best: bool = False
    """The least right value among the implementations of a problem."""
    tied: bool = False
    """Not distinguishable from the best: the intervals overlap."""
    line: str = ""
    """The same with its unit or reason, where it stands alone."""

    @property
    def text(self) -> str:
        mark = "* " if self.best else "≈ " if self.tied else ""
        return f"{mark}{self.value}{self.detail}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows and columns, and an entry where both have a cell. No two cells ever share a place."""

    caption: str
    row_axes: tuple[str, ...]
    column_axes: tuple[str, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    entries: Mapping[tuple[Label, Label], Entry]
    units: Mapping[Label, str]
    """The unit of each row, or of each column where the implementations stand in rows."""
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

    def lines(self) -> tuple[list[list[str]], list[list[str]], list[list[Entry | None]]]:
        """Headings of all columns (each some lines), labels of each row, entries of each row.

        The unit is the last label of a row or the last line of a heading, unless all are the same.
        """
        several = len(set(self.units.values())) > 1
        rows, columns = [[*row] for row in self.rows], [[*column] for column in self.columns]
        names = [*self.row_axes]
        if several and self.by_column:
            for column, label in zip(columns, self.columns, strict=True):
                column.append(self.units.get(label, ""))
        elif several:
            names.append("unit")
            for row, label in zip(rows, self.rows, strict=True):
                row.append(self.units.get(label, ""))
        headings = [[name] for name in names] + columns
        return headings, rows, [[self.entries.get((r, c)) for c in self.columns] for r in self.rows]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in the parts that its axes split it into, with what holds for all of them."""

    title: str
    common: str
    """What all cells have in common."""
    legend: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    """The reasons; the first has the number 1."""
    absent: tuple[str, ...]
    """Implementations without a number anywhere, for one reason; they have no column."""


# ---------------------------------------------------------------- axes


def axes(text: str | None) -> tuple[str, str] | None:
    """`seqlen,implementation` -> the axes of rows and columns. Raises `UserError`."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(
            f"cannot read the axes `{text}`", hint="write two, such as seqlen,implementation: rows, columns"
        )
    for name in names:
        if name not in AXES:
            raise UserError(f"unknown axis `{name}`", hint=suggestion(name, AXES))
    return names[0], names[1]


def _pair(one: object, other: object) -> str:
    return f"{one}" if one == other else f"{one}/{other}"


@lru_cache(maxsize=4096)
def _problem_values(text: str) -> Mapping[str, str]:
    problem = Problem.parse(text)
    q, kv = problem.uniform or ("", "")
    return {
        "problem": text,
        "mechanism": str(problem.mechanism),
        "direction": problem.direction.value,
        "layout": str(problem.layout),
        "batch": str(problem.batch),
        "heads": _pair(problem.heads_q, problem.heads_kv),
        "head_dims": _pair(problem.head_dim, problem.head_dim_v),
        "seqlen": _pair(q, kv) if problem.uniform else requests_text(problem.sequences),
        "dtype": problem.dtype.value,
        "kv_dtype": "" if problem.kv_dtype == problem.dtype else problem.kv_dtype.value,
        "modifiers": problem.modifiers_text,
        "scale": "" if problem.scale is None else f"{problem.scale!r}",
        "dropout": f"{problem.dropout!r}" if problem.dropout else "",
        "shared_kv": "true" if problem.shared_kv else "",
        "mask": str(problem.mask),
        "seqlen_q": str(q),
        "seqlen_kv": str(kv),
        "heads_q": str(problem.heads_q),
        "heads_kv": str(problem.heads_kv),
        "head_dim": str(problem.head_dim),
        "head_dim_v": str(problem.head_dim_v),
    }


def _values(result: Result) -> dict[str, str]:
    """The text of every axis; empty where it is the usual."""
    cell = result.cell
    job = {name: str(getattr(cell, name)) for name in JOB_AXES}
    return {**_problem_values(cell.problem), **job, "implementation": _clean(cell.implementation)}


def _clean(text: str) -> str:
    """One line without control characters, whoever wrote it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
