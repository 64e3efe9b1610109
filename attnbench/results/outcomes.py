"""What a comparison reads of a run: 100,000 rows in about a second, from a run's own files or written by hand."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from attnbench.errors import ProblemError, ResultsError
from attnbench.noise import GRADES
from attnbench.problem import suggestion
from attnbench.records import Cell, Result, Run, Status, Timing
from attnbench.results.columns import KINDS
from attnbench.results.files import CSV, HEADER, JOURNAL, SCHEMA, upgraded
from attnbench.results.folder import read_header
from attnbench.results.lines import lines
from attnbench.results.table import no_number, no_rows, result_of, run_of, schema_number, typed_rows
from attnbench.suites import UNTIMED

KEY = tuple(Cell.__dataclass_fields__)
"""Columns that make the cell key."""
_NUMBERS = ("median_s", "ci95_low_s", "ci95_high_s", "workspace_bytes", "err_row", "err_rms")
_ABOVE_ZERO = ("median_s", "ci95_low_s", "ci95_high_s")
_TEXTS = ("status", "reason", "memory_method", "grade", "preset")
_OF_RUN = ("run_id", "suite", "plugin", "versions", "device_name", "preset", "protocol_version", "seed")
_PART = ("implementation", "device")
_OF_PART = (*_PART, *_OF_RUN)
"""What the rows of an implementation on a device say about their run."""
_READ = (*KEY, *_NUMBERS, *_TEXTS)

TOGETHER = 256
"""Lines that are converted at a time, while they are still in the processor's cache."""

CellKey = tuple[str, str, str, int, str, str]


class Outcome(NamedTuple):
    """How a cell ended, in one run or in several; None where it is not known. (A dataclass takes thrice the time.)"""

    status: Status | None
    """None where there is no such cell."""
    reason: str = ""
    median_s: float | None = None
    """Of an `ok` cell."""
    half_width: float | None = None
    """Of the 95 % interval of `median_s`, on the log scale."""
    workspace_bytes: float | None = None
    memory_method: str = ""
    err_row: float | None = None
    err_rms: float | None = None
    grade: str = ""
    runs: int = 1


def outcome(result: Result) -> Outcome:
    """What a comparison reads of a result."""
    timing, memory, accuracy = result.timing, result.memory, result.accuracy
    return Outcome(
        status=result.status,
        reason=result.reason,
        median_s=timing.median_s if timing else None,
        half_width=_half_width(timing),
        workspace_bytes=memory.workspace_bytes if memory else None,
        memory_method=memory.method if memory else "",
        err_row=accuracy.row if accuracy else None,
        err_rms=accuracy.rms if accuracy else None,
        grade=timing.grade if timing else "",
    )


def _half_width(timing: Timing | None) -> float | None:
    if timing is None or timing.ci95_low_s is None or timing.ci95_high_s is None:
        return None
    return math.log(timing.ci95_high_s / timing.ci95_low_s) / 2


def outcomes(
    path: Path, load: Callable[[Path], tuple[Run, list[Result]]]
) -> tuple[Run, dict[CellKey, Outcome]]:
    """A run's header and outcomes from its folder, its `results.csv`, or a CSV with the key columns and `median_s`.

    The journal, through `load`, has the last word where a folder has no CSV or one of a run that was not finished.
    Raises `ResultsError`.
    """
    folder = path if path.is_dir() else path.parent
    run = read_header(folder) if path.is_dir() or (path.name == CSV and (folder / HEADER).exists()) else None
    journal = path.is_dir() and (folder / JOURNAL).exists()
    if not journal or (folder / CSV).exists():
        of_rows, found = _read(path)
        if not journal or all(one.status is not Status.NOT_RUN for one in found.values()):
            return run or of_rows, found
    run, results = load(path)
    if not results:
        raise ResultsError(f"{folder / JOURNAL} has no rows", hint="was the run interrupted?")
    return run, {result.cell.key: outcome(result) for result in results}


def read_results(path: Path) -> tuple[Run, list[Result]]:
    """The results of a CSV, and what its rows say about their run.

    Raises `ResultsError` for all that a comparison refuses, and for what else a row needs.
    """
    rows = typed_rows(path)
    _read(path)
    path = path / CSV if path.is_dir() else path
    found = []
    for number, data in rows:
        try:
            found.append(result_of(data))
        except ProblemError as error:
            told = f"{path}:{number}: column `problem`: {error.message}"
            raise ResultsError(told, hint=error.hint, shown=error.shown) from None
        except (ValueError, TypeError) as error:
            raise ResultsError(f"{path}:{number}: {error}") from None
    return run_of([data for _, data in rows], path), found


