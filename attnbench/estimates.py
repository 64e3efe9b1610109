"""Locations, intervals and ratios of times: pure functions of floats.

The block is the unit: a block's value is the log median of its samples, and `values[launch][round]` are the
log values of one implementation's blocks. Intervals are two-sided, at 95 %, built on the log scale.
"""

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

CONFIDENCE = 0.95
TRIM = 0.2
"""Share of the values that is cut off at each end."""
LEAST_BLOCKS = 5
"""With fewer blocks than this, trimming cuts nothing and there is no interval."""
LEAST_LAUNCHES = 3
"""With fewer launches than this, their spread says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
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


def apart(intervals: Sequence[Interval]) -> float:
    """Standard deviation of true ratios beyond what their own intervals explain (DerSimonian & Laird 1986, equation 9).

    Zero of fewer than two with an interval that is not a point.
    """
    logs, weights = [], []
    for one in intervals:
        if (half := half_width(one)) and one.degrees:
            logs.append(math.log(one.location))
            weights.append((_t(one.degrees) / half) ** 2)
    if len(logs) < 2:
        return 0.0
    total = math.fsum(weights)
    middle = math.fsum(w * log for w, log in zip(weights, logs, strict=True)) / total
    excess = math.fsum(w * (log - middle) ** 2 for w, log in zip(weights, logs, strict=True)) - len(logs) + 1
    return math.sqrt(max(0.0, excess / (total - math.fsum(w * w for w in weights) / total)))


def combined(middle: float, errors: Sequence[tuple[float, float]]) -> Interval:
    """An interval around `middle`, a log, from independent standard errors on the log scale with their degrees of freedom, whose
    sum has those of Satterthwaite (1946)."""
    total = sum(error * error for error, _ in errors)
    below = sum(error**4 / degrees for error, degrees in errors)
    degrees = total * total / below if below else min(degrees for _, degrees in errors)
    return _around(middle, _t(degrees) * math.sqrt(total), degrees)


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


def deviation_of_others(values: Sequence[float]) -> Callable[[float], float]:
    """Of one of three values or more: the standard deviation of the others."""
    number, middle = len(values), _mean(values)
    squares = math.fsum((value - middle) ** 2 for value in values)

    def others(value: float) -> float:
        left = squares - (value - middle) ** 2 * number / (number - 1)
        return math.sqrt(max(0.0, left) / (number - 2))

    return others


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


# ---------------------------------------------------------------- growth over a length

DRAWS = 1000
"""Curves that are as likely as the fitted one; intervals are their percentiles."""
_TERMS = ((1, 2), (0, 2), (0, 1), (0, 1, 2), (2,), (1,), (0,))
"""Powers of the length that a curve may have; of sets that fit equally well the first is taken."""


def slope(lengths: Sequence[float], values: Sequence[Interval]) -> Interval:
    """The exponent b of values that grow as length ** b: least squares on log scales.

    Its interval is the wider of two: Student's over the residuals, from three lengths on, which also holds how far
    the values are from one power; and what the intervals of the values come to as independent ones. Raises ValueError with
    fewer than two different lengths, or where a number is not above zero.
    """
    x = [math.log(length) for length in lengths]
    y = [math.log(value.location) for value in values]
    center = math.fsum(x) / len(x)
    squares = math.fsum((one - center) ** 2 for one in x)
    if not squares:
        raise ValueError("a slope needs two different lengths")
    pulls = [(one - center) / squares for one in x]
    exponent = math.fsum(pull * one for pull, one in zip(pulls, y, strict=True))
    halves = [half for value in values if (half := half_width(value)) is not None]
    ends = []
    if len(halves) == len(values):
        ends.append(math.hypot(*(pull * half for pull, half in zip(pulls, halves, strict=True))))
    if degrees := len(x) - 2:
        middle = math.fsum(y) / len(y)
        missed = math.fsum((b - middle - exponent * (a - center)) ** 2 for a, b in zip(x, y, strict=True))
        ends.append(_t(degrees) * math.sqrt(missed / degrees / squares))
    if not ends:
        return Interval(location=exponent, low=None, high=None)
    return Interval(location=exponent, low=exponent - max(ends), high=exponent + max(ends))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """`a + b n + c n^2` over a length n, with a, b and c of zero or more."""

    parts: tuple[float, float, float]
    alike: tuple[tuple[float, float, float], ...]
    """Parts of curves fitted to values that could have been measured as well; none where no spread is known."""

    def at(self, length: float) -> Interval:
        """The curve at a length, with the interval that 95 % of those alike lie in."""
        return self._interval(lambda parts: _sum(parts, length))

    def share(self, power: int, length: float) -> Interval:
        """Which share of the curve's value the term of a power (0, 1 or 2) has at a length."""
        return self._interval(lambda parts: parts[power] * length**power / _sum(parts, length))

    def _interval(self, of: Callable[[tuple[float, float, float]], float]) -> Interval:
        location = of(self.parts)
        if not self.alike:
            return Interval(location=location, low=None, high=None)
        found, tail = [of(parts) for parts in self.alike], 50 * (1 - CONFIDENCE)
        low, high = percentile(found, tail), percentile(found, 100 - tail)
        return Interval(location=location, low=min(low, location), high=max(high, location))


