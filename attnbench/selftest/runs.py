"""Several short runs of the same cells, each with servers of its own: how far apart do their medians lie?"""

from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import version

from attnbench import environment, lock
from attnbench.calibration import Calibration, pooled
from attnbench.selftest.bench import MIDDLE, SMALL, Bench, timing

RUNS = 5
IMPLEMENTATIONS = ("torch-sdpa", "torch-naive")


def calibrate(threads: int, waiting: lock.Waiting) -> Calibration:
    """The spread between runs in so many threads, each cell measured as by the preset `quick`.

    `waiting` is told where another run has to end first.

    Raises `NotMeasuredError` where a cell is not ok.
    """
    medians: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(RUNS):
        with lock.held(["cpu"], waiting), Bench() as bench:
            for problem in (SMALL, MIDDLE):
                rows = bench.measure(problem, IMPLEMENTATIONS, threads=threads)
                for name, row in rows.items():
                    medians[problem, name].append(timing(row).median_s)
    spread, degrees = pooled(list(medians.values()))
    return Calibration(
        device=str(environment.describe()["cpu"]["model"]),
        threads=threads,
        torch=version("torch"),
        spread=spread,
        degrees=degrees,
        runs=RUNS,
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
    )
