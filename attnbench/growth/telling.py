"""Growth as tables to read, as records of a CSV, and as a document."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from attnbench.estimates import Interval
from attnbench.growth.trends import Extrapolation, Growth, Trend
from attnbench.tables import Sheet
from attnbench.tables.axes import JOB_AXES, PROBLEM_AXES, said
from attnbench.units import BYTE_UNITS, TIME_UNITS, fitting_unit, number

_AXES = (*JOB_AXES, *(axis for axis in PROBLEM_AXES if axis != "seqlen"), "seqlen_q", "seqlen_kv")
_HEADS = ("slope", "last", "split", "held out", "ws slope", "ws split")
_SHARES = ("constant", "linear", "quadratic")
_TREND = (
    *("slope", "slope_low", "slope_high", "last_slope", *_SHARES),
    *("quadratic_low", "quadratic_high", "held_out"),
)
RECORD = (
    *("axis", *_AXES, "implementation", "shortest", "longest", "lengths"),
    *(f"{quantity}_{name}" for quantity in ("time", "workspace") for name in _TREND),
)
"""Columns of `--format csv`: a record for each implementation of a series."""


FARTHEST = 100.0
"""Ends of an interval that are further apart than this factor are not worth a number in a table."""
UNCLEAR = 0.5
"""The width of the interval of a share from which on the table does not name it."""


# ---------------------------------------------------------------- for programs


def _trend(trend: Trend) -> dict[str, Any]:
    return {
        "slope": trend.slope.location,
        "slope_low": trend.slope.low,
        "slope_high": trend.slope.high,
        "last_slope": trend.last.location,
        **{name: _share(trend, power).location for power, name in enumerate(_SHARES)},
        "quadratic_low": _share(trend, 2).low,
        "quadratic_high": _share(trend, 2).high,
        "held_out": trend.held_out,
    }


def _share(trend: Trend, power: int) -> Interval:
    """Of the curve's value at the longest length."""
    return trend.curve.share(power, trend.lengths[-1])


def _series(growth: Growth) -> dict[str, str | None]:
    values = growth.series.values
    return {"axis": growth.series.axis, **{axis: values.get(axis) or None for axis in _AXES}}


def records(found: Sequence[Growth]) -> list[dict[str, object]]:
    """A record for each implementation of a series, with the keys of `RECORD`."""
    rows = []
    for growth in found:
        for name, time in growth.time.items():
            parts = {"time": _trend(time)}
            if name in growth.workspace:
                parts["workspace"] = _trend(growth.workspace[name])
            told = {f"{quantity}_{key}": value for quantity, of in parts.items() for key, value in of.items()}
            row = {**_series(growth), "implementation": name, **told}
            row |= {"shortest": time.lengths[0], "longest": time.lengths[-1], "lengths": len(time.lengths)}
            rows.append({key: row.get(key) for key in RECORD})
    return rows


def document(found: Sequence[Growth]) -> dict[str, Any]:
    """All of it as JSON has it; times in seconds, memory in bytes, shares at the longest length measured."""
    return {
        "series": [
            {
                **_series(growth),
                "implementations": {
                    name: {
                        "lengths": time.lengths,
                        "time": {**_trend(time), "parts_s": time.curve.parts},
                        "workspace": {**_trend(space), "parts_bytes": space.curve.parts}
                        if (space := growth.workspace.get(name))
                        else None,
                    }
                    for name, time in growth.time.items()
                },
                "crossovers": [
                    {"below": c.below, "above": c.above, **asdict(c.at)} for c in growth.crossovers
                ],
                "extrapolated": [asdict(one) for one in growth.extrapolations],
                "too_few_lengths": dict(growth.unfitted),
                "untrusted": dict(growth.untrusted),
                "approximations": dict(growth.approximations),
            }
            for growth in found
        ]
    }


# ---------------------------------------------------------------- for people


def sheets(growth: Growth) -> Iterator[Sheet]:
    """The fits of a series, its crossovers, and what is extrapolated, each where there is any. See `legend`."""
    yield _fits(growth)
    if growth.crossovers:
        yield _crossings(growth)
    if growth.extrapolations:
        yield _beyond(growth)


def legend(found: Sequence[Growth]) -> Sheet:
    """How to read the tables of some series."""
    lines = [
        "slope: of the time, on log scales over all lengths (1 linear, 2 quadratic), with its 95 % interval; "
        "last: between the two longest",
        "split: shares of the constant, the linear and the quadratic term of a curve at the longest; steeper: the time "
        "grows faster than any such curve; unclear: the interval of the last share is wider than "
        f"{100 * UNCLEAR:.0f} points",
        "held out: what the curve through the other lengths says about the longest, against what was measured",
        "ws: of the workspace; empty where it is too small or not known at too many lengths",
    ]
    if any(growth.crossovers for growth in found):
        lines.append(
            "crossover: interpolated on log scales, with where the 95 % interval of the ratio holds 1; for certain it "
            "lies between the two lengths, at each of which one is surely faster"
        )
    if any(growth.extrapolations for growth in found):
        lines.append(
            "extrapolated: the curve at that length, with the wider of its own interval and of the held-out error, "
            "which grows with the distance; unpredictable: that is wider than a factor of "
            f"{FARTHEST:g}; caches, memory limits and other kernels up there are not in it"
        )
    return Sheet(title="How to read it", heads=(), rows=(), legend=tuple(lines))


