"""What a terminal shows: progress while a run goes on, and its tables at the end."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TextIO

from attnbench import suites, tables
from attnbench.errors import UserError
from attnbench.records import Result, Run, Status
from attnbench.runner import Listener, Progress
from attnbench.units import seconds_text

WIDTH_OF_A_LOG = 100


def size() -> tuple[int, bool]:
    """Columns of standard output, and whether it is to be coloured."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else WIDTH_OF_A_LOG
    return width, terminal and "NO_COLOR" not in os.environ


def tables_text(
    rows: Sequence[Result],
    by: tuple[str, str] | None,
    run: Run,
    views: Sequence[str] = (),
    against: str | None = None,
) -> str:
    """Tables and summary for standard output, as wide as the terminal, coloured only there.

    Speed-ups are `against` an implementation, or the suite's baseline. Unless `views` asks for others, there are
    times and memory, in one table where it is a line a cell, or errors where nothing was timed; and nothing but the
    summary where no implementation can compute anything here.
    """
    width, color = size()
    base = against or baseline(run)
    shown = [tables.table(view, rows, by=by, baseline=base) for view in views or _views(rows)]
    if not views and shown and shown[0].size > tables.LARGEST_GRID:
        del shown[1:]
    told = [line for part in tables.summary(rows).splitlines() for line in tables.wrapped(part, width, 4)]
    parts = [tables.text(table, width=width, color=color, notes=False) for table in shown]
    return "\n\n".join([*parts, "\n".join(told)])


def _views(rows: Sequence[Result]) -> tuple[str, ...]:
    answers = (Status.UNSUPPORTED, Status.UNAVAILABLE)
    if all(row.status in answers for row in rows):
        return ()
    return ("error",) if only_verified(rows) else ("time", "memory")


def only_verified(rows: Sequence[Result]) -> bool:
    """Whether cells ended well, but none of them with a time."""
    return any(row.status is Status.OK for row in rows) and not any(row.timing for row in rows)


def baseline(run: Run) -> str | None:
    """The baseline of the run's suite, where its header tells."""
    if not run.suite_text:
        return None
    words = [*run.command]
    overrides = [after for word, after in pairwise(words) if word == "--set"]
    overrides += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    try:
        return suites.parse(run.suite_text, run.suite, overrides).baseline
    except UserError:  # a suite of another version
        return None


@contextlib.contextmanager
def progress(stream: TextIO, quiet: bool, decided: int = 0) -> Iterator[Listener]:
    """A listener that draws one line on a terminal, and writes a line for each row elsewhere.

    It counts jobs: the cells that the plan has `decided` are not among them.
    """

    def of_jobs(listener: Listener) -> Listener:
        return lambda now: listener(replace(now, done=now.done - decided, total=now.total - decided))

    if quiet:
        yield lambda _: None
    elif stream.isatty():
        with _drawn(stream) as listener:
            yield of_jobs(listener)
    else:
        yield of_jobs(_plain(stream))


def _line(row: Result) -> str:
    if row.timing:
        told = seconds_text(row.timing.median_s)
    else:
        told = f"{row.status}: {row.reason}" if row.reason else f"{row.status}"
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


def waiting(device: str, holder: str, seconds: float) -> None:
    """Say who has to end first."""
    print(waiting_text(device, holder, seconds), file=sys.stderr, flush=True)


def waiting_text(device: str, holder: str, seconds: float) -> str:
    """In one line."""
    held = f"has held {device} for {seconds_text(round(seconds))}" if seconds >= 1 else f"holds {device}"
    return f"waiting for {holder}, which {held}"
