"""`attnbench export`: a stored run in the formats of others."""

import argparse
import sys
from pathlib import Path

from attnbench import exports, tables
from attnbench.cli import display, stored
from attnbench.errors import ResultsError, UserError
from attnbench.records import Result, Run


def main(arguments: argparse.Namespace) -> int:
    """Write the run to standard output or to a new file."""
    binary = arguments.format == "parquet"
    if binary and arguments.output is None:
        raise UserError("parquet is a binary format", hint="give a file: -o results.parquet")
    run, rows = stored.load(arguments.run)
    if arguments.format == "pytest-benchmark" and not exports.has_samples(rows):
        print(
            "note: there is no journal, so mean, maximum, deviation and quartiles are not known: they are NaN",
            file=sys.stderr,
        )
    if binary:
        _parquet(Path(arguments.output), run, rows)
        return 0
    text = _text(arguments.format, run, rows)
    if arguments.output is None:
        print(text, end="")
    else:
        _write(Path(arguments.output), text.encode())
    return 0


def _text(form: str, run: Run, rows: list[Result]) -> str:
    match form:
        case "json":
            return exports.as_json(run, rows)
        case "pytest-benchmark":
            return exports.as_pytest_benchmark(run, rows)
        case _:
            base = display.baseline(run)
            pages = (tables.timing(rows, baseline=base), tables.memory(rows, baseline=base))
            return "\n".join(map(tables.markdown, pages))


def _parquet(path: Path, run: Run, rows: list[Result]) -> None:
    try:
        import pyarrow  # noqa: F401 - pandas asks for it
    except ImportError:
        raise UserError("parquet needs pyarrow", hint="pip install 'attnbench[parquet]'") from None
    _write(path, exports.frame(run, rows).to_parquet(engine="pyarrow", index=False))


def _write(path: Path, data: bytes) -> None:
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        raise ResultsError(f"{path} exists already", hint="give another file with -o") from None
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}") from None
