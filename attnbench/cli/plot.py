"""`attnbench plot`: one figure of some runs as a picture."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from attnbench import report
from attnbench.cli.report import sources, write
from attnbench.errors import UserError
from attnbench.problem import suggestion
from attnbench.records import Result
from attnbench.tables.axes import AXES, SHAPE, values_of

KINDS = ("png", "svg")


def main(arguments: argparse.Namespace) -> int:
    """Draw the figure, and say where it is. Raises `UserError`."""
    report.require()
    target = Path(arguments.output)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise UserError(f"-o: a picture is a .png or a .svg, got `{target}`")
    if arguments.figure not in report.FIGURES:
        raise UserError(
            f"unknown figure `{arguments.figure}`", hint=suggestion(arguments.figure, report.FIGURES)
        )
    wanted = [_condition(text) for text in arguments.where]
    found = [
        replace(source, results=_chosen(source.results, wanted, arguments.only))
        for source in sources(arguments.run)
    ]
    found = [source for source in found if source.results]
    if not found:
        raise UserError(
            "nothing is left to draw", hint="no cell agrees with every --where and --only; `attnbench show`"
        )
    write(target, report.picture(found, arguments.figure, dark=arguments.dark, kind=kind))
    return 0


def _condition(text: str) -> tuple[str, str]:
    """`mask=causal` -> the axis and a pattern of its value. Raises `UserError`."""
    name, equals, value = text.partition("=")
    axes = [axis for axis in AXES if axis not in SHAPE]
    if not equals:
        raise UserError(
            f"--where: no value in `{text}`", hint="give an axis and a value, such as mask=causal"
        )
    if name not in axes:
        raise UserError(f"--where: unknown axis `{name}`", hint=suggestion(name, axes))
    return name, value


def _chosen(rows: Iterable[Result], wanted: Sequence[tuple[str, str]], only: Sequence[str]) -> list[Result]:
    """Values are patterns, alternatives are joined by commas."""
    patterns = [*wanted, *([("implementation", ",".join(only))] if only else [])]
    return [
        row
        for row in rows
        if all(
            any(fnmatchcase(values_of(row)[axis], one) for one in value.split(","))
            for axis, value in patterns
        )
    ]
