"""What NVML reports of a CUDA device: clock, power, temperature, throttle reasons, energy.

Read in the process that uses the device, outside the samples. What a device, its driver or this machine lacks is
None; `found` says why. Names, units and bits are those of NVIDIA's `nvml.h`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

THROTTLE = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""`nvmlClocksEventReason*`, without those that are no matter of load: idle, and clocks that somebody has set."""
ENERGY_S = 0.2
"""Least time between two changes of the energy counter, which may come only every tenth of a second."""
ENERGY_PATIENCE_S = 1.0
"""A counter that does not change in this time is given up."""
_CLOCK_SM, _TEMPERATURE_GPU = 1, 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One look at the sensors."""

    sm_clock_hz: float | None
    power_w: float | None
    """On many devices an average over the last second, whoever worked in it."""
    temperature_c: float | None
    throttle: str
    """Reasons for which the clock is lower than it could be, joined by `+`."""


class Sensors:
    """Those of one device, by its handle. `nvml` is the module `pynvml`, or a fake one."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml = nvml
        self.handle = handle
        self.lacks: dict[str, str] = {}
        """What could not be read, with the reason."""

    def read(self) -> Reading:
        clock = self._ask("clock", "nvmlDeviceGetClockInfo", _CLOCK_SM)  # MHz
        power = self._ask("power", "nvmlDeviceGetPowerUsage")  # mW
        temperature = self._ask("temperature", "nvmlDeviceGetTemperatureV", _TEMPERATURE_GPU)
        if temperature is None:  # the older name, of older drivers
            temperature = self._ask("temperature", "nvmlDeviceGetTemperature", _TEMPERATURE_GPU)
        bits = self._ask("throttle reasons", "nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("throttle reasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return Reading(
            sm_clock_hz=None if clock is None else clock * 1e6,
            power_w=None if power is None else power * 1e-3,
            temperature_c=None if temperature is None else float(temperature),
            throttle="+".join(name for bit, name in THROTTLE.items() if (bits or 0) & bit),
        )

    def counted_j(self) -> float | None:
        """Joules since the driver was loaded."""
        millijoules = self._ask("energy", "nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules * 1e-3

    def joules(self, work: Callable[[], int]) -> float | None:
        """Joules of one call of the whole device, idle power included; None where the counter stands still.

        `work` makes some calls, waits for them and returns their number. Counted from one change of the counter
        to another, so that its period does not matter beside the time of one `work`.
        """
        before = self.counted_j()
        if before is None:
            return None
        calls, begin, start = 0, before, perf_counter()
        begun = False
        while perf_counter() - start < ENERGY_PATIENCE_S:
            calls += work()
            now = self.counted_j()
            if now is None:
                return None
            if now == before:
                continue
            if not begun:
                begun, begin, calls, start = True, now, 0, perf_counter()
            elif perf_counter() - start >= ENERGY_S:
                return (now - begin) / calls
            before = now
        return None

    def told(self) -> str:
        """What is read here, and why the rest is not."""
        self.read()
        self.counted_j()
        names = ("clock", "power", "temperature", "throttle reasons", "energy")
        parts = [", ".join(name for name in names if name not in self.lacks) or "nothing"]
        return "; ".join([*parts, *(f"no {name}: {reason}" for name, reason in self.lacks.items())])

    def _ask(self, name: str, function: str, *arguments: int) -> Any:
        try:
            value = getattr(self.nvml, function)(self.handle, *arguments)
        except AttributeError:
            self.lacks.setdefault(name, f"{function} is missing")
        except self.nvml.NVMLError as error:
            self.lacks.setdefault(name, str(error))
        else:
            self.lacks.pop(name, None)  # one of its names is enough
            return value
        return None


def found(torch: Any, device: str) -> tuple[Sensors | None, str]:
    """The sensors of a CUDA device, and what they read or why there are none. Never raises."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, "nothing: nvidia-ml-py is not installed (attnbench[cuda] brings it)"
    try:
        nvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)  # indices change with CUDA_VISIBLE_DEVICES
        prefixed = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        sensors = Sensors(nvml, nvml.nvmlDeviceGetHandleByUUID(prefixed))
        return sensors, sensors.told()
    except Exception as error:  # a driver without NVML, a container that hides it, a torch without UUIDs
        return None, f"nothing: {type(error).__name__}: {error}"
