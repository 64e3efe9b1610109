"""One side of a comparison: a run or several, found by a path or a glob."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench import results
from attnbench.errors import ResultsError
from attnbench.records import Run
from attnbench.results import CSV, HEADER, CellKey, Outcome


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is on one side, with its cells in the order of the first run."""

    name: str
    """As it was asked for."""
    runs: tuple[Run, ...]
    cells: Mapping[CellKey, tuple[Outcome, ...]]
    """Each cell's outcomes, one a run that has it."""
    paths: tuple[Path, ...] = ()
    """Where the runs are, if they are stored."""


def side(text: str) -> Side:
    """The run at a path, or the runs that a glob matches. Raises `ResultsError`."""
    runs: list[Run] = []
    cells: dict[CellKey, tuple[Outcome, ...]] = {}
    paths = tuple(_paths(text))
    for path in paths:
        try:
            run, found = results.load_outcomes(path)
        except ResultsError as error:
            error.hint = (
                error.hint or "give the folder of a run, its results.csv, or a glob of several in quotes"
            )
            raise
        runs.append(run)
        for key, outcome in found.items():
            cells[key] = (*cells.get(key, ()), outcome)
    return Side(name=text, runs=tuple(runs), cells=cells, paths=paths)


def _paths(text: str) -> Sequence[Path]:
    if not glob.has_magic(text) or Path(text).exists():
        return [Path(text)]
    found = [path for path in map(Path, sorted(glob.glob(text, recursive=True))) if _is_run(path)]
    if not found:
        raise ResultsError(
            f"no run matches {text}", hint="give a pattern of folders of runs, or of their results.csv"
        )
    return [path for path in found if path.name != CSV or path.parent not in found]


def _is_run(path: Path) -> bool:
    return (path / HEADER).exists() or (path / CSV).exists() if path.is_dir() else path.suffix == ".csv"
