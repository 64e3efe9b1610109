"""`attnbench report`: runs as one HTML file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attnbench import report, results
from attnbench.errors import ResultsError, UserError


def main(arguments: argparse.Namespace) -> int:
    """Write the file, and say where it is. Raises `UserError`."""
    report.require()
    first = Path(arguments.run[0])
    target = Path(arguments.output or (first if first.is_dir() else first.parent) / "report.html")
    if target.suffix != ".html":
        raise UserError(f"-o: a report is HTML, got `{target}`", hint="give a name such as report.html")
    write(target, report.page(sources(arguments.run)).encode())
    return 0


def sources(paths: Sequence[str]) -> list[report.Source]:
    """The runs, each under a name of its own. Raises `ResultsError`."""
    found: list[report.Source] = []
    for path in map(Path, paths):
        run, rows = results.load(path)
        if not rows:
            raise ResultsError(f"{path} has no rows")
        name = run.run_id or path.resolve().stem
        names = {source.name for source in found}
        number = next(
            n for n in range(1, len(names) + 2) if (f"{name} ({n})" if n > 1 else name) not in names
        )
        found.append(report.Source(name=f"{name} ({number})" if number > 1 else name, run=run, results=rows))
    return found


def write(target: Path, content: bytes) -> None:
    """Write a file and tell its name on standard error. Raises `UserError`."""
    try:
        target.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    print(target, file=sys.stderr)
