import contextlib
import itertools
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnbench import clocks, measure
from attnbench.clocks import (
    BLOCK_SAMPLES,
    CaptureError,
    CudaEvents,
    CudaGraph,
    FakeClock,
    Pace,
    Taken,
    WallClock,
    captured_calls,
    pace,
)
from attnbench.implementation import Prepared
from attnbench.measure import Course
from attnbench.records import Memory


def nothing() -> None:
    return None


def race(course: Course, durations: Iterator[float], rounds: int = 1000, latency: float = 0.0) -> Course:
    """Let a course take blocks from a fake clock until it has enough; time passes only on paper."""
    clock = FakeClock(durations)
    for round_ in range(rounds):
        taken = clock.take(nothing, course.pace)
        course.add(taken, taken.busy_s + latency, round_)
        if course.enough():
            return course
    raise AssertionError("the course never had enough")


@pytest.mark.parametrize("call_s", [1e-7, 3e-6, 4e-5, 1e-4, 1e-3, 1e-2])
def test_samples_are_short_and_blocks_about_twenty_milliseconds(call_s: float) -> None:
    found = pace(call_s, 0.5)
    sample = call_s * found.inner
    assert sample >= 50e-6 or found.inner == 1
    assert sample < 1e-3 or found.inner == 1
    assert found.samples == BLOCK_SAMPLES or 10e-3 <= found.samples * sample <= 30e-3
    assert 1 <= found.warm <= 15


def test_a_slow_call_is_a_block_of_its_own_without_further_warming() -> None:
    assert pace(0.1, 0.5) == Pace(inner=1, samples=1, warm=0)


def test_a_steady_call_stops_on_width() -> None:
    rng = random.Random(1)
    course = race(
        Course(call_s=1e-3, budget_s=3, launches=1, width=0.01),
        (1e-3 * rng.gauss(1, 0.002) for _ in itertools.count()),
    )
    assert course.stop_reason == "interval within 1%"
    assert 5 <= len(course.blocks) < 10


def test_without_a_width_to_reach_a_steady_call_stops_on_its_budget() -> None:
    course = race(Course(call_s=1e-3, budget_s=0.5, launches=1, width=0.0), itertools.cycle([1e-3, 1.001e-3]))
    assert course.stop_reason == "budget"
    assert course.spent_s == pytest.approx(0.5, rel=0.1)


def test_a_noisy_call_stops_on_its_budget() -> None:
    rng = random.Random(1)
    course = race(
        Course(call_s=1e-3, budget_s=0.5, launches=1, width=0.01),
        (1e-3 * rng.lognormvariate(0, 1) for _ in itertools.count()),
    )
    assert course.stop_reason == "budget"
    assert course.spent_s == pytest.approx(0.5, rel=0.1)


def test_a_very_slow_call_is_called_three_times_and_has_no_interval() -> None:
    course = race(Course(call_s=5.0, budget_s=0.5, launches=1, width=0.01), iter([5.0, 5.1, 5.2]))
    timing = course.timing(0.0, 0.0)
    assert (timing.n, timing.stop_reason) == (3, "slow call")
    assert timing.median_s == pytest.approx(5.1)
    assert timing.ci95_low_s is None


def test_a_call_that_only_began_slowly_is_warmed_and_its_cold_blocks_do_not_count() -> None:
    course = Course(call_s=0.1, budget_s=0.5, launches=1, width=0.01)
    assert course.slow
    durations = itertools.chain([50e-3, 30e-3, 1e-3], itertools.repeat(1e-3))
    timing = race(course, durations).timing(0.0, 0.0)
    assert timing.stop_reason == "interval within 1%"
    assert (timing.median_s, timing.p80_s) == (pytest.approx(1e-3), 1e-3)
    assert course.pace.warm == 15


def test_in_a_hurry_a_launch_ends_after_its_least_calls() -> None:
    course = Course(call_s=1e-3, budget_s=3, launches=1, width=0.01)
    taken = Taken(seconds=(1e-3,), flagged=(), busy_s=1e-3, last=None)
    ends = []
    for round_ in range(3):
        course.add(taken, 1e-3, round_)
        ends.append(course.enough(hurry=True))
    assert (ends, course.stop_reason) == ([False, False, True], "time budget")


