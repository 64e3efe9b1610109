"""Implementations beside those that have not changed: what moves all of them from one run to the next is the machine.

They were timed by turns on the same problems, so that the ratio of their ratios knows little of the machine's speed
(compare Bulej et al. 2020, "Duet Benchmarking"). It adds to what times alone say, and takes nothing back: what looks unchanged
from here may have changed all the same, in a module that a plugin imports.
"""

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from attnbench import estimates
from attnbench.against import OF_THE_BASE, SUFFIX
from attnbench.compare.sides import Side
from attnbench.compare.verdicts import Effect, Way
from attnbench.errors import ResultsError
from attnbench.records import Result, Run
from attnbench.results import JOURNAL, CellKey, read_journal
from attnbench.turns import Values, over, values

LEAST_OTHERS = 3
"""Unchanged implementations beside one, at the least."""
LEAST_CELLS = 5
"""Of an implementation, beside which so many others are."""
MOST_CELLS = 2000
"""With more on a side, journals are not read for their rounds."""
MOST_PAIRS = 20_000
"""Of implementations on problems; of more problems than that allows some are drawn."""


class _Time(NamedTuple):
    """Of a cell in one run."""

    log_s: float
    rounds: Values
    """Empty where they are not known."""


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
    for name, rows in cells.items():
        others = [found[other] for other in found if other in steady and other != name]
        if len(others) >= LEAST_OTHERS:
            logs = [shift for (shift,) in rows]
            own = statistics.stdev(logs) / math.sqrt(len(logs)), len(logs) - 1
            ratio = estimates.combined(
                statistics.fmean(logs), [own, (estimates.apart(others), len(others) - 1)]
            )
            effects[name] = Effect(ratio, Way.BESIDE)
    return effects


def _relative(base: Side, new: Side, steady: set[str], each_run: bool) -> Mapping[str, list[list[float]]]:
    """The cells of implementations that have enough of them: the median of the logs of their ratios to the others, either of each
    run over the mean of both sides, or of the new side over the base."""
    runs = len(base.runs), len(new.runs)
    rounds = _rounds(base, new)
    places: dict[tuple[object, ...], dict[str, list[_Time]]] = defaultdict(dict)
    for key, outcomes in base.cells.items():
        more = new.cells.get(key, ())
        seconds = [one.median_s for one in (*outcomes, *more) if one.median_s]
        if (len(outcomes), len(more)) == runs and len(seconds) == sum(runs):
            problem, name, *job = key
            places[problem, *job][name] = [
                _Time(math.log(one), _values(rows.get(key), one))
                for one, rows in zip(seconds, rounds, strict=True)
            ]
    found: dict[str, list[list[float]]] = defaultdict(list)
    for several in _drawn(list(places.values())):
        moved: dict[str, list[list[float]]] = defaultdict(list)
        for one, other in combinations(several, 2):
            if one in steady or other in steady:
                shifts = _moved(several[one], several[other], runs[0], each_run)
                moved[one] += [shifts] * (other in steady)
                moved[other] += [[-shift for shift in shifts]] * (one in steady)
        for name, beside in moved.items():
            if len(beside) >= LEAST_OTHERS:
                found[name].append([statistics.median(run) for run in zip(*beside, strict=True)])
    return {name: rows for name, rows in found.items() if len(rows) >= LEAST_CELLS}


def _drawn(places: list[dict[str, list[_Time]]]) -> list[dict[str, list[_Time]]]:
    """As many problems as `MOST_PAIRS` allows; none where that is too few."""
    pairs = sum(len(several) * (len(several) - 1) // 2 for several in places)
    if pairs <= MOST_PAIRS:
        return places
    number = len(places) * MOST_PAIRS // pairs
    return random.Random(0).sample(places, number) if number >= LEAST_CELLS else []


def _moved(ours: Sequence[_Time], theirs: Sequence[_Time], bases: int, each_run: bool) -> list[float]:
    """From the rounds that both have, where enough are known in all runs: then what drifts falls on both. Else from the medians."""
    known = [over(one.rounds, other.rounds) for one, other in zip(ours, theirs, strict=True)]
    ratios = [math.log(ratio.location) for ratio in known if ratio]
    if len(ratios) < len(known):
        ratios = [one.log_s - other.log_s for one, other in zip(ours, theirs, strict=True)]
    before, now = statistics.fmean(ratios[:bases]), statistics.fmean(ratios[bases:])
    return [ratio - (before + now) / 2 for ratio in ratios] if each_run else [now - before]


def _rounds(base: Side, new: Side) -> list[Mapping[CellKey, Result]]:
    """What the journal of each run has, where all have one."""
    paths = [*base.paths, *new.paths]
    none: list[Mapping[CellKey, Result]] = [{}] * (len(base.runs) + len(new.runs))
    if len(paths) < len(none) or max(len(base.cells), len(new.cells)) > MOST_CELLS:
        return none
    if not all((path / JOURNAL).exists() for path in paths):
        return none
    try:
        return [{row.cell.key: row for row in read_journal(path)} for path in paths]
    except (ResultsError, OSError, RecursionError):  # medians are enough
        return none


def _values(row: Result | None, median_s: float) -> Values:
    """Of a journal's row, if it is that of the time in the table, and what it holds can be times."""
    if row is None or row.timing is None or row.timing.median_s != median_s:
        return {}
    try:
        found = values(row)
    except (ValueError, TypeError, ArithmeticError):
        return {}
    sound = all(isinstance(number, int) for place in found for number in place)
    return found if sound and all(map(math.isfinite, found.values())) else {}


def by_source(runs: Sequence[Run]) -> tuple[set[str], set[str]]:
    """Implementations whose plugin's source is known and the same in all runs, and those of which it is known and is not; none
    where attnbench's is not the same."""
    if len({run.fingerprint.get("attnbench source", run.run_id) for run in runs}) > 1:
        return set(), set()
    sources: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, plugin in run.owners.items():
            source = f"source of plugin {plugin}"
            known = run.fingerprint.get(source, "")
            of_the_base = run.fingerprint.get(f"{source}{OF_THE_BASE}", known)
            sources[name].add(of_the_base if name.endswith(SUFFIX) else known)
    numbers = {name: len(texts) for name, texts in sources.items() if "" not in texts}
    return {name for name in numbers if numbers[name] == 1}, {name for name in numbers if numbers[name] > 1}
