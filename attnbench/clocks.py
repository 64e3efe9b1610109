"""Ways to time a step: wall clock, CUDA events, and a fake one for tests.

A clock takes the samples of one block. It flags a sample by independent signals, never by its value.
"""

import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
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


def pace(call_s: float, budget_s: float, rest_s: float = 0.0) -> Pace:
    """The pace for a call of `call_s` seconds under a budget per launch (MEASURING: blocks of about 20 ms).

    Where something takes `rest_s` before every sample, so that it meets an empty cache, a sample is one call.
    """
    call_s = max(call_s, 1e-9)
    inner = math.ceil(SAMPLE_S / call_s) if call_s < SAMPLE_S and not rest_s else 1
    if call_s * SLOW > budget_s:
        return Pace(inner=1, samples=1, warm=0)
    samples = min(max(round(BLOCK_S / (call_s * inner + rest_s)), 1), BLOCK_SAMPLES)
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
    host_enqueue_s: float | None = None
    """On a device with a queue: the host's time to launch one call, median of the samples."""
    end_to_end_s: float | None = None
    """Likewise: from before one call on an idle device to its end, by the host's clock; median of a few."""
    waited_s: float | None = None
    """What this process's threads waited for a processor meanwhile, over all of them."""


Before = Callable[[], object]
"""On a device with a queue it only enqueues."""


def nothing() -> None: ...


class Clock(Protocol):
    """Takes a block of samples of a step."""

    name: str

    def take(self, step: Step, pace: Pace, before: Before = nothing) -> Taken:
        """Warm up, then time `pace.samples` samples of `pace.inner` calls each, with `before` ahead of each, untimed."""


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class WallClock:
    """`perf_counter` around the calls; a sample in which the process was preempted is flagged."""

    name = "wall"

    def take(self, step: Step, pace: Pace, before: Before = nothing) -> Taken:
        begin = perf_counter()
        last = None
        for _ in range(pace.warm):
            last = step()
        seconds, flagged, inner = [], [], pace.inner
        repeats = range(inner)
        for index in range(pace.samples):
            before()
            known = _preemptions()
            start = perf_counter()
            for _ in repeats:
                last = step()
            end = perf_counter()
            if _preemptions() != known:
                flagged.append(index)
            seconds.append((end - start) / inner)
        return Taken(seconds=tuple(seconds), flagged=tuple(flagged), busy_s=perf_counter() - begin, last=last)


END_TO_END_CALLS = 3
FILL_S = 20e-6
MOST_FILL_S = 20e-3
_CYCLES_PER_S = 2e9  # of a filler, about; where it proves too short, the next one is longer


class CudaEvents:
    """CUDA events around each sample, with the queue filled before, so that launch gaps do not count.

    A sample is flagged where the device had reached its first event before the host had enqueued the last:
    then the device may have waited for the host, and the filler of the next sample is twice as long. `torch`
    is passed in, so that a fake one can stand in.
    """

    name = "events"

    def __init__(self, torch: Any, device: str) -> None:
        self.torch = torch
        self.device = device
        self.fill_s = FILL_S

    def take(self, step: Step, pace: Pace, before: Before = nothing) -> Taken:
        cuda = self.torch.cuda
        begin = perf_counter()
        last = None
        for _ in range(pace.warm):
            last = step()
        cuda.synchronize(self.device)
        seconds, enqueued, flagged, ends = [], [], [], []
        for index in range(pace.samples):
            first, final = (cuda.Event(enable_timing=True) for _ in range(2))
            before()
            cuda._sleep(int(self.fill_s * _CYCLES_PER_S))
            first.record()
            start = perf_counter()
            for _ in range(pace.inner):
                last = step()
            enqueued.append((perf_counter() - start) / pace.inner)
            final.record()
            if first.query():
                flagged.append(index)
                self.fill_s = min(2 * max(self.fill_s, enqueued[-1] * pace.inner), MOST_FILL_S)
            cuda.synchronize(self.device)  # of the whole device: work on another stream counts too
            seconds.append(first.elapsed_time(final) * 1e-3 / pace.inner)
        for _ in range(END_TO_END_CALLS):
            before()
            cuda.synchronize(self.device)
            start = perf_counter()
            last = step()
            cuda.synchronize(self.device)
            ends.append(perf_counter() - start)
        return Taken(
            seconds=tuple(seconds),
            flagged=tuple(flagged),
            busy_s=perf_counter() - begin,
            last=last,
            host_enqueue_s=median(enqueued),
            end_to_end_s=median(ends),
        )


class FakeClock:
    """Durations from an iterator instead of a clock; the step is called all the same."""

    name = "fake"

    def __init__(self, durations: Iterator[float], flag: Callable[[float], bool] = lambda _: False) -> None:
        self.durations = durations
        self.flag = flag

    def take(self, step: Step, pace: Pace, before: Before = nothing) -> Taken:
        last = None
        for _ in range(pace.warm):
            last = step()
        seconds = []
        for _ in range(pace.samples):
            before()
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
