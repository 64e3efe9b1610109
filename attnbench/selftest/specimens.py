"""A plugin whose times, memory and ends are known beforehand. All of it computes attention, or fails to.

Loaded as `--plugin attnbench.selftest.specimens`, in processes that are timed like any other.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from attnbench.hookspecs import hookimpl
from attnbench.implementation import Capabilities, Implementation, Inputs, Prepared
from attnbench.problem import Problem

if TYPE_CHECKING:
    import torch

WAITS_S: Mapping[str, float] = {
    f"selftest-wait-{name}": seconds
    for name, seconds in (("5us", 5e-6), ("20us", 20e-6), ("100us", 1e-4), ("1ms", 1e-3), ("10ms", 1e-2))
}
SCRATCH_BYTES: Mapping[str, int] = {
    f"selftest-scratch-{mib}MiB{after}": mib * 2**20 for mib in (1, 16, 256) for after in ("", "-after-reuse")
}
SAMES = tuple(f"selftest-same-{number}" for number in range(1, 9))
"""One implementation under eight names."""
STRETCHES: Mapping[str, float] = {
    "selftest-as-it-is": 1.0,
    "selftest-slower-by-0.2%": 1.002,
    "selftest-slower-by-2%": 1.02,
}


def _answer(inputs: Inputs) -> "torch.Tensor":
    import torch

    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)


def _known(inputs: Inputs) -> "tuple[torch.Tensor, Callable[[], object]]":
    """The answer, and how to bring it up to date outside the clock."""
    out = _answer(inputs)
    return out, lambda: out.copy_(_answer(inputs))


def _waits(seconds: float, problem: Problem, inputs: Inputs) -> Prepared:
    out, refresh = _known(inputs)

    def step() -> Any:
        end = perf_counter() + seconds
        while perf_counter() < end:
            pass
        return out

    return Prepared(step=step, refresh=refresh)


def _takes(count: int, trap: bool, problem: Problem, inputs: Inputs) -> Prepared:
    """A step with a scratch of `count` bytes; after a `trap`, freed memory lies about that it might use unseen."""
    import torch

    # the kernel counts resident pages in batches, of which each core may hide one
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    out, refresh = _known(inputs)
    for elements in (2**22, 2**18, 2**12) if trap else ():
        held = [torch.ones(elements) for _ in range(4)]
        del held

    def step() -> Any:
        scratch = torch.ones(count // 4)
        return out + (scratch[-1] - 1)

    return Prepared(step=step, refresh=refresh)


def _stretched(factor: float, problem: Problem, inputs: Inputs) -> Prepared:
    def step() -> Any:
        start = perf_counter()
        out = _answer(inputs)
        end = start + factor * (perf_counter() - start)
        while perf_counter() < end:
            pass
        return out

    return Prepared(step=step)


def _plain(problem: Problem, inputs: Inputs) -> Prepared:
    return Prepared(step=partial(_answer, inputs))


# ---------------------------------------------------------------- faults


def _segfault() -> None:
    ctypes.string_at(0)


def _exit() -> None:
    raise SystemExit(3)


def _hang_in_python() -> None:
    while True:
        time.sleep(0.01)


def _hang_in_c() -> None:
    ctypes.CDLL(None).sleep(600)


def _exhaust() -> None:
    import torch

    held = []
    while True:
        held.append(torch.ones(2**26))


def _print() -> None:
    for _ in range(100):
        sys.stdout.write("x" * 10**6)


FAULTS: Mapping[str, Callable[[], object]] = {
    "selftest-segfaults": _segfault,
    "selftest-aborts": os.abort,
    "selftest-hangs-in-c": _hang_in_c,
    "selftest-hangs-in-python": _hang_in_python,
    "selftest-exhausts-memory": _exhaust,
    "selftest-exits": _exit,
    "selftest-prints-100MB": _print,
}


def _faulty(fault: Callable[[], object], problem: Problem, inputs: Inputs) -> Prepared:
    fault()
    return _plain(problem, inputs)


@hookimpl
def attnbench_implementations() -> Iterator[Implementation]:
    prepares: dict[str, Callable[[Problem, Inputs], Prepared]] = {
        **{name: partial(_waits, seconds) for name, seconds in WAITS_S.items()},
        **{name: partial(_takes, count, "reuse" in name) for name, count in SCRATCH_BYTES.items()},
        **dict.fromkeys(SAMES, _plain),
        **{name: partial(_stretched, factor) for name, factor in STRETCHES.items()},
        **{name: partial(_faulty, fault) for name, fault in FAULTS.items()},
    }
    for name, prepare in prepares.items():
        yield Implementation(
            name=name,
            summary="for `attnbench selftest`",
            capabilities=Capabilities(dtypes=frozenset({"float32"})),
            prepare=prepare,
            qkv_format="bhsd",
        )
