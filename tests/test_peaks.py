import json
from pathlib import Path

import pytest
import torch

from attnbench import peaks
from attnbench.costs import least_bytes
from attnbench.peaks import BYTES_MARGIN, FLOPS_MARGIN, Peaks, floor
from attnbench.problem import DType
from attnbench.testing import problem

GPU = {"float64": 60e12, "float32": 400e12, "float16": 900e12, "bfloat16": 800e12}
CPU = {"float64": 90e9, "float32": 200e9, "float16": 3e9, "bfloat16": 4e9}  # without instructions for halves
RATES = {2**26: 60e9, 2**28: 40e9}


def made(flops: dict[str, float] = CPU, rates: dict[int, float] = RATES, device: str = "A CPU") -> Peaks:
    return Peaks(device=device, threads=2, torch="2", flops_per_s=flops, bytes_per_s=rates)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/attnbench/peaks.json"


# ---------------------------------------------------------------- the floor


def test_halves_may_be_computed_in_whatever_is_faster() -> None:
    assert made(CPU).flops_limit(DType.BFLOAT16) == 200e9
    assert made(GPU).flops_limit(DType.BFLOAT16) == 900e12


def test_wider_types_may_be_made_of_halves_but_of_several_products() -> None:
    assert made(GPU).flops_limit(DType.FLOAT32) == 450e12
    assert made(GPU).flops_limit(DType.FLOAT64) == 450e12
    assert made(CPU).flops_limit(DType.FLOAT32) == 200e9


def test_a_type_that_is_not_measured_has_no_limit() -> None:
    assert made().flops_limit(DType.INT8) is None
    assert floor(problem(kv_dtype="int8", seqlen=4096), made(rates={})) is None


def test_a_floor_of_operations_is_those_that_none_can_do_without() -> None:
    large = {"batch": 1, "seqlen": 1024, "heads": 8, "head_dim": 64, "dtype": "float32"}
    forward = 4 * 1024 * 1024 * 64 * 8
    for direction, products in (("forward", 1), ("backward", 2), ("forward_backward", 3)):
        found = floor(problem(**large, direction=direction), made())
        assert found is not None
        assert found.seconds == pytest.approx(products * forward / (FLOPS_MARGIN * 200e9))
    causal = floor(problem(**large, mask="causal"), made())
    assert causal is not None
    assert causal.seconds == pytest.approx(forward / 2 * (1025 / 1024) / (FLOPS_MARGIN * 200e9))
    assert causal.why == "1.07 GFLOP at 1.5 x 200 GFLOP/s"


def test_a_floor_of_bytes_is_that_of_no_more_bytes_than_were_measured() -> None:
    def of(seqlen: int, **changes: object) -> float:
        one = problem(
            batch=1, seqlen_q=1, seqlen_kv=seqlen, heads=8, head_dim=128, dtype="float32", **changes
        )
        found = floor(one, made(flops={}))
        return 0.0 if found is None else least_bytes(one) / found.seconds / BYTES_MARGIN

    assert of(2**12) == 0  # 32 MiB, which a cache may hold
    assert of(2**13) == pytest.approx(60e9)  # a little more than 64 MiB
    assert of(2**15) == pytest.approx(60e9)  # the higher of both rates
    assert of(2**15, mask="causal") == pytest.approx(60e9)


@pytest.mark.parametrize("mask", ["window:left=128:right=0", "causal-top-left"])
def test_keys_that_nobody_sees_need_not_be_read(mask: str) -> None:
    decode = problem(seqlen_q=1, seqlen_kv=2**15, heads=8, head_dim=128, dtype="float32", mask=mask)
    assert floor(decode, made(flops={})) is None


def test_what_cannot_be_counted_has_no_floor() -> None:
    assert floor(problem(mechanism="linear", seqlen=4096), made()) is None


def test_the_floor_is_the_higher_of_both() -> None:
    decode = problem(batch=1, seqlen_q=1, seqlen_kv=2**15, heads=8, head_dim=128, dtype="float32")
    found = floor(decode, made())
    assert found is not None
    assert found.seconds == pytest.approx(least_bytes(decode) / (BYTES_MARGIN * 60e9))
    assert found.why == "256 MiB at 2 x 60.0 GB/s"