def test_a_budget_is_shared_by_all_launches() -> None:
    course = Course(call_s=1e-3, budget_s=0.6, launches=3, width=0.01)
    rng = random.Random(2)
    durations = (1e-3 * rng.lognormvariate(0, 1) for _ in itertools.count())
    for launch in range(3):
        course.begin(launch)
        race(course, durations)
        assert course.spent_s == pytest.approx(0.2, rel=0.2)
    assert course.timing(0, 0).launches == 3


def test_flagged_samples_do_not_count_but_are_counted() -> None:
    course = Course(call_s=1e-3, budget_s=0.5, launches=1, width=0.01)
    for round_ in range(6):
        seconds = (1e-3, 1e-3, 26e-3, 1e-3)
        course.add(Taken(seconds=seconds, flagged=(2,), busy_s=sum(seconds), last=None), sum(seconds), round_)
    timing = course.timing(0, 0)
    assert timing.median_s == pytest.approx(1e-3)
    assert (timing.n, timing.n_flagged) == (24, 6)
    assert timing.p80_s == pytest.approx(1e-3)


def test_all_numbers_of_a_row_are_of_the_same_samples() -> None:
    course = Course(call_s=0.1, budget_s=10, launches=1, width=0.01)
    for round_, (value, flagged) in enumerate([(0.1, (0,)), (0.11, (0,)), (0.12, (0,)), (0.2, ())]):
        course.add(Taken(seconds=(value,), flagged=flagged, busy_s=value, last=None), value, round_)
    timing = course.timing(0, 0)
    assert (timing.min_s, timing.n, timing.n_flagged) == (0.1, 4, 3)
    assert timing.min_s <= timing.p20_s <= timing.median_s <= timing.p80_s


def test_the_location_lies_inside_its_interval() -> None:
    rng = random.Random(3)
    timing = race(
        Course(call_s=1e-3, budget_s=0.5, launches=1, width=0.01),
        (1e-3 * rng.lognormvariate(0, 0.5) for _ in itertools.count()),
    ).timing(0, 0)
    assert timing.ci95_low_s is not None
    assert timing.ci95_high_s is not None
    assert timing.ci95_low_s < timing.median_s < timing.ci95_high_s


def test_an_honest_clock_is_accounted_for() -> None:
    course = race(
        Course(call_s=1e-3, budget_s=0.5, launches=1, width=0.01), itertools.repeat(1e-3), latency=1e-3
    )
    assert course.unaccounted() is None


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_clock_that_lies_is_found_by_the_parents_own(factor: float) -> None:
    course = Course(call_s=1e-3, budget_s=0.5, launches=1, width=0.01)
    clock = FakeClock(itertools.repeat(1e-3 * factor))
    for round_ in range(20):
        taken = clock.take(nothing, course.pace)
        course.add(taken, course.pace.samples * 1e-3, round_)
    assert "the job's clock accounts for" in (course.unaccounted() or "")


def test_the_wall_clock_measures_a_known_duration() -> None:
    from time import perf_counter

    def busy() -> None:
        end = perf_counter() + 2e-3
        while perf_counter() < end:
            pass

    taken = WallClock().take(busy, Pace(inner=1, samples=20, warm=1))
    assert min(taken.seconds) == pytest.approx(2e-3, rel=0.02)
    assert taken.busy_s >= sum(taken.seconds)


def test_the_wall_clock_cannot_be_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    taken = WallClock().take(lambda: sum(range(1000)), Pace(inner=1, samples=3, warm=0))
    assert min(taken.seconds) > 0


def test_what_empties_the_cache_comes_before_every_sample_and_is_not_timed() -> None:
    from time import perf_counter

    log: list[str] = []

    def flush() -> None:
        log.append("flush")
        end = perf_counter() + 5e-3
        while perf_counter() < end:
            pass

    pace = Pace(inner=1, samples=3, warm=2)
    taken = WallClock().take(lambda: log.append("call"), pace, flush)
    assert log == ["call"] * 2 + ["flush", "call"] * 3
    assert min(taken.seconds) < 1e-3
    assert taken.busy_s > 15e-3


