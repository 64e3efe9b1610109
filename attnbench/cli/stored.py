"""Stored runs for the verbs that read one, with hints where that fails."""

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from attnbench import results
from attnbench.errors import ResultsError, UserError
from attnbench.problem import suggestion
from attnbench.records import Result, Run, Status
from attnbench.tables.axes import AXES, SHAPE, values_of


def load(path: str) -> tuple[Run, list[Result]]:
    """A run from its folder or its CSV; a note on standard error where rows are missing. Raises `ResultsError`."""
    folder = Path(path)
    try:
        run, rows = results.load(folder)
    except ResultsError as error:
        broken = not error.hint or results.CSV in error.message
        if broken and (folder / results.JOURNAL).exists():
            error.hint = f"`attnbench run --resume {folder}` writes the tables again from the journal"
        raise
    if folder.is_dir() and not (folder / results.CSV).exists():
        print(
            f"note: {folder} has no {results.CSV}: these are the rows of its journal, and those not run are missing; "
            f"`attnbench run --resume {folder}` goes on with it",
            file=sys.stderr,
        )
    return run, rows


def check_timed(path: str, rows: Sequence[Result]) -> None:
    """Raises `UserError` where a run has right answers, but no time of any."""
    if any(row.status is Status.OK for row in rows) and not any(row.timing for row in rows):
        raise UserError(
            f"{path}: nothing was timed in this run, its answers were only verified",
            hint=f"`attnbench show {path}` has their errors; times need another --preset than `none`",
        )


def chosen(
    rows: Sequence[Result], only: Sequence[str], without: Sequence[str], where: Sequence[str]
) -> list[Result]:
    """The rows of the implementations that --only takes and --without leaves, and of the cells of --where.

    Raises `UserError`.
    """
    names = dict.fromkeys(row.cell.implementation for row in rows)
    for option, globs in (("--only", only), ("--without", without)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise UserError(
                    f"{option}: no implementation of this run matches `{glob}`", hint=suggestion(glob, names)
                )

    def matches(name: str, globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    kept = {name for name in names if matches(name, only or ["*"]) and not matches(name, without)}
    if not kept:
        raise UserError("--without leaves no implementation of this run", hint="loosen --only or --without")
    wanted = [_condition(text) for text in where]
    found = [row for row in rows if row.cell.implementation in kept and _agrees(row, wanted)]
    if not found:
        raise UserError(
            "no cell agrees with every --where, --only and --without", hint="`attnbench show` lists them"
        )
    return found


def _condition(text: str) -> tuple[str, Sequence[str]]:
    """`mask=causal,full` -> the axis and patterns of its values. Raises `UserError`."""
    name, equals, values = text.partition("=")
    axes = [axis for axis in AXES if axis not in SHAPE]
    if not equals:
        raise UserError(
            f"--where: no value in `{text}`", hint="give an axis and a value, such as mask=causal"
        )
    if name not in axes:
        raise UserError(f"--where: unknown axis `{name}`", hint=suggestion(name, axes))
    return name, values.split(",")


def _agrees(row: Result, wanted: Sequence[tuple[str, Sequence[str]]]) -> bool:
    values = values_of(row) if wanted else {}
    return all(any(fnmatchcase(values[axis], pattern) for pattern in patterns) for axis, patterns in wanted)
