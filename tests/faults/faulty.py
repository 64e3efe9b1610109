"""Implementations that go wrong, each in its own way, and two good ones beside them."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from attnbench import Capabilities, Implementation, Inputs, Problem, hookimpl

Attend = Callable[[Problem, Inputs], Any]


def good(problem: Problem, inputs: Inputs) -> Any:
    import torch

    sq, sk = inputs.q.shape[2], inputs.k.shape[2]
    mask = torch.ones(sq, sk, dtype=torch.bool).tril(sk - sq) if problem.mask.name == "causal" else None
    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, attn_mask=mask)


def raises(problem: Problem, inputs: Inputs) -> Any:
    raise ValueError("no such head\nsecond line")


def exits(problem: Problem, inputs: Inputs) -> Any:
    raise SystemExit(3)


def interrupts(problem: Problem, inputs: Inputs) -> Any:
    raise KeyboardInterrupt


def segfaults(problem: Problem, inputs: Inputs) -> Any:
    ctypes.string_at(0)


def aborts(problem: Problem, inputs: Inputs) -> Any:
    os.abort()


def hangs_in_python(problem: Problem, inputs: Inputs) -> Any:
    while True:
        time.sleep(0.01)


def hangs_in_c(problem: Problem, inputs: Inputs) -> Any:
    ctypes.CDLL(None).sleep(600)


def ignores_term(problem: Problem, inputs: Inputs) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hangs_in_python(problem, inputs)


def exhausts_memory(problem: Problem, inputs: Inputs) -> Any:
    import torch

    held = []
    while True:
        held.append(torch.ones(2**26))


def prints_a_lot(problem: Problem, inputs: Inputs) -> Any:
    if not os.environ.get("ATTNBENCH_HAS_PRINTED"):
        os.environ["ATTNBENCH_HAS_PRINTED"] = "1"
        for _ in range(100):
            sys.stdout.write("x" * 2**20)
    return good(problem, inputs)


def leaves_a_child_in_its_group(problem: Problem, inputs: Inputs) -> Any:
    subprocess.Popen(["sleep", "60"])
    return good(problem, inputs)


def forks(problem: Problem, inputs: Inputs) -> Any:
    os.fork()  # from now on two answer
    return good(problem, inputs)


def leaves_a_child(problem: Problem, inputs: Inputs) -> Any:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    return good(problem, inputs)


def mutates_inputs(problem: Problem, inputs: Inputs) -> Any:
    out = good(problem, inputs)
    inputs.k[..., 0].neg_()
    return out


def returns_a_view(problem: Problem, inputs: Inputs) -> Any:
    return inputs.q[:]


def wrong_shape(problem: Problem, inputs: Inputs) -> Any:
    return good(problem, inputs)[:, :, 1:]


def wrong_dtype(problem: Problem, inputs: Inputs) -> Any:
    return good(problem, inputs).double()


def not_a_tensor(problem: Problem, inputs: Inputs) -> Any:
    return None


def some_nan(problem: Problem, inputs: Inputs) -> Any:
    out = good(problem, inputs)
    out[..., ::25, :] = float("nan")
    return out


def stale(problem: Problem, inputs: Inputs) -> Any:
    import torch

    return torch.empty_like(inputs.q)


def top_left(problem: Problem, inputs: Inputs) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, is_causal=True)


REMEMBERED: list[Any] = []


def remembers(problem: Problem, inputs: Inputs) -> Any:
    if not REMEMBERED:
        REMEMBERED.append(good(problem, inputs))
    return REMEMBERED[0]


def right_only_at_first(problem: Problem, inputs: Inputs) -> Any:
    REMEMBERED.append(None)
    return good(problem, inputs) if len(REMEMBERED) < 8 else inputs.q * 0.5


FAULTS = [
    raises,
    exits,
    interrupts,
    segfaults,
    aborts,
    hangs_in_python,
    hangs_in_c,
    ignores_term,
    exhausts_memory,
    prints_a_lot,
    leaves_a_child,
    leaves_a_child_in_its_group,
    forks,
    mutates_inputs,
    returns_a_view,
    wrong_shape,
    wrong_dtype,
    not_a_tensor,
    some_nan,
    stale,
    top_left,
    remembers,
    right_only_at_first,
]


def _record(name: str, attend: Attend) -> Implementation:
    return Implementation(
        name=name,
        summary="for the tests of faults",
        capabilities=Capabilities(dtypes=frozenset({"float32"}), masks=frozenset({"full", "causal"})),
        prepare=lambda problem, inputs: lambda: attend(problem, inputs),
        qkv_format="bhsd",
    )


@hookimpl
def attnbench_implementations() -> Iterator[Implementation]:
    yield _record("good-one", good)
    for fault in FAULTS:
        yield _record(f"fault-{fault.__name__.replace('_', '-')}", fault)
    yield _record("good-two", good)
