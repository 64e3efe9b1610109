"""The built-in implementations on CUDA: the sweep of `tests/test_builtin.py`, and which kernel SDPA runs."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attnbench import Device, Problem, testing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
on_cpu = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "test_builtin.py")))
ON_CUDA = [
    name
    for name, record in on_cpu.IMPLEMENTATIONS.items()
    if "cuda" in record.capabilities.devices
    and name not in on_cpu.PICKED
    and "paged" not in record.capabilities.layouts
]
HALF_ONLY = ("torch-sdpa-flash", "torch-sdpa-cudnn", "torch-varlen")
WIDE = "heads_q=4 heads_kv=2 head_dim=64 dtype=bfloat16"


def gpu() -> Device:
    return Device(
        kind="cuda",
        name=torch.cuda.get_device_name(0),
        compute_capability=torch.cuda.get_device_capability(0),
    )


@pytest.mark.parametrize("dtype", on_cpu.DTYPES)
@pytest.mark.parametrize("name", ON_CUDA)
def test_what_the_capabilities_allow_runs_and_is_right(name: str, dtype: str) -> None:
    ran, refused = on_cpu.sweep(name, dtype, gpu())
    assert ran + refused == 109
    if name in HALF_ONLY:
        assert (ran > 0) == (dtype in ("float16", "bfloat16") and gpu().compute_capability >= (8, 0))
    elif name == "torch-sdpa-efficient":
        assert (ran > 0) == (dtype != "float64")
    else:
        assert refused == (0 if name in ("torch-naive", "torch-chunked") else 53)  # SDPA knows no softcap


@pytest.mark.parametrize("name", on_cpu.PICKED)
def test_picked_problems_are_right(name: str) -> None:
    wide = [
        f"seqlen_q={sq} seqlen_kv=300 {WIDE} mask={mask} direction={direction}"
        for sq, mask, direction in (
            (300, "causal", "forward_backward"),
            (200, "window:left=40:right=0", "forward"),
            (1, "causal", "forward"),
        )
    ]
    problems = [Problem.parse(text) for text in (*on_cpu.PICKED[name], *wide)]
    able = [one for one in problems if on_cpu.IMPLEMENTATIONS[name].why_not(one, gpu()) is None]
    assert able
    for problem in able:
        on_cpu.run(name, problem, "cuda")


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
def test_compiled_flex_runs_a_kernel_of_triton(direction: str) -> None:
    problem = Problem.parse(f"seqlen=256 {WIDE} mask=causal direction={direction}")
    ready = on_cpu.run("torch-flex", problem, "cuda")
    with torch.profiler.profile(acc_events=True) as profile:
        ready.step()
        torch.cuda.synchronize()
    assert any(event.key.startswith("triton_") and "flex" in event.key for event in profile.key_averages())


@pytest.mark.parametrize(
    "shape", [on_cpu.SHAPES[0], "seqlen_q=40 seqlen_kv=70 heads_q=4 heads_kv=2 head_dim=8"]
)
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize(
    "name", ["torch-sdpa-math", "torch-sdpa-flash", "torch-sdpa-efficient", "torch-sdpa-cudnn"]
)
def test_the_kernel_named_is_the_kernel_run(name: str, direction: str, shape: str) -> None:
    problem = Problem.parse(f"{shape} dtype=bfloat16 mask=causal direction={direction}")
    if reason := on_cpu.IMPLEMENTATIONS[name].why_not(problem, gpu()):
        pytest.skip(reason)
    ready = on_cpu.prepared(on_cpu.IMPLEMENTATIONS[name], problem, on_cpu.make_inputs(problem, "cuda"))
    with on_cpu.Seen() as seen:
        on_cpu.outputs(ready)
    fused = {kernel for kernel in ("flash", "efficient", "cudnn") if any(kernel in n for n in seen.names)}
    assert fused == {ready.kernel} - {"math"}


@pytest.mark.parametrize("layout", ["dense", "packed", "paged:page=16", "paged:page=16:append=1"])
@pytest.mark.parametrize("name", ["torch-loop", "torch-padded", "torch-varlen"])
def test_members_of_unlike_lengths_are_computed_rightly(name: str, layout: str) -> None:
    problem = Problem.parse(f"requests=1q90s200_3q1s70 {WIDE} mask=causal layout={layout}")
    if reason := on_cpu.IMPLEMENTATIONS[name].why_not(problem, gpu()):
        pytest.skip(reason)
    assert testing.verdict(on_cpu.IMPLEMENTATIONS[name], problem, "cuda") is None
