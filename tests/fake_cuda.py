"""A CUDA device of 16 GiB that a CPU plays, for processes of a run: tensors stay on the CPU, and calls are at once over.

`serve` and `judge` are entry points in place of the worker's and the judge's.
"""

from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch

from attnbench import judge as judges
from attnbench import verify, worker
from attnbench.forkserver import Channel
from attnbench.implementation import Device

GIB = 2**30
DEVICE = Device(kind="cuda", name="A CPU", memory_bytes=16 * GIB, compute_capability=(9, 0))


class Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = perf_counter()

    def query(self) -> bool:
        return False

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) * 1e3


class Cuda:
    """The functions of `torch.cuda` that attnbench calls. Its allocator has the peaks of a table."""

    Event = Event
    fraction = 1.0

    def synchronize(self, device: str) -> None: ...
    def empty_cache(self) -> None: ...
    def reset_peak_memory_stats(self, device: str) -> None: ...
    def _sleep(self, cycles: int) -> None: ...

    def get_device_properties(self, device: str) -> Any:
        return SimpleNamespace(total_memory=DEVICE.memory_bytes)

    def set_per_process_memory_fraction(self, fraction: float, device: str) -> None:
        self.fraction = fraction

    def memory_allocated(self, device: str) -> int:
        return GIB

    def max_memory_allocated(self, device: str) -> int:
        return 3 * GIB

    def mem_get_info(self, device: str) -> tuple[int, int]:
        return 8 * GIB, DEVICE.memory_bytes


def _play() -> None:
    cuda = Cuda()
    for name in dir(Cuda):
        if not name.startswith("__"):
            setattr(torch.cuda, name, getattr(cuda, name))
    for name in ("empty", "full"):
        make = getattr(torch, name)

        def on_cpu(*args: Any, device: Any = None, make: Any = make, **options: Any) -> Any:
            return make(*args, **options)

        setattr(torch, name, on_cpu)
    whole = verify.inspect
    verify.inspect = lambda found, problem, given, device, form: whole(found, problem, given, "cpu", form)


def serve(channel: Channel) -> None:
    _play()
    worker.serve(channel)


def judge(channel: Channel) -> None:
    _play()
    judges.serve(channel)
