"""Seconds, bytes and rates as text, and back: the only place that knows "ms" or "MiB"."""

import re
from collections.abc import Iterable

from attnbench.errors import UserError

TIME_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
BYTE_UNITS = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))
FLOP_RATE_UNITS = (("TFLOP/s", 1e12), ("GFLOP/s", 1e9), ("MFLOP/s", 1e6))
BYTE_RATE_UNITS = (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6))
_DURATIONS = {"h": 3600.0, "m": 60.0, "min": 60.0, **dict(TIME_UNITS)}
_BYTES = {
    **{unit.lower(): size for unit, size in BYTE_UNITS},
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
}


def fitting_unit(values: Iterable[float], units: tuple[tuple[str, float], ...]) -> tuple[str, float]:
    """The largest unit in which the smallest positive value is at least 1; the last unit if none."""
    smallest = min((value for value in values if value > 0), default=0.0)
    return next((unit for unit in units if smallest >= unit[1]), units[-1])


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, without an exponent."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")  # first, since 9.999 has two places before the point then
    if abs(rounded) >= 1:
        return f"{value:.{max(0, digits - len(str(int(abs(rounded)))))}f}"
    return f"{rounded:.12f}".rstrip("0").rstrip(".")


def seconds_text(seconds: float) -> str:
    """`0.00123` -> `1.23 ms`; from two minutes on, `2 min 5 s`."""
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    unit, size = fitting_unit([seconds], TIME_UNITS)
    return f"{number(seconds / size)} {unit}"


def bytes_text(count: float) -> str:
    """`1536` -> `1.50 KiB`."""
    unit, size = fitting_unit([count], BYTE_UNITS)
    return f"{int(count)} B" if unit == "B" else f"{number(count / size)} {unit}"


def rate_text(per_second: float, what: str) -> str:
    """`1.5e12, "FLOP"` -> `1.50 TFLOP/s`."""
    prefix, size = next((p for p in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if per_second >= p[1]), ("", 1.0))
    return f"{number(per_second / size)} {prefix}{what}/s"


def parse_seconds(text: str | float) -> float:
    """`"10m"`, `"1.5 s"`, `"500ms"` or a plain number of seconds -> seconds. Raises `UserError`."""
    return _parse(text, _DURATIONS, "a duration", "90, 90s, 10m or 1.5h")


def parse_bytes(text: str | float) -> int:
    """`"8GiB"`, `"512 MiB"` or a plain number of bytes -> bytes. Raises `UserError`."""
    return int(_parse(text, _BYTES, "an amount of memory", "8GiB or 512MiB"))


def parse_share(text: str) -> float:
    """`"3%"` or `"0.03"` -> 0.03, below 1. Raises `UserError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 1.0
    if share >= 1:
        raise UserError(f"{text!r} is not a share below 100 %", hint="write 3% or 0.03")
    return share


def _parse(text: str | float, units: dict[str, float], what: str, example: str) -> float:
    plain = f"{text:.12f}" if isinstance(text, float) else str(text)  # never 1e-05
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", plain)
    unit = match[2].lower() if match else None
    if match is None or (unit and unit not in units):
        raise UserError(f"{text!r} is not {what}", hint=f"write {example}")
    return float(match[1]) * (units[unit] if unit else 1.0)
