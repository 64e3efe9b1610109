"""Implementations beside those that have not changed: what moves all of them from one run to the next is the machine.

They were timed by turns on the same problems, so that the ratio of their ratios knows little of the machine's speed
(compare Bulej et al. 2020, "Duet Benchmarking"). It adds to what times alone say, and takes nothing back: what looks unchanged
from here may have changed all the same, in a module that a plugin imports.
"""

import contextlib
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attnbench import estimates
from attnbench.compare.sides import Side
from attnbench.compare.verdicts import Effect, Way
from attnbench.errors import ResultsError
from attnbench.records import Result, Run
from attnbench.results import CellKey, read_journal
from attnbench.turns import paired

LEAST_OTHERS = 3
"""Unchanged implementations beside one, at the least."""
LEAST_CELLS = 5
"""Of an implementation, beside which so many others are."""
MOST_CELLS = 2000
"""Of more, rounds are not read, and only so many are looked at."""


class _Time(NamedTuple):
    """Of a cell in one run."""

    log_s: float
    result: Result | None
    """With the rounds, where they are known."""

    def over(self, other: "_Time") -> float:
        """Log of the ratio of both times, from the rounds that both have: then what drifts falls on both."""
        if self.result and other.result and (ratio := paired(self.result, other.result)):
            return math.log(ratio.location)
        return self.log_s - other.log_s


def besides(base: Side, new: Side, least_runs: int) -> Mapping[str, Effect]:
    """By implementation how many times as long it takes as before, beside each of the others that have not changed: the median
    over these, each problem by itself.

    The interval rests on the runs where either side has `least_runs`; else on the cells, and on how far the others lie apart beyond
    what their own cells explain, because what a machine does to one implementation it may do to all of its cells.
    """
    steady, _ = by_source((*base.runs, *new.runs))
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
    """The cells of implementations that have enough of them: the median of the logs of their ratios to the others, either of each
    run over the mean of both sides, or of the new side over the base."""
    runs = len(base.runs), len(new.runs)
    few = len(base.cells) <= MOST_CELLS
    rounds = [rows for side in (base, new) for rows in (_rounds(side) if few else [{}] * len(side.runs))]
    places: dict[tuple[object, ...], dict[str, list[_Time]]] = defaultdict(dict)
    for key, outcomes in base.cells.items():
        more = new.cells.get(key, ())
        seconds = [one.median_s for one in (*outcomes, *more) if one.median_s]
        if (len(outcomes), len(more)) == runs and len(seconds) == sum(runs):
            problem, name, *job = key
            places[problem, *job][name] = [
                _Time(math.log(one), rows.get(key)) for one, rows in zip(seconds, rounds, strict=True)
            ]
    found: dict[str, list[list[float]]] = defaultdict(list)
    step = -(-len(base.cells) // MOST_CELLS)
    for several in list(places.values())[::step]:
        for name, times in several.items():
            others = [more for other, more in several.items() if other in steady and other != name]
            if len(others) >= LEAST_OTHERS:
                moved = [_moved(times, other, runs[0], each_run) for other in others]
                found[name].append([statistics.median(run) for run in zip(*moved, strict=True)])
    return {name: rows for name, rows in found.items() if len(rows) >= LEAST_CELLS}


def _moved(ours: Sequence[_Time], theirs: Sequence[_Time], bases: int, each_run: bool) -> list[float]:
    ratios = [one.over(other) for one, other in zip(ours, theirs, strict=True)]
    before, now = statistics.fmean(ratios[:bases]), statistics.fmean(ratios[bases:])
    return [ratio - (before + now) / 2 for ratio in ratios] if each_run else [now - before]


def _rounds(side: Side) -> list[Mapping[CellKey, Result]]:
    """What the journal of each run has, where there is one."""
    found: list[Mapping[CellKey, Result]] = []
    for path in side.paths:
        with contextlib.suppress(ResultsError):  # medians are enough
            found.append(
                {row.cell.key: row for row in read_journal(path) if row.blocks} if path.is_dir() else {}
            )
    return found if len(found) == len(side.runs) else [{}] * len(side.runs)


def by_source(runs: Sequence[Run]) -> tuple[set[str], set[str]]:
    """Implementations whose plugin's source is known and the same in all runs, and those of which it is known and is not; none
    where attnbench's is not the same."""
    if len({run.fingerprint.get("attnbench source", run.run_id) for run in runs}) > 1:
        return set(), set()
    sources: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, plugin in run.owners.items():
            sources[name].add(run.fingerprint.get(f"source of plugin {plugin}", ""))
    known = {name: len(texts) for name, texts in sources.items() if "" not in texts}
    return {name for name in known if known[name] == 1}, {name for name in known if known[name] > 1}
