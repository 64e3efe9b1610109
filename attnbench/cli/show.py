"""`attnbench show`: the tables of a run again."""

import argparse
import sys
from pathlib import Path

from attnbench import results, tables
from attnbench.cli import display
from attnbench.errors import ResultsError, UserError
from attnbench.problem import suggestion


def main(arguments: argparse.Namespace) -> int:
    """Print the tables of a stored run, or the views that were asked for."""
    by = tables.axes(arguments.by)
    views = [tables.view(name) for name in arguments.view]
    folder = Path(arguments.run)
    try:
        run, rows = results.load(folder)
    except ResultsError as error:
        if not error.hint and (folder / results.JOURNAL).exists():
            error.hint = f"`attnbench run --resume {folder}` writes the tables again from the journal"
        raise
    if folder.is_dir() and not (folder / results.CSV).exists():
        print(
            f"note: {folder} has no {results.CSV}: these are the rows of its journal, and those not run are missing; "
            f"`attnbench run --resume {folder}` goes on with it",
            file=sys.stderr,
        )
    names = {row.cell.implementation for row in rows if row.timing}
    if arguments.baseline is not None and arguments.baseline not in names:
        raise UserError(
            f"--baseline: no time of `{arguments.baseline}` in this run",
            hint=suggestion(arguments.baseline, names),
        )
    print(display.tables_text(rows, by, run, views, arguments.baseline))
    return 0
