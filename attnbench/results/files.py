"""Files of a run's folder: written whole or not at all, and read with their schema number."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attnbench.errors import ResultsError

SCHEMA = 4
"""Raised with every change of the columns, the journal or the header."""

_SINCE_2 = dict.fromkeys(("host_enqueue_s", "end_to_end_s", "device_delta_bytes"), "")

_SINCE_3 = dict.fromkeys(
    (
        *("grade", "noise", "drift", "cache_method", "floor_s", "sm_clock_hz", "power_w", "temperature_c"),
        *("throttle", "energy_j", "err_lse", "deterministic", "batch_invariant"),
    ),
    "",
)

_SINCE_4 = {"approximation": ""}


def _from_1(what: str, data: dict[str, Any]) -> dict[str, Any]:
    return {**data, **_SINCE_2} if what == "row" else data


def _from_2(what: str, data: dict[str, Any]) -> dict[str, Any]:
    return {**data, **_SINCE_3} if what == "row" else data


def _from_3(what: str, data: dict[str, Any]) -> dict[str, Any]:
    return {**data, **_SINCE_4} if what == "row" else data


UPGRADES: Mapping[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2, 3: _from_3}
"""Schema n -> what makes a `header`, `row` (texts) or `result` (JSON) of schema n + 1 out of one of schema n."""

HEADER, JOURNAL, CSV = "run.json", "journal.jsonl", "results.csv"


@contextlib.contextmanager
def doing(what: str, path: Path) -> Iterator[None]:
    """Trouble with a file as a `ResultsError`: "cannot `what` `path`"."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"cannot {what} {path}: {error.strerror or error}") from None


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with doing("write", path):
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def read(path: Path) -> str:
    """The text of a file. Raises `ResultsError` where it cannot be read or holds no text."""
    try:
        with doing("read", path):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ResultsError(f"{path} is not a text file")
    return text


def upgraded(what: str, data: dict[str, Any], schema: Any, place: Path | str) -> dict[str, Any]:
    """`data` of an old schema as one of ours. Raises `ResultsError` for what is newer or no schema at all."""
    if not isinstance(schema, int) or schema < 1:
        raise ResultsError(
            f"{place}: {schema!r} is no schema number", hint=f"`schema` is a whole number from 1 to {SCHEMA}"
        )
    if schema > SCHEMA:
        raise ResultsError(
            f"{place}: `schema` is {schema}, newer than {SCHEMA}, the newest that this attnbench reads",
            hint="upgrade attnbench",
        )
    for old in range(schema, SCHEMA):
        data = UPGRADES[old](what, data)
    return data | {"schema": SCHEMA} if "schema" in data else data
