"""A run's folder and its header, `run.json`."""

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnbench.errors import ResultsError
from attnbench.records import Owner, Run
from attnbench.results.files import HEADER, doing, read, replace, upgraded


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
        with doing("create", folder):
            folder.mkdir(parents=True)
        return folder
    suite = re.sub(r"[^\w.-]+", "-", suite_name).strip("-.") or "run"
    stem, number = f"{suite}-{datetime.now(UTC):%Y%m%d-%H%M%S}", 1
    with doing("create a folder in", parent):
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
    replace(folder / HEADER, json.dumps(data, indent=1, default=dict) + "\n")


def header_json(folder: Path) -> dict[str, Any]:
    """`run.json` as it was written. Raises `ResultsError`."""
    path = folder / HEADER
    if not path.is_file():
        if not folder.exists():
            raise ResultsError(f"there is no folder {folder}")
        raise ResultsError(f"{folder} is not the folder of a run: it has no {HEADER}")
    try:
        data = json.loads(read(path))
    except ValueError as error:
        raise ResultsError(f"{path} is not the header of a run: {error}") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise ResultsError(f"{path} is not the header of a run: it has no schema")
    return data


def read_header(folder: Path) -> Run:
    """Reads `run.json`. Raises `ResultsError` where it is missing or no header of a run."""
    data = header_json(folder)
    data = upgraded("header", data, data["schema"], folder / HEADER)
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
