"""`attnbench plot`: one figure of some runs as a picture."""

import argparse
from pathlib import Path

from attnbench import report
from attnbench.cli.report import sources, write
from attnbench.errors import UserError
from attnbench.problem import suggestion

KINDS = ("png", "svg")


def main(arguments: argparse.Namespace) -> int:
    """Draw the figure, and say where it is. Raises `UserError`."""
    report.require()
    target = Path(arguments.output)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise UserError(f"-o: a picture is a .png or a .svg, got `{target}`")
    if arguments.figure not in report.FIGURES:
        hint = suggestion(arguments.figure, report.FIGURES)
        raise UserError(f"--figure: unknown figure `{arguments.figure}`", hint=hint)
    write(target, report.picture(sources(arguments), arguments.figure, dark=arguments.dark, kind=kind))
    return 0