def test_a_sample_behind_a_flush_is_one_call_and_a_block_has_fewer_of_them() -> None:
    assert pace(1e-5, 1.0).inner > 1
    assert pace(1e-5, 1.0, rest_s=5e-3) == Pace(inner=1, samples=4, warm=15)


class FakeCuda:
    """A device whose calls take 3 ms of its own time; `host_s` is how long the host needs to enqueue one.

    `elsewhere_s` is work of each call on another stream, which events do not see. Host time passes on paper
    only; `filled` notes how long the fillers were.
    """

    def __init__(self, host_s: float, elsewhere_s: float = 0.0) -> None:
        self.now = self.host = 0.0
        self.host_s, self.elsewhere_s = host_s, elsewhere_s
        self.other = 0.0
        self.cuda = self
        self.filled: list[float] = []

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802 - torch's own name
        outer = self

        class Event:
            def record(self) -> None:
                self.at = outer.now = max(outer.now, outer.host)

            def query(self) -> bool:
                return self.at <= outer.host

            def elapsed_time(self, end: Any) -> float:
                return float((end.at - self.at) * 1e3)

        return Event()

    def _sleep(self, cycles: int) -> None:
        self.filled.append(cycles / 2e9)
        self.now = max(self.now, self.host) + self.filled[-1]

    def synchronize(self, device: str) -> None:
        self.host = self.now = max(self.now, self.host, self.other)

    def step(self) -> None:
        self.host += self.host_s
        self.now = max(self.now, self.host) + 3e-3
        self.other = max(self.other, self.host) + self.elsewhere_s


def taken_on(device: FakeCuda, monkeypatch: pytest.MonkeyPatch, samples: int = 4) -> Taken:
    monkeypatch.setattr(clocks, "perf_counter", lambda: device.host)
    return CudaEvents(device, "cuda:0").take(device.step, Pace(inner=1, samples=samples, warm=2))


def test_cuda_events_see_the_devices_time_and_not_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = taken_on(FakeCuda(host_s=1e-6), monkeypatch)
    assert taken.seconds == pytest.approx([3e-3] * 4)
    assert taken.flagged == ()
    assert taken.host_enqueue_s == pytest.approx(1e-6)
    assert taken.end_to_end_s == pytest.approx(3.001e-3)


def test_what_empties_the_cache_of_a_device_is_in_no_time_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeCuda(host_s=1e-6)
    flushed: list[float] = []

    def flush() -> None:
        device.now = max(device.now, device.host) + 7e-3
        flushed.append(device.now)

    monkeypatch.setattr(clocks, "perf_counter", lambda: device.host)
    taken = CudaEvents(device, "cuda:0").take(device.step, Pace(inner=1, samples=4, warm=2), flush)
    assert taken.seconds == pytest.approx([3e-3] * 4)
    assert taken.end_to_end_s == pytest.approx(3.001e-3)
    assert len(flushed) == 4 + clocks.END_TO_END_CALLS


def test_cuda_samples_in_which_the_host_was_late_are_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = taken_on(FakeCuda(host_s=50e-3), monkeypatch)
    assert taken.flagged == (0, 1, 2, 3)


def test_a_filler_that_was_too_short_is_followed_by_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeCuda(host_s=1e-3)
    assert taken_on(device, monkeypatch).flagged == (0,)
    assert device.filled == pytest.approx([20e-6, 2e-3, 2e-3, 2e-3])


@pytest.mark.parametrize(("elsewhere_s", "accounted"), [(0.0, True), (2e-3, True), (20e-3, False)])
def test_work_on_another_stream_contradicts_the_events(
    monkeypatch: pytest.MonkeyPatch, elsewhere_s: float, accounted: bool
) -> None:
    device = FakeCuda(host_s=1e-6, elsewhere_s=elsewhere_s)
    course = Course(call_s=3e-3, budget_s=0.5, launches=1, width=0.01)
    for round_ in range(3):
        taken = taken_on(device, monkeypatch, samples=5)
        course.add(taken, taken.busy_s, round_)
    reason = course.unaccounted()
    assert (reason is None) == accounted
    assert accounted or "launch and events account for 0.003 s" in str(reason)


