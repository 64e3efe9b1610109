"""`results.csv`: results -> rows -> results."""

import csv
import dataclasses
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.against import SUFFIX
from attnbench.costs import flops, least_bytes
from attnbench.errors import ResultsError
from attnbench.noise import GRADES
from attnbench.problem import Problem
from attnbench.records import PROTOCOL_VERSION, Accuracy, Cell, Memory, Result, Run, Status, Timing
from attnbench.results.columns import COLUMNS, KINDS
from attnbench.results.files import CSV, SCHEMA, replace, upgraded
from attnbench.results.lines import lines
from attnbench.suites import MEASURE_KEYS, UNTIMED, VERIFY_KEYS, Measure, Verify

if TYPE_CHECKING:
    import pandas as pd

LONGEST_REASON = 2000
"""Characters of a reason in the CSV; the journal has all of it. (A spreadsheet's cell holds 32,767.)"""


def problem_axes(text: str) -> dict[str, object]:
    """What the text of a problem says, by the names of columns; lengths are None where they differ in the batch."""
    problem = Problem.parse(text)
    seqlen_q, seqlen_kv = problem.uniform or (None, None)
    return {
        "mechanism": str(problem.mechanism),
        "batch": problem.batch,
        "seqlen_q": seqlen_q,
        "seqlen_kv": seqlen_kv,
        "heads_q": problem.heads_q,
        "heads_kv": problem.heads_kv,
        "head_dim": problem.head_dim,
        "head_dim_v": problem.head_dim_v,
        "dtype": problem.dtype.value,
        "kv_dtype": problem.kv_dtype.value,
        "mask": str(problem.mask),
        "modifiers": problem.modifiers_text,
        "layout": str(problem.layout),
        "direction": problem.direction.value,
    }


@lru_cache(maxsize=4096)
def _derived(text: str) -> Mapping[str, object]:
    """The columns that follow from the problem alone."""
    problem = Problem.parse(text)
    return {**problem_axes(text), "flops": flops(problem), "least_bytes": least_bytes(problem)}


def _part(kind: type[Any], value: Any, names: Mapping[str, str]) -> dict[str, object]:
    """A part of a result as columns; None for each where there is no such part."""
    fields = (field.name for field in dataclasses.fields(kind))
    return {names.get(name, name): getattr(value, name, None) for name in fields}


_ACCURACY = {"row": "err_row", "rms": "err_rms", "max": "err_max", "lse": "err_lse"}
_MEMORY = {"method": "memory_method"}


def row(result: Result, run: Run) -> dict[str, object]:
    """One row of `results.csv`: every column in order, `""` where there is nothing to say."""
    cell, axes = result.cell, _derived(result.cell.problem)
    median = result.timing.median_s if result.timing else None
    rates = {
        f"{name}_per_s": amount / median if median and isinstance(amount, int | float) else None
        for name, amount in (("flops", axes["flops"]), ("bytes", axes["least_bytes"]))
    }
    values = {
        "schema": SCHEMA,
        "run_id": run.run_id,
        "suite": run.suite,
        **dataclasses.asdict(cell),
        "plugin": run.owners.get(cell.implementation),
        "versions": run.versions.get(cell.implementation),
        "device_name": run.device_names.get(cell.device),
        "preset": run.settings.get("measure", {}).get("preset"),
        "protocol_version": PROTOCOL_VERSION,
        "seed": run.seed,
        **axes,
        "status": result.status.value,
        "reason": result.reason[:LONGEST_REASON],
        **_part(Timing, result.timing, {}),
        **rates,
        **_part(Memory, result.memory, _MEMORY),
        **_part(Accuracy, result.accuracy, _ACCURACY),
        "kernel": result.kernel,
        "approximation": run.approximations.get(cell.implementation),
        "repro": _repro(cell, run),
    }
    return {column.name: "" if values[column.name] is None else values[column.name] for column in COLUMNS}


