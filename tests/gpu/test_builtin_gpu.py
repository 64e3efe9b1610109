"""The built-in implementations on CUDA: the sweep of `tests/test_builtin.py`, and which kernel SDPA runs."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attnbench import Device, Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
on_cpu = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "test_builtin.py")))
ON_CUDA = [name for name, record in on_cpu.IMPLEMENTATIONS.items() if "cuda" in record.capabilities.devices]


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
    if name == "torch-sdpa-flash":
        assert (ran > 0) == (dtype in ("float16", "bfloat16") and gpu().compute_capability >= (8, 0))
    else:
        assert refused == (0 if name in ("torch-naive", "torch-chunked") else 53)  # SDPA knows no softcap


@pytest.mark.parametrize(
    "shape", [on_cpu.SHAPES[0], "seqlen_q=40 seqlen_kv=70 heads_q=4 heads_kv=2 head_dim=8"]
)
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("name", ["torch-sdpa-math", "torch-sdpa-flash"])
def test_the_kernel_named_is_the_kernel_run(name: str, direction: str, shape: str) -> None:
    problem = Problem.parse(f"{shape} dtype=bfloat16 mask=causal direction={direction}")
    if reason := on_cpu.IMPLEMENTATIONS[name].why_not(problem, gpu()):
        pytest.skip(reason)
    ready = on_cpu.prepared(on_cpu.IMPLEMENTATIONS[name], problem, on_cpu.make_inputs(problem, "cuda"))
    with on_cpu.Seen() as seen:
        on_cpu.outputs(ready)
    fused = {
        operation
        for operation in seen.names
        if operation.endswith(("flash_attention", "efficient_attention"))
    }
    assert fused == ({"_scaled_dot_product_flash_attention"} if ready.kernel == "flash" else set())
