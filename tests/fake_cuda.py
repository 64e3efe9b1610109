"""A CUDA device of 16 GiB that a CPU plays, for processes of a run: tensors stay on the CPU, and calls are at once over.

`serve` and `judge` are entry points in place of the worker's and the judge's. A graph notes the operations of a
capture, and a replay computes them again into the same tensors. `Nvml` stands in for `pynvml`.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class Noted(TorchDispatchMode):
    """Notes every operation with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


class Graph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            new = func(*args, **kwargs)
            for old, value in zip(tree_leaves(out), tree_leaves(new), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(value)


class Cuda:
    """The functions of `torch.cuda` that attnbench calls. Its allocator has the peaks of a table."""

    Event = Event
    CUDAGraph = Graph
    fraction = 1.0
    capturing = False

    def synchronize(self, device: str) -> None:
        if self.capturing:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    def Stream(self, device: str) -> str:  # noqa: N802 - torch's own name
        return "a stream"

    def stream(self, stream: str) -> Any:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph: Graph, stream: str) -> Iterator[None]:
        self.capturing = True
        try:
            with Noted() as noted:
                yield
        except RuntimeError:
            raise RuntimeError("CUDA error: the capture was invalidated") from None
        finally:
            self.capturing = False
        graph.operations = noted.operations
        if not graph.operations:
            warnings.warn("The CUDA Graph is empty. This usually means something.", stacklevel=2)

    def set_device(self, device: str) -> None: ...
    def empty_cache(self) -> None: ...
    def reset_peak_memory_stats(self, device: str) -> None: ...
    def _sleep(self, cycles: int) -> None: ...

    def get_device_properties(self, device: str) -> Any:
        return SimpleNamespace(total_memory=DEVICE.memory_bytes, uuid="0a-0b")

    def set_per_process_memory_fraction(self, fraction: float, device: str) -> None:
        self.fraction = fraction

    def memory_allocated(self, device: str) -> int:
        return GIB

    def max_memory_allocated(self, device: str) -> int:
        return 3 * GIB

    def mem_get_info(self, device: str) -> tuple[int, int]:
        return 8 * GIB, DEVICE.memory_bytes


class Nvml:
    """`pynvml` on a device of 250 W at 1.98 GHz whose counter changes every 20 ms.

    `missing` functions are those of an older binding; those of `unsupported` the device does not know.
    """

    class NVMLError(Exception): ...

    def __init__(
        self, *, missing: tuple[str, ...] = (), unsupported: tuple[str, ...] = (), throttle: int = 1
    ) -> None:
        self.missing, self.unsupported, self.throttle = missing, unsupported, throttle
        self.now = perf_counter

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.missing:
            raise AttributeError(name)
        if name.startswith("nvml") and name in self.unsupported:
            return self._refuse
        return object.__getattribute__(self, name)

    def _refuse(self, *_: Any) -> None:
        raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's own names
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-0a-0b"
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:  # noqa: N802
        return {1: 1980}[clock]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 250_000

    def nvmlDeviceGetTemperatureV(self, handle: str, sensor: int) -> int:  # noqa: N802
        return {0: 55}[sensor]

    nvmlDeviceGetTemperature = nvmlDeviceGetTemperatureV  # noqa: N815

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.throttle

    nvmlDeviceGetCurrentClocksThrottleReasons = nvmlDeviceGetCurrentClocksEventReasons  # noqa: N815

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return 1000 + int(self.now() / 20e-3) * 5000


def _play() -> None:
    sys.modules["pynvml"] = Nvml()  # type: ignore[assignment]
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
