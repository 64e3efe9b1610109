"""`attnbench show`: the tables of a run again."""

import argparse

from attnbench import tables
from attnbench.cli import display, stored
from attnbench.errors import UserError
from attnbench.problem import suggestion


def main(arguments: argparse.Namespace) -> int:
    """Print the tables of a stored run, or the views that were asked for."""
    by = tables.axes(arguments.by)
    views = [tables.view(name) for name in arguments.view]
    run, rows = stored.load(arguments.run)
    names = {row.cell.implementation for row in rows if row.timing}
    if arguments.baseline is not None and arguments.baseline not in names:
        stored.check_timed(arguments.run, rows)
        raise UserError(
            f"--baseline: no time of `{arguments.baseline}` in this run",
            hint=suggestion(arguments.baseline, names) if names else "no row of it is ok",
        )
    print(display.tables_text(rows, by, run, views, arguments.baseline))
    return 0