def _repro(cell: Cell, run: Run) -> str:
    only = cell.implementation.removesuffix(SUFFIX)
    words = ["attnbench", "run", "--problem", cell.problem, "--only", only]
    words += ["--set", f"device={cell.device}"]
    measure = {**run.settings.get("measure", {}), "threads": cell.threads, "caches": (cell.cache,)}
    measure.setdefault("preset", Measure().preset)
    sections = (
        ("measure", MEASURE_KEYS, measure, Measure()),
        ("verify", VERIFY_KEYS, run.settings.get("verify", {}), Verify()),
    )
    for section, keys, values, default in sections:
        for name, key in keys.items():
            field = key.field or name
            value: Any = values.get(field)
            if (
                value is not None
                and (name == "preset" or value != getattr(default, field))
                and name != "seed"
            ):
                shown = value[0] if key.many else value if key.unit == 1 else f"{value / key.unit:g}"
                words += ["--set", f"{section}.{name}={shown}"]
    words += ["--seed", str(run.seed)]
    given = iter(run.command)
    for word in given:
        option, equals, value = word.partition("=")
        if option == "--against" and cell.implementation.endswith(SUFFIX):
            words += [option, value if equals else next(given, "")]
        if option == "--plugin" and (source := value if equals else next(given, "")):
            words += ["--plugin", Path(source).name if Path(source).is_absolute() else source]
    return shlex.join(words)


def _text(value: object) -> str:
    """A value in the CSV: one line without control characters; a float with every digit."""
    return re.sub(r"\s*[\x00-\x1f\x7f]+\s*", " ", value) if isinstance(value, str) else repr(value)


def write_csv(folder: Path, results: Iterable[Result], run: Run) -> None:
    """Writes `results.csv`, one row a cell in the order given; floats so that they read back the same."""
    replace(folder / CSV, csv_text([column.name for column in COLUMNS], (row(r, run) for r in results)))


def csv_text(names: Sequence[str], records: Iterable[Mapping[str, object]]) -> str:
    """A CSV with a column for each name, in the format of `results.csv`; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for record in records:
        writer.writerow("" if record[name] is None else _text(record[name]) for name in names)
    return text.getvalue()


# ---------------------------------------------------------------- reading back


def typed_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with their lines and types; None for an empty number, further columns as text."""
    path = path / CSV if path.is_dir() else path
    header, found = lines(path)
    if "schema" not in header:
        raise _no_column(path, "schema")
    return [(number, _typed(header, values, f"{path}:{number}", path)) for number, values in found]


def _no_column(path: Path, name: str) -> ResultsError:
    return ResultsError(
        f"{path}:1: this is not a results file: it has no column `{name}`",
        hint="give the results.csv of a run, with all its columns; `attnbench compare` takes one written by hand",
    )


def _typed(header: Sequence[str], values: Sequence[str], place: str, path: Path) -> dict[str, Any]:
    data: dict[str, Any] = dict(zip(header, values, strict=True))
    data = upgraded("row", data, schema_number(data["schema"]), place)
    if missing := [name for name in KINDS if name not in data]:
        raise _no_column(path, missing[0])
    for name, kind in KINDS.items():
        if kind is not str:
            try:
                data[name] = kind(text) if (text := data[name]) != "" else None
                if kind is int and abs(data[name] or 0) >= 2**63:
                    raise ValueError
            except ValueError:
                raise no_number(place, name, kind, text) from None
    return data


def schema_number(text: str) -> int | str:
    """The text itself where it is no whole number."""
    return int(text) if text.isdecimal() else text


def no_number(place: str, column: str, kind: type[Any], text: str) -> ResultsError:
    """What is wrong with a value of a column of numbers."""
    noun, example = ("a whole number", "8") if kind is int else ("a number", "0.00125")
    return ResultsError(
        f"{place}: column `{column}` must be {noun}, got {text[:60]!r}",
        hint=f"write it as {example}, in the unit of results/README.md, or leave it empty",
    )


