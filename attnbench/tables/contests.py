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
    """The least right time of each contest is best, or unsure where it is not `trusted`; others tie with it
    as `gap` says.
    """
    marks: dict[Key, str] = {}
    ways: dict[str, None] = {}
    for entered in _contests(results):
        best, *others = sorted((result for _, result in entered), key=_median)
        marks[best.cell.key] = BEST if trusted(best) else UNSURE
        for result in others:
            if (found := gap(result, best)).tied:
                marks[result.cell.key] = TIED
                ways[found.way] = None
    return Standings(marks=marks, ways=tuple(ways))


def _median(result: Result) -> float:
    return result.timing.median_s if result.timing else math.inf


def trusted(result: Result) -> bool:
    """Whether a time may be called the fastest: its interval is there and not too wide, its grade not the worst."""
    time = of_time(result)
    percent = None if time is None else half_percent(time)
    return percent is not None and percent <= TOO_NOISY and not noisy(result)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much longer than the best a result took."""

    ratio: Interval
    """Its time over the best's."""
    tied: bool
    """Whether they cannot be told apart."""
    way: str
    """How that was judged, in words."""


def gap(result: Result, best: Result) -> Gap:
    """A result against the best of its contest: by the interval of the paired ratio, or, without the blocks for that,
    by whether the intervals overlap; the ratio's is the quotient of their ends then. A time without an interval is
    a point.

    Raises ValueError where one was not timed.
    """
    ratio = paired(result, best)
    if ratio is not None and ratio.low is not None:
        return Gap(ratio=ratio, tied=ratio.low <= 1, way="the interval of their ratio holds 1")
    one, other = of_time(result), of_time(best)
    if one is None or other is None:
        raise ValueError("no ratio of what was not timed")
    low = (one.low or one.location) / (other.high or other.location)
    high = (one.high or one.location) / (other.low or other.location)
    bare = one.low is None and other.low is None
    location = one.location / other.location
    return Gap(
        ratio=Interval(location=location, low=None if bare else low, high=None if bare else high),
        tied=low <= 1,
        way="the intervals overlap",
    )


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