class FakeGraphs(FakeCuda):
    """A device with graphs: a replay takes the host 5 us and the device 3 ms for each call that was captured.

    `strays` are calls that a library enqueues elsewhere, so that they run at once and not in a replay.
    """

    Tensor, OutOfMemoryError = torch.Tensor, torch.OutOfMemoryError

    def __init__(self, strays: bool = False) -> None:
        super().__init__(host_s=1e-3)
        self.capturing, self.strays = False, strays
        self.calls = 0
        self.out = torch.zeros(2)

    def step(self) -> torch.Tensor:
        self.calls += 1
        if self.capturing:
            self.graphed += 0 if self.strays else 1
        else:
            super().step()
        return self.out

    def Stream(self, device: str) -> str:  # noqa: N802
        return "side"

    def stream(self, stream: str) -> Any:
        return contextlib.nullcontext()

    def CUDAGraph(self) -> Any:  # noqa: N802
        def replay() -> None:
            self.replays += 1
            self.host += 5e-6
            self.now = max(self.now, self.host) + 3e-3 * self.graphed
            if self.graphed:
                self.out.fill_(1.0)

        self.replays = self.graphed = 0
        return SimpleNamespace(replay=replay)

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: str) -> Iterator[None]:
        assert stream == "side"
        self.capturing = True
        yield
        self.capturing = False


EIGHT = Pace(inner=1, samples=8, warm=8)


def graphed(
    device: FakeGraphs,
    monkeypatch: pytest.MonkeyPatch,
    pace: Pace = EIGHT,
    step: Any = None,
    before: Any = clocks.nothing,
) -> Taken:
    monkeypatch.setattr(clocks, "perf_counter", lambda: device.host)
    return CudaGraph(device, "cuda:0").take(step or device.step, pace, before)


def test_a_graph_of_several_calls_counts_no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeGraphs()
    taken = graphed(device, monkeypatch)
    assert taken.inner == 4
    assert taken.seconds == pytest.approx([3e-3] * 2)  # of 8 samples of one call, in graphs of 4
    assert taken.host_enqueue_s == pytest.approx(5e-6 / 4)
    assert taken.end_to_end_s == pytest.approx(3e-3 + 5e-6 / 4)
    assert device.replays == 2 + 2 + clocks.END_TO_END_CALLS  # warm-up, samples, end to end
    assert taken.last.tolist() == [1, 1]
    course = Course(call_s=3e-3, budget_s=0.5, launches=1, width=0.01)
    course.add(taken, taken.busy_s, 0)
    assert course.inner == 4
    assert course.unaccounted() is None


def test_a_graph_is_captured_once_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeGraphs()
    monkeypatch.setattr(clocks, "perf_counter", lambda: device.host)
    clock = CudaGraph(device, "cuda:0")
    for _ in range(3):
        clock.take(device.step, EIGHT)
    assert device.calls == 1 + 4  # a call beforehand, and the capture
    before = device.now
    assert clock.repeat(device.step, 10) == 8
    assert device.now - before == pytest.approx(8 * 3e-3, rel=0.01)
    clock.take(device.step, Pace(inner=30, samples=8, warm=8))
    assert device.calls == 1 + 4 + 1 + 30
    clock.take(lambda: device.step(), Pace(inner=30, samples=8, warm=8))
    assert device.calls == 2 * (1 + 30) + 1 + 4  # another step is another graph


def test_what_a_replay_does_not_write_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = graphed(FakeGraphs(strays=True), monkeypatch)
    assert not taken.last.isfinite().any()


