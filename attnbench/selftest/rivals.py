"""Other timers in a process like that of a launch: forked from the same server, with the same step and threads."""

import gc
import statistics
import timeit
from collections.abc import Callable
from typing import Any

import torch

from attnbench import inputs, plugins, worker
from attnbench.forkserver import Channel
from attnbench.implementation import Prepared
from attnbench.problem import Problem

Step = Callable[[], Any]
WARM = 15


def _timeit(step: Step, seconds: float, threads: int) -> float:
    calls = max(int(seconds / timeit.timeit(step, number=1)), 9)
    return statistics.median(timeit.repeat(step, number=1, repeat=calls))


def _timer(step: Step, seconds: float, threads: int) -> float:
    from torch.utils.benchmark import Timer

    timer = Timer("step()", globals={"step": step}, num_threads=threads)
    calls = max(int(seconds / 3 / timer.timeit(1).median), 9)  # it warms up with two calls each time
    return statistics.median(timer.timeit(1).median for _ in range(calls))


def _autorange(step: Step, seconds: float, threads: int) -> float:
    from torch.utils.benchmark import Timer

    timer = Timer("step()", globals={"step": step}, num_threads=threads)
    return float(timer.adaptive_autorange(min_run_time=min(seconds, 0.1), max_run_time=10 * seconds).median)


TIMERS: dict[str, Callable[[Step, float, int], float]] = {
    "timeit": _timeit,
    "torch Timer": _timer,
    "torch adaptive_autorange": _autorange,
}
"""Each takes about so many seconds and gives those of one call."""


def serve(channel: Channel) -> None:
    """Answer one message: how long does a call of this implementation take, by this timer?"""
    message = channel.receive()
    assert message is not None
    problem, threads = Problem.parse(message["problem"]), message["threads"]
    worker.stay(message["cores"])
    torch.set_num_threads(threads)
    implementation = plugins.load(message["target"])[message["implementation"]]
    made = inputs.make(
        problem, kind="normal", seed=message["seed"], device="cpu", qkv_format=implementation.qkv_format
    )
    prepared = implementation.prepare(problem, made)
    step = prepared.step if isinstance(prepared, Prepared) else prepared
    gc.collect()
    gc.disable()
    for _ in range(WARM):
        step()
    channel.send({"seconds": TIMERS[message["timer"]](step, message["seconds"], threads)})
