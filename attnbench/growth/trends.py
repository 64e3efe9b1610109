"""Fits of time and workspace over a length, crossovers, and what they say about lengths that were not measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

from attnbench import estimates
from attnbench.estimates import Crossing, Curve, Interval
from attnbench.growth.series import LEAST_LENGTHS, Series
from attnbench.records import Result, Status
from attnbench.tables.contests import gap, of_time, trusted

RESOLUTION = {"rss": 0.3 * 2**20}
"""What a workspace may be off by, in bytes; other methods count exactly. See docs/measuring.md, Memory."""
LEAST_BYTES = {"rss": 2.0**20}
"""Smaller workspaces are not fitted: they would be mostly what they may be off by."""
DID_NOT_FIT = (Status.OUT_OF_MEMORY, Status.TIMED_OUT, Status.NOT_RUN)
"""Ends after which a length is extrapolated to: a longer one was asked for, and nothing is known against the answer."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A quantity of one implementation over a length."""

    lengths: tuple[int, ...]
    values: tuple[Interval, ...]
    slope: Interval
    """Of the line through all lengths on log scales: 2 is quadratic growth, 1 linear."""
    last: Interval
    """The same between the two longest only."""
    curve: Curve
    held_out: float | None
    """Of the curve through all lengths but the longest: its value there over the measured one, less 1."""

    def beyond(self, length: float) -> Interval:
        """The curve at a length that was not measured.

        Its interval is the wider of the curve's own and of the held-out error, which grows with the distance on the log scale
        from what it was found at. None where neither is known.
        """
        found = self.curve.at(length)
        ends = [] if found.low is None or found.high is None else [(found.low, found.high)]
        if self.held_out is not None:
            step = math.log(self.lengths[-1] / self.lengths[-2])
            steps = max(1.0, math.log(length / self.lengths[-1]) / step)
            factor = math.exp(abs(math.log1p(self.held_out)) * steps)
            ends.append((found.location / factor, found.location * factor))
        if not ends:
            return found
        return Interval(
            location=found.location, low=min(low for low, _ in ends), high=max(high for _, high in ends)
        )


def trend(values: Mapping[int, Interval]) -> Trend:
    """The trend of values by their length, ascending, `LEAST_LENGTHS` of them or more."""
    lengths, found = tuple(values), tuple(values.values())
    before = estimates.curve(lengths[:-1], found[:-1]) if len(lengths) > 2 else None
    return Trend(
        lengths=lengths,
        values=found,
        slope=estimates.slope(lengths, found),
        last=estimates.slope(lengths[-2:], found[-2:]),
        curve=estimates.curve(lengths, found),
        held_out=before.at(lengths[-1]).location / found[-1].location - 1 if before else None,
    )


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where the faster of two implementations changes."""

    below: str
    """Which is faster at shorter lengths."""
    above: str
    at: Crossing


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """What the curves say about a length that was not measured."""

    implementation: str
    length: int
    why: str
    """How the cell ended, or `not planned`."""
    time: Interval
    workspace: Interval | None
    held_out: float | None


@dataclass(frozen=True, kw_only=True)
class Growth:
    """All that is fitted to one series."""

    series: Series
    time: Mapping[str, Trend]
    workspace: Mapping[str, Trend]
    crossovers: tuple[Crossover, ...]
    extrapolations: tuple[Extrapolation, ...]
    unfitted: Mapping[str, int]
    """Implementations that were right at too few lengths, with how many."""
    untrusted: Mapping[str, tuple[int, ...]]
    """Lengths at which a time has the worst grade, or no interval or too wide a one."""
    approximations: Mapping[str, str]
    """Those of the series that are no exact computation, with what they approximate."""


def growth(
    series: Series, further: Sequence[int] = (), approximations: Mapping[str, str] = MappingProxyType({})
) -> Growth:
    """Everything about one series, extrapolated to what did not fit and to `further` lengths beyond its own."""
    right = {name: found for name in series.results if (found := series.right(name))}
    fitted = {name: found for name, found in right.items() if len(found) >= LEAST_LENGTHS}
    time = {name: trend({n: _time(result) for n, result in found.items()}) for name, found in fitted.items()}
    space = {name: values for name, found in fitted.items() if (values := _workspaces(found))}
    workspace = {name: trend(values) for name, values in space.items() if len(values) >= LEAST_LENGTHS}
    return Growth(
        series=series,
        time=time,
        workspace=workspace,
        crossovers=tuple(_crossovers(right)),
        extrapolations=tuple(
            Extrapolation(
                implementation=name,
                length=length,
                why=why,
                time=time[name].beyond(length),
                workspace=workspace[name].beyond(length) if name in workspace else None,
                held_out=time[name].held_out,
            )
            for name in fitted
            for length, why in _beyond(series.results[name], time[name].lengths[-1], further).items()
        ),
        unfitted={name: len(found) for name, found in right.items() if name not in fitted},
        untrusted={
            name: doubtful
            for name, found in fitted.items()
            if (doubtful := tuple(n for n, result in found.items() if not trusted(result)))
        },
        approximations={name: what for name, what in approximations.items() if name in right},
    )


def _time(result: Result) -> Interval:
    time = of_time(result)
    assert time is not None
    return time


def _workspaces(found: Mapping[int, Result]) -> dict[int, Interval]:
    """Workspaces in bytes that are large enough to be fitted, with what they may be off by."""
    values = {}
    for length, result in found.items():
        if (memory := result.memory) and memory.workspace_bytes > LEAST_BYTES.get(memory.method, 0):
            size, off = memory.workspace_bytes, RESOLUTION.get(memory.method, 0.0)
            values[length] = Interval(location=size, low=size - off, high=size + off)
    return values


def _beyond(ours: Mapping[int, Result], longest: int, further: Sequence[int]) -> dict[int, str]:
    """Lengths beyond the longest that was measured, with why they were not."""
    why = {n: r.status.value for n, r in ours.items() if n > longest and r.status in DID_NOT_FIT}
    why |= {n: "not planned" for n in further if n > longest and n not in ours}
    return dict(sorted(why.items()))


def _crossovers(right: Mapping[str, Mapping[int, Result]]) -> list[Crossover]:
    found = []
    for one, other in combinations(right, 2):
        lengths = [n for n in right[one] if n in right[other]]
        ratios = [_ratio(right[one][n], right[other][n]) for n in lengths]
        for at in estimates.crossings(lengths, ratios):
            below, above = (one, other) if at.rising else (other, one)
            found.append(Crossover(below=below, above=above, at=at))
    return sorted(found, key=lambda crossover: crossover.at.length)


def _ratio(result: Result, base: Result) -> Interval:
    """Time over the base's; without an interval, and so never certain, where one of both is not trusted."""
    ratio = gap(result, base).ratio
    if trusted(result) and trusted(base):
        return ratio
    return Interval(location=ratio.location, low=None, high=None)
