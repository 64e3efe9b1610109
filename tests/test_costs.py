import numpy as np
import pytest
from drawn_masks import EXAMPLES, PRODUCTS, TEXTS, draw
from hypothesis import given
from hypothesis import strategies as st

from attnbench import costs
from attnbench.costs import flops, keys_seen, least_bytes, pairs, touched_bytes
from attnbench.problem import Problem, parse_mask
from attnbench.testing import problem


@given(text=TEXTS, sq=st.integers(0, 24), sk=st.integers(0, 24), b=st.integers(0, 2))
def test_pairs_of_any_mask_are_counted_exactly(text: str, sq: int, sk: int, b: int) -> None:
    mask = parse_mask(text)
    seen = np.array(draw(mask, sq, sk, b), dtype=bool).reshape(sq, sk)
    assert pairs(mask, sq, sk, b) == seen.sum()
    assert keys_seen(mask, sq, sk, b) == seen.any(0).sum()


@pytest.mark.parametrize("text", [*EXAMPLES.values(), *PRODUCTS])
def test_pairs_are_the_same_in_parts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = parse_mask(text)
    whole = pairs(mask, 100, 150, 1)
    monkeypatch.setattr(costs, "_PAIRS", 1000)
    monkeypatch.setattr(costs, "_OUTLINES", 7)
    assert pairs.__wrapped__(mask, 100, 150, 1) == whole


@pytest.mark.parametrize("text", ["causal", "window:left=1023:right=0", "document:count=16*causal"])
def test_pairs_of_a_long_context_take_time_proportional_to_its_length(text: str) -> None:
    n = 2**20
    if text == "causal":
        assert pairs(parse_mask(text), n, n) == n * (n + 1) // 2
    else:
        assert n < pairs(parse_mask(text), n, n) < n * (n + 1) // 8


def test_members_of_a_batch_are_counted_with_their_own_masks() -> None:
    found = problem(mask="document:count=3*causal", batch=3, seqlen=50, heads=1, head_dim=8)
    seen = sum(sum(map(sum, draw(found.mask, 50, 50, b))) for b in range(3))
    assert flops(found) == 2 * seen * (8 + 8)
    assert seen != 3 * sum(map(sum, draw(found.mask, 50, 50)))


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
    mask = parse_mask("dilated:step=3*chunked:size=64")
    assert 3000 < keys_seen(mask, 5000, 5000) <= 5000


@pytest.mark.parametrize(
    ("direction", "factor"), [("forward", 3), ("backward", 4), ("forward_backward", 4), ("inference", 3)]
)
def test_a_call_touches_its_inputs_and_dout_where_there_is_one(direction: str, factor: int) -> None:
    of = Problem.parse(f"batch=1 seqlen=16 heads=2 head_dim=8 dtype=float32 mask=full direction={direction}")
    assert touched_bytes(of) == factor * 16 * 2 * 8 * 4