# ---------------------------------------------------------------- measuring


def test_a_matrix_product_stays_below_what_it_was_measured_to_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from time import perf_counter

    monkeypatch.setattr(peaks, "SIZES", (2**24,))
    before = torch.get_num_threads()
    try:
        found = peaks.measure(torch, "cpu", 1)
        a = torch.randn(384, 384)
        seconds = []
        for _ in range(50):
            start = perf_counter()
            a @ a
            seconds.append(perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    assert {"float64", "float32", "bfloat16"} <= found["flops_per_s"].keys()
    assert found["bytes_per_s"].keys() == {str(2**24)}
    assert 2 * 384**3 / min(seconds) < FLOPS_MARGIN * found["flops_per_s"]["float32"]
    assert 1e8 < found["bytes_per_s"][str(2**24)] < 1e12  # any memory since 1990, and none of a core's


def test_threads_together_do_no_more_than_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "SIZES", (2**24,))
    monkeypatch.setattr(peaks, "_LARGEST", 256)
    monkeypatch.setattr(peaks._Best, "of", lambda self, call: 1e-3)
    before = torch.get_num_threads()
    try:
        found = peaks.measure(torch, "cpu", 3)
    finally:
        torch.set_num_threads(before)
    assert found["flops_per_s"]["float32"] == 3 * 2 * 256**3 / 1e-3
    assert found["bytes_per_s"] == {str(2**24): 3 * 2**22 / 1e-3}


def test_what_a_device_cannot_do_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise RuntimeError("not implemented")

    monkeypatch.setattr(torch, "zeros", refused)
    before = torch.get_num_threads()
    try:
        assert peaks.measure(torch, "cpu", 1) == {"flops_per_s": {}, "bytes_per_s": {}}
    finally:
        torch.set_num_threads(before)


def test_the_faster_of_two_measurements_counts() -> None:
    found = peaks.faster(made({"float32": 2.0}, {1: 5.0}), made({"float32": 3.0, "float64": 1.0}, {1: 4.0}))
    assert found.flops_per_s == {"float32": 3.0, "float64": 1.0}
    assert found.bytes_per_s == {1: 5.0}


# ---------------------------------------------------------------- keeping


def kept() -> Peaks:
    return Peaks(device="A CPU", threads=2, torch=torch.__version__, flops_per_s=CPU, bytes_per_s=RATES)


def test_peaks_are_kept_for_each_device_and_number_of_threads(cache: Path) -> None:
    assert peaks.load("A CPU", 2) is None
    assert peaks.save(kept())
    assert cache.exists()
    found = peaks.load("A CPU", 2)
    assert found is not None
    assert (found.flops_per_s, found.bytes_per_s) == (CPU, RATES)
    assert peaks.load("A CPU", 1) is None
    assert peaks.load("Another", 2) is None
    assert [file.name for file in cache.parent.iterdir()] == ["peaks.json"]


def test_what_is_kept_of_other_devices_stays() -> None:
    peaks.save(kept())
    peaks.save(made(GPU, device="A GPU"))
    assert peaks.load("A CPU", 2) is not None


@pytest.mark.parametrize("text", ["", "[]", "null", '{"KEY": 1}', '{"KEY": {"flops_per_s": {"int9": 1}}}'])
def test_a_damaged_file_is_as_none(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text.replace("KEY", peaks.identity("A CPU", 2)))
    assert peaks.load("A CPU", 2) is None
    assert peaks.save(kept())
    assert peaks.load("A CPU", 2) is not None


def test_a_folder_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.parent.parent.write_text("a file where the folder would be")
    assert not peaks.save(kept())
    assert peaks.load("A CPU", 2) is None


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert peaks.path() == tmp_path / ".cache/attnbench/peaks.json"


def test_the_file_is_json_that_names_the_device(cache: Path) -> None:
    peaks.save(kept())
    assert list(json.loads(cache.read_text())) == [f"A CPU | 2 threads | torch {torch.__version__}"]
