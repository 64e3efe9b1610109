"""Human units, forth and back."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import UserError
from attnbench.units import (
    BYTE_UNITS,
    TIME_UNITS,
    bytes_text,
    fitting_unit,
    number,
    parse_bytes,
    parse_seconds,
    rate_text,
    seconds_text,
)


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([0.5e-3, 2e-3], "us"),  # the smallest decides, so that no column shows 0.00
        ([1e-3, 7.0], "ms"),
        ([1.0], "s"),
        ([0.0, 3e-3], "ms"),  # zero fits any unit
        ([1e-12], "ns"),
        ([0.0], "ns"),
        ([], "ns"),
    ],
)
def test_a_row_of_times_gets_the_largest_unit_in_which_its_smallest_is_at_least_one(
    values: list[float], unit: str
) -> None:
    assert fitting_unit(values, TIME_UNITS)[0] == unit


def test_a_row_of_bytes_gets_a_binary_unit() -> None:
    assert fitting_unit([3 * 2**20, 2**31], BYTE_UNITS) == ("MiB", 2.0**20)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.23456, "1.23"),
        (12.3456, "12.3"),
        (123.456, "123"),
        (1234567.0, "1234567"),
        (0.0123456, "0.0123"),
        (0.5, "0.5"),
        (-12.3456, "-12.3"),
        (9.999, "10.0"),
        (0.9999, "1.00"),
        (1e-13, "0"),
    ],
)
def test_numbers_have_three_significant_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-9, 1e12), st.integers(1, 6))
def test_a_number_as_text_is_right_to_its_digits(value: float, digits: int) -> None:
    text = number(value, digits)

    # half a unit of the last significant digit, which is at most 10^(1 - digits) of the value, and the
    # twelfth decimal place, where the text ends
    assert math.isclose(float(text), value, rel_tol=0.5000001 * 10 ** (1 - digits), abs_tol=0.5e-12)
    assert "e" not in text
    assert not text.endswith(".")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "1.23 ms"),
        (45.6e-6, "45.6 us"),
        (7e-9, "7.00 ns"),
        (1.0, "1.00 s"),
        (119.0, "119 s"),
        (125.0, "2 min 5 s"),
        (3599.0, "59 min 59 s"),
        (3600.0, "1 h 0 min"),
        (7384.0, "2 h 3 min"),
        (0.0, "0 ns"),
    ],
)
def test_a_time_is_written_in_its_fitting_unit(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (5 * 2**20, "5.00 MiB"), (2**40, "1024 GiB")],
)
def test_bytes_are_written_in_binary_units(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1.5e12, "1.50 TFLOP/s"), (2.5e9, "2.50 GFLOP/s"), (3e6, "3.00 MFLOP/s"), (999.0, "999 FLOP/s")],
)
def test_a_rate_has_a_decimal_prefix(rate: float, text: str) -> None:
    assert rate_text(rate, "FLOP") == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (90, 90),
        (1.5, 1.5),
        (1e-5, 1e-5),
        ("10m", 600),
        ("10 min", 600),
        ("1.5h", 5400),
        (" 1.5 s ", 1.5),
        ("500ms", 0.5),
        ("20US", 20e-6),
        ("0", 0),
    ],
)
def test_a_duration_is_read_with_or_without_its_unit(text: Any, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GiB", 2**33), ("512 mib", 2**29), ("1kB", 1000), ("1.5KiB", 1536), (4096, 4096), ("7 B", 7)],
)
def test_an_amount_of_memory_is_read_in_binary_and_decimal_units(text: Any, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "s", "-5s", -5, "1e-3", "12:30", "5 parsecs", "1.5.2s", True, math.inf, math.nan, "8GiB"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(UserError, match="is not a duration") as caught:
        parse_seconds(text)

    assert caught.value.hint == "write 90, 90s, 10m or 1.5h"


@pytest.mark.parametrize("text", ["", "8 giraffes", "-1MiB", "10s", False])
def test_what_is_no_amount_of_memory_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(UserError, match="is not an amount of memory") as caught:
        parse_bytes(text)

    assert caught.value.hint == "write 8GiB or 512MiB"


@given(st.integers(0, 2**50))
def test_plain_counts_of_bytes_come_back(count: int) -> None:
    assert parse_bytes(count) == parse_bytes(f"{count} B") == count
