"""`attnbench report`: runs as one HTML file."""

import argparse
import sys
from pathlib import Path

from attnbench import report
from attnbench.cli import stored
from attnbench.errors import UserError


def main(arguments: argparse.Namespace) -> int:
    """Write the file, and say where it is. Raises `UserError`."""
    report.require()
    first = Path(arguments.run[0])
    target = Path(arguments.output or (first if first.is_dir() else first.parent) / "report.html")
    if target.suffix != ".html":
        raise UserError(f"-o: a report is HTML, got `{target}`", hint="give a name such as report.html")
    write(target, report.page(sources(arguments)).encode())
    return 0


def sources(arguments: argparse.Namespace) -> list[report.Source]:
    """The runs, each under a name of its own, with the cells that are asked for. Raises `UserError`."""
    loaded = [stored.load(path) for path in arguments.run]
    everything = [row for _, rows in loaded for row in rows]
    chosen = stored.chosen(everything, arguments.only, arguments.without, arguments.where)
    kept = set(map(id, chosen))
    found: list[report.Source] = []
    for path, (run, rows) in zip(arguments.run, loaded, strict=True):
        name = run.run_id or Path(path).resolve().stem
        count = sum(source.run.run_id == run.run_id for source in found)
        here = [row for row in rows if id(row) in kept]
        found.append(report.Source(name=f"{name} ({count + 1})" if count else name, run=run, results=here))
    return [source for source in found if source.results]


def write(target: Path, content: bytes) -> None:
    """Write a file and tell its name on standard error. Raises `UserError`."""
    try:
        target.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    print(target, file=sys.stderr)
