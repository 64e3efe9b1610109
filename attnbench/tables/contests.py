"""Who is the fastest for a problem, by how much, and what cannot be told apart from it."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench import estimates
from attnbench.estimates import Interval
from attnbench.noise import GRADES
from attnbench.records import Result, Status
from attnbench.tables.axes import JOB_AXES
from attnbench.turns import paired

TOO_NOISY = 50.0
"""Half an interval in per cent of its location from which on the number says little."""
BEST, TIED, UNSURE = "*", "≈", "?"
NOISY = GRADES[-1]
"""The grade of a time that is not trusted to win."""

Key = tuple[object, ...]


def contest(result: Result) -> Key:
    """What the implementations that compete with each other have in common."""
    return tuple(getattr(result.cell, name) for name in ("problem", *JOB_AXES))


def of_time(result: Result) -> Interval | None:
    """The median in seconds with its interval; None where there is no timing."""
    if (timing := result.timing) is None:
        return None
    return Interval(location=timing.median_s, low=timing.ci95_low_s, high=timing.ci95_high_s)


def half_percent(interval: Interval) -> float | None:
    """Half the interval in per cent of the location; None where there is none."""
    if interval.low is None or interval.high is None:
        return None
    return 50 * (interval.high - interval.low) / interval.location


def uncertainty(interval: Interval) -> str:
    """` ±1.2%`, ` too noisy`, or nothing where there is no interval."""
    percent = half_percent(interval)
    if percent is None:
        return ""
    return " too noisy" if percent > TOO_NOISY else f" ±{percent:.{1 if percent < 9.95 else 0}f}%"


def noisy(result: Result) -> bool:
    """Whether its time has the worst grade."""
    return result.timing is not None and result.timing.grade == NOISY


def combined(result: Result, base: Result) -> Interval:
    """Time of `result` over that of `base` from both medians.

    The interval is that of two independent estimates: half widths on the log scale, added in quadrature.
    Raises ValueError where one was not timed.
    """
    one, other = of_time(result), of_time(base)
    if one is None or other is None:
        raise ValueError("no ratio of what was not timed")
    location = one.location / other.location
    ours, theirs = estimates.half_width(one), estimates.half_width(other)
    if ours is None or theirs is None:
        return Interval(location=location, low=None, high=None)
    factor = math.exp(math.hypot(ours, theirs))
    return Interval(location=location, low=location / factor, high=location * factor)


@dataclass(frozen=True, kw_only=True)
class Standings:
    """Marks of cells by their keys, and in words how ties were judged."""

    marks: dict[Key, str]
    ways: tuple[str, ...] = ()


def by_time(results: Sequence[Result]) -> Standings:
    """The least right time of each contest is best, or unsure where its interval is missing or too wide or its
    grade is bad.

    Others tie with it where the interval of the paired ratio holds 1, or, without the blocks for that, where
    the intervals overlap; a time without an interval is a point then.
    """
    marks: dict[Key, str] = {}
    ways: dict[str, None] = {}
    for entered in _contests(results):
        best, *others = sorted(entered, key=lambda pair: pair[0].location)
        percent = half_percent(best[0])
        sure = percent is not None and percent <= TOO_NOISY and not noisy(best[1])
        marks[best[1].cell.key] = BEST if sure else UNSURE
        for time, result in others:
            ratio = paired(result, best[1])
            if ratio is not None and ratio.low is not None:
                tied, way = ratio.low <= 1, "the interval of their ratio holds 1"
            else:
                low = time.location if time.low is None else time.low
                high = best[0].location if best[0].high is None else best[0].high
                tied, way = low <= high, "the intervals overlap"
            if tied:
                marks[result.cell.key] = TIED
                ways[way] = None
    return Standings(marks=marks, ways=tuple(ways))


def _contests(results: Sequence[Result]) -> list[list[tuple[Interval, Result]]]:
    """The timed results of each contest; none where there is but one implementation to win."""
    found: dict[Key, list[tuple[Interval, Result]]] = defaultdict(list)
    if len({result.cell.implementation for result in results}) > 1:
        for result in results:
            if time := of_time(result):
                found[contest(result)].append((time, result))
    return [*found.values()]


def by_workspace(results: Sequence[Result]) -> Standings:
    """The least workspace of each contest is best; equal ones are all."""
    marks: dict[Key, str] = {}
    for entered in _contests(results):
        measured = [(r.memory.workspace_bytes, r) for _, r in entered if r.memory]
        least = min((count for count, _ in measured), default=0)
        marks |= {result.cell.key: BEST for count, result in measured if count == least}
    return Standings(marks=marks)


def likeliest_baseline(results: Sequence[Result]) -> str | None:
    """The implementation that is right most often, the first of several; None where none is."""
    right: dict[str, int] = defaultdict(int)
    for result in results:
        right[result.cell.implementation] += result.status is Status.OK
    return max(right, key=lambda name: right[name]) if any(right.values()) else None