@pytest.mark.parametrize("copies", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("inner", [1, 4, 17])
@pytest.mark.parametrize("samples", [1, 3, 50])
def test_a_graph_covers_the_rotated_copies(
    monkeypatch: pytest.MonkeyPatch, copies: int, inner: int, samples: int
) -> None:
    calls = captured_calls(Pace(inner=inner, samples=samples, warm=1), copies)
    assert calls % copies == 0
    assert inner <= calls < max(inner, 4) + copies
    device = FakeGraphs()

    def rotated() -> torch.Tensor:
        return device.step()

    rotated.steps = (device.step,) * copies  # type: ignore[attr-defined]
    assert graphed(device, monkeypatch, Pace(inner=inner, samples=samples, warm=1), rotated).inner == calls


def test_where_the_cache_is_flushed_before_a_sample_a_graph_holds_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, flushes = FakeGraphs(), []
    taken = graphed(device, monkeypatch, before=lambda: flushes.append(device.now))
    assert (taken.inner, len(taken.seconds)) == (1, 8)
    assert len(flushes) == 8 + clocks.END_TO_END_CALLS


def test_a_slow_call_is_a_graph_of_its_own() -> None:
    assert captured_calls(Pace(inner=1, samples=1, warm=0), 1) == 1


def test_a_step_that_cannot_be_captured_says_why_and_memory_that_ran_out_stays_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = FakeGraphs()

    def fails(error: Exception) -> Any:
        def step() -> None:
            if device.capturing:
                raise error

        return step

    with pytest.raises(CaptureError, match=r"^no CUDA graph: RuntimeError: operation not permitted$"):
        graphed(device, monkeypatch, step=fails(RuntimeError("operation not permitted\nhint")))
    device.capturing = False
    with pytest.raises(torch.OutOfMemoryError):
        graphed(device, monkeypatch, step=fails(torch.OutOfMemoryError("CUDA out of memory")))


def test_what_was_pinned_in_the_l2_cache_is_let_go_before_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    device, resets = FakeCuda(host_s=1e-6), []

    def driver(name: str) -> Any:
        assert name == "libcuda.so.1"
        return SimpleNamespace(cuCtxResetPersistingL2Cache=lambda: resets.append(device.now) or 0)

    monkeypatch.setattr(clocks.ctypes, "CDLL", driver)
    taken_on(device, monkeypatch)
    assert resets == [0.0]  # before the first call
    assert clocks.reset_persisting_l2()


@pytest.mark.parametrize("driver", ["missing", "old", "refuses"])
def test_a_driver_that_pins_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    def load(name: str) -> Any:
        if driver == "missing":
            raise OSError(name)
        return SimpleNamespace(
            **({"cuCtxResetPersistingL2Cache": lambda: 801} if driver == "refuses" else {})
        )

    monkeypatch.setattr(clocks.ctypes, "CDLL", load)
    assert not clocks.reset_persisting_l2()


def sensed(clock_hz: float | None, throttle: str = "") -> Taken:
    return Taken(
        seconds=(1e-3,) * 3,
        flagged=(),
        busy_s=3e-3,
        last=None,
        sm_clock_hz=clock_hz,
        power_w=300.0,
        temperature_c=60.0,
        throttle=throttle,
        host_enqueue_s=1e-5,
        waited_s=0.0,
    )


def test_blocks_at_less_than_97_percent_of_the_highest_clock_are_flagged_also_afterwards() -> None:
    course = Course(call_s=1e-3, budget_s=1.0, launches=1, width=0.01)
    for round_, clock in enumerate([1.9e9, 1.98e9, 1.925e9, 1.91e9]):
        course.add(sensed(clock), 3e-3, round_)
    whole = (0, 1, 2)
    assert [b.flagged for b in course.blocks] == [whole, (), (), whole]
    course.top_clock_hz = 2.1e9  # of another implementation's block
    course.add(sensed(2.05e9), 3e-3, 4)
    assert [b.flagged for b in course.blocks] == [whole, whole, whole, whole, ()]
    assert course.timing(0, 0).n_flagged == 12


def test_blocks_in_which_the_device_was_throttled_are_flagged_and_the_row_says_why() -> None:
    course = Course(call_s=1e-3, budget_s=1.0, launches=1, width=0.01)
    for round_, throttle in enumerate(["power cap", "", "thermal slowdown+power cap"]):
        course.add(sensed(None, throttle), 3e-3, round_)
    assert [len(b.flagged) for b in course.blocks] == [3, 0, 3]
    course.note_energy(0.25)
    timing = course.timing(0, 0)
    assert timing.throttle == "power cap+thermal slowdown"
    assert (timing.power_w, timing.temperature_c, timing.sm_clock_hz) == (300, 60, None)
    assert timing.energy_j == 0.25
    assert timing.noise.startswith("too few blocks for an interval; the device lowered its clock (power cap+")


def test_blocks_of_a_throttled_device_do_not_count_where_enough_others_are_left() -> None:
    course = Course(call_s=1e-3, budget_s=1.0, launches=1, width=0.01)
    for round_ in range(8):
        course.add(sensed(None, "power cap" * (round_ < 3)), 3e-3, round_)
    assert [b.round for b in course.counted] == [3, 4, 5, 6, 7]
    course.add(sensed(None), 3e-3, 8)
    assert course.timing(0, 0).n_flagged == 9


def test_device_memory_is_that_of_torchs_allocator_and_the_devices_own_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cuda:
        """An allocator with a block of 100 bytes left over from before, on a device that others use too."""

        held, peak, reserved, others = 100, 0, 512, 1000

        def synchronize(self, device: str) -> None: ...

        def empty_cache(self) -> None:
            self.reserved = 128

        def reset_peak_memory_stats(self, device: str) -> None:
            self.peak = self.held

        def memory_allocated(self, device: str) -> int:
            return self.held

        def max_memory_allocated(self, device: str) -> int:
            return self.peak

        def mem_get_info(self, device: str) -> tuple[int, int]:
            return 10_000 - self.reserved - self.others, 10_000

        def step(self) -> int:
            self.peak, self.held, self.reserved, self.others = 100 + 40 + 30, 140, 256, 1500
            return 40

    cuda = Cuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = measure.memory(Prepared(step=cuda.step), "cuda:0", 7, lambda out: out)
    assert found == Memory(
        input_bytes=7, output_bytes=40, workspace_bytes=30, method="cuda", device_delta_bytes=128 + 500
    )


def in_a_process_of_its_own(call: Callable[..., int], *arguments: int) -> int:
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with context.Pool(1) as pool:
        return pool.apply(call, arguments)


@pytest.mark.parametrize("size", [2**20, 2**24, 2**28])
def test_known_allocations_are_found_in_a_process_of_their_own(size: int) -> None:
    assert abs(in_a_process_of_its_own(_workspace, size) - size) <= 0.3 * 2**20


def _workspace(size: int) -> int:
    import torch

    # the kernel counts resident pages in batches per core, each of which may hide 0.13 MiB
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def step() -> torch.Tensor:
        scratch = torch.ones(size // 4)
        return torch.ones(2**18) + scratch[0]

    for trap in (2**22, 2**18, 2**12):  # freed memory that a later call might reuse unseen
        held = [torch.ones(trap) for _ in range(4)]
        del held
    step()
    measure.return_memory_eagerly()
    return measure.memory(Prepared(step=step), "cpu", 0, lambda out: out.numel() * 4).workspace_bytes - 2**20


def test_pieces_that_are_free_in_the_heap_do_not_make_a_workspace_bigger() -> None:
    assert abs(in_a_process_of_its_own(_workspace_in_pieces) - 25 * 2**20) <= 0.3 * 2**20


def _workspace_in_pieces() -> int:
    import torch

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sizes = [10 * 2**18, 11 * 2**18, 12 * 2**18, 13 * 2**18]

    def step() -> torch.Tensor:
        last = torch.ones(1)
        for size in sizes:  # two at a time, each of which would fit a piece of its own
            last = torch.full((size,), float(last[0]))
        return last[:1].clone()

    torch.ones(20 * 2**18)  # from now on glibc takes blocks up to this size from its heap
    pieces = [(torch.ones(size + 2**15), torch.ones(2**15)) for size in sizes]
    between = [after for _, after in pieces]
    del pieces
    step()
    measure.return_memory_eagerly()
    found = measure.memory(Prepared(step=step), "cpu", 0, lambda out: out.numel() * 4).workspace_bytes
    assert len(between) == len(sizes)  # still there
    return found


def test_a_librarys_own_counter_is_preferred() -> None:
    counts = iter([7, 5000])
    found = measure.memory(Prepared(step=nothing, memory=lambda: next(counts)), "cpu", 10, lambda _: 1000)
    assert (found.workspace_bytes, found.output_bytes, found.method) == (4000, 1000, "own")


def test_locations_are_geometric() -> None:
    course = Course(call_s=1e-3, budget_s=1, launches=1, width=0.01)
    for round_, value in enumerate([1e-3, 4e-3]):
        course.add(Taken(seconds=(value,), flagged=(), busy_s=value, last=None), value, round_)
    assert course.timing(0, 0).median_s == pytest.approx(math.sqrt(1e-3 * 4e-3))
