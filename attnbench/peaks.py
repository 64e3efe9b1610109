"""The most that a device does: flop/s of matrix products, bytes/s of reading and copying, and the floor they make.

Measured once a device by a child process, and kept in the user's cache folder under the device's identity.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from attnbench import userfiles
from attnbench.costs import least_bytes, least_flops
from attnbench.forkserver import Channel
from attnbench.problem import Causal, DType, Full, Problem
from attnbench.units import bytes_text, number, rate_text

FLOPS_MARGIN = 1.5
"""A matrix product of torch's may miss the device's true peak by this factor."""
BYTES_MARGIN = 2.0
"""Likewise a copy: on a CPU it reads the lines that it writes too, which nobody counts."""
SIZES = (2**26, 2**28)
"""Bytes that are read and copied. Caches help a problem of more bytes less than they help these."""
DTYPES = (DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
TRIALS_S = 0.05
"""Of each product and each copy; the fastest call counts, since nothing makes a call too fast."""
_CALL_S = 3e-3  # within a slice of the scheduler, lest a busy machine disturb every one
_LARGEST = 8192
_CHUNK = 2**22  # of an array that a CPU reads or copies between two looks at the clock, likewise
_HALF_PRODUCTS = 2  # at least three products of halves make one of float32: a safe share


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What one device did at its fastest; on a CPU one thread, times the threads, which together do no more.

    So measured, it needs one undisturbed moment of one core: threads that wait for each other on a busy machine
    were seen to be 20 times slower.
    """

    device: str
    """The model's name."""
    threads: int
    """Of the CPU; 0 on CUDA, where they do not matter."""
    torch: str
    flops_per_s: Mapping[str, float]
    """Dtype -> of a square matrix product of zeros, which heat the device least."""
    bytes_per_s: Mapping[int, float]
    """Bytes of an array -> the faster of reading it and of copying half of it to the other half."""

    @property
    def identity(self) -> str:
        return identity(self.device, self.threads)

    def flops_limit(self, dtype: DType) -> float | None:
        """flop/s that no right computation in `dtype` exceeds, but for the margin; None where it is not known.

        Half types may be computed in any type that is faster here, wider ones from at least three products of halves.
        """
        if dtype not in DTYPES:
            return None
        halves = [f for name, f in self.flops_per_s.items() if DType(name).bytes == 2]
        others = [f for name, f in self.flops_per_s.items() if DType(name).bytes > 2]
        share = 1 if dtype.bytes == 2 else _HALF_PRODUCTS
        return max([*others, *(f / share for f in halves)], default=None)

    def bytes_limit(self, count: int) -> float | None:
        """bytes/s that nothing exceeds which moves `count` bytes, but for the margin; None where that is not known."""
        return max((rate for size, rate in self.bytes_per_s.items() if size <= count), default=None)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The least time of a call that peaks allow, and why."""

    seconds: float
    why: str
    """The work and the rate, in words."""


def floor(problem: Problem, peaks: Peaks) -> Floor | None:
    """The least time of a problem; None where its work cannot be counted, or no rate is known for it."""
    parts = []
    flops, most = least_flops(problem), peaks.flops_limit(_fastest(problem))
    if not flops:
        return None
    if most:
        why = f"{number(flops / 1e9)} GFLOP at {FLOPS_MARGIN:g} x {rate_text(most, 'FLOP')}"
        parts.append(Floor(seconds=flops / (FLOPS_MARGIN * most), why=why))
    count = least_bytes(problem) if _needs_everything(problem) else 0
    if rate := peaks.bytes_limit(count):
        why = f"{bytes_text(count)} at {BYTES_MARGIN:g} x {rate_text(rate, 'B')}"
        parts.append(Floor(seconds=count / (BYTES_MARGIN * rate), why=why))
    return max(parts, key=lambda part: part.seconds, default=None)


def _needs_everything(problem: Problem) -> bool:
    """Whether every query and every key takes part: what a mask hides need not be read."""
    mask = problem.mask
    return isinstance(mask, Full) or (isinstance(mask, Causal) and all(q <= s for q, s in problem.sequences))


def _fastest(problem: Problem) -> DType:
    """The narrower of both types: a matrix product may be taken in either."""
    return min(problem.dtype, problem.kv_dtype, key=lambda dtype: dtype.bytes)


def faster(one: Peaks, other: Peaks) -> Peaks:
    """The higher of both in everything: what disturbs a measurement only makes it lower."""

    def higher(a: Mapping[Any, float], b: Mapping[Any, float]) -> dict[Any, float]:
        return {key: max(a.get(key, 0.0), b.get(key, 0.0)) for key in {**a, **b}}

    return dataclasses.replace(
        one,
        flops_per_s=higher(one.flops_per_s, other.flops_per_s),
        bytes_per_s=higher(one.bytes_per_s, other.bytes_per_s),
    )


# ---------------------------------------------------------------- measuring


def serve(channel: Channel) -> None:
    """Answer one message with the peaks of a device. Runs in a child that has nothing else to do."""
    message = channel.receive()
    assert message is not None
    import torch

    channel.send(measure(torch, message["device"], message["threads"]))


def measure(torch: Any, device: str, threads: int) -> dict[str, dict[str, float]]:
    """`flops_per_s` and `bytes_per_s` of a device, ready for JSON; what it cannot do or hold is left out."""
    torch.set_num_threads(1)
    if device != "cpu":
        torch.cuda.set_device(device)
        matmul = torch.backends.cuda.matmul
        matmul.allow_tf32 = True  # whatever a right answer in float32 may use
        with contextlib.suppress(AttributeError):  # from torch 2.7 on
            matmul.allow_fp16_accumulation = True
    best = _Best(torch, device)
    flops: dict[str, float] = {}
    for dtype in DTYPES:
        n, long = 256, 0
        while n <= _LARGEST and long < 2:  # one long call may have been disturbed, or its library's slow path
            made = _allocated(torch, [(n, n)] * 3, getattr(torch, dtype.value), device)
            if made is None:
                break
            seconds = best.of(partial(torch.mm, made[0], made[1], out=made[2]))
            if seconds is None:
                break
            flops[dtype.value] = max(flops.get(dtype.value, 0.0), threads * 2 * n**3 / seconds)
            long += seconds > _CALL_S
            n *= 2
    rates: dict[str, float] = {}
    for size in SIZES:
        made = _allocated(torch, [(size // 4,)], torch.float32, device)
        if made is None:
            break
        chunk = _CHUNK if device == "cpu" else size
        parts = itertools.cycle(made[0].split(chunk // 4))

        def read(parts: Iterator[Any] = parts) -> None:
            next(parts).sum()

        def copy(parts: Iterator[Any] = parts) -> None:
            low, high = next(parts).chunk(2)
            high.copy_(low)

        known = [seconds for call in (read, copy) if (seconds := best.of(call))]
        if known:
            rates[str(size)] = threads * chunk / min(known)
    return {"flops_per_s": flops, "bytes_per_s": rates}


def _allocated(torch: Any, shapes: list[tuple[int, ...]], dtype: Any, device: str) -> list[Any] | None:
    try:
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    except RuntimeError:  # no memory, or no such type
        return None


class _Best:
    """Seconds of the fastest of some calls, by the host's clock or by events."""

    def __init__(self, torch: Any, device: str) -> None:
        self.torch = torch
        self.cuda = device != "cpu"

    def of(self, call: Callable[[], Any]) -> float | None:
        try:
            self._timed(call)
            end = perf_counter() + TRIALS_S
            found = [self._timed(call)]
            while perf_counter() < end:
                found.append(self._timed(call))
        except RuntimeError:
            return None
        return min(found)

    def _timed(self, call: Callable[[], Any]) -> float:
        if not self.cuda:
            start = perf_counter()
            call()
            return perf_counter() - start
        first, final = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda._sleep(40_000)  # 20 us, so that the launch does not count
        first.record()
        call()
        final.record()
        final.synchronize()
        return float(first.elapsed_time(final)) * 1e-3


# ---------------------------------------------------------------- keeping


def identity(device: str, threads: int) -> str:
    """What peaks are kept under: the device's model, the threads and the version of torch."""
    return " | ".join([device, *([f"{threads} threads"] if threads else []), f"torch {version('torch')}"])


def path() -> Path:
    """The file of all devices. Raises RuntimeError for a user without a home."""
    return userfiles.path("peaks.json")


def load(device: str, threads: int) -> Peaks | None:
    """Those kept for a device; None where there are none, or none that can be read."""
    kept: Any = _kept().get(identity(device, threads))
    try:
        return Peaks(
            device=device,
            threads=threads,
            torch=version("torch"),
            flops_per_s={DType(name).value: float(rate) for name, rate in kept["flops_per_s"].items()},
            bytes_per_s={int(size): float(rate) for size, rate in kept["bytes_per_s"].items()},
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def save(peaks: Peaks) -> bool:
    """Keep them for later runs; False where nothing can be written."""
    everything = json.dumps({**_kept(), peaks.identity: dataclasses.asdict(peaks)}, indent=1)
    try:
        userfiles.replace(path(), everything)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return False
    return True


def _kept() -> dict[str, Any]:
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return found if isinstance(found, dict) else {}
