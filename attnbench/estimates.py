"""Locations, intervals and ratios of times: pure functions of floats.

The block is the unit: a block's value is the log median of its samples, and `values[launch][round]` are the
log values of one implementation's blocks. Intervals are two-sided, at 95 %, built on the log scale.
"""

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

CONFIDENCE = 0.95
TRIM = 0.2
"""Share of the values that is cut off at each end."""
LEAST_BLOCKS = 5
"""With fewer blocks than this, trimming cuts nothing and there is no interval."""
LEAST_LAUNCHES = 3
"""With fewer launches than this, their spread says nothing."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A location and its 95 % interval, which holds it: in seconds, or without unit for a ratio."""

    location: float
    low: float | None
    high: float | None
    degrees: float | None = None
    """Of freedom, of the Student t that the interval is built with; None where there is none."""


def sound(seconds: Sequence[float], flagged: Collection[int]) -> Sequence[float]:
    """The samples of a block whose index is not in `flagged`; all samples where all are."""
    return [second for index, second in enumerate(seconds) if index not in flagged] or seconds


def block_value(seconds: Sequence[float], flagged: Collection[int]) -> float:
    """The log median of a block's sound samples.

    Raises ValueError without samples, or where the median is not above zero.
    """
    return math.log(statistics.median(sound(seconds, flagged)))


def location(values: Sequence[Sequence[float]]) -> Interval:
    """The 20 % trimmed mean over all blocks; its interval is the wider of two, centred on it.

    One is Yuen's t interval over all rounds (1974), the other, from three launches on, the t interval over
    the launches' own trimmed means: rounds of one process do not show what differs between processes. With
    fewer than five blocks the location is the median and has no interval. Raises ValueError without blocks.
    """
    blocks = sorted(chain.from_iterable(values))
    if len(blocks) < LEAST_BLOCKS:
        return Interval(location=math.exp(statistics.median(blocks)), low=None, high=None)
    half, degrees = max(_half_over_rounds(blocks), _half_over_launches(values))
    return _around(_trimmed_mean(blocks), half, degrees)


def ratio(values: Sequence[Sequence[float]], baseline_values: Sequence[Sequence[float]]) -> Interval:
    """How many times as long as the baseline: blocks are paired by launch and round, and the rounds that
    only one side has are left out. Raises ValueError where no round is on both sides.
    """
    return location(
        [
            [value - baseline for value, baseline in zip(ours, theirs, strict=False)]
            for ours, theirs in zip(values, baseline_values, strict=False)
        ]
    )


def half_width(interval: Interval) -> float | None:
    """Half the interval's width on the log scale, so 0.01 is about +-1 %; None where there is none."""
    if interval.low is None or interval.high is None:
        return None
    return math.log(interval.high / interval.low) / 2


def welch(values: Sequence[float], baseline_values: Sequence[float]) -> Interval:
    """How many times as long as the baseline, from the log medians of two or more independent runs of either.

    The t interval of a difference of means whose variances may differ (Welch 1947), with the degrees of freedom of
    Satterthwaite (1946).
    """
    sides = [(len(side), _variance(side) / len(side)) for side in (values, baseline_values)]
    error, below = sum(e for _, e in sides), sum(e * e / (n - 1) for n, e in sides)
    degrees = error * error / below if below else float(len(values) + len(baseline_values) - 2)
    return _around(_mean(values) - _mean(baseline_values), _t(degrees) * math.sqrt(error), degrees)


def mean(values: Sequence[float]) -> Interval:
    """exp of the mean of log values with its t interval; without one where there are fewer than two.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("no mean of nothing")
    if len(values) == 1:
        return Interval(location=math.exp(values[0]), low=None, high=None)
    degrees = len(values) - 1
    return _around(_mean(values), _t(degrees) * math.sqrt(_variance(values) / len(values)), degrees)


def half_of(error: float, degrees: float) -> float:
    """Half of a 95 % interval from a standard error and its degrees of freedom."""
    return _t(degrees) * error


def widened(middle: float, halves: Sequence[float], degrees: float) -> Interval:
    """An interval around `middle`, a log, from independent half widths on the log scale, added in quadrature."""
    return _around(middle, math.hypot(*halves), degrees)


def beyond(interval: Interval, margin: float) -> float:
    """The p-value, two-sided, of a ratio that lies between 1 / (1 + margin) and 1 + margin; 1 without an interval."""
    half, excess = half_width(interval), abs(math.log(interval.location)) - math.log1p(margin)
    if half is None or interval.degrees is None or excess <= 0:
        return 1.0
    if half <= 0:
        return 0.0
    from scipy.special import stdtr  # slow to import

    return float(2 * stdtr(interval.degrees, -excess / half * _t(interval.degrees)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all of a family together, in the same order (Holm 1979)."""
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, linear between neighbours; any order.

    Raises ValueError without values or outside 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(values)} values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation from the median, not scaled to a standard deviation."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean that ratios have. Raises ValueError without ratios or where one is not above zero."""
    return statistics.geometric_mean(ratios)


def _trimmed_mean(ordered: Sequence[float]) -> float:
    cut = int(TRIM * len(ordered))
    return math.fsum(ordered[cut : len(ordered) - cut]) / (len(ordered) - 2 * cut)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    """`statistics.variance` is a hundred times slower, because it is exact."""
    middle = _mean(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)


def _around(center: float, half: float, degrees: float) -> Interval:
    """An interval from its middle and half width on the log scale."""
    return Interval(
        location=math.exp(center),
        low=math.exp(center - half),
        high=math.exp(center + half),
        degrees=degrees,
    )


def _half_over_rounds(ordered: Sequence[float]) -> tuple[float, int]:
    """Yuen's half width: winsorised sum of squares / (h (h - 1)), h - 1 degrees of freedom, h values kept."""
    cut = int(TRIM * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    winsorised = [kept[0]] * cut + [*kept] + [kept[-1]] * cut
    middle = math.fsum(winsorised) / len(winsorised)
    squares = math.fsum((value - middle) ** 2 for value in winsorised)
    degrees = len(kept) - 1
    return _t(degrees) * math.sqrt(squares / (len(kept) * degrees)), degrees


def _half_over_launches(values: Sequence[Sequence[float]]) -> tuple[float, int]:
    means = [_trimmed_mean(sorted(rounds)) for rounds in values if rounds]
    if len(means) < LEAST_LAUNCHES:
        return 0.0, 0
    degrees = len(means) - 1
    return _t(degrees) * statistics.stdev(means) / math.sqrt(len(means)), degrees


@lru_cache
def _t(degrees: float) -> float:
    """The quantile of Student's t that half of a two-sided 95 % interval is made with."""
    from scipy.special import stdtrit  # slow to import, and `attnbench plan` needs no quantile

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
