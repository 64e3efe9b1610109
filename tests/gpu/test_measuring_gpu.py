"""Our CUDA clocks beside triton's and beside events around a graph of torch's own; sensors and peaks of a real device."""

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from attnbench import Problem, clocks, peaks, sensors
from attnbench.clocks import CaptureError, CudaEvents, CudaGraph, Taken
from attnbench.costs import flops
from attnbench.implementation import Inputs, differentiable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LARGE = "batch=4 seqlen=4096 heads=16 head_dim=128 dtype=bfloat16 mask=full"  # milliseconds of products
SMALL = "batch=1 seqlen=128 heads=8 head_dim=64 dtype=bfloat16 mask=full"  # microseconds, mostly of launching
AGREED = 0.02
"""By how much medians of the same calls on a quiet device may differ."""


def step(problem: str, direction: str = "forward", device: str = "cuda:0") -> Callable[[], Any]:
    one = Problem.parse(f"{problem} direction={direction}")
    sq, heads, dim = one.sequences[0][0], one.heads_q, one.head_dim
    q, k, v, dout = (
        torch.randn(one.batch, heads, sq, dim, dtype=torch.bfloat16, device=device) for _ in range(4)
    )
    attend = torch.nn.functional.scaled_dot_product_attention
    return differentiable(attend, one, Inputs(q=q, k=k, v=v, dout=dout)).step


def taken(clock: clocks.Clock, call: Callable[[], Any], blocks: int = 5) -> list[Taken]:
    """Blocks of about 20 ms at the pace of the first, like those of a run."""
    call()
    first = clock.take(call, clocks.Pace(inner=1, samples=5, warm=3))
    pace = clocks.pace(median(first.seconds), 10.0)
    return [clock.take(call, pace) for _ in range(blocks)]


def median_s(found: list[Taken]) -> float:
    return median(s for block in found for i, s in enumerate(block.seconds) if i not in block.flagged)


def by_hand(call: Callable[[], Any], calls: int = 20, replays: int = 30) -> float:
    """Seconds of a call: events around replays of a graph, as torch's documentation has it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    found = []
    for _ in range(replays):
        first, final = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        final.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(final) * 1e-3 / calls)
    return median(found)


def test_events_agree_with_tritons_do_bench() -> None:
    testing = pytest.importorskip("triton.testing", reason="no triton")
    call = step(
        LARGE
    )  # its tensors and its work are large: that do_bench empties the L2 cache changes little
    theirs = testing.do_bench(call, warmup=200, rep=500, return_mode="median") * 1e-3
    ours = median_s(taken(CudaEvents(torch, "cuda:0"), call))
    assert ours == pytest.approx(theirs, rel=AGREED)


@pytest.mark.parametrize("problem", [SMALL, LARGE])
def test_a_graph_agrees_with_tritons_and_with_one_by_hand(problem: str) -> None:
    call = step(problem)
    ours = median_s(taken(CudaGraph(torch, "cuda:0"), call))
    assert ours == pytest.approx(by_hand(call), rel=AGREED)
    testing = pytest.importorskip("triton.testing", reason="no triton")
    with torch.cuda.stream(torch.cuda.Stream()):
        theirs = testing.do_bench_cudagraph(call, rep=100, return_mode="median") * 1e-3
    assert ours == pytest.approx(theirs, rel=AGREED)


def test_events_and_graph_agree_where_launching_takes_no_part() -> None:
    call = step(LARGE)
    events = median_s(taken(CudaEvents(torch, "cuda:0"), call))
    assert median_s(taken(CudaGraph(torch, "cuda:0"), call)) == pytest.approx(events, rel=AGREED)


def test_most_samples_find_a_filled_queue() -> None:
    found = taken(CudaEvents(torch, "cuda:0"), step(SMALL))
    flagged, samples = sum(len(b.flagged) for b in found), sum(len(b.seconds) for b in found)
    assert flagged <= samples / 2


@pytest.mark.parametrize("direction", ["forward", "inference", "backward", "forward_backward"])
def test_every_direction_is_captured_and_the_replay_writes_its_output(direction: str) -> None:
    clock = CudaGraph(torch, "cuda:0")
    with clock.preparing():
        call = step(SMALL, direction)
    torch.cuda.synchronize()
    last = taken(clock, call, 1)[0].last
    for tensor in last if isinstance(last, tuple) else [last]:
        assert tensor.isfinite().all()


def test_a_step_that_waits_for_the_device_is_not_captured() -> None:
    call = step(SMALL)

    def waits() -> Any:
        out = call()
        torch.cuda.synchronize()
        return out

    with pytest.raises(CaptureError, match="captur"):
        taken(CudaGraph(torch, "cuda:0"), waits)


def test_a_graph_of_nothing_is_refused() -> None:
    out = step(SMALL)()
    with pytest.raises(CaptureError, match="enqueues nothing"):
        taken(CudaGraph(torch, "cuda:0"), lambda: out)


def test_the_driver_lets_go_of_what_is_pinned() -> None:
    torch.zeros(1, device="cuda:0")
    assert clocks.reset_persisting_l2() == (torch.cuda.get_device_capability(0) >= (8, 0))


def test_sensors_tell_plausible_figures() -> None:
    found, why = sensors.found(torch, "cuda:0")
    if found is None:
        pytest.skip(why)
    call = step(LARGE)
    once = median_s(taken(CudaEvents(torch, "cuda:0"), call, 1))
    reading = found.read()
    assert reading.sm_clock_hz is None or 1e8 < reading.sm_clock_hz < 4e9
    assert reading.power_w is None or 5 < reading.power_w < 2000
    assert reading.temperature_c is None or 10 < reading.temperature_c < 110

    def work() -> int:
        for _ in range(5):
            call()
        torch.cuda.synchronize()
        return 5

    joules = found.joules(work)
    assert joules is None or 5 * once < joules < 2000 * once, why


def test_no_attention_is_faster_than_the_floor() -> None:
    rates = peaks.measure(torch, "cuda:0", 1)
    found = peaks.Peaks(
        device="this",
        threads=0,
        torch=torch.__version__,
        flops_per_s=rates["flops_per_s"],
        bytes_per_s={int(size): rate for size, rate in rates["bytes_per_s"].items()},
    )
    problem = Problem.parse(LARGE)
    floor = peaks.floor(problem, found)
    assert floor is not None
    ours = median_s(taken(CudaEvents(torch, "cuda:0"), step(LARGE)))
    assert floor.seconds < ours
    work = flops(problem)
    assert work is not None
    assert work / ours < found.flops_per_s["bfloat16"]  # products do better than attention made of them


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="only one CUDA device")
def test_events_on_a_second_device_are_its_own() -> None:
    torch.cuda.set_device("cuda:1")
    try:
        call = step(LARGE, device="cuda:1")
        assert median_s(taken(CudaEvents(torch, "cuda:1"), call)) > 1e-4
    finally:
        torch.cuda.set_device("cuda:0")
