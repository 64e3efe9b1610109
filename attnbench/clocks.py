"""Ways to time a step: wall clock, CUDA events, and a fake one for tests.

A clock takes the samples of one block. It flags a sample by independent signals, never by its value.
"""

import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter  # bound here: a plugin that patches `time` later changes nothing
from typing import Any, Protocol

from attnbench.implementation import Step

SAMPLE_S = 50e-6
"""A shorter call is repeated within a sample until the sample is at least this long."""
BLOCK_S = 20e-3
WARM_S = 20e-3
WARM_CALLS = 15
BLOCK_SAMPLES = 50
SLOW = 20
"""A call longer than this part of the budget is warmed only once, and each call is a block of its own."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a block of one implementation is taken."""

    inner: int
    """Calls in one sample."""
    samples: int
    warm: int
    """Calls before the first sample."""


def pace(call_s: float, budget_s: float) -> Pace:
    """The pace for a call of `call_s` seconds under a budget per launch (MEASURING: blocks of about 20 ms)."""
    call_s = max(call_s, 1e-9)
    inner = math.ceil(SAMPLE_S / call_s) if call_s < SAMPLE_S else 1
    if call_s * SLOW > budget_s:
        return Pace(inner=1, samples=1, warm=0)
    samples = min(max(round(BLOCK_S / (call_s * inner)), 1), BLOCK_SAMPLES)
    return Pace(inner=inner, samples=samples, warm=min(WARM_CALLS, max(1, round(WARM_S / call_s))))


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A block as a clock took it."""

    seconds: tuple[float, ...]
    """Time of one call, per sample."""
    flagged: tuple[int, ...]
    busy_s: float
    """From before the first warm-up call to after the last sample, by this process's clock."""
    last: Any
    """What the last timed call returned."""


class Clock(Protocol):
    """Takes a block of samples of a step."""

    name: str

    def take(self, step: Step, pace: Pace) -> Taken:
        """Warm up, then time `pace.samples` samples of `pace.inner` calls each."""


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class WallClock:
    """`perf_counter` around the calls; a sample in which the process was preempted is flagged."""

    name = "wall"

    def take(self, step: Step, pace: Pace) -> Taken:
        begin = perf_counter()
        last = None
        for _ in range(pace.warm):
            last = step()
        seconds, flagged, inner = [], [], pace.inner
        repeats = range(inner)
        for index in range(pace.samples):
            before = _preemptions()
            start = perf_counter()
            for _ in repeats:
                last = step()
            end = perf_counter()
            if _preemptions() != before:
                flagged.append(index)
            seconds.append((end - start) / inner)
        return Taken(seconds=tuple(seconds), flagged=tuple(flagged), busy_s=perf_counter() - begin, last=last)


class CudaEvents:
    """CUDA events around each sample, with the queue filled before, so that launch gaps do not count.

    A sample is flagged where the device had reached its first event before the host had enqueued the last:
    then the device may have waited for the host. `torch` is passed in, so that a fake one can stand in.
    """

    name = "events"

    def __init__(self, torch: Any, device: str) -> None:
        self.torch = torch
        self.device = device

    def take(self, step: Step, pace: Pace) -> Taken:
        cuda = self.torch.cuda
        begin = perf_counter()
        last = None
        enqueue = perf_counter()
        for _ in range(pace.warm):
            last = step()
        cost = (perf_counter() - enqueue) / max(pace.warm, 1)
        cuda.synchronize(self.device)
        cycles = int(
            min(max(2 * cost * pace.inner, 20e-6), 10e-3) * 2e9
        )  # about 2 GHz: a filler, not a measure
        marks = []
        for _ in range(pace.samples):
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            cuda._sleep(cycles)
            start.record()
            for _ in range(pace.inner):
                last = step()
            end.record()
            late = start.query()
            cuda.synchronize(self.device)  # of the whole device: work on another stream counts too
            marks.append((start.elapsed_time(end) * 1e-3 / pace.inner, late))
        return Taken(
            seconds=tuple(seconds for seconds, _ in marks),
            flagged=tuple(index for index, (_, late) in enumerate(marks) if late),
            busy_s=perf_counter() - begin,
            last=last,
        )


class FakeClock:
    """Durations from an iterator instead of a clock; the step is called all the same."""

    name = "fake"

    def __init__(self, durations: Iterator[float], flag: Callable[[float], bool] = lambda _: False) -> None:
        self.durations = durations
        self.flag = flag

    def take(self, step: Step, pace: Pace) -> Taken:
        last = None
        for _ in range(pace.warm):
            last = step()
        seconds = []
        for _ in range(pace.samples):
            for _ in range(pace.inner):
                last = step()
            seconds.append(next(self.durations))
        flagged = tuple(index for index, value in enumerate(seconds) if self.flag(value))
        return Taken(seconds=tuple(seconds), flagged=flagged, busy_s=sum(seconds) * pace.inner, last=last)


def clock(name: str, device: str) -> Clock:
    """The clock of that name for a device."""
    if name == "events":
        import torch

        return CudaEvents(torch, device)
    return WallClock()
