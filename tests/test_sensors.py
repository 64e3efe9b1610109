import sys
from types import SimpleNamespace

import fake_cuda
import pytest

from attnbench import sensors
from attnbench.sensors import Reading, Sensors

TORCH = SimpleNamespace(cuda=fake_cuda.Cuda())
ALL = "clock, power, temperature, throttle reasons, energy"


def test_readings_are_in_si_units() -> None:
    assert Sensors(fake_cuda.Nvml(), "0").read() == Reading(
        sm_clock_hz=1.98e9, power_w=250.0, temperature_c=55.0, throttle=""
    )


@pytest.mark.parametrize(
    ("bits", "throttle"),
    [
        (0, ""),
        (0x1, ""),
        (0x102, ""),
        (0x4, "power cap"),
        (0x61, "thermal slowdown+hardware thermal slowdown"),
    ],
)
def test_idling_and_clocks_that_somebody_has_set_are_no_throttling(bits: int, throttle: str) -> None:
    assert Sensors(fake_cuda.Nvml(throttle=bits), "0").read().throttle == throttle


def test_older_names_serve_where_the_newer_are_missing() -> None:
    older = fake_cuda.Nvml(
        missing=("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"), throttle=4
    )
    found = Sensors(older, "0")
    assert (found.read().temperature_c, found.read().throttle) == (55, "power cap")
    assert found.told() == ALL


def test_what_a_device_does_not_report_is_none_and_the_rest_is_read() -> None:
    poor = Sensors(
        fake_cuda.Nvml(unsupported=("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption")), "0"
    )
    assert poor.read().power_w is None
    assert poor.read().sm_clock_hz == 1.98e9
    assert poor.joules(lambda: 1) is None
    assert poor.told() == (
        "clock, temperature, throttle reasons; no power: Not Supported; no energy: Not Supported"
    )


@pytest.mark.parametrize("work_s", [1e-3, 7e-3, 0.3])
def test_joules_of_a_call_are_counted_between_changes_of_the_counter(
    monkeypatch: pytest.MonkeyPatch, work_s: float
) -> None:
    now, nvml = [0.0], fake_cuda.Nvml()
    nvml.now = lambda: now[0]
    monkeypatch.setattr(sensors, "perf_counter", nvml.now)

    def work() -> int:  # of two calls
        now[0] += work_s
        return 2

    found = Sensors(nvml, "0").joules(work)
    period, counted = 20e-3, max(sensors.ENERGY_S, work_s)  # an edge is seen at most one work or period late
    assert found == pytest.approx(250 * work_s / 2, rel=max(min(work_s, period) / counted, 1e-9))


def test_a_counter_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, nvml = [0.0], fake_cuda.Nvml()
    nvml.now = lambda: 0.0
    monkeypatch.setattr(sensors, "perf_counter", lambda: now[0])

    def work() -> int:
        now[0] += 5e-3
        return 1

    assert Sensors(nvml, "0").joules(work) is None
    assert now[0] == pytest.approx(sensors.ENERGY_PATIENCE_S)


def test_a_device_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_cuda.Nvml())
    found, told = sensors.found(TORCH, "cuda:0")
    assert found is not None
    assert (found.handle, told) == ("GPU-0a-0b", ALL)


@pytest.mark.parametrize(
    ("nvml", "why"),
    [
        (None, "nothing: nvidia-ml-py is not installed (attnbench[cuda] brings it)"),
        (fake_cuda.Nvml(unsupported=("nvmlInit",)), "nothing: NVMLError: Not Supported"),
    ],
)
def test_without_nvml_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, nvml: object, why: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: as if it were not installed
    assert sensors.found(TORCH, "cuda:0") == (None, why)
