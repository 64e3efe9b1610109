import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.costs import flops, keys_seen, least_bytes, pairs, touched_bytes
from attnbench.problem import Problem, parse_mask
from attnbench.testing import problem

COUNTED = [
    "full",
    "causal",
    "causal-top-left",
    "window:left=5:right=0",
    "window:left=0:right=3",
    "window:left=7",
    "window:right=2",
    "chunked:size=4",
    "prefix-lm:prefix=3",
    "causal*chunked:size=4",
]


@pytest.mark.parametrize("mask", COUNTED)
@given(sq=st.integers(0, 24), sk=st.integers(0, 24))
def test_pairs_are_counted_exactly(mask: str, sq: int, sk: int) -> None:
    found = parse_mask(mask)
    allowed = found.allowed(np.arange(sq)[:, None], np.arange(sk)[None, :], sq, sk)
    assert pairs(found, sq, sk) == np.count_nonzero(np.broadcast_to(allowed, (sq, sk)))
    assert keys_seen(found, sq, sk) == np.count_nonzero(np.broadcast_to(allowed, (sq, sk)).any(0))


def test_pairs_of_a_long_context_cost_nothing() -> None:
    n = 2**20
    assert pairs(parse_mask("causal"), n, n) == n * (n + 1) // 2


def test_a_mask_that_cannot_be_counted_yet_has_no_flops() -> None:
    assert flops(problem(mask="document:count=4")) is None


def test_flops_of_a_known_case() -> None:
    found = Problem.parse(
        "batch=2 seqlen=128 heads_q=8 heads_kv=2 head_dim=64 head_dim_v=32 dtype=float16 mask=causal"
    )
    assert flops(found) == 2 * (128 * 129 // 2) * (64 + 32) * 8 * 2


def test_a_backward_pass_is_two_and_a_half_forward_passes() -> None:
    forward, backward, both = (
        flops(problem(direction=d)) for d in ("forward", "backward", "forward_backward")
    )
    assert forward is not None
    assert backward == 2.5 * forward
    assert both == 3.5 * forward


def test_ragged_batches_are_counted_member_by_member() -> None:
    one, other = flops(problem(requests="1q16")), flops(problem(requests="1q1s40"))
    assert one is not None
    assert other is not None
    assert flops(problem(requests="1q16_2q1s40")) == one + 2 * other


def test_least_bytes_count_real_key_value_heads() -> None:
    grouped = problem(heads_q=8, heads_kv=2, head_dim=16, batch=1, seqlen=10)
    assert least_bytes(grouped) == 4 * 10 * 16 * (8 + 2 + 2 + 8)


def test_shared_k_and_v_are_read_once() -> None:
    separate = problem(batch=1, seqlen=10, heads=1, head_dim=16, head_dim_v=8)
    shared = problem(batch=1, seqlen=10, heads=1, head_dim=16, head_dim_v=8, shared_kv=True)
    assert least_bytes(separate) - least_bytes(shared) == 4 * 10 * 8


def test_backward_reads_the_forward_pass_and_writes_a_gradient_for_each_input() -> None:
    q = k = v = out = 4 * 10 * 16
    backward = problem(batch=1, seqlen=10, heads=1, head_dim=16, direction="backward")
    assert least_bytes(backward) == (q + k + v + out) + out + (q + k + v)


def test_of_many_queries_at_least_so_many_keys_are_seen() -> None:
    mask = parse_mask("causal*chunked:size=64")
    assert 3000 < keys_seen(mask, 5000, 5000) <= 5000


@pytest.mark.parametrize(
    ("direction", "factor"), [("forward", 3), ("backward", 4), ("forward_backward", 4), ("inference", 3)]
)
def test_a_call_touches_its_inputs_and_dout_where_there_is_one(direction: str, factor: int) -> None:
    of = Problem.parse(f"batch=1 seqlen=16 heads=2 head_dim=8 dtype=float32 mask=full direction={direction}")
    assert touched_bytes(of) == factor * 16 * 2 * 8 * 4
