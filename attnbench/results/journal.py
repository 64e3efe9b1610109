"""`journal.jsonl`: a row a line with every sample, written down the moment it is known."""

import contextlib
import json
import os
from pathlib import Path
from typing import IO, Any

from attnbench.errors import ResultsError
from attnbench.records import Result, result_from_json, result_to_json
from attnbench.results.files import HEADER, JOURNAL, SCHEMA, doing, upgraded
from attnbench.results.folder import header_json


class Journal(contextlib.AbstractContextManager["Journal"]):
    """`journal.jsonl`, open for appending; a line that an earlier run left torn is cut off.

    Raises `ResultsError` where another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._file: IO[bytes]

    def __enter__(self) -> "Journal":
        import fcntl  # not on Windows, where runs are only read

        with doing("write", self._path):
            self._file = open(self._path, "a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file.seek(0)
                self._file.truncate(len(_whole(self._file.read())))
            except BlockingIOError:
                self._file.close()
                raise ResultsError(
                    f"another run is writing to {self._path}", hint="wait until it ends"
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, result: Result) -> None:
        """Writes one line; it is on the disk when this returns (0.2 ms on an SSD)."""
        line = json.dumps(result_to_json(result), separators=(",", ":"))
        with doing("write", self._path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _whole(data: bytes) -> bytes:
    """`data` without a torn last line: one without an end, or which is no JSON."""
    data = data[: data.rfind(b"\n") + 1]
    start = data.rfind(b"\n", 0, -1) + 1
    try:
        json.loads(data[start:] or b"0")
    except ValueError:
        return data[:start]
    return data


def read_journal(folder: Path) -> list[Result]:
    """The rows of `journal.jsonl`, each cell once with its last end; a torn last line is left out.

    Raises `ResultsError`, naming the line, for anything else that cannot be read.
    """
    path = folder / JOURNAL
    if not path.exists():  # ended before its first row
        return []
    with doing("read", path):
        data = _whole(path.read_bytes())
    schema = header_json(folder)["schema"] if (folder / HEADER).exists() else SCHEMA
    rows: dict[Any, Result] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = result_from_json(upgraded("result", json.loads(line), schema, path))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResultsError(f"{path}:{number}: not a row of a journal: {error}") from None
        rows[row.cell.key] = row
    return list(rows.values())
