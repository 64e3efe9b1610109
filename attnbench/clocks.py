"""Ways to time a step: wall clock, CUDA events, a CUDA graph of several calls, and a fake one for tests.

A clock takes the samples of one block. It flags a sample by independent signals, never by its value.
"""

import contextlib
import ctypes
import importlib
import math
import resource
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter  # bound here: a plugin that patches `time` later changes nothing
from typing import Any, Protocol

from attnbench.implementation import Step

FASTEST_S = 50e-9
"""No call of a Python function takes less, whatever the job's clock says."""
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
    call_s = max(call_s, FASTEST_S)
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
    inner: int | None = None
    """Calls in one sample, where the clock took others than the pace asks for."""
    sm_clock_hz: float | None = None
    """As `sensors` read it after the block; so the three below."""
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: str = ""


Before = Callable[[], object]
"""On a device with a queue it only enqueues."""


def nothing() -> None: ...


class Clock(Protocol):
    """Takes a block of samples of a step."""

    name: str

    def take(self, step: Step, pace: Pace, before: Before = nothing) -> Taken:
        """Warm up, then time `pace.samples` samples of `pace.inner` calls each, with `before` ahead of each, untimed."""

    def preparing(self) -> contextlib.AbstractContextManager[Any]:
        """Around `prepare` in the process that is timed."""
        return contextlib.nullcontext()

    def repeat(self, step: Step, calls: int) -> int:
        """Make about as many calls as it times them, without timing or waiting; returns how many."""
        for _ in range(calls):
            step()
        return calls


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class WallClock(Clock):
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
GRAPH_CALLS = 4


class CaptureError(Exception):
    """The step cannot be captured in a CUDA graph; the message says why."""


def reset_persisting_l2() -> bool:
    """Let go of what accesses have pinned in the L2 cache of the current context; False where nothing can.

    The driver's `cuCtxResetPersistingL2Cache`, from CUDA 11 and compute capability 8.0 on.
    """
    try:
        reset = ctypes.CDLL("libcuda.so.1").cuCtxResetPersistingL2Cache
    except (OSError, AttributeError):
        return False
    return int(reset()) == 0


class CudaEvents(Clock):
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
        reset_persisting_l2()
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


class CudaGraph(Clock):
    """Events around replays of a CUDA graph that holds several calls: no launch of a call counts.

    Where the step goes through the `steps` of rotated copies, one a call, the graph holds a multiple of them; where
    something goes before every sample, one call. Times are shares of a replay, `host_enqueue_s` and `end_to_end_s` too.
    Raises `CaptureError` where the step cannot be captured; there is no other way to time it.
    """

    name = "graph"

    def __init__(self, torch: Any, device: str) -> None:
        self.torch = torch
        self.events = CudaEvents(torch, device)
        self.stream = torch.cuda.Stream(device)
        self.step: Step | None = None
        """What is captured, so many `calls`."""
        self.calls = 0
        self.output: Any = None

    def preparing(self) -> contextlib.AbstractContextManager[Any]:
        """On the stream of the capture: a backward pass runs on the stream of its forward pass."""
        context: contextlib.AbstractContextManager[Any] = self.torch.cuda.stream(self.stream)
        return context

    def repeat(self, step: Step, calls: int) -> int:
        """Of the graph of the last block."""
        return self.calls * self.events.repeat(self.graph.replay, max(1, round(calls / self.calls)))

    def take(self, step: Step, pace: Pace, before: Before = nothing) -> Taken:
        begin = perf_counter()
        calls = 1
        if before is nothing:
            calls = captured_calls(pace, len(getattr(step, "steps", (step,))))
        if step != self.step or calls != self.calls:
            self._capture(step, calls)
        replays = Pace(
            inner=1,
            samples=max(1, round(pace.samples * pace.inner / calls)),
            warm=max(1, round(pace.warm / calls)),
        )
        taken = self.events.take(self.graph.replay, replays, before)
        assert taken.host_enqueue_s is not None
        assert taken.end_to_end_s is not None
        return replace(
            taken,
            seconds=tuple(s / calls for s in taken.seconds),
            busy_s=perf_counter() - begin,
            last=self.output,
            host_enqueue_s=taken.host_enqueue_s / calls,
            end_to_end_s=taken.end_to_end_s / calls,
            inner=calls,
        )

    def _capture(self, step: Step, calls: int) -> None:
        """Capture `calls` calls, and fill what the last one returned with NaN, so that only replays can right it."""
        cuda = self.torch.cuda
        self.graph, self.output, self.step = cuda.CUDAGraph(), None, None
        with cuda.stream(self.stream):  # what libraries make at their first call must not be captured
            step()
        cuda.synchronize(self.events.device)
        cause: Exception | None = None
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                with cuda.graph(self.graph, stream=self.stream):
                    try:
                        for _ in range(calls):
                            self.output = step()
                    except Exception as error:
                        cause = error  # ending the capture may fail too, and hide it
                        raise
            except self.torch.OutOfMemoryError:
                raise
            except Exception as error:
                raise CaptureError(f"no CUDA graph: {_first_line(cause or error)}") from None
        if any("graph is empty" in str(warning.message).lower() for warning in told):
            raise CaptureError("no CUDA graph: a call enqueues nothing on the stream that it is called on")
        for tensor in self.output if isinstance(self.output, tuple | list) else [self.output]:
            if isinstance(tensor, self.torch.Tensor) and tensor.is_floating_point():
                tensor.detach().fill_(math.nan)
        self.step, self.calls = step, calls


def captured_calls(pace: Pace, copies: int) -> int:
    """Calls of a graph: a sample's, at least `GRAPH_CALLS` unless they are slow, and every rotated copy."""
    least = max(pace.inner, min(GRAPH_CALLS, pace.samples))
    calls = copies * math.ceil(least / copies)
    assert calls >= copies
    assert calls % copies == 0
    return calls


def _first_line(error: BaseException) -> str:
    text = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {text}"


class FakeClock(Clock):
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
    """The clock of that name for a device, or one from elsewhere as `module:Class`."""
    module, colon, kind = name.partition(":")
    if colon:
        found: Clock = getattr(importlib.import_module(module), kind)()
        return found
    if name in ("events", "graph"):
        import torch

        return CudaGraph(torch, device) if name == "graph" else CudaEvents(torch, device)
    return WallClock()
