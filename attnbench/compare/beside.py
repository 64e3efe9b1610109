"""Implementations beside those that have not changed: what moves all of them from one run to the next is the machine.

They were timed by turns on the same problems, so that the ratio of their ratios knows little of the machine's speed
(compare Bulej et al. 2020, "Duet Benchmarking"). It adds to what times alone say, and takes nothing back: what looks unchanged
from here may have changed all the same, in a module that a plugin imports.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from attnbench import estimates
from attnbench.compare.sides import Side
from attnbench.compare.verdicts import Effect, Way
from attnbench.records import Run

LEAST_OTHERS = 3
"""Unchanged implementations beside one, at the least."""
LEAST_CELLS = 5
"""Of an implementation, beside which so many others are."""


def besides(base: Side, new: Side, least_runs: int) -> Mapping[str, Effect]:
    """By implementation the ratio of its ratio to the median of those of the others that have not changed, each problem by itself.

    The interval rests on the runs where either side has `least_runs`; else on the cells, and on how far the others lie apart beyond
    what their own cells explain, because what a machine does to one implementation it may do to all of its cells.
    """
    steady = _unchanged((*base.runs, *new.runs))
    if len(steady) < LEAST_OTHERS:
        return {}
    runs = len(base.runs), len(new.runs)
    cells = _relative(base, new, steady, each_run=min(runs) >= least_runs)
    if min(runs) >= least_runs:
        means = {
            name: [statistics.fmean(run) for run in zip(*rows, strict=True)] for name, rows in cells.items()
        }
        return {
            name: Effect(estimates.welch(mean[runs[0] :], mean[: runs[0]]), Way.RUNS)
            for name, mean in means.items()
        }
    found = {name: estimates.mean([shift for (shift,) in rows]) for name, rows in cells.items()}
    effects = {}
    for name, interval in found.items():
        others = [found[other] for other in found if other in steady and other != name]
        if len(others) >= LEAST_OTHERS and interval.degrees:
            apart = estimates.half_of(estimates.apart(others), interval.degrees)
            halves = [estimates.half_width(interval) or 0.0, apart]
            effects[name] = Effect(
                estimates.widened(math.log(interval.location), halves, interval.degrees), Way.BESIDE
            )
    return effects


def _relative(base: Side, new: Side, steady: set[str], each_run: bool) -> Mapping[str, list[list[float]]]:
    """The cells of implementations that have enough of them: logs less the median of the others', either of each run's time
    over the mean of all runs, or of the new side's over that of the base."""
    places: dict[tuple[object, ...], dict[str, list[float]]] = defaultdict(dict)
    for key, outcomes in base.cells.items():
        sides = [
            [math.log(one.median_s) for one in side if one.median_s]
            for side in (outcomes, new.cells.get(key, ()))
        ]
        if [len(side) for side in sides] == [len(base.runs), len(new.runs)]:
            problem, name, *job = key
            before, now = map(statistics.fmean, sides)
            middle = (before + now) / 2
            places[problem, *job][name] = (
                [log - middle for side in sides for log in side] if each_run else [now - before]
            )
    found: dict[str, list[list[float]]] = defaultdict(list)
    for several in places.values():
        for name, logs in several.items():
            others = [more for other, more in several.items() if other in steady and other != name]
            if len(others) >= LEAST_OTHERS:
                middles = map(statistics.median, zip(*others, strict=True))
                found[name].append([log - middle for log, middle in zip(logs, middles, strict=True)])
    return {name: rows for name, rows in found.items() if len(rows) >= LEAST_CELLS}


def _unchanged(runs: Sequence[Run]) -> set[str]:
    """Implementations whose plugin's source is known and the same in all runs; none where attnbench's is not."""
    if len({run.fingerprint.get("attnbench source", run.run_id) for run in runs}) > 1:
        return set()
    sources: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, plugin in run.owners.items():
            sources[name].add(run.fingerprint.get(f"source of plugin {plugin}", ""))
    return {name for name, known in sources.items() if len(known) == 1 and known != {""}}
