"""`attnbench report`: runs as one HTML file."""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from attnbench import report, results
from attnbench.errors import ResultsError, UserError
from attnbench.problem import suggestion
from attnbench.records import Result
from attnbench.tables.axes import AXES, SHAPE, values_of


def main(arguments: argparse.Namespace) -> int:
    """Write the file, and say where it is. Raises `UserError`."""
    report.require()
    first = Path(arguments.run[0])
    target = Path(arguments.output or (first if first.is_dir() else first.parent) / "report.html")
    if target.suffix != ".html":
        raise UserError(f"-o: a report is HTML, got `{target}`", hint="give a name such as report.html")
    write(target, report.page(sources(arguments)).encode())
    return 0


def sources(arguments: argparse.Namespace) -> list[report.Source]:
    """The runs, each under a name of its own, with the cells that are asked for. Raises `UserError`."""
    wanted = [_condition(text) for text in arguments.where]
    if arguments.only:
        wanted.append(("implementation", arguments.only))
    found: list[report.Source] = []
    for path in map(Path, arguments.run):
        run, rows = results.load(path)
        if not rows:
            raise ResultsError(f"{path} has no rows")
        name = run.run_id or path.resolve().stem
        count = sum(source.run.run_id == run.run_id for source in found)
        chosen = [row for row in rows if _agrees(row, wanted)]
        found.append(report.Source(name=f"{name} ({count + 1})" if count else name, run=run, results=chosen))
    found = [source for source in found if source.results]
    if not found:
        raise UserError("no cell agrees with every --where and --only", hint="`attnbench show` lists them")
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


def write(target: Path, content: bytes) -> None:
    """Write a file and tell its name on standard error. Raises `UserError`."""
    try:
        target.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    print(target, file=sys.stderr)
