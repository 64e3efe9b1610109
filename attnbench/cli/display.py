"""What a terminal shows: progress while a run goes on, and its tables at the end."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from attnbench import tables
from attnbench.records import Result, Run, Status
from attnbench.runner import Listener, Progress
from attnbench.units import seconds_text

WIDTH_OF_A_LOG = 100


def tables_text(rows: Sequence[Result], by: tuple[str, str] | None, run: Run) -> str:
    """Timing, memory and summary for standard output, as wide as the terminal, coloured only there."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else WIDTH_OF_A_LOG
    color = terminal and "NO_COLOR" not in os.environ
    parts = [
        tables.text(table(rows, by=by), width=width, color=color) for table in (tables.timing, tables.memory)
    ]
    return "\n\n".join([*parts, tables.summary(rows)])


@contextlib.contextmanager
def progress(stream: TextIO, quiet: bool) -> Iterator[Listener]:
    """A listener that draws one line on a terminal, and writes a line for each row elsewhere."""
    if quiet:
        yield lambda _: None
    elif stream.isatty():
        with _drawn(stream) as listener:
            yield listener
    else:
        yield _plain(stream)


def _line(row: Result) -> str:
    told = seconds_text(row.timing.median_s) if row.timing else f"{row.status}: {row.reason}"
    return f"{row.cell.implementation}  {row.cell.problem}  {told}"


def _plain(stream: TextIO) -> Listener:
    def listen(now: Progress) -> None:
        if now.row is not None and now.row.status not in (Status.UNSUPPORTED, Status.UNAVAILABLE):
            left = f", {seconds_text(max(now.left_s, 1))} left" if now.left_s else ""
            print(f"[{now.done}/{now.total}{left}] {_line(now.row)}", file=stream, flush=True)

    return listen


@contextlib.contextmanager
def _drawn(stream: TextIO) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def listen(now: Progress) -> None:
            left = f"{seconds_text(max(round(now.left_s), 1))} left" if now.left_s else ""
            bar.update(task, completed=now.done, total=now.total, left=left)
            if now.current:
                bar.update(task, description=escape(now.current))
            if now.row and now.row.status in (Status.WRONG, Status.IMPOSSIBLE, Status.FAILED, Status.CRASHED):
                bar.console.print(_line(now.row), markup=False, highlight=False)

        yield listen
