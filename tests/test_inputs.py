"""Values are a function of problem, kind and seed; samples hold what they promise within their bounds."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnbench import costs, inputs
from attnbench.implementation import Inputs
from attnbench.problem import MASKS, Causal, IndexMask, Problem, parse_mask

SMALL = "batch=2 seqlen_q=5 seqlen_kv=7 heads_q=4 heads_kv=2 head_dim=8 head_dim_v=16 mask=causal"
GRADIENTS = "direction=forward_backward"


def make(text: str, kind: str = "normal", seed: int = 0, form: str = "bhsd") -> tuple[Problem, Inputs]:
    problem = Problem.parse(text)
    return problem, inputs.make(problem, kind=kind, seed=seed, device="cpu", qkv_format=form)


def tensors(made: Inputs) -> list[Tensor]:
    return [t for t in (made.q, made.k, made.v, made.dout) if t is not None]


@pytest.mark.parametrize("dtype", ["float64", "float32", "tfloat32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_the_values_do_not_depend_on_the_format(
    kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_CHUNK", 50)  # so that a member is made in several pieces
    text = f"{SMALL} dtype={dtype} {GRADIENTS}"
    (_, one), (_, two) = make(text, kind, form="bhsd"), make(text, kind, form="bshd")
    for a, b in zip(tensors(one), tensors(two), strict=True):
        assert a.is_contiguous()
        assert b.is_contiguous()
        assert torch.equal(a, b.transpose(1, 2))


def test_shapes_and_dtypes_are_the_problems() -> None:
    _, made = make(f"{SMALL} dtype=bfloat16 {GRADIENTS}", form="bshd")
    assert [tuple(t.shape) for t in tensors(made)] == [
        (2, 5, 4, 8),
        (2, 7, 2, 8),
        (2, 7, 2, 16),
        (2, 5, 4, 16),
    ]
    assert {t.dtype for t in tensors(made)} == {torch.bfloat16}
    for direction in ("forward", "inference"):
        assert make(f"{SMALL} dtype=float32 direction={direction}")[1].dout is None


def test_normal_inputs_are_normally_distributed() -> None:
    _, made = make("batch=1 seqlen=512 heads=8 head_dim=64 dtype=float32 mask=full")
    for tensor in tensors(made):
        tolerance = 5 / math.sqrt(tensor.numel())  # five standard errors of a mean of N(0, 1)
        assert abs(float(tensor.mean())) < tolerance
        assert abs(float(tensor.square().mean()) - 1) < tolerance * math.sqrt(2)
        assert abs(float((tensor.abs() < 1).double().mean()) - 0.6827) < tolerance / 2


def test_another_kind_or_seed_gives_other_values_in_the_same_storage() -> None:
    problem, made = make(f"{SMALL} dtype=float32 {GRADIENTS}", form="bshd")
    places = [t.data_ptr() for t in tensors(made)]
    seen = [[t.clone() for t in tensors(made)]]
    for kind, seed in (("normal", 1), ("peaked", 0), ("peaked", 1), ("large", 0), ("large", 1)):
        inputs.overwrite(made, problem, kind=kind, seed=seed, qkv_format="bshd")
        fresh = inputs.make(problem, kind=kind, seed=seed, device="cpu", qkv_format="bshd")
        assert all(torch.equal(a, b) for a, b in zip(tensors(made), tensors(fresh), strict=True))
        seen.append([t.clone() for t in tensors(made)])
    assert [t.data_ptr() for t in tensors(made)] == places
    for one, other in combinations(seen, 2):
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- where peaked queries point

EXAMPLES = {
    "full": "full",
    "causal": "causal",
    "causal-top-left": "causal-top-left",
    "window": "window:left=3:right=1",
    "chunked": "chunked:size=4",
    "dilated": "dilated:step=3",
    "prefix-lm": "prefix-lm:prefix=4",
    "block-causal": "block-causal:size=3",
    "global-window": "global-window:tokens=2:left=2:right=1",
}
MORE = ("window:left=2", "window:right=2", "window:left=0:right=0", "global-window:tokens=0:left=2:right=1",
        "chunked:size=4*causal", "window:left=3*causal-top-left", "prefix-lm:prefix=0")  # fmt: skip


def matrix(text: str, sq: int, sk: int) -> Tensor:
    return parse_mask(text).allowed(torch.arange(sq)[:, None], torch.arange(sk)[None], sq, sk)


def test_every_mask_of_the_indices_has_an_example_here() -> None:
    assert {name for name, kind in MASKS.items() if issubclass(kind, IndexMask)} == set(EXAMPLES)
    assert all(parse_mask(text).name == name for name, text in EXAMPLES.items())


@pytest.mark.parametrize("text", [*EXAMPLES.values(), *MORE])
@pytest.mark.parametrize(("sq", "sk"), [(1, 1), (1, 9), (9, 1), (8, 8), (5, 12), (12, 5)])
def test_bounds_are_the_first_and_the_last_key_allowed(text: str, sq: int, sk: int) -> None:
    first, last = inputs.bounds(parse_mask(text), torch.arange(sq), sq, sk)
    for i, row in enumerate(matrix(text, sq, sk)):
        keys = row.nonzero().flatten().tolist()
        if keys:
            assert (int(first[i]), int(last[i])) == (keys[0], keys[-1])
        else:
            assert first[i] > last[i]


@pytest.mark.parametrize("text", ["full", "causal", "causal-top-left", "window:left=20:right=4"])
@pytest.mark.parametrize("more", ["", " scale=1.0", " scale=-0.05"])
def test_peaked_queries_point_at_the_edges_of_their_mask(text: str, more: str) -> None:
    shape = "batch=2 seqlen_q=40 seqlen_kv=60 heads_q=4 heads_kv=2 head_dim=128 dtype=float32"
    problem, made = make(f"{shape} mask={text}{more}", "peaked")
    k = made.k.repeat_interleave(2, 1)
    scores = (made.q @ k.mT * problem.softmax_scale).abs() if more else made.q @ k.mT * problem.softmax_scale
    edges = torch.zeros(40, 60, dtype=torch.bool)
    for i, row in enumerate(matrix(text, 40, 60)):
        keys = row.nonzero().flatten().tolist()
        for j in (keys[0] - 1, keys[0], keys[-1], keys[-1] + 1):
            edges[i, max(0, min(j, 59))] |= 0 <= j < 60
    high, low = scores[..., edges], scores[..., ~edges]
    assert abs(float(high.mean()) - inputs.PEAK) < 1
    assert float(low.mean()) < 3
    assert float((high > low.max(dim=-1, keepdim=True).values).double().mean()) > 0.5


@pytest.mark.parametrize("text", ["full", "causal", "window:left=20:right=4", "dilated:step=3"])
@pytest.mark.parametrize(
    ("dtype", "more"), [("float32", ""), ("float16", " scale=1.0"), ("float64", " scale=-0.05")]
)
def test_every_row_of_large_scores_has_one_heavy_key_and_overflows_or_vanishes_without_its_maximum(
    text: str, dtype: str, more: str
) -> None:
    shape = f"batch=2 seqlen_q=40 seqlen_kv=60 heads_q=4 heads_kv=2 head_dim=64 dtype={dtype}"
    problem, made = make(f"{shape} mask={text}{more}", "large")
    wide = torch.promote_types(made.q.dtype, torch.float32)
    s = made.q.to(wide) @ made.k.to(wide).repeat_interleave(2, 1).mT * problem.softmax_scale
    s = s.masked_fill(~matrix(text, 40, 60), -math.inf)
    assert (s.softmax(-1).amax(-1) > 0.999).all()
    sums = s.exp().sum(-1)
    up = torch.arange(40) // 2 % 2 == 0
    assert sums[..., up].isinf().all()
    assert not sums[..., ~up].any() or text != "full"
    heavy = {int(j) for j in s[0, 0].argmax(-1)}
    assert len(heavy) > 10  # not the same key for all


# ---------------------------------------------------------------- checksums


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    bit=st.integers(0, 15),
    place=st.integers(0, 10**6),
)
def test_a_single_bit_that_changes_is_seen(
    shape: tuple[int, ...], dtype: torch.dtype, bit: int, place: int
) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    made = Inputs(q=torch.zeros(1), k=tensor, v=torch.zeros(1))
    before = inputs.checksum(made)
    assert inputs.checksum(made) == before
    words = tensor.view(torch.int16).flatten()
    words[place % len(words)] ^= torch.tensor(1).bitwise_left_shift(torch.tensor(bit)).to(torch.int16)
    assert inputs.checksum(made) != before


def test_elements_that_change_places_are_seen_also_far_apart() -> None:
    made = Inputs(q=torch.zeros(1), k=torch.randn(1, 1, 2**20, 3), v=torch.zeros(1))
    before = inputs.checksum(made)
    for i, j in ((0, 1), (0, 2**19), (5, 2**20 - 1), (2**18, 2**19)):
        made.k[0, 0, [i, j]] = made.k[0, 0, [j, i]]
        assert inputs.checksum(made) != before
        made.k[0, 0, [i, j]] = made.k[0, 0, [j, i]]
    assert inputs.checksum(made) == before


# ---------------------------------------------------------------- samples

LONG = "batch=2 seqlen=8192 heads_q=8 heads_kv=4 head_dim=64 dtype=bfloat16"


def oracle_flop(problem: Problem, sample: inputs.Sample) -> float:
    """Counted one by one from the mask, without what deciding the mask costs."""
    sq, sk = problem.uniform
    pairs = 0
    for i in sample.rows:
        pairs += int(problem.mask.allowed(torch.tensor([[i]]), torch.arange(sk)[None], sq, sk).sum())
    shared, width = problem.heads_q // problem.heads_kv, problem.head_dim + problem.head_dim_v
    factor = 3.5 if "dq" in inputs.OUTPUTS[problem.direction] else 1
    return 2.0 * pairs * width * shared * len(sample.groups) * factor


def test_everything_is_checked_where_the_work_allows_it() -> None:
    problem = Problem.parse(f"{SMALL} dtype=float32")
    flops = costs.flops(problem)
    sample = inputs.sample(problem, work=1e9, seed=0)
    assert sample.share == 1
    assert sample.rows == tuple(range(5))
    assert sample.groups == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert inputs.sample(problem, work=0.9 * flops, seed=0).rows == tuple(range(5))  # all five are edges


@pytest.mark.parametrize("mask", ["full", "causal", "window:left=1000:right=0", "window:left=10:right=20"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("work", [1e9, 8e9])
def test_a_sample_stays_within_its_work_and_uses_most_of_it(mask: str, direction: str, work: float) -> None:
    problem = Problem.parse(f"{LONG} mask={mask} direction={direction}")
    sample = inputs.sample(problem, work=work, seed=0)
    needed = oracle_flop(problem, sample) + inputs._MASK_FLOP * 8192 * len(sample.rows)
    assert 0.5 * work < needed <= work
    assert sample.share == len(sample.rows) * len(sample.groups) / (8192 * 8)


def test_a_sample_always_holds_the_edges() -> None:
    problem = Problem.parse(f"{LONG} mask=window:left=1000:right=30")
    for seed in range(20):
        sample = inputs.sample(problem, work=1e9, seed=seed)
        assert {0, 8191, 63, 64, 65, 127, 128, 129, 8063, 8064, 8065, 8127, 8128, 8129} <= set(sample.rows)
        assert {1000, 1001, 8160, 8161} <= set(sample.rows)  # where the window leaves the first and last key
        assert {(0, 0), (1, 3)} <= set(sample.groups)
        assert list(sample.rows) == sorted(set(sample.rows))


def test_a_sample_always_holds_rows_and_a_group_that_nobody_can_know() -> None:
    problem = Problem.parse(f"{LONG} mask=full")
    samples = [inputs.sample(problem, work=1.0, seed=seed) for seed in range(20)]
    always = set.intersection(*(set(sample.rows) for sample in samples))
    for sample in samples:
        assert len(set(sample.rows) - always) >= inputs.RANDOM_ROWS
        assert len(sample.groups) == 2
        assert len(set(sample.groups) & {(0, 0), (1, 3)}) == 1


def test_a_sample_is_a_function_of_the_problem_and_the_seed() -> None:
    problem = Problem.parse(f"{LONG} mask=causal")
    samples = [inputs.sample(problem, work=2e9, seed=seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1]
    assert samples[0].rows != samples[2].rows


def test_a_sample_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "batch=8 seqlen_q=1 seqlen_kv=1024 heads=8 head_dim=64 dtype=float32 mask=full direction=backward"
    problem = Problem.parse(text)
    assert inputs.sample(problem, work=math.inf, seed=0).share == 1
    per_group = 8 * 128 * (1 + 1024)  # bytes of dq, dk and dv and of their row of out
    monkeypatch.setattr(inputs, "MEMORY_BYTES", 10 * per_group)
    assert len(inputs.sample(problem, work=math.inf, seed=0).groups) == 10


@pytest.mark.parametrize("form", ["bshd", "bhsd"])
def test_pick_takes_the_sampled_rows_and_groups_out_of_any_format(form: str) -> None:
    problem = replace(Problem.parse(f"{SMALL} dtype=float32 {GRADIENTS}"), mask=Causal())
    sample = inputs.Sample(groups=((0, 1), (1, 0)), rows=(0, 3), heads_kv=2, share=0.2)
    full = {"out": (2, 4, 5, 16), "dq": (2, 4, 5, 8), "dk": (2, 2, 7, 8), "dv": (2, 2, 7, 16)}
    given_ = {name: torch.randn(shape) for name, shape in full.items()}
    to_form: Callable[[Tensor], Tensor] = lambda t: inputs.canonical(t, form).contiguous()  # noqa: E731
    picked = inputs.pick(tuple(map(to_form, given_.values())), problem, sample, form)
    assert list(picked) == ["out", "dq", "dk", "dv"]
    for (g, (b, h)), name in product(enumerate(sample.groups), ("out", "dq")):
        for s, (r, row) in product(range(2), enumerate(sample.rows)):
            assert torch.equal(picked[name][g, s, r], given_[name][b, 2 * h + s, row])
    for (g, (b, h)), name in product(enumerate(sample.groups), ("dk", "dv")):
        assert torch.equal(picked[name][g], given_[name][b, h])
    assert all(t.is_contiguous() for t in picked.values())


@pytest.mark.parametrize("form", ["bshd", "bhsd"])
def test_dout_is_zero_outside_the_sample_and_untouched_inside(form: str) -> None:
    _, made = make(f"{SMALL} dtype=float32 {GRADIENTS}", form=form)
    sample = inputs.Sample(groups=((0, 1), (1, 0)), rows=(0, 3), heads_kv=2, share=0.2)
    before = inputs.canonical(made.dout, form).clone()
    inputs.mask_dout(made, sample, form)
    after = inputs.canonical(made.dout, form)
    inside = torch.zeros(2, 4, 5, dtype=torch.bool)
    for (b, h), row in product(sample.groups, sample.rows):
        inside[b, 2 * h : 2 * h + 2, row] = True
    assert torch.equal(after[inside], before[inside])
    assert not after[~inside].any()
