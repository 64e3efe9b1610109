"""What the machine did: how the implementations that have not changed shifted from run to run.

What slows a whole machine slows them as well, and they were timed by turns with the others on the same problem
(compare Bulej et al. 2020, "Duet Benchmarking").
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from attnbench.compare.differences import SOURCES, UNGATED, Difference
from attnbench.compare.sides import Side
from attnbench.records import Run
from attnbench.results import CellKey, Outcome

LEAST_OTHERS = 3
"""Unchanged implementations, at the least, whose median says what the machine did."""

Rests = Mapping[CellKey, Sequence[float]]
"""Logs of how slow the machine was for a cell in each run, those of the base first; their zero means nothing."""


def rests(base: Side, new: Side, differences: Sequence[Difference]) -> Rests:
    """Of each cell that is timed in all runs: the median of the other unchanged implementations on the same problem,
    each measured by its own mean over all runs. Empty where machine, versions, settings or attnbench differ."""
    if any(one.kind in UNGATED or (one.kind, one.what) == (SOURCES, "attnbench") for one in differences):
        return {}
    steady = _unchanged((*base.runs, *new.runs))
    if len(steady) < LEAST_OTHERS:
        return {}
    places: dict[tuple[object, ...], list[tuple[CellKey, list[float]]]] = defaultdict(list)
    for key, outcomes in base.cells.items():
        medians = [outcome.median_s for outcome in (*outcomes, *new.cells.get(key, ()))]
        logs = [math.log(median) for median in medians if median is not None]
        if len(logs) == len(medians) == len(base.runs) + len(new.runs):
            middle = math.fsum(logs) / len(logs)
            problem, _, *job = key
            places[problem, *job].append((key, [log - middle for log in logs]))
    found = {}
    for several in places.values():
        for key, _ in several:
            others = [logs for other, logs in several if other[1] in steady and other != key]
            if len(others) >= LEAST_OTHERS:
                found[key] = [statistics.median(run) for run in zip(*others, strict=True)]
    return found


def _unchanged(runs: Sequence[Run]) -> set[str]:
    """Implementations whose plugin's source is known and the same in all runs."""
    sources: dict[str, set[str | None]] = defaultdict(set)
    for run in runs:
        for name, plugin in run.owners.items():
            sources[name].add(run.fingerprint.get(f"source of plugin {plugin}"))
    return {name for name, known in sources.items() if len(known) == 1 and None not in known}


def at_one_speed(base: Side, new: Side, rested: Rests) -> tuple[Side, Side]:
    """Both sides with the times that a machine of one speed would have taken, where that can be told."""
    if not rested:
        return base, new

    def told(side: Side, start: int) -> Side:
        cells = {
            key: tuple(map(_rested, outcomes, rested[key][start:])) if key in rested else outcomes
            for key, outcomes in side.cells.items()
        }
        return replace(side, cells=cells)

    return told(base, 0), told(new, len(base.runs))


def _rested(outcome: Outcome, slow: float) -> Outcome:
    return outcome._replace(median_s=(outcome.median_s or 0.0) * math.exp(-slow))


def slowed(rest: Sequence[float], runs: int) -> float:
    """How many times as slow the machine was on the new side, from the logs of a cell, of which `runs` are the base's."""
    return math.exp(statistics.fmean(rest[runs:]) - statistics.fmean(rest[:runs]))
