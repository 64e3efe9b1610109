"""What a table shows of a result: its time, and what follows from it, or its memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from attnbench import costs
from attnbench.errors import UserError
from attnbench.estimates import Interval
from attnbench.problem import Problem, suggestion
from attnbench.records import Result, Status, budget_share
from attnbench.tables.contests import (
    BEST,
    NOISY,
    TIED,
    TOO_NOISY,
    UNSURE,
    Standings,
    by_time,
    by_workspace,
    combined,
    contest,
    of_time,
    uncertainty,
)
from attnbench.turns import paired
from attnbench.units import BYTE_RATE_UNITS, BYTE_UNITS, FLOP_RATE_UNITS, TIME_UNITS, number

VIEWS = {
    "time": "median time of one call",
    "speedup": "the baseline's time over the implementation's",
    "tflops": "floating-point operations per second, `flops` over the median",
    "gbps": "bytes per second, `least_bytes` over the median",
    "memory": "workspace, beside the bytes of inputs and outputs",
    "error": "error over what is allowed",
}
"""Views and what they show."""


def view(name: str) -> str:
    """The name of a view. Raises `UserError`."""
    if name not in VIEWS:
        raise UserError(f"unknown view `{name}`", hint=suggestion(name, VIEWS))
    return name


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A view, made for some results."""

    title: str
    units: tuple[tuple[str, float], ...]
    interval: Callable[[Result], Interval | None]
    """The number of an ok result in the unit of size 1; None where there is none."""
    standings: Callable[[Sequence[Result]], Standings]
    missing: str
    """What stands in the place of a number that an ok result lacks."""
    text: Callable[[float], str] = number
    """A number in its unit as text."""
    timed: bool = True
    """Whether it follows from the time."""
    notes: Callable[[], Iterator[str]] = lambda: iter(())
    """Lines of the legend of its own; asked for after all intervals."""


def quantity(name: str, results: Sequence[Result], baseline: str | None) -> Quantity:
    """The view `name` of some results; `baseline` is for speed-ups. Raises `UserError` for an unknown view."""
    match view(name):
        case "time":
            return Quantity(
                title="Time of one call: median ± half of the 95 % interval",
                units=TIME_UNITS,
                interval=of_time,
                standings=by_time,
                missing="not measured",
            )
        case "speedup":
            return _speedup(results, baseline)
        case "tflops":
            return _rate("Floating-point operations per second", FLOP_RATE_UNITS, _flops)
        case "gbps":
            return _rate(
                "Least bytes per second: each input read once, each output written once",
                BYTE_RATE_UNITS,
                _least_bytes,
            )
        case "error":
            return Quantity(
                title="Error over what is allowed, of the worst row or the whole tensor; above 1 is wrong",
                units=(("", 1.0),),
                interval=_error,
                standings=lambda _: Standings(marks={}),
                missing="not measured",
                text=_share,
                timed=False,
            )
        case _:
            return Quantity(
                title="Workspace of one call: peak memory less inputs and outputs",
                units=BYTE_UNITS,
                interval=_workspace,
                standings=by_workspace,
                missing="not measured",
                timed=False,
            )


def _workspace(result: Result) -> Interval | None:
    return Interval(location=result.memory.workspace_bytes, low=None, high=None) if result.memory else None


def _error(result: Result) -> Interval | None:
    """Of an approximation it may be above 1."""
    if result.accuracy is None:
        return None
    share = budget_share(result.accuracy, Problem.parse(result.cell.problem).direction)
    return None if share is None else Interval(location=share, low=None, high=None)


def _share(value: float) -> str:
    """Two digits are all that a seed leaves alike."""
    return f"{value:.2g}"


@lru_cache(maxsize=4096)
def _flops(text: str) -> float:
    return costs.flops(Problem.parse(text))


@lru_cache(maxsize=4096)
def _least_bytes(text: str) -> float:
    return costs.least_bytes(Problem.parse(text))


def _inverse(ratio: Interval, amount: float = 1.0) -> Interval:
    low, high = (None if end is None else amount / end for end in (ratio.high, ratio.low))
    return Interval(location=amount / ratio.location, low=low, high=high)


def _rate(title: str, units: tuple[tuple[str, float], ...], amount: Callable[[str], float]) -> Quantity:
    def interval(result: Result) -> Interval | None:
        time = of_time(result)
        return None if time is None else _inverse(time, amount(result.cell.problem))

    return Quantity(title=title, units=units, interval=interval, standings=by_time, missing="not measured")


def _speedup(results: Sequence[Result], baseline: str | None) -> Quantity:
    bases = {contest(r): r for r in results if r.cell.implementation == baseline and r.status is Status.OK}
    unpaired: list[Result] = []

    def interval(result: Result) -> Interval | None:
        base = bases.get(contest(result))
        if base is None or result.timing is None:
            return None
        if base is result:
            return Interval(location=1.0, low=None, high=None)
        ratio = paired(result, base)
        if ratio is None:
            unpaired.append(result)
            ratio = combined(result, base)
        return _inverse(ratio)

    def notes() -> Iterator[str]:
        if unpaired:
            yield "±: from the intervals of both times where too few of their blocks are of the same rounds"

    return Quantity(
        title=f"Speed-up against {baseline}: its time over theirs ± half of the 95 % interval",
        units=(("", 1.0),),
        interval=interval,
        standings=by_time,
        missing="no baseline",
        text=_factor,
        notes=notes,
    )


def _factor(value: float) -> str:
    """Three digits always, so that factors below 1 line up."""
    return f"{value:#.3g}" if 1e-3 <= value < 0.9995 else number(value)


def legend(
    of: Quantity, standings: Standings, shown: Sequence[Interval], bare: bool, graded: bool
) -> Iterator[str]:
    """What marks and the lack of an interval mean, as far as they occur.

    `bare` where an interval is missing, `graded` where the grade of a time stands beside it.
    """
    marks = {*standings.marks.values()}
    if not of.timed:
        yield from ["* the least workspace of a right answer"] * (BEST in marks)
        return
    told = [
        (BEST, "the fastest right answer"),
        (UNSURE, "the least time, but too uncertain or noisy to call it the fastest"),
        (TIED, f"cannot be told apart from it: {', or '.join(standings.ways)}"),
    ]
    if BEST in marks:
        told[1:] = told[:0:-1]
    yield from ["; ".join(f"{mark} {meaning}" for mark, meaning in told if mark in marks)] * bool(marks)
    if bare:
        yield "no ±: too few blocks for an interval"
    if any(uncertainty(interval) == " too noisy" for interval in shown):
        yield f"too noisy: the interval is wider than ±{TOO_NOISY:g} %"
    if graded:
        yield f"{NOISY}: a noisy measurement; the column `noise` says why"
    yield from of.notes()
