"""False alarms: one implementation under several names, side by side. Few intervals of a ratio may leave out 1."""

import itertools
import math
import statistics
from collections.abc import Iterator

from attnbench import estimates
from attnbench.selftest.bench import MIDDLE, SMALL, Bench, NotMeasuredError, timing
from attnbench.selftest.check import Check
from attnbench.selftest.contrast import Contrast, contrast, most_missed
from attnbench.selftest.specimens import SAMES

CONTRASTS, QUICK_CONTRASTS = 200, 16
PAIRS = tuple(
    (name, SAMES[(place + step) % len(SAMES)]) for step in (1, 3) for place, name in enumerate(SAMES)
)
"""In a ring, each with the next and the third: all pairs would say little more in the same time."""
TRIES = 1.5
"""Times as many pairs may be measured, because some have too few rounds in common for an interval."""
SETTINGS = ("measure.launches=3", "measure.budget=600ms")
"""Intervals of one launch do not cover what differs between processes: about one in eight leaves out 1."""
MOST = 0.12
"""Share of intervals that may leave out 1, of many; 0.05 is expected."""


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """How often equals are told apart; and the noise floor, which is only told."""
    wanted = QUICK_CONTRASTS if quick else CONTRASTS
    works = itertools.cycle([(SMALL, 1), (MIDDLE, bench.cores)])
    found: list[Contrast] = []
    for problem, threads in itertools.islice(works, math.ceil(TRIES * wanted / len(PAIRS))):
        if len(found) >= wanted:
            break
        rows = bench.measure(problem, SAMES, threads=threads, settings=SETTINGS)
        for row in rows.values():
            timing(row)
        found += [one for ours, theirs in PAIRS if (one := contrast(rows[ours], rows[theirs]))]
    if len(found) < wanted / 2:
        raise NotMeasuredError(f"only {len(found)} of {wanted} pairs have enough rounds for an interval")
    count = sum(not one.holds(1.0) for one in found)
    share, bound = count / len(found), max(MOST, most_missed(len(found)) / len(found))
    yield Check(
        name="alarms",
        figure=share,
        bound=bound,
        passed=share <= bound,
        text=f"{count} of {len(found)} intervals tell an implementation from itself ({share:.1%}), "
        f"at most {bound:.1%}",
    )
    logs = [math.log(one.ratio) for one in found]
    floor = estimates.percentile([abs(value) for value in logs], 95)
    yield Check(
        name="alarms",
        figure=floor,
        passed=None,
        text=f"noise floor of this machine: 95 % of the ratios of equals lie within ±{floor:.2%}, "
        f"their standard deviation is {statistics.stdev(logs):.2%}",
    )
