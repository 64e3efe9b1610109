"""A stored run in the formats of others: JSON, a data frame, and the file of pytest-benchmark."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnbench import __version__, noise, results
from attnbench.estimates import sound
from attnbench.records import Result, Run
from attnbench.tables.contests import contest

if TYPE_CHECKING:
    import pandas as pd

PYTEST_BENCHMARK = "5.1.0"
"""Version of pytest-benchmark whose files look like this."""


def as_json(run: Run, rows: Sequence[Result]) -> str:
    """The header, and each row with the columns of `results.csv`; null where the CSV is empty."""
    header = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    header["plugins"] = [dataclasses.asdict(owner) for owner in run.plugins]
    found = [{k: None if v == "" else v for k, v in results.row(row, run).items()} for row in rows]
    return (
        json.dumps({"attnbench": __version__, "run": header, "results": found}, indent=1, default=dict) + "\n"
    )


def frame(run: Run, rows: Sequence[Result]) -> "pd.DataFrame":
    """The rows as `results.read_csv` gives them."""
    return results.frame([results.row(row, run) for row in rows])


def as_pytest_benchmark(run: Run, rows: Sequence[Result]) -> str:
    """A file that `pytest-benchmark compare` reads: a benchmark for each ok row, grouped by problem.

    Its statistics are of the samples that count, those of the system's interruptions are left out; the samples are
    in the journal, and without one what needs them (mean, maximum, quartiles) is NaN. attnbench's own median and
    interval are under `extra_info`.
    """
    benchmarks = []
    for row in rows:
        if (timing := row.timing) is None:
            continue
        problem, *job = map(str, contest(row))
        group = " ".join([problem, *job])
        benchmarks.append(
            {
                "group": group,
                "name": row.cell.implementation,
                "fullname": f"attnbench::{row.cell.implementation}[{group}]",
                "params": dataclasses.asdict(row.cell),
                "param": group,
                "extra_info": {
                    "attnbench_median_s": timing.median_s,
                    "attnbench_ci95_low_s": timing.ci95_low_s,
                    "attnbench_ci95_high_s": timing.ci95_high_s,
                    "attnbench_grade": timing.grade,
                    "workspace_bytes": row.memory.workspace_bytes if row.memory else None,
                },
                "options": {"timer": row.cell.clock, "warmup": True},
                "stats": _stats(row),
            }
        )
    made = {
        "machine_info": {
            "cpu": {"brand_raw": run.device_names.get("cpu", "")},
            "devices": dict(run.device_names),
            "python_version": run.fingerprint.get("python", ""),
        },
        "commit_info": {"id": "unknown", "attnbench_run": run.run_id},
        "benchmarks": benchmarks,
        "datetime": run.started,
        "version": PYTEST_BENCHMARK,
    }
    return json.dumps(made, indent=1) + "\n"


def has_samples(rows: Sequence[Result]) -> bool:
    """Whether all ok rows have their samples, so that nothing becomes NaN."""
    return all(row.blocks for row in rows if row.timing)


def _stats(row: Result) -> dict[str, Any]:
    """The fields of `pytest_benchmark.stats.Stats`, and `iterations`."""
    timing = row.timing
    assert timing is not None
    data = sorted(s for block in noise.counted(row.blocks) for s in sound(block.seconds, block.flagged))
    if not data:
        unknown = dict.fromkeys(
            ("max", "mean", "stddev", "iqr", "q1", "q3", "ld15iqr", "hd15iqr", "ops", "total"), math.nan
        )
        known = {
            "min": timing.min_s,
            "median": timing.median_s,
            "rounds": timing.n - timing.n_flagged or timing.n,
        }
        outliers = {"outliers": "?", "iqr_outliers": math.nan, "stddev_outliers": math.nan}
        return {**unknown, **known, **outliers, "iterations": timing.inner}
    count, total, mean = len(data), sum(data), statistics.mean(data)
    stddev = statistics.stdev(data) if count > 1 else 0.0
    q1, q3 = _quartiles(data)
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    by_stddev = sum(abs(value - mean) > stddev for value in data)
    by_iqr = sum(not low <= value <= high for value in data)
    return {
        "min": data[0],
        "max": data[-1],
        "mean": mean,
        "stddev": stddev,
        "rounds": count,
        "median": statistics.median(data),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": by_iqr,
        "stddev_outliers": by_stddev,
        "outliers": f"{by_stddev};{by_iqr}",
        "ld15iqr": min(value for value in data if value >= low),
        "hd15iqr": max(value for value in data if value <= high),
        "ops": count / total,
        "total": total,
        "iterations": timing.inner,
    }


def _quartiles(data: Sequence[float]) -> tuple[float, float]:
    """Of sorted values: medians of the halves, or for an odd number what lies between those with and without the
    middle one, as pytest-benchmark has it.
    """
    count = len(data)
    if count == 1:
        return data[0], data[0]
    if count % 2 == 0:
        return statistics.median(data[: count // 2]), statistics.median(data[count // 2 :])
    n, rest = divmod(count, 4)
    if rest == 1:
        return 0.25 * data[n - 1] + 0.75 * data[n], 0.75 * data[3 * n] + 0.25 * data[3 * n + 1]
    return 0.75 * data[n] + 0.25 * data[n + 1], 0.25 * data[3 * n + 1] + 0.75 * data[3 * n + 2]