def read_csv(path: Path) -> "pd.DataFrame":
    """`results.csv`, given as the file or its folder: integers as `Int64`, texts never missing.

    Raises `ResultsError` for what is missing, empty, binary, newer than this attnbench, or no results file.
    """
    return frame([data for _, data in typed_rows(path)])


def frame(rows: Sequence[Mapping[str, object]]) -> "pd.DataFrame":
    """Rows of `results.csv` as a data frame: integers as `Int64`, texts never missing; None or `""` is no number."""
    import pandas as pd

    dtypes: dict[type, Any] = {str: str, int: "Int64", float: "float64"}
    names = list(rows[0]) if rows else list(KINDS)
    columns = {}
    for name in names:
        kind = KINDS.get(name, str)
        values = [r[name] if kind is str or r[name] != "" else None for r in rows]
        columns[name] = pd.Series(values, dtype=dtypes[kind])
    return pd.DataFrame(columns)


@lru_cache(maxsize=4096)
def _axes(text: str) -> Mapping[str, object]:
    return problem_axes(text)


def result_of(data: Mapping[str, Any]) -> Result:
    """A row as a `Result`; its blocks are not in the CSV. Raises `ValueError`, and `ProblemError` of its problem."""

    def part(kind: type[Any], names: Mapping[str, str]) -> Any:
        columns = {field: names.get(field.name, field.name) for field in dataclasses.fields(kind)}
        if all(data[column] in (None, "") for column in columns.values()):
            return None
        for field, column in columns.items():
            if data[column] is None and field.type in (int, float):
                raise ValueError(f"column `{column}` is empty")
        return kind(**{field.name: data[column] for field, column in columns.items()})

    for name, value in _axes(data["problem"]).items():
        if data[name] != value:
            raise ValueError(
                f"column `{name}` is {str(data[name])[:60]!r}, and its problem says {str(value)!r}"
            )
    timing, accuracy, status = part(Timing, {}), part(Accuracy, _ACCURACY), Status(data["status"])
    if status is Status.OK and timing is None and not (accuracy and data["preset"] == UNTIMED):
        raise ValueError("column `median_s` is empty, and the row is `ok`")
    if data["grade"] not in ("", *GRADES):
        raise ValueError(f"column `grade` must be one of {', '.join(GRADES)} or empty, got {data['grade']!r}")
    return Result(
        cell=part(Cell, {}),
        status=status,
        reason=data["reason"],
        accuracy=accuracy,
        timing=timing,
        memory=part(Memory, _MEMORY),
        kernel=data["kernel"],
    )


def run_of(rows: Sequence[Mapping[str, Any]], path: Path) -> Run:
    """What the rows of a CSV say about their run. Raises `ResultsError` where they are of several protocols."""
    first = rows[0]
    protocol, *others = dict.fromkeys(r["protocol_version"] for r in rows if r["protocol_version"]) or [None]
    if others:
        raise ResultsError(
            f"{path}: column `protocol_version` has both {protocol} and {others[0]}",
            hint="numbers of different protocols may not be compared: measure all with one version of attnbench",
        )

    def by(key: str, value: str) -> dict[str, str]:
        return {r[key]: r[value] for r in rows if r.get(value)}

    return Run(
        schema=SCHEMA,
        run_id=first["run_id"],
        suite=first["suite"],
        suite_text="",
        command=(),
        settings={"measure": {"preset": first["preset"]}},
        seed=first["seed"],
        started="",
        fingerprint={"protocol": str(protocol)} if protocol else {},
        environment={},
        versions=by("implementation", "versions"),
        owners=by("implementation", "plugin"),
        device_names=by("device", "device_name"),
        approximations=by("implementation", "approximation"),
    )


def no_rows(path: Path) -> ResultsError:
    """A file with nothing but a header."""
    return ResultsError(f"{path}:2: there are no rows below the header", hint="was the run interrupted?")
