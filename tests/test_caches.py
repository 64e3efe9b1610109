"""What makes a call cold: how many copies, what they hold, and that their memory differs."""

from statistics import median
from typing import Any

import pytest
import torch

from attnbench import caches, clocks, inputs, worker
from attnbench.caches import Caching, Flush, Rotation, distinct_bytes
from attnbench.clocks import Pace, WallClock
from attnbench.environment import last_level_cache
from attnbench.problem import Problem
from attnbench.records import Memory

MIB = 2**20
DECODE = "batch=1 seqlen_q=1 seqlen_kv=1024 heads=8 head_dim=64 dtype=float32"
"""q and out 2 KiB each, k and v 2 MiB each."""


def memory(input_bytes: int = 4 * MIB + 2048, output_bytes: int = 2048, workspace: int = 0) -> Memory:
    return Memory(input_bytes=input_bytes, output_bytes=output_bytes, workspace_bytes=workspace, method="rss")


def cold(text: str = DECODE, of: Memory | None = None, **changes: Any) -> Caching:
    settings = {"cache_bytes": 32 * MIB, "limit": 2**40, "call_s": 1e-5, "budget_s": 1.0, **changes}
    return caches.cold(Problem.parse(text), of or memory(), **settings)


def test_the_copies_of_a_turn_are_twice_the_cache_by_their_inputs_alone() -> None:
    made = cold()
    assert (made.method, made.copies) == ("rotation", 16)
    assert made.copies * (4 * MIB + 2048) >= 2 * 32 * MIB > (made.copies - 1) * (4 * MIB + 2048)
    assert made.bytes >= 15 * 4 * MIB


def test_only_keys_that_some_query_sees_count_as_touched() -> None:
    narrow = cold(f"{DECODE} mask=window:left=511:right=0", cache_bytes=8 * MIB)
    assert narrow.copies == 8  # half of k and v each
    assert cold(cache_bytes=8 * MIB).copies == 4


def test_there_are_never_fewer_than_two_copies() -> None:
    assert cold(cache_bytes=2 * MIB + 4096).copies == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_bytes": 256 * MIB},  # 128 copies
        {"limit": 64 * MIB},
        {"call_s": 0.1},  # a turn takes longer than the launch
    ],
)
def test_where_copies_are_too_many_too_large_or_too_slow_the_cache_is_flushed(changes: Any) -> None:
    made = cold(**changes)
    size = changes.get("cache_bytes", 32 * MIB)
    assert made == Caching(method="flush", flush_bytes=2 * size, bytes=2 * size)


def test_what_a_backward_pass_keeps_counts_for_every_copy() -> None:
    held, text = memory(workspace=100 * MIB), f"{DECODE} direction=backward"
    assert cold(of=held, limit=512 * MIB).method == "rotation"
    assert cold(text, held, limit=512 * MIB).method == "flush"


def test_a_call_larger_than_the_cache_says_so_warm_and_cold() -> None:
    of = Problem.parse(DECODE)
    assert caches.warm(of, memory(), 4 * MIB).method == "exceeds cache"
    assert caches.warm(of, memory(), 5 * MIB).method == ""
    assert caches.warm(of, memory(), None).method == ""
    assert cold(cache_bytes=2 * MIB) == Caching(method="exceeds cache")
    assert cold(cache_bytes=3 * MIB).method == "rotation"  # larger, but not twice as large


def rotation(count: int) -> tuple[Rotation, list[inputs.Inputs]]:
    first = inputs.make(Problem.parse(DECODE), kind="normal", seed=1, device="cpu", qkv_format="bhsd")
    copies = [first, *(worker._copy(first) for _ in range(count - 1))]
    return Rotation([lambda c=copy: c.q + 1 for copy in copies]), copies  # type: ignore[misc]


def test_copies_have_the_same_values_in_memory_of_their_own() -> None:
    _, copies = rotation(5)
    tensors = [t for copy in copies for t in copy.tensors]
    assert distinct_bytes(tensors) == 5 * (4 * MIB + 2048)
    assert distinct_bytes([copies[0].q, copies[0].q.view(-1), None]) == 2048
    assert len({inputs.checksum(copy) for copy in copies}) == 1


def test_a_rotation_takes_its_steps_in_turn_and_keeps_the_outputs_of_the_last_turn() -> None:
    turn, _ = rotation(3)
    assert len(turn.steps) == 3
    outs = [turn() for _ in range(7)]
    assert turn.place == 0
    assert [kept.data_ptr() for kept in turn.kept] == [outs[i].data_ptr() for i in (6, 4, 5)]
    del outs
    for _ in range(4):
        turn()
    assert distinct_bytes(turn.kept) == 3 * 2048


def test_a_flush_touches_every_byte_of_memory_of_its_own() -> None:
    flush = Flush(MIB, "cpu")
    flush()
    assert distinct_bytes([flush.buffer]) == MIB
    assert bool((flush.buffer == 1).all())  # written, so that its pages are not all the page of zeros


@pytest.mark.parametrize("method", ["rotation", "flush"])
def test_a_decode_step_is_slower_cold_than_warm(method: str) -> None:
    size = last_level_cache(1)
    if not size or size > 256 * MIB:
        pytest.skip("no last-level cache of a known size up to 256 MiB")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        of = Problem.parse(DECODE)
        first = inputs.make(of, kind="normal", seed=1, device="cpu", qkv_format="bhsd")

        def step(given: inputs.Inputs) -> Any:
            return lambda: torch.nn.functional.scaled_dot_product_attention(given.q, given.k, given.v)

        made = caches.cold(of, memory(), cache_bytes=size, limit=2**40, call_s=1e-5, budget_s=1.0)
        copies = [first, *(worker._copy(first) for _ in range(made.copies - 1))]
        turn, before_each = Rotation([step(copy) for copy in copies]), clocks.nothing
        if method == "flush":
            turn, before_each = Rotation([step(first)]), Flush(2 * size, "cpu")  # type: ignore[assignment]
        warm, emptied = [], []
        for _ in range(5):
            warm += WallClock().take(step(first), Pace(inner=1, samples=20, warm=15)).seconds
            emptied += WallClock().take(turn, Pace(inner=1, samples=20, warm=15), before_each).seconds
    finally:
        torch.set_num_threads(before)
    assert median(emptied) > median(warm)
