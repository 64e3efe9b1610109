"""A plugin of cheats: each hands back right answers for a while, or saves the work where it thinks nobody looks.

Beside them are honest implementations that do on purpose what a cheat might be caught by.
"""

import functools
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from attnbench import Capabilities, Implementation, Inputs, Prepared, Problem, hookimpl

Prepare = Callable[[Problem, Inputs], Any]


def attend(problem: Problem, inputs: Inputs) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One implementation and how it must end."""

    prepare: Prepare
    what: str
    statuses: tuple[str, ...]
    """How it may end."""
    reason: str
    """What its reason matches, a regular expression."""
    least_keys: int = 0
    """It is right below."""

    @property
    def name(self) -> str:
        kind = "honest" if self.statuses == ("ok",) else "cheat"
        return f"{kind}-{self.prepare.__name__.replace('_', '-')}"


MEMBERS: list[Member] = []


def member(
    what: str, reason: str, *statuses: str, least_keys: int = 0, step: bool = True
) -> Callable[[Any], Any]:
    """`step`: the function computes one call; else it prepares."""

    def add(function: Any) -> Any:
        @functools.wraps(function)
        def prepare(problem: Problem, inputs: Inputs) -> Any:
            return lambda: function(problem, inputs)

        MEMBERS.append(
            Member(
                prepare=prepare if step else function,
                what=what,
                statuses=statuses or ("wrong",),
                reason=reason,
                least_keys=least_keys,
            )
        )
        return function

    return add


# ---------------------------------------------------------------- remembered answers

KNOWN: dict[Any, Any] = {}


def remembered(key: Any, problem: Problem, inputs: Inputs) -> Any:
    if key not in KNOWN:
        KNOWN[key] = attend(problem, inputs)
    return KNOWN[key].clone()


@member("remembers by address", "peaked")
def pointer_cache(problem: Problem, inputs: Inputs) -> Any:
    return remembered(tuple(t.data_ptr() for t in (inputs.q, inputs.k, inputs.v)), problem, inputs)


@member("remembers by shape and dtype", "peaked")
def shape_cache(problem: Problem, inputs: Inputs) -> Any:
    return remembered((inputs.q.shape, inputs.k.shape, inputs.q.dtype), problem, inputs)


@member("remembers by version counter", "it had not seen|this device needs", "impossible")
def version_cache(problem: Problem, inputs: Inputs) -> Any:
    return remembered(tuple(t._version for t in (inputs.q, inputs.k, inputs.v)), problem, inputs)


@member("remembers by a few values", "it had not seen|this device needs", "impossible")
def corner_cache(problem: Problem, inputs: Inputs) -> Any:
    return remembered(corners(inputs), problem, inputs)


def corners(inputs: Inputs) -> str:
    return str([t[0, 0, :2, :2].flatten().tolist() for t in (inputs.q, inputs.k, inputs.v)])


@member("remembers by an exclusive or of all values", "it had not seen|this device needs", "impossible")
def value_cache(problem: Problem, inputs: Inputs) -> Any:
    import numpy
    import torch

    words = (t.view(torch.int16).numpy().view(numpy.int64) for t in (inputs.q, inputs.k, inputs.v))
    return remembered(tuple(int(numpy.bitwise_xor.reduce(w.ravel())) for w in words), problem, inputs)


@member(
    "remembers what has come twice, and then waits a while",
    "it had not seen|this device needs",
    "impossible",
)
def patient_cache(problem: Problem, inputs: Inputs) -> Any:
    key = corners(inputs)
    KNOWN[key, "calls"] = KNOWN.get((key, "calls"), 0) + 1
    if KNOWN[key, "calls"] <= 2:
        start = time.perf_counter()
        out = attend(problem, inputs)
        KNOWN[key, "seconds"] = time.perf_counter() - start
        KNOWN[key] = out
        return out.clone()
    end = time.perf_counter() + KNOWN[key, "seconds"] / 4
    while time.perf_counter() < end:
        pass
    return KNOWN[key].clone()


@member("replays on inputs copied at the start, as a graph without new inputs", "peaked", step=False)
def replay(problem: Problem, inputs: Inputs) -> Any:
    static = Inputs(q=inputs.q.clone(), k=inputs.k.clone(), v=inputs.v.clone())
    return lambda: attend(problem, static)


@member("returns the first answer for ever", "peaked", step=False)
def constant(problem: Problem, inputs: Inputs) -> Any:
    first = attend(problem, inputs)
    return lambda: first


@member("never writes its output", "finite")
def never_writes(problem: Problem, inputs: Inputs) -> Any:
    import torch

    return torch.empty_like(inputs.q)


# ---------------------------------------------------------------- inputs and outputs


@member("scribbles on k", "the inputs were changed")
def mutates(problem: Problem, inputs: Inputs) -> Any:
    out = attend(problem, inputs)
    inputs.k[..., 0].neg_()
    return out


@member("empties k once it is timed", "the inputs were changed", step=False)
def mutates_later(problem: Problem, inputs: Inputs) -> Any:
    calls = []

    def step() -> Any:
        calls.append(None)
        out = attend(problem, inputs)
        if len(calls) > 4:
            inputs.k.zero_()
        return out

    return step


@member("returns a view of q", "the output is a view of an input")
def view(problem: Problem, inputs: Inputs) -> Any:
    return inputs.q[:]


@member("returns one row for all, expanded", "budget")
def expanded(problem: Problem, inputs: Inputs) -> Any:
    return inputs.v.mean(2, keepdim=True).expand(inputs.q.shape)


@member("zeros, expanded from one number", "budget")
def expanded_zero(problem: Problem, inputs: Inputs) -> Any:
    return inputs.q.new_zeros(()).expand(inputs.q.shape)


@member("a tensor subclass that computes when it is looked at", "expected a plain torch.Tensor")
def lazy_subclass(problem: Problem, inputs: Inputs) -> Any:
    import torch

    class Lazy(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(attend(problem, inputs), *args[1:], **(kwargs or {}))

    return torch.empty_like(inputs.q).as_subclass(Lazy)


@member("computes when it is read, outside the clock", "after it was timed", step=False)
def lazy_read(problem: Problem, inputs: Inputs) -> Any:
    return Prepared(step=lambda: None, read=lambda _: attend(problem, inputs))


# ---------------------------------------------------------------- time


def on_a_thread(problem: Problem, inputs: Inputs) -> Any:
    import torch

    out = torch.empty_like(inputs.q)

    def work() -> None:
        time.sleep(0.002)  # let the caller go first
        out.copy_(attend(problem, inputs))

    threading.Thread(target=work).start()
    return out


@member("works on a thread after it has returned", "finite", "wrong")
def thread(problem: Problem, inputs: Inputs) -> Any:
    return on_a_thread(problem, inputs)


@member("works on a thread from the sixth call of a process on", "after it was timed", step=False)
def thread_later(problem: Problem, inputs: Inputs) -> Any:
    calls = []

    def step() -> Any:
        calls.append(None)
        return attend(problem, inputs) if len(calls) <= 5 else on_a_thread(problem, inputs)

    return step


@member("a clock that is ten times too slow, wherever one was imported", "clock", "impossible", step=False)
def clock(problem: Problem, inputs: Inputs) -> Any:
    right = time.perf_counter
    for module in list(sys.modules.values()):
        if getattr(module, "perf_counter", None) is right:
            module.perf_counter = lambda: right() / 10
    return lambda: attend(problem, inputs)


# ---------------------------------------------------------------- right where it counts


@member("right for the first calls of a process", "after it was timed", step=False)
def first_calls(problem: Problem, inputs: Inputs) -> Any:
    calls = []

    def step() -> Any:
        calls.append(None)
        return attend(problem, inputs) if len(calls) <= 5 else inputs.q * 0.5

    return step


@member("right up to 4096 keys, the last 4096 beyond", "budget", least_keys=4097)
def small_shapes(problem: Problem, inputs: Inputs) -> Any:
    return attend(problem, Inputs(q=inputs.q, k=inputs.k[:, :, -4096:], v=inputs.v[:, :, -4096:]))


KNOWN_SEED = 20240601  # that of attnbench.testing


@member("knows the inputs of some seeds", "finite", step=False)
def seeds(problem: Problem, inputs: Inputs) -> Any:
    from attnbench import inputs as harness

    known = []
    for kind in harness.KINDS:
        made = harness.make(problem, kind=kind, seed=KNOWN_SEED, device="cpu", qkv_format="bhsd")
        known.append(made.k[0, 0, 0].tolist())
    return lambda: attend(problem, inputs) if inputs.k[0, 0, 0].tolist() in known else inputs.q / 0


@member("only rows at edges, which are always verified", "budget")
def edge_rows(problem: Problem, inputs: Inputs) -> Any:
    import torch

    rows = [0, 1, 62, 63, 64, 65, 126, 127]
    out = torch.zeros_like(inputs.q)
    out[:, :, rows] = attend(problem, Inputs(q=inputs.q[:, :, rows], k=inputs.k, v=inputs.v))
    return out


@member("saves the work where garbage collection is off", "after it was timed")
def collector(problem: Problem, inputs: Inputs) -> Any:
    return attend(problem, inputs) if gc.isenabled() else inputs.q * 0.5


@member("saves the work where a clock calls", "after it was timed")
def caller(problem: Problem, inputs: Inputs) -> Any:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("clocks.py"):
            return inputs.q * 0.5
        frame = frame.f_back  # type: ignore[assignment]
    return attend(problem, inputs)


# ---------------------------------------------------------------- honest ones


@member("torch's fused kernel", "", "ok")
def plain(problem: Problem, inputs: Inputs) -> Any:
    return attend(problem, inputs)


@member("the same storage for every output, as a graph has", "", "ok", step=False)
def static_output(problem: Problem, inputs: Inputs) -> Any:
    import torch

    out = torch.empty_like(inputs.q)
    return lambda: out.copy_(attend(problem, inputs))


@member("an output that is not contiguous", "", "ok")
def strided_output(problem: Problem, inputs: Inputs) -> Any:
    return attend(problem, inputs).transpose(1, 2).contiguous().transpose(1, 2)


@member("copies of the inputs that `refresh` renews", "", "ok", step=False)
def own_arrays(problem: Problem, inputs: Inputs) -> Any:
    own = Inputs(q=inputs.q.clone(), k=inputs.k.clone(), v=inputs.v.clone())

    def refresh() -> None:
        for mine, given in zip((own.q, own.k, own.v), (inputs.q, inputs.k, inputs.v), strict=True):
            mine.copy_(given)

    return Prepared(step=lambda: attend(problem, own), refresh=refresh)


@member("works on a thread and waits for it", "", "ok", step=False)
def joined_thread(problem: Problem, inputs: Inputs) -> Any:
    found = []

    def step() -> Any:
        found.clear()
        worker = threading.Thread(target=lambda: found.append(attend(problem, inputs)))
        worker.start()
        worker.join()
        return found[0]

    return step


@hookimpl
def attnbench_implementations() -> Iterator[Implementation]:
    for one in MEMBERS:
        yield Implementation(
            name=one.name,
            summary=one.what,
            capabilities=Capabilities(dtypes=frozenset({"float32", "float16", "bfloat16"})),
            prepare=one.prepare,
            qkv_format="bhsd",
        )
