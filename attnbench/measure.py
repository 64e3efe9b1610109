"""A step -> its memory, and its time over rounds of interleaved blocks -> a `Timing`."""

import contextlib
import ctypes
import gc
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from attnbench import estimates, noise
from attnbench.clocks import SLOW, Pace, Taken, pace
from attnbench.implementation import Prepared
from attnbench.records import Block, Memory, Timing

LEAST_ROUNDS = 5
LEAST_CALLS = 3
ACCOUNTED = 0.5
"""Share of a block's time, by the parent's clock, that the worker's own clock must account for."""
LATENCY_S = 1e-3
"""What one exchange of messages and a continuation may take where nobody else wants the processor."""

QUEUE_S = 1e-4
"""What synchronising with an idle device may take."""

FULL_CLOCK = 0.97
"""A block at a lower share of the highest clock of the run is flagged."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_IS_MMAPPED = 2
"""In the word before a block of glibc's, where it was taken from the system for itself."""
_LARGE = 64 * 1024


@dataclass(kw_only=True)
class Course:
    """The blocks of one cell as they come in, and the decision when they are enough."""

    call_s: float
    budget_s: float
    """Over all launches, warm-up included."""
    launches: int
    width: float
    """Half-width of the 95 % interval, relative, at which a launch may end."""
    rest_s: float = 0.0
    """Time before every sample, outside it; see `clocks.pace`."""
    blocks: list[Block] = field(default_factory=list)
    launch: int = 0
    first: int = 0
    """Index of the first block since `begin`."""
    spent_s: float = 0.0
    """Token time since `begin`, by the parent's clock."""
    elapsed_s: float = 0.0
    """Token time of all launches."""
    accounts: list[tuple[float, float]] = field(default_factory=list)
    """Seconds of each block by the worker's clock and by the parent's."""
    inner: int = 1
    """Calls in a sample of the last block."""
    top_clock_hz: float = 0.0
    """Highest clock of the device in the run so far."""
    stop_reason: str = ""

    @property
    def slow(self) -> bool:
        return self.call_s * SLOW > self.budget_s / self.launches

    @property
    def pace(self) -> Pace:
        return pace(self.call_s, self.budget_s / self.launches, self.rest_s)

    def add(self, taken: Taken, elapsed_s: float, round_: int, running: int | None = None) -> None:
        """Take in a block that the parent saw last `elapsed_s` seconds, beside `running` other processes.

        The canary's second call, from which the pace is chosen, may be many times slower than the others. Where
        the first block, or one without a warm-up, shows this, the blocks so far were too short and do not count.
        """
        before, unwarmed, self.inner = self.call_s, self.slow, taken.inner or self.pace.inner
        self.blocks.append(
            Block(
                round=round_,
                launch=self.launch,
                seconds=taken.seconds,
                flagged=taken.flagged,
                host_enqueue_s=taken.host_enqueue_s,
                end_to_end_s=taken.end_to_end_s,
                waited_s=taken.waited_s,
                busy_s=taken.busy_s,
                running=running,
                sm_clock_hz=taken.sm_clock_hz,
                power_w=taken.power_w,
                temperature_c=taken.temperature_c,
                throttle=taken.throttle,
            )
        )
        self._flag_slow_clocks()
        self.spent_s += elapsed_s
        self.elapsed_s += elapsed_s
        self.accounts.append((max(taken.busy_s, sum(taken.seconds) * self.inner), elapsed_s))
        self.call_s = min(self.call_s, *taken.seconds)
        if (unwarmed or len(self.blocks) == self.first + 1) and self.call_s < before / 2:
            del self.blocks[self.first :]

    def _flag_slow_clocks(self) -> None:
        """Flag every sample of blocks in which the device was throttled, or slower than in others of the run."""
        self.top_clock_hz = max(self.top_clock_hz, *(b.sm_clock_hz or 0.0 for b in self.blocks))
        for index, block in enumerate(self.blocks):
            clock = block.sm_clock_hz
            if block.throttle or (clock is not None and clock < FULL_CLOCK * self.top_clock_hz):
                self.blocks[index] = replace(block, flagged=tuple(range(len(block.seconds))))

    def note_energy(self, joules: float) -> None:
        """Of one call, counted after the last block of a launch."""
        self.blocks[-1] = replace(self.blocks[-1], energy_j=joules)

    def begin(self, launch: int) -> None:
        """Start a launch, or the part of it in another cohort, with a share of the budget of its own."""
        self.launch, self.first, self.spent_s = launch, len(self.blocks), 0.0

    @property
    def counted(self) -> list[Block]:
        """The blocks that count."""
        return noise.counted(self.blocks)

    @property
    def values(self) -> list[list[float]]:
        """Log medians of the blocks that count, `[launch][round]`."""
        return [
            [estimates.block_value(b.seconds, b.flagged) for b in self.counted if b.launch == launch]
            for launch in range(self.launch + 1)
        ]

    def enough(self, hurry: bool = False) -> bool:
        """Whether this launch may end: narrow enough, out of budget, or in a hurry; never before the least calls."""
        here = self.blocks[self.first :]
        calls = sum(len(b.seconds) for b in here)
        if calls < LEAST_CALLS:
            return False
        if hurry:
            self.stop_reason = "time budget"
            return True
        if self.spent_s + self.call_s >= self.budget_s / self.launches:
            self.stop_reason = "slow call" if self.slow else "budget"
            return True
        if len(here) >= LEAST_ROUNDS:
            width = estimates.half_width(estimates.location(self.values))
            if width is not None and width < self.width:
                self.stop_reason = f"interval within {100 * self.width:g}%"
                return True
        return False

    def unaccounted(self) -> str | None:
        """A reason where two clocks contradict each other, else None.

        No block may last longer inside than outside. On a busy machine any exchange of messages may be late,
        so that one block that accounts for its time is enough. So is, on a device with a queue, one block whose
        events account for the time until the device is idle again: work on another stream is missing in them.
        """
        contained = all(busy <= elapsed + LATENCY_S for busy, elapsed in self.accounts)
        if not contained or not any(
            busy >= ACCOUNTED * (elapsed - LATENCY_S) for busy, elapsed in self.accounts
        ):
            return (
                f"the job's clock accounts for {sum(busy for busy, _ in self.accounts):.3g} s of the "
                f"{self.elapsed_s:.3g} s that passed outside it"
            )
        ends = [
            (b.end_to_end_s, statistics.median(b.seconds) + (b.host_enqueue_s or 0.0))
            for b in self.blocks
            if b.end_to_end_s is not None
        ]
        if not ends or any(known >= ACCOUNTED * (end - QUEUE_S) for end, known in ends):
            return None
        end, known = min(ends)
        return f"a call ends after {end:.3g} s, of which launch and events account for {known:.3g} s"

    def timing(self, setup_s: float, first_call_s: float) -> Timing:
        """The statistics of the blocks that count."""
        counted = self.counted
        found = estimates.location(self.values)
        drift = noise.drift([estimates.block_value(b.seconds, b.flagged) for b in counted])
        n = sum(len(b.seconds) for b in self.blocks)
        n_flagged = n - sum(len(b.seconds) - len(b.flagged) for b in counted)
        grade, why = noise.grade(self._signs(found, drift, n_flagged / n))
        samples = [s for b in counted for s in estimates.sound(b.seconds, b.flagged)]
        return Timing(
            median_s=found.location,
            ci95_low_s=found.low,
            ci95_high_s=found.high,
            p20_s=estimates.percentile(samples, 20),
            p80_s=estimates.percentile(samples, 80),
            min_s=min(samples),
            mad_s=estimates.mad(samples),
            n=n,
            n_flagged=n_flagged,
            rounds=len(self.blocks),
            launches=self.launch + 1,
            inner=self.inner,
            stop_reason=self.stop_reason,
            setup_s=setup_s,
            first_call_s=first_call_s,
            host_enqueue_s=_median([b.host_enqueue_s for b in self.blocks]),
            end_to_end_s=_median([b.end_to_end_s for b in self.blocks]),
            sm_clock_hz=_median([b.sm_clock_hz for b in self.blocks]),
            power_w=_median([b.power_w for b in self.blocks]),
            temperature_c=_median([b.temperature_c for b in self.blocks]),
            throttle=self._throttle,
            energy_j=_median([b.energy_j for b in self.blocks]),
            grade=grade,
            noise=why,
            drift=drift,
        )

    @property
    def _throttle(self) -> str:
        return "+".join(sorted({reason for b in self.blocks for reason in b.throttle.split("+") if reason}))

    def _signs(self, found: estimates.Interval, drift: float | None, flagged: float) -> noise.Signs:
        running = [block.running for block in self.blocks if block.running is not None]
        return noise.Signs(
            spread=estimates.half_width(found),
            drift=drift,
            waited=_median([noise.waited(block) for block in self.counted]),
            running=statistics.fmean(running) if running else None,
            flagged=flagged,
            throttle=self._throttle,
        )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# ---------------------------------------------------------------- memory


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2`; `fordblks` are the bytes that the heap holds free."""

    _fields_ = [("before", 8 * ctypes.c_size_t), ("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]


def return_memory_eagerly() -> None:
    """Make glibc take every block from 64 KiB on from the system and give it back at once.

    Only in a process that measures no more times: it slows a call up to five times.
    """
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # a C library without mallopt or mallinfo2
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, 0)
        libc.mallopt(_M_ARENA_MAX, 1)
        _take_free_pieces(libc)


def _take_free_pieces(libc: ctypes.CDLL) -> None:
    """Take what this thread's heap holds free (glibc from 2.33 on tells how much), and keep it untouched. From there it would
    serve large blocks before it asks the system, from one piece or another as chance has laid them, and no such piece is
    given back."""
    libc.mallinfo2.restype, libc.malloc.restype = _Mallinfo2, ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.malloc_trim(0)
    size = left = libc.mallinfo2().fordblks
    while size >= _LARGE:
        block = libc.malloc(size)
        if block and not ctypes.c_size_t.from_address(block - 8).value & _IS_MMAPPED:
            left -= size  # a heap that may not ask the system grows without end
        else:
            libc.free(block)
            left = left if size > _LARGE else 0
            size = max(size // 2, _LARGE)
        size = min(size, left)


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key))
    return int(line.split()[1]) * 1024


_KNOWN_BYTES = 2**20
_AGAIN, _AGAIN_S = 2, 1.0
"""So often the peak is looked at again, within so many seconds: what the kernel has counted is now and then less, never more."""


def _resident_peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes by which the resident memory rose at its highest during `call`, and what it returned.

    The kernel counts pages in batches, and its peak leaves out what is not yet counted; how much that is, a
    known allocation says.
    """
    known, kept = _rise(lambda: b"\1" * _KNOWN_BYTES)
    del kept
    peak, kept = _rise(call)
    return peak + _KNOWN_BYTES - known, kept


def _rise(call: Callable[[], Any]) -> tuple[int, Any]:
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    fd = os.open("/proc/self/clear_refs", os.O_WRONLY)
    os.write(fd, b"5")  # resets the peak, VmHWM
    os.close(fd)
    before = _status_bytes("VmRSS:")
    kept = call()
    return _status_bytes("VmHWM:") - before, kept


def _cuda_peak(call: Callable[[], Any], torch: Any, device: str) -> tuple[int, Any, int]:
    """As `_resident_peak`, of torch's allocator; and by how much the device's free memory fell."""
    cuda = torch.cuda
    cuda.synchronize(device)
    cuda.empty_cache()
    cuda.reset_peak_memory_stats(device)
    before, free = cuda.memory_allocated(device), cuda.mem_get_info(device)[0]
    kept = call()
    cuda.synchronize(device)
    return int(cuda.max_memory_allocated(device) - before), kept, free - cuda.mem_get_info(device)[0]


def memory(prepared: Prepared, device: str, input_bytes: int, output_bytes: Callable[[Any], int]) -> Memory:
    """Memory of one call of a step that has been called before. Raises what the step raises.

    The workspace is the rise of the peak during the call, less the output that the call returns.
    """
    method = "own" if prepared.memory else "cuda" if device.startswith("cuda") else "rss"
    delta = None
    if prepared.memory:
        prepared.memory()
        kept = prepared.step()
        peak = prepared.memory()
    elif method == "cuda":
        import torch

        peak, kept, delta = _cuda_peak(prepared.step, torch, device)
    else:
        start = perf_counter()
        peak, kept = _resident_peak(prepared.step)
        for _ in range(_AGAIN):
            if perf_counter() - start < _AGAIN_S:
                del kept
                more, kept = _resident_peak(prepared.step)
                peak = max(peak, more)
    out = output_bytes(prepared.read(kept))
    return Memory(
        input_bytes=input_bytes,
        output_bytes=out,
        workspace_bytes=max(0, peak - out),
        method=method,
        device_delta_bytes=delta,
    )


def total_bytes(tensors: Sequence[Any]) -> int:
    """Bytes of torch tensors that are not None."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
