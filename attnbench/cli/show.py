"""`attnbench show`: the tables of a run again."""

import argparse
from pathlib import Path

from attnbench import results, tables
from attnbench.cli import display


def main(arguments: argparse.Namespace) -> int:
    """Print the tables of a stored run."""
    by = tables.axes(arguments.by)
    run, rows = results.load(Path(arguments.run))
    print(display.tables_text(rows, by, run))
    return 0