def _read(path: Path) -> tuple[Run, dict[CellKey, Outcome]]:
    path = path / CSV if path.is_dir() else path
    header, found = lines(path)
    if missing := [name for name in (*KEY, "median_s") if name not in header]:
        raise _no_columns(path, header, missing)
    places = {name: header.index(name) for name in (*_READ, *_OF_RUN) if name in header}
    part_of = itemgetter(*(places[name] for name in (*_PART, "protocol_version") if name in places))
    schema, now = (header.index("schema") if "schema" in header else None), str(SCHEMA)
    parts: dict[Any, dict[str, str]] = {}
    cells: dict[CellKey, Outcome] = {}
    keys: list[CellKey] = []
    numbers: list[int] = []
    read = [name for name in _READ if name in places]
    pick = itemgetter(*(places[name] for name in read))

    def picked() -> Iterator[tuple[str, ...]]:
        for number, values in found:
            if schema is not None and values[schema] != now:
                values = _upgraded(values, places, schema, f"{path}:{number}")
            if (part := part_of(values)) not in parts:
                parts[part] = {name: values[places[name]] if name in places else "" for name in _OF_PART}
            numbers.append(number)
            yield pick(values)

    rows = picked()
    while some := [*itertools.islice(rows, TOGETHER)]:
        texts = dict.fromkeys(_READ, ("",) * len(some))
        texts |= zip(read, zip(*some, strict=True), strict=True)
        columns = _Columns(path, numbers[len(keys) :], texts)
        ends, here = _outcomes(columns), columns.keys()
        cells.update(zip(here, ends, strict=True))
        keys += here
    if not keys:
        raise no_rows(path)
    if len(cells) < len(keys):
        raise _twice(path, keys, numbers)
    return run_of([*parts.values()], path), cells


def _upgraded(values: list[str], places: Mapping[str, int], schema: int, place: str) -> list[str]:
    """The values of a row of our schema."""
    old = {name: values[at] for name, at in places.items()}
    new = upgraded("row", old, schema_number(values[schema]), place)
    found = [*values]
    for name, at in places.items():
        found[at] = new[name]
    return found


def _twice(path: Path, keys: Sequence[CellKey], numbers: Sequence[int]) -> ResultsError:
    """The error for a cell that comes twice."""
    first: dict[CellKey, int] = {}
    row = next(at for at, key in enumerate(keys) if first.setdefault(key, at) != at)
    return ResultsError(
        f"{path}:{numbers[row]}: columns {', '.join(KEY)} are those of line {numbers[first[keys[row]]]}",
        hint="a file holds one run; give several runs as a glob in quotes, such as 'runs/*.csv'",
    )


def _no_columns(path: Path, header: Sequence[str], missing: Sequence[str]) -> ResultsError:
    if not set(header) & {*KEY, "median_s"}:
        semicolons = len(header) == 1 and ";" in header[0]
        return ResultsError(
            f"{path}:1: there is no header: the first line names none of the columns "
            + ", ".join((*KEY, "median_s")),
            hint="separate values by commas"
            if semicolons
            else f"begin the file with {','.join((*KEY, 'median_s'))}",
        )
    names = ", ".join(f"`{name}`" for name in missing)
    return ResultsError(
        f"{path}:1: column {names} is missing"
        if len(missing) == 1
        else f"{path}:1: columns {names} are missing",
        hint=f"a cell is known by {', '.join(KEY)}; its time is `median_s`",
    )


