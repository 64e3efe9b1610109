"""A run's folder: header, journal and CSV, with their schema number. The only code that writes or reads CSV."""

from pathlib import Path
from typing import Any

from attnbench.records import Result, Run
from attnbench.results.columns import COLUMNS, columns_markdown
from attnbench.results.files import CSV, HEADER, JOURNAL, SCHEMA
from attnbench.results.folder import compatible, create, read_header, write_header
from attnbench.results.journal import Journal, read_journal
from attnbench.results.outcomes import KEY, CellKey, Outcome, outcome, outcomes, read_results
from attnbench.results.table import csv_text, frame, problem_axes, read_csv, row, write_csv

__all__ = [
    "COLUMNS",
    "CSV",
    "HEADER",
    "JOURNAL",
    "KEY",
    "SCHEMA",
    "CellKey",
    "Journal",
    "Outcome",
    "columns_markdown",
    "compatible",
    "create",
    "csv_text",
    "frame",
    "load",
    "load_outcomes",
    "outcome",
    "problem_axes",
    "read_csv",
    "read_header",
    "read_journal",
    "read_results",
    "row",
    "write_csv",
    "write_header",
]


def load(path: Path) -> tuple[Run, list[Result]]:
    """A run from its folder or its `results.csv`, in the plan's order as far as the CSV tells it.

    The journal of a folder has the last word; results that only the CSV has are without blocks. A CSV
    without a header beside it is enough, and says less about its run. Raises `ResultsError`.
    """
    folder = path if path.is_dir() else path.parent
    run = read_header(folder) if path.is_dir() or (folder / HEADER).exists() else None
    found: dict[Any, Result] = {}
    journal = path.is_dir() and (folder / JOURNAL).exists()
    if not journal or (folder / CSV).exists():
        of_rows, rows = read_results(path)
        run = run or of_rows
        found = {result.cell.key: result for result in rows}
    if journal:
        found |= {result.cell.key: result for result in read_journal(folder)}
    assert run is not None
    return run, list(found.values())


def load_outcomes(path: Path) -> tuple[Run, dict[CellKey, Outcome]]:
    """What a comparison reads of a run: from its folder, its `results.csv`, or a CSV written by hand, quickly.

    Raises `ResultsError`.
    """
    return outcomes(path, load)
