"""Other timers as clocks of a worker: the same processes, inputs and rounds as ours, and only the timer differs."""

import timeit
from abc import abstractmethod
from math import ceil
from time import perf_counter
from typing import Any

import torch
from torch.utils.benchmark import Timer

from attnbench.clocks import Before, Clock, Pace, Taken, nothing
from attnbench.implementation import Step


class Rival(Clock):
    """Samples as another tool takes them. It flags none."""

    @abstractmethod
    def seconds(self, step: Step, samples: int) -> list[float]:
        """Of single calls, about so many."""

    def take(self, step: Step, pace: Pace, before: Before = nothing) -> Taken:
        begin = perf_counter()
        for _ in range(pace.warm):
            step()
        seconds = self.seconds(step, pace.samples * pace.inner)
        last = step()
        return Taken(seconds=tuple(seconds), flagged=(), busy_s=perf_counter() - begin, last=last, inner=1)


class Timeit(Rival):
    """`timeit`, single calls."""

    def seconds(self, step: Step, samples: int) -> list[float]:
        return timeit.repeat(step, number=1, repeat=samples)


def _timer(step: Step) -> Any:
    return Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())


class TorchTimer(Rival):
    """torch's `Timer`, one call a block: it makes two more before each, so that there is time for a third of the blocks."""

    def seconds(self, step: Step, samples: int) -> list[float]:
        timer = _timer(step)
        return [timer.timeit(1).median for _ in range(ceil(samples / 3))]


class Autorange(Rival):
    """torch's `Timer.adaptive_autorange`, which decides for itself how many calls it makes."""

    def seconds(self, step: Step, samples: int) -> list[float]:
        return [_timer(step).adaptive_autorange(min_run_time=0.1, max_run_time=2.0).median]