def _name(name: str, growth: Growth) -> str:
    return "~" * (name in growth.approximations) + name


def _signed(interval: Interval) -> str:
    """`1.90 ±0.12`."""
    if interval.low is None or interval.high is None:
        return f"{interval.location:.2f}"
    return f"{interval.location:.2f} ±{(interval.high - interval.low) / 2:.2f}"


def _split(trend: Trend) -> str:
    """`0/49/51%`: the shares of the terms."""
    if (trend.last.low or 0.0) > 2:
        return "steeper"
    quadratic = _share(trend, 2)
    if (quadratic.high or 0.0) - (quadratic.low or 0.0) > UNCLEAR:
        return "unclear"
    return "/".join(f"{100 * _share(trend, power).location:.0f}" for power in range(3)) + "%"


def _range(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths))


def _fits(growth: Growth) -> Sheet:
    axis, values = growth.series.axis, growth.series.values
    same = len({time.lengths for time in growth.time.values()}) == 1
    rows = []
    for name, time in growth.time.items():
        space = growth.workspace.get(name)
        rows.append(
            (
                _name(name, growth),
                *([_range(time.lengths)] * (not same)),
                _signed(time.slope),
                _signed(time.last),
                _split(time),
                f"{time.held_out:+.0%}" if time.held_out is not None else "",
                _signed(space.slope) if space else "",
                _split(space) if space else "",
            )
        )
    lines = []
    noisy = [
        f"{name} at {_range(there) if len(there) < len(growth.time[name].lengths) else 'all lengths'}"
        for name, there in growth.untrusted.items()
    ]
    if noisy:
        lines.append(f"noisy, or with no interval or too wide a one: {'; '.join(noisy)}")
    if growth.unfitted:
        names = [f"{name} ({count})" for name, count in growth.unfitted.items()]
        lines.append(f"not fitted, right at too few lengths: {', '.join(names)}")
    lines += [f"~{name}: an approximation: {what}" for name, what in growth.approximations.items()]
    common = [said(a, values[a]) for a in _AXES if values.get(a)]
    return Sheet(
        title=f"Growth over {axis}",
        common=(*common, *([f"{axis} {_range(next(iter(growth.time.values())).lengths)}"] * same)),
        heads=("implementation", *(["lengths"] * (not same)), *_HEADS),
        rows=tuple(rows),
        legend=tuple(lines),
    )


def _crossings(growth: Growth) -> Sheet:
    rows = [
        (
            _name(c.below, growth),
            _name(c.above, growth),
            f"{c.at.length:.0f} ({c.at.low:.0f} to {c.at.high:.0f})",
            f"{c.at.between[0]:g} and {c.at.between[1]:g}",
        )
        for c in growth.crossovers
    ]
    axis = growth.series.axis
    return Sheet(
        title=f"Crossovers over {axis}",
        heads=("faster below", "faster above", f"at {axis}", "measured between"),
        rows=tuple(rows),
    )


def _beyond(growth: Growth) -> Sheet:
    def row(one: Extrapolation) -> tuple[str, ...]:
        return (
            str(one.length),
            _name(one.implementation, growth),
            _span(one.time, TIME_UNITS),
            f"{one.held_out:+.0%}" if one.held_out is not None else "",
            _span(one.workspace, BYTE_UNITS) if one.workspace else "",
            one.why,
        )

    return Sheet(
        title=f"EXTRAPOLATED over {growth.series.axis}: nothing in this table was measured",
        heads=(growth.series.axis, "implementation", "time", "held out", "workspace", "because"),
        rows=tuple(map(row, sorted(growth.extrapolations, key=lambda one: one.length))),
        axes=1,
    )


def _span(interval: Interval, units: tuple[tuple[str, float], ...]) -> str:
    """`~742 (675 to 816) ms`; no number where that could be ten times too small or too large."""
    if interval.low is not None and interval.high is not None and interval.high > FARTHEST * interval.low:
        return "unpredictable"
    unit, size = fitting_unit([interval.location], units)
    location, low, high = (
        None if end is None else number(end / size)
        for end in (interval.location, interval.low, interval.high)
    )
    return f"~{location} {unit}" if low is None or high is None else f"~{location} ({low} to {high}) {unit}"
