"""A run's folder: header, journal and CSV, with their schema number. The only module that writes or reads CSV."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from attnbench.costs import flops, least_bytes
from attnbench.errors import ResultsError, UserError
from attnbench.problem import Problem
from attnbench.records import (
    PROTOCOL_VERSION,
    Accuracy,
    Cell,
    Memory,
    Owner,
    Result,
    Run,
    Status,
    Timing,
    result_from_json,
    result_to_json,
)
from attnbench.suites import MEASURE_KEYS, VERIFY_KEYS, Measure, Verify

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Raised with every change of the columns, the journal or the header."""

UPGRADES: Mapping[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}
"""Schema n -> what makes a `header`, `row` (texts) or `result` (JSON) of schema n + 1 out of one of schema n."""

LONGEST_REASON = 2000
"""Characters of a reason in the CSV; the journal has all of it. (A spreadsheet's cell holds 32,767.)"""

HEADER, JOURNAL, CSV = "run.json", "journal.jsonl", "results.csv"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of `results.csv`."""

    name: str
    kind: type[str] | type[int] | type[float]
    unit: str
    meaning: str


def _columns(table: str) -> tuple[Column, ...]:
    kinds = {"text": str, "integer": int, "number": float}
    cells = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return tuple(Column(name=n, kind=kinds[k], unit=u, meaning=m) for n, k, u, m in cells)


COLUMNS = _columns("""
schema           | integer |        | version of this table's columns
run_id           | text    |        | the run, as in `run.json`
suite            | text    |        | name of the suite, or `problem` for one given on the command line
problem          | text    |        | canonical text of the problem, which `attnbench run --problem` takes back
implementation   | text    |        | what computed it
plugin           | text    |        | which plugin brought the implementation
versions         | text    |        | distributions that the implementation requires, with versions
device           | text    |        | `cpu` or `cuda:N`
device_name      | text    |        | the device's model
threads          | integer |        | CPU threads that the implementation may use
cache            | text    |        | `warm`: caches as the previous call left them; `cold`: inputs not in the cache
clock            | text    |        | `wall`: the host's clock; `events`: CUDA events
preset           | text    |        | `quick`, `default` or `gate`: how long each cell is measured
protocol_version | integer |        | numbers of different protocols may not be compared
seed             | integer |        | of the inputs and of the order of measuring
mechanism        | text    |        | how weights come from q and k
batch            | integer |        | B, members of the batch
seqlen_q         | integer | tokens | Sq, query tokens; empty where the members of the batch differ
seqlen_kv        | integer | tokens | Sk, key/value tokens; empty where the members of the batch differ
heads_q          | integer |        | Hq, query heads
heads_kv         | integer |        | Hk, key/value heads
head_dim         | integer |        | D, head dimension of q and k
head_dim_v       | integer |        | Dv, head dimension of v and of the output
dtype            | text    |        | element type of q and of the output
kv_dtype         | text    |        | element type of k and v
mask             | text    |        | which keys a query may attend to
modifiers        | text    |        | changes of the scores before the softmax, joined by `+`
layout           | text    |        | how the tokens of the batch lie in memory
direction        | text    |        | what one timed call computes
status           | text    |        | how the cell ended; only `ok` rows have times
reason           | text    |        | why the status is not `ok`
median_s         | number  | s      | time of one call: exp of the location on the log scale that the interval is built on
ci95_low_s       | number  | s      | lower end of the 95 % interval of `median_s`; empty where there were too few blocks
ci95_high_s      | number  | s      | upper end of the 95 % interval of `median_s`
p20_s            | number  | s      | 20th percentile of the samples
p80_s            | number  | s      | 80th percentile of the samples
min_s            | number  | s      | smallest sample
mad_s            | number  | s      | median absolute deviation of the samples
n                | integer |        | samples taken, flagged ones included
n_flagged        | integer |        | samples during which the system took the processor away; they do not count
rounds           | integer |        | blocks of samples, interleaved with the other implementations of the problem
launches         | integer |        | fresh processes
inner            | integer |        | calls in one sample
stop_reason      | text    |        | why measuring ended
setup_s          | number  | s      | time of `prepare` in the first process; not part of `median_s`
first_call_s     | number  | s      | time of the first call in the first process; not part of `median_s`
flops            | number  |        | floating-point operations of the two matrix products, unmasked pairs only; empty where not countable
least_bytes      | integer | B      | bytes that any implementation must move: each input read once, each output written once
flops_per_s      | number  | 1/s    | `flops` / `median_s`
bytes_per_s      | number  | B/s    | `least_bytes` / `median_s`
input_bytes      | integer | B      | inputs of one call
output_bytes     | integer | B      | outputs of one call
workspace_bytes  | integer | B      | peak during a call in the steady state, less inputs and outputs
memory_method    | text    |        | `rss`: peak resident memory; `cuda`: torch's allocator; `own`: the library's counter
err_row          | number  |        | largest relative L2 error of an output row against the float64 oracle
err_rms          | number  |        | relative L2 error of the whole output
err_max          | number  |        | largest absolute error of an element
cosine           | number  |        | cosine of the output with the oracle's
yardstick_row    | number  |        | `err_row` of a plain computation in the problem's own dtype, floored
yardstick_rms    | number  |        | `err_rms` of the same computation, floored
checked_share    | number  |        | share of the output's rows that were compared with the oracle's
kernel           | text    |        | which kernel ran, where it can be known
repro            | text    |        | a command that runs just this row again
""")
KINDS = {column.name: column.kind for column in COLUMNS}


def columns_markdown() -> str:
    """The table of columns in `results/README.md`."""
    kinds = {str: "text", int: "integer", float: "number"}
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{c.name}` | {kinds[c.kind]} | {c.unit} | {c.meaning} |" for c in COLUMNS]
    return "\n".join(lines)


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def _doing(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(f"cannot {what} {path}: {error.strerror or error}") from None


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with _doing("write", path):
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def _read(path: Path) -> str:
    try:
        with _doing("read", path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ResultsError(f"{path} is not a text file")
    return text


def _upgraded(what: str, data: dict[str, Any], schema: Any, path: Path) -> dict[str, Any]:
    """`data` of an old schema as one of ours. Raises `ResultsError` for what is newer or no schema at all."""
    if not isinstance(schema, int) or schema < 1:
        raise ResultsError(f"{path}: {schema!r} is no schema number")
    if schema > SCHEMA:
        raise ResultsError(
            f"{path} has schema {schema}, newer than {SCHEMA}, the newest that this attnbench reads",
            hint="upgrade attnbench",
        )
    for old in range(schema, SCHEMA):
        data = UPGRADES[old](what, data)
    return data


def create(parent: Path, name: str | None, suite_name: str) -> Path:
    """A new folder: `name` itself where one is given, else `<parent>/<suite>-<UTC time>`.

    Raises `ResultsError` where `name` exists: no run is ever overwritten.
    """
    if name is not None:
        folder = Path(name)
        if folder.exists() or folder.is_symlink():
            raise ResultsError(
                f"{name} exists already",
                hint="give another folder with -o, or go on with a run by --resume",
            )
        with _doing("create", folder):
            folder.mkdir(parents=True)
        return folder
    suite = re.sub(r"[^\w.-]+", "-", suite_name).strip("-.") or "run"
    stem, number = f"{suite}-{datetime.now(UTC):%Y%m%d-%H%M%S}", 1
    with _doing("create a folder in", parent):
        while True:
            folder = parent / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                if not folder.exists():  # it is the parent that is a file
                    raise
                number += 1


def write_header(folder: Path, run: Run) -> None:
    """Writes `run.json`."""
    data = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    data["plugins"] = [dataclasses.asdict(owner) for owner in run.plugins]
    _replace(folder / HEADER, json.dumps(data, indent=1, default=dict) + "\n")


def _header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        raise ResultsError(f"{folder} is not the folder of a run: it has no {HEADER}")
    try:
        data = json.loads(_read(path))
    except ValueError as error:
        raise ResultsError(f"{path} is not the header of a run: {error}") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise ResultsError(f"{path} is not the header of a run: it has no schema")
    return data


def read_header(folder: Path) -> Run:
    """Reads `run.json`. Raises `ResultsError` where it is missing or no header of a run."""
    data = _header(folder)
    data = _upgraded("header", data, data["schema"], folder / HEADER) | {"schema": SCHEMA}
    try:
        data["plugins"] = tuple(Owner(**owner) for owner in data["plugins"])
        data["command"] = tuple(data["command"])
        return Run(**data)
    except (TypeError, KeyError) as error:
        raise ResultsError(f"{folder / HEADER} is not the header of a run: {error}") from None


def compatible(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, in words; a run may be resumed where nothing does."""
    return [
        f"{key}: was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


# ---------------------------------------------------------------- the journal


class Journal(contextlib.AbstractContextManager["Journal"]):
    """`journal.jsonl`, open for appending; a line that an earlier run left torn is cut off.

    Raises `ResultsError` where another process has it open.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._file: IO[bytes]

    def __enter__(self) -> "Journal":
        import fcntl  # not on Windows, where runs are only read

        with _doing("write", self._path):
            self._file = open(self._path, "a+b")  # noqa: SIM115
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
        with _doing("write", self._path):
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
    with _doing("read", path):
        data = _whole(path.read_bytes())
    schema = _header(folder)["schema"]
    rows: dict[Any, Result] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = result_from_json(_upgraded("result", json.loads(line), schema, path))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResultsError(f"{path}:{number}: not a row of a journal: {error}") from None
        rows[row.cell.key] = row
    return list(rows.values())


# ---------------------------------------------------------------- rows


@lru_cache(maxsize=4096)
def _axes(text: str) -> Mapping[str, object]:
    """The columns that follow from the problem alone."""
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
        "flops": flops(problem),
        "least_bytes": least_bytes(problem),
    }


def _part(kind: type[Any], value: Any, names: Mapping[str, str]) -> dict[str, object]:
    """A part of a result as columns; None for each where there is no such part."""
    fields = (field.name for field in dataclasses.fields(kind))
    return {names.get(name, name): getattr(value, name, None) for name in fields}


_ACCURACY = {"row": "err_row", "rms": "err_rms", "max": "err_max"}
_MEMORY = {"method": "memory_method"}


def row(result: Result, run: Run) -> dict[str, object]:
    """One row of `results.csv`: every column in order, `""` where there is nothing to say."""
    cell, axes = result.cell, _axes(result.cell.problem)
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
        "repro": _repro(cell, run),
    }
    return {column.name: "" if values[column.name] is None else values[column.name] for column in COLUMNS}


def _repro(cell: Cell, run: Run) -> str:
    words = ["attnbench", "run", "--problem", cell.problem, "--only", cell.implementation]
    words += ["--set", f"device={cell.device}"]
    measure = {**run.settings.get("measure", {}), "threads": cell.threads, "cache": cell.cache}
    measure.setdefault("preset", Measure().preset)
    sections = (
        ("measure", MEASURE_KEYS, measure, Measure()),
        ("verify", VERIFY_KEYS, run.settings.get("verify", {}), Verify()),
    )
    for section, keys, values, default in sections:
        for name, key in keys.items():
            field = key.field or name
            value = values.get(field)
            if name == "preset" or (name != "seed" and value not in (None, getattr(default, field))):
                shown = f"{value / key.unit:g}" if key.unit != 1 else value
                words += ["--set", f"{section}.{name}={shown}"]
    words += ["--seed", str(run.seed)]
    given = iter(run.command)
    for word in given:
        option, equals, value = word.partition("=")
        if option == "--plugin" and (source := value if equals else next(given, "")):
            words += ["--plugin", Path(source).name if Path(source).is_absolute() else source]
    return shlex.join(words)


def _text(value: object) -> str:
    """A value in the CSV: one line without control characters; a float with every digit."""
    return re.sub(r"\s*[\x00-\x1f\x7f]+\s*", " ", value) if isinstance(value, str) else repr(value)


def write_csv(folder: Path, results: Iterable[Result], run: Run) -> None:
    """Writes `results.csv`, one row a cell in the order given; floats so that they read back the same."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in COLUMNS)
    for result in results:
        writer.writerow(_text(value) for value in row(result, run).values())
    _replace(folder / CSV, text.getvalue())


# ---------------------------------------------------------------- reading back


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file with their types; None for an empty number, further columns as text."""
    if path.is_dir():
        path = path / CSV
    if not path.exists():
        raise ResultsError(f"there is no {path}", hint="give the folder of a run, or its results.csv")
    text = _read(path)
    if not text.strip():
        raise ResultsError(f"{path} is empty")
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader)
        if "schema" not in header:
            raise ResultsError(f"{path} is not a results file: it has no column `schema`")
        return [_typed(header, values, f"{path}:{reader.line_num}", path) for values in reader if values]
    except csv.Error as error:
        raise ResultsError(f"{path}:{reader.line_num}: {error}") from None


def _typed(header: Sequence[str], values: Sequence[str], place: str, path: Path) -> dict[str, Any]:
    if len(values) != len(header):
        raise ResultsError(f"{place}: {len(values)} values for {len(header)} columns")
    data: dict[str, Any] = dict(zip(header, values, strict=True))
    schema = data["schema"]
    data = _upgraded("row", data, int(schema) if schema.isdecimal() else schema, path) | {"schema": SCHEMA}
    if missing := [name for name in KINDS if name not in data]:
        raise ResultsError(f"{path} is not a results file: it has no column `{missing[0]}`")
    for name, kind in KINDS.items():
        if kind is not str:
            try:
                data[name] = None if data[name] == "" else kind(data[name])
            except ValueError:
                noun = "a whole number" if kind is int else "a number"
                raise ResultsError(f"{place}: {name} must be {noun}, got {data[name]!r}") from None
    return data


def read_csv(path: Path) -> "pd.DataFrame":
    """`results.csv`, given as the file or its folder: integers as `Int64`, texts never missing.

    Raises `ResultsError` for what is missing, empty, binary, newer than this attnbench, or no results file.
    """
    import pandas as pd

    rows = _rows(path)
    dtypes: dict[type, Any] = {str: str, int: "Int64", float: "float64"}
    names = list(rows[0]) if rows else list(KINDS)
    return pd.DataFrame(
        {name: pd.Series([r[name] for r in rows], dtype=dtypes[KINDS.get(name, str)]) for name in names}
    )


def _result(data: Mapping[str, Any]) -> Result:
    """A row as a `Result`; its blocks are not in the CSV."""

    def part(kind: type[Any], names: Mapping[str, str]) -> Any:
        columns = {field: names.get(field.name, field.name) for field in dataclasses.fields(kind)}
        if all(data[column] in (None, "") for column in columns.values()):
            return None
        for field, column in columns.items():
            if data[column] is None and field.type in (int, float):
                raise ValueError(f"{column} is empty")
        return kind(**{field.name: data[column] for field, column in columns.items()})

    return Result(
        cell=part(Cell, {}),
        status=Status(data["status"]),
        reason=data["reason"],
        accuracy=part(Accuracy, _ACCURACY),
        timing=part(Timing, {}),
        memory=part(Memory, _MEMORY),
        kernel=data["kernel"],
    )


def _run(rows: Sequence[Mapping[str, Any]]) -> Run:
    """What the rows of a CSV say about their run."""
    first = rows[0]

    def by(key: str, value: str) -> dict[str, str]:
        return {r[key]: r[value] for r in rows if r[value]}

    return Run(
        schema=SCHEMA,
        run_id=first["run_id"],
        suite=first["suite"],
        suite_text="",
        command=(),
        settings={"measure": {"preset": first["preset"]}},
        seed=first["seed"],
        started="",
        fingerprint={},
        environment={},
        versions=by("implementation", "versions"),
        owners=by("implementation", "plugin"),
        device_names=by("device", "device_name"),
    )


def load(path: Path) -> tuple[Run, list[Result]]:
    """A run from its folder or its `results.csv`, in the plan's order as far as the CSV tells it.

    The journal is read where the folder has one, and has the last word; without it the results have no
    blocks. A CSV without a header beside it is enough, and says less about its run.
    Raises `ResultsError` where there is no run.
    """
    folder = path if path.is_dir() else path.parent
    table = path / CSV if path.is_dir() else path
    run = read_header(folder) if path.is_dir() or (folder / HEADER).exists() else None
    found: dict[Any, Result] = {}
    journal = path.is_dir() and (folder / JOURNAL).exists()
    if not journal or table.exists():
        rows = _rows(table)
        if not rows and run is None:
            raise ResultsError(f"{table} has no rows")
        run = run or _run(rows)
        for data in rows:
            try:
                result = _result(data)
            except (ValueError, TypeError, UserError) as error:
                raise ResultsError(f"{table}: not a row of results: {error}") from None
            found[result.cell.key] = result
    if journal:
        found |= {result.cell.key: result for result in read_journal(folder)}
    assert run is not None
    return run, list(found.values())
