"""How far two runs of one machine lie apart: taken by `attnbench selftest --calibrate`, kept in a file per user."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench import userfiles
from attnbench.errors import ResultsError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The spread between runs. Device, threads and torch's version together are its key."""

    device: str
    """The model's name, as in a run's header."""
    threads: int
    torch: str
    spread: float
    """Standard deviation of a cell's log median from run to run, pooled over cells: 0.01 is about 1 %."""
    degrees: int
    """Of freedom, of the spread."""
    runs: int
    taken: str
    """UTC, ISO 8601."""

    @property
    def key(self) -> tuple[str, int, str]:
        return (self.device, self.threads, self.torch)


def pooled(cells: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within cells, and its degrees of freedom; `cells[cell][run]` are medians in seconds.

    Raises ValueError where no cell has two runs.
    """
    several = [[math.log(median) for median in runs] for runs in cells if len(runs) > 1]
    degrees = sum(len(runs) - 1 for runs in several)
    if not degrees:
        raise ValueError("no cell has two runs")
    squares = math.fsum((len(runs) - 1) * statistics.variance(runs) for runs in several)
    return math.sqrt(squares / degrees), degrees


def place() -> Path:
    """The file. Raises `ResultsError` where there is no home."""
    try:
        return userfiles.path("calibration.json")
    except RuntimeError:
        raise ResultsError("there is no home to keep a calibration in", hint="set XDG_CACHE_HOME") from None


def read(device: str, threads: int, torch: str) -> Calibration | None:
    """What is known of this device, of so many threads and this version of torch; None where nothing is.

    Raises `ResultsError` where the file is damaged.
    """
    return _all().get((device, threads, torch))


def store(calibration: Calibration) -> Path:
    """Write it down in place of an earlier one of the same key; where. Raises `ResultsError`."""
    kept: Mapping[Any, Calibration] = {**_all(), calibration.key: calibration}
    path = place()
    data = {"schema": SCHEMA, "calibrations": [dataclasses.asdict(one) for one in kept.values()]}
    try:
        userfiles.replace(path, json.dumps(data, indent=1))
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}", hint="set XDG_CACHE_HOME") from None
    return path


def _all() -> dict[tuple[str, int, str], Calibration]:
    path = place()
    try:
        data = json.loads(path.read_text())
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']}, not {SCHEMA}")
        found = [Calibration(**one) for one in data["calibrations"]]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ResultsError(
            f"{path} is no calibration: {error}", hint="remove it, then `attnbench selftest --calibrate`"
        ) from None
    return {one.key: one for one in found}