@dataclass(frozen=True)
class _Columns:
    """Texts of some lines of a file by the names of their columns, with the numbers of the lines."""

    path: Path
    numbers: Sequence[int]
    texts: Mapping[str, Sequence[str]]

    def wrong(self, row: int, what: str, hint: str) -> ResultsError:
        return ResultsError(f"{self.path}:{self.numbers[row]}: {what}", hint=hint)

    def values(self, name: str) -> list[Any]:
        """None for an empty text."""
        kind = KINDS[name]
        try:
            if not _plain("".join(self.texts[name])):
                raise ValueError
            found: list[Any] = [kind(text) if text else None for text in self.texts[name]]
        except ValueError:
            row = next(at for at, text in enumerate(self.texts[name]) if text and not _is(kind, text))
            place = f"{self.path}:{self.numbers[row]}"
            raise no_number(place, name, kind, self.texts[name][row]) from None
        above = name in _ABOVE_ZERO
        least = math.ulp(0.0) if above else 0.0
        known = [value for value in found if value is not None]
        finite = kind is int or all(map(math.isfinite, known))
        if not finite or min(known, default=math.inf) < least:
            row, value = next(
                (row, value)
                for row, value in enumerate(found)
                if value is not None and not least <= value < math.inf
            )
            must = ("above zero" if above else "zero or more") if finite or math.isfinite(value) else "finite"
            raise self.wrong(
                row, f"column `{name}` must be {must}, got {value!r}", "leave it empty where it is not known"
            )
        return found

    def keys(self) -> list[CellKey]:
        """Raises `ResultsError` for an empty part."""
        for name in KEY:
            if "" in self.texts[name]:
                row = self.texts[name].index("")
                raise self.wrong(row, f"column `{name}` is empty", f"a cell is known by {', '.join(KEY)}")
        several = {
            name: map(intern, self.texts[name]) for name in KEY
        }  # so that few texts are held many times
        return list(zip(*{**several, "threads": self.values("threads")}.values(), strict=True))

    def grades(self) -> Sequence[str]:
        """Raises `ResultsError` for one that there is not."""
        if unknown := {*self.texts["grade"]} - {"", *GRADES}:
            row = next(at for at, text in enumerate(self.texts["grade"]) if text in unknown)
            told = f"column `grade`: unknown grade {self.texts['grade'][row]!r}"
            raise self.wrong(row, told, f"one of {', '.join(GRADES)}, or empty where it is not known")
        return self.texts["grade"]

    def _verified(self, row: int) -> bool:
        """Whether a line is of a run that only verifies, and has its error."""
        return self.texts["preset"][row] == UNTIMED and bool(self.texts["err_row"][row])

    def statuses(self, medians: Sequence[float | None]) -> list[Status]:
        """Where there is none, a row is `ok`.

        Raises `ResultsError` for an `ok` row without a median, but for one that was verified and was not to be timed.
        """
        ok = Status.OK  # which takes long to look up
        known = {"": ok, **{status.value: status for status in Status}}
        found = []
        for row, (text, median) in enumerate(zip(self.texts["status"], medians, strict=True)):
            if (status := known.get(text)) is None:
                raise self.wrong(row, f"column `status`: unknown status {text!r}", suggestion(text, known))
            if status is ok and median is None and not (text and self._verified(row)):
                raise self.wrong(
                    row,
                    "column `median_s` is empty",
                    "a row without a time needs a `status` such as `crashed`",
                )
            found.append(status)
        return found


def _plain(text: str) -> bool:
    """Whether it can be of numbers as programs write them: Python also reads `1_000` and digits of other scripts."""
    return text.isascii() and "_" not in text


def _is(kind: type[Any], text: str) -> bool:
    if not _plain(text):
        return False
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _outcomes(columns: _Columns) -> list[Outcome]:
    medians, lows, highs, *others = (columns.values(name) for name in _NUMBERS)
    workspaces, rows, rms = others
    statuses, texts, ok = columns.statuses(medians), columns.texts, Status.OK
    halves: list[float | None] = []
    for row, (status, low, median, high) in enumerate(zip(statuses, lows, medians, highs, strict=True)):
        if status is not ok:
            medians[row] = None
        if status is not ok or low is None or high is None:
            halves.append(None)
        elif low <= median <= high:
            halves.append(math.log(high / low) / 2)
        else:
            raise columns.wrong(
                row,
                f"column `median_s`: {median!r} does not lie between `ci95_low_s` and `ci95_high_s`",
                "leave both empty where the interval is not known",
            )
    methods, grades = map(intern, texts["memory_method"]), map(intern, columns.grades())
    parts = zip(
        statuses, texts["reason"], medians, halves, workspaces, methods, rows, rms, grades, strict=True
    )
    return [*itertools.starmap(Outcome, parts)]