def curve(lengths: Sequence[float], values: Sequence[Interval]) -> Curve:
    """The curve through values of two lengths or more: least squares of relative errors, no part negative.

    It has two terms, and all three from four lengths on. Curves alike go through values drawn, with a fixed seed, as
    wide as their intervals, or as the residuals where these are wider. Raises ValueError with fewer than two different
    lengths, or where a number is not above zero.
    """
    import numpy as np

    n = np.asarray(lengths, dtype=float)
    y = np.asarray([value.location for value in values], dtype=float)
    if len(set(lengths)) < 2 or min(*n, *y) <= 0:
        raise ValueError("a curve needs values above zero at two different lengths")
    most = 3 if len(n) > 3 else 2
    scaled = (n / n.max())[:, None] ** np.arange(3) / y[
        :, None
    ]  # [lengths, terms], so that errors are relative
    solvers = [
        (list(terms), np.linalg.pinv(scaled[:, terms])) for terms in map(list, _TERMS) if len(terms) <= most
    ]

    def fitted(targets: Any) -> tuple[Any, Any]:  # [draws, lengths], relative to y -> [draws, 3], [draws]
        best = np.full(len(targets), np.inf)
        parts = np.zeros((len(targets), 3))
        for terms, solver in solvers:
            found = targets @ solver.T  # [draws, terms]
            missed = ((found @ scaled[:, terms].T - targets) ** 2).sum(1)
            better = (found >= 0).all(1) & (missed < best - 1e-12)
            best[better] = missed[better]
            parts[better] = 0.0
            parts[np.ix_(better, terms)] = found[better]
        return parts, best

    (parts,), (missed,) = fitted(np.ones((1, len(n))))
    degrees = len(n) - np.count_nonzero(parts)
    residual = math.sqrt(missed / degrees) if degrees > 0 else 0.0
    known = [
        (half_width(value) or 0.0) / statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) for value in values
    ]
    spread = np.maximum(known, residual)
    scale = n.max() ** -np.arange(3.0)
    alike = []
    if spread.any():
        noise = np.random.default_rng(0).normal(0, 1, (DRAWS, len(n))) * spread
        alike = [(a, b, c) for a, b, c in (fitted(np.exp(noise))[0] * scale).tolist()]
    a, b, c = (parts * scale).tolist()
    return Curve(parts=(a, b, c), alike=tuple(alike))


def _sum(parts: tuple[float, float, float], length: float) -> float:
    return parts[0] + parts[1] * length + parts[2] * length**2


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a ratio over a length goes through 1, with the interval; both ends lie between two lengths."""

    length: float
    low: float
    high: float
    between: tuple[float, float]
    """The lengths on either side at which the ratio certainly is not 1."""
    rising: bool


def crossings(lengths: Sequence[float], ratios: Sequence[Interval]) -> list[Crossing]:
    """Every change from certainly below 1 to certainly above, or back, over ascending lengths.

    Between lengths, the ratio and the ends of its interval are taken to be straight lines on log scales. The
    crossing's interval is where that of the ratio holds 1. A ratio without an interval is never certain.
    """
    sure = [
        (place, ratio.low > 1)
        for place, ratio in enumerate(ratios)
        if ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high
    ]
    x = [math.log(length) for length in lengths]

    def zero(places: Sequence[int], end: Callable[[Interval], float | None]) -> float:
        """Where the first line that changes its sign along `places` is zero."""
        heights = [math.log(end(ratios[p]) or ratios[p].location) for p in places]
        for (p, one), (q, other) in pairwise(zip(places, heights, strict=True)):
            if one * other <= 0:
                return math.exp(x[p] + (x[q] - x[p]) * (one / (one - other) if one != other else 0.0))
        raise AssertionError("both ends are certain, and differ")

    found = []
    for (start, above), (stop, rising) in pairwise(sure):
        if rising != above:
            there = range(start, stop + 1)
            early, late = (lambda r: r.high), (lambda r: r.low)
            if not rising:
                early, late = late, early
            found.append(
                Crossing(
                    length=zero(there, lambda r: r.location),
                    low=zero(there, early),
                    high=zero(there[::-1], late),
                    between=(lengths[start], lengths[stop]),
                    rising=rising,
                )
            )
    return found
