"""A CSV file as lines of texts; whatever is wrong with them is said with file, line and column."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from attnbench.errors import ResultsError
from attnbench.results.files import CSV, doing

Lines = Iterator[tuple[int, list[str]]]
"""Numbers, from 1, and values, as many as the header has."""


def lines(path: Path) -> tuple[list[str], Lines]:
    """The header of a CSV file, or of a run's folder, and its other lines but for blank ones.

    Raises `ResultsError` at once where there is no such file, no text or no line in it, and later where a line does not
    fit the header.
    """
    if path.is_dir():
        path = path / CSV
    if not path.exists():
        raise ResultsError(f"there is no {path}", hint="give the folder of a run, or its results.csv")
    with doing("read", path):
        data = path.read_bytes()
    if b"\0" in data:
        raise ResultsError(f"{path} is not a text file", hint="save it as CSV in UTF-8")
    try:
        if not data.isascii():
            data.decode()
    except UnicodeDecodeError as error:
        raise ResultsError(
            f"{_place(path, data, error.start)} byte 0x{data[error.start]:02x} is not UTF-8, so this is not a text file "
            "for attnbench",
            hint="save it as CSV in UTF-8",
        ) from None
    said = data.removeprefix(codecs.BOM_UTF8)
    if not said or said.isspace():
        raise ResultsError(f"{path}:1: the file is empty", hint="begin it with the names of its columns")
    newline = "" if b"\r" in data else "\n"  # which is found sooner
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=newline)
    reader = csv.reader(text)
    try:
        header = next(line for line in reader if line)
    except csv.Error as error:
        raise _broken(path, reader.line_num, error) from None
    for name in header:
        if header.count(name) > 1:
            raise ResultsError(
                f"{path}:1: column `{name}` is there {header.count(name)} times", hint="keep one of them"
            )
    return header, _others(path, text, reader.line_num, len(header))


def _others(path: Path, text: Iterator[str], number: int, columns: int) -> Lines:
    """A line without quotes is split: that takes a third of the csv module's time."""
    for line in text:
        number += 1
        if '"' in line:
            reader = csv.reader(chain((line,), text))  # reads on where a text goes on
            try:
                values = next(reader)
            except csv.Error as error:
                raise _broken(path, number + reader.line_num - 1, error) from None
            number += reader.line_num - 1
        else:
            values = line.rstrip("\r\n").split(",")
        if values == [""]:
            continue
        if len(values) != columns:
            raise ResultsError(
                f"{path}:{number}: {len(values)} values for {columns} columns",
                hint="write texts with commas in double quotes",
            )
        yield number, values


def _broken(path: Path, line: int, error: csv.Error) -> ResultsError:
    return ResultsError(f"{path}:{line}: {error}", hint="write texts with double quotes in double quotes")


def _place(path: Path, data: bytes, at: int) -> str:
    """File, line and column of a byte."""
    line, before = data.count(b"\n", 0, at) + 1, data[data.rfind(b"\n", 0, at) + 1 : at]
    header, values = (_split(part) for part in (data.partition(b"\n")[0], before))
    column = f" column `{header[len(values) - 1]}`:" if line > 1 and len(values) <= len(header) else ""
    return f"{path}:{line}:{column}"


def _split(line: bytes) -> Sequence[str]:
    return next(csv.reader([line.decode("latin-1").strip("\r\n")]), []) or [""]
