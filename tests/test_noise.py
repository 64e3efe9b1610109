"""A grade follows from signs alone; each bad one is told with what to do about it."""

import dataclasses
import math
from typing import Any

import pytest

from attnbench import noise
from attnbench.noise import Signs
from attnbench.records import Block

QUIET = Signs(spread=0.01, drift=0.0, waited=0.0, running=0.0, flagged=0.0)


def graded(**changes: Any) -> tuple[str, str]:
    return noise.grade(dataclasses.replace(QUIET, **changes))


def test_a_quiet_measurement_is_an_a_without_words() -> None:
    assert graded() == ("A", "")


@pytest.mark.parametrize("sign", noise.LIMITS)
def test_the_grade_falls_where_a_sign_passes_its_limits(sign: str) -> None:
    first, second = noise.LIMITS[sign]
    assert [graded(**{sign: value})[0] for value in (first, first * 1.01, second, second * 1.01)] == [*"ABBC"]


def test_a_drift_counts_in_both_directions() -> None:
    assert graded(drift=-0.2)[0] == graded(drift=0.2)[0] == "C"
    assert "drifted by -20%" in graded(drift=-0.2)[1]


def test_the_worst_sign_gives_the_grade_and_all_bad_ones_are_told() -> None:
    grade, why = graded(running=4.0, waited=0.5, spread=0.05, flagged=0.63)
    assert grade == "C"
    assert why == (
        "4 other processes were running; its threads waited 50% of the time for a processor; "
        "the interval is ±5%; 63% of its samples were interrupted: close them, or measure longer (--preset gate)"
    )


def test_threads_that_wait_on_an_idle_machine_need_a_free_core() -> None:
    assert "leave the system a core" in graded(waited=0.5)[1]


def test_interruptions_alone_are_no_noise_because_those_samples_do_not_count() -> None:
    assert graded(flagged=0.9)[0] == "A"


def test_a_time_without_an_interval_is_no_a() -> None:
    grade, why = graded(spread=None)
    assert (grade, "too few blocks" in why) == ("B", True)


def test_a_device_that_lowers_its_clock_is_no_a() -> None:
    grade, why = graded(throttle="power cap")
    assert (grade, "power cap" in why) == ("B", True)


def test_what_is_not_known_does_not_count() -> None:
    assert graded(drift=None, waited=None, running=None)[0] == "A"


def test_a_drift_is_the_change_from_the_first_third_to_the_last() -> None:
    values = [math.log(s) for s in (1.0, 1.0, 9.0, 9.0, 1.1, 1.1)]
    assert noise.drift(values) == pytest.approx(math.log(1.1))
    assert noise.drift(values[1:]) is None


def block(round_: int, waited: float | None = 0.0, flagged: tuple[int, ...] = ()) -> Block:
    waited_s = None if waited is None else waited * 0.02
    return Block(round=round_, launch=0, seconds=(1e-3,) * 2, flagged=flagged, waited_s=waited_s, busy_s=0.02)


def test_a_block_whose_threads_waited_does_not_count() -> None:
    blocks = [block(n, waited=0.3 if n in (2, 5) else 0.01) for n in range(8)]
    assert [b.round for b in noise.counted(blocks)] == [0, 1, 3, 4, 6, 7]


def test_a_long_call_is_interrupted_in_every_sample_and_counts_where_its_threads_hardly_waited() -> None:
    blocks = [block(n, waited=0.01, flagged=(0, 1)) for n in range(5)] + [
        block(5, waited=0.5, flagged=(0, 1))
    ]
    assert len(noise.counted(blocks)) == 5


def test_where_waiting_is_not_known_the_flags_of_samples_tell() -> None:
    blocks = [block(n, waited=None, flagged=(0, 1) if n == 3 else (0,)) for n in range(6)]
    assert [b.round for b in noise.counted(blocks)] == [0, 1, 2, 4, 5]


def test_where_few_blocks_are_sound_all_count() -> None:
    blocks = [block(n, waited=0.3 if n > 3 else 0.01) for n in range(8)]
    assert noise.counted(blocks) == blocks
