"""Values are a function of problem, kind and seed; samples hold what they promise within their bounds."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from drawn_masks import drawn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnbench import costs, inputs
from attnbench.implementation import Inputs
from attnbench.problem import Causal, Problem

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

SHAPE = "batch=2 seqlen_q=40 seqlen_kv=60 heads_q=4 heads_kv=2"


def scores(problem: Problem, made: Inputs) -> Tensor:
    """[B, Hq, Sq, Sk], in float32 at least."""
    q, k = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (made.q, made.k))
    return q @ k.repeat_interleave(2, 1).mT * problem.softmax_scale


@pytest.mark.parametrize(
    "text",
    [
        *("full", "causal", "causal-top-left", "window:left=20:right=4", "chunked:size=16"),
        *("document:count=4", "document:count=3*causal", "key-padding:share=0.4", "left-padding:share=0.2"),
    ],
)
@pytest.mark.parametrize("more", ["", " scale=1.0", " scale=-0.05"])
def test_peaked_queries_point_at_the_edges_of_their_mask(text: str, more: str) -> None:
    problem, made = make(f"{SHAPE} head_dim=128 dtype=float32 mask={text}{more}", "peaked")
    s = scores(problem, made).abs() if more else scores(problem, made)
    edges = torch.zeros(2, 40, 60, dtype=torch.bool)
    for b, i in product(range(2), range(40)):
        keys = drawn(problem)[b, i].nonzero().flatten().tolist()
        for j in (keys[0] - 1, keys[0], keys[-1], keys[-1] + 1):
            edges[b, i, max(0, min(j, 59))] |= 0 <= j < 60
    edges = edges[:, None].expand_as(s)
    high, low = s[edges], s[~edges]
    assert abs(float(high.mean()) - inputs.PEAK) < 1
    assert float(low.mean()) < 3
    others = s.masked_fill(edges, -math.inf).amax(-1, keepdim=True).expand_as(s)
    assert float((high > others[edges]).double().mean()) > 0.5


@pytest.mark.parametrize(
    "text", ["dilated:step=4", "global-window:tokens=3:left=9:right=2", "tree:width=3:depth=2"]
)
def test_peaked_queries_point_at_the_gap_before_their_own_position_too(text: str) -> None:
    problem, made = make(f"{SHAPE} head_dim=128 dtype=float32 mask={text}*causal", "peaked")
    s, seen, pointed = scores(problem, made), drawn(problem), 0
    for i in range(40):
        p = i + 20
        near = next((j for j in range(p, 0, -1) if not seen[0, i, j - 1]), 0)
        if near > 1 and p > near:  # else the run is a single key, or begins with the first
            assert float(s[..., i, near].mean()) > inputs.PEAK / 2
        if near > 1:
            assert float(s[..., i, near - 1].mean()) > inputs.PEAK / 2
            pointed += 1
    assert pointed


@pytest.mark.parametrize(
    "text",
    [
        *(
            "full",
            "causal",
            "window:left=20:right=4",
            "dilated:step=3",
            "dilated:step=2*window:left=9:right=3",
        ),
        *("global-window:tokens=2:left=3:right=0*causal", "tree:width=2:depth=3", "document:count=4"),
        *(
            "block-sparse:density=0.3:block=4*causal",
            "block-sparse:density=0.3:block=4",
            "key-padding:share=0.2",
        ),
        "document:count=3*causal",
    ],
)
@pytest.mark.parametrize(
    ("dtype", "more"), [("float32", ""), ("float16", " scale=1.0"), ("float64", " scale=-0.05")]
)
def test_every_row_of_large_scores_has_one_heavy_key_and_overflows_or_vanishes_without_its_maximum(
    text: str, dtype: str, more: str
) -> None:
    problem, made = make(f"{SHAPE} head_dim=64 dtype={dtype} mask={text}{more}", "large")
    s = scores(problem, made).masked_fill(~drawn(problem)[:, None], -math.inf)
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


@pytest.mark.parametrize("mask", ["document:count=3*causal", "chunked:size=3000*causal", "document:count=5"])
def test_a_sample_always_holds_the_rows_where_the_mask_bends(mask: str) -> None:
    problem = Problem.parse(f"batch=3 seqlen=8192 heads=2 head_dim=64 dtype=float32 mask={mask}")
    sample = inputs.sample(problem, work=1e9, seed=0)
    for b in (0, 2):
        first, _, last = problem.mask.outline(torch.arange(8192), 8192, 8192, b)
        for line in (first, last):
            (bends,) = (line.diff() > 1).nonzero(as_tuple=True)  # the last row before the outline leaps
            for row in bends[[0, -1]].tolist() if len(bends) else ():
                assert {row, row + 1} <= set(sample.rows)


@pytest.mark.parametrize("mask", ["document:count=4*causal", "key-padding:share=0.4"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_sample_of_members_with_masks_of_their_own_stays_within_its_work(mask: str, direction: str) -> None:
    problem = Problem.parse(f"{LONG} mask={mask} direction={direction}")
    sample = inputs.sample(problem, work=4e9, seed=0)
    sq, sk = problem.uniform
    rows, pairs = torch.tensor(sample.rows), 0
    for b, _ in sample.groups:
        pairs += int(problem.mask.allowed(rows[:, None], torch.arange(sk), sq, sk, b).sum())
    flop = 2 * pairs * 128 * 2 * (3.5 if direction == "backward" else 1)
    assert flop + inputs._MASK_FLOP * sk * len(rows) * len(sample.groups) <= 4e9


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
    problem, made = make(f"{SMALL} dtype=float32 {GRADIENTS}", form=form)
    sample = inputs.Sample(groups=((0, 1), (1, 0)), rows=(0, 3), heads_kv=2, share=0.2)
    before = inputs.canonical(made.dout, form).clone()
    inputs.mask_dout(made, problem, sample, form)
    after = inputs.canonical(made.dout, form)
    inside = torch.zeros(2, 4, 5, dtype=torch.bool)
    for (b, h), row in product(sample.groups, sample.rows):
        inside[b, 2 * h : 2 * h + 2, row] = True
    assert torch.equal(after[inside], before[inside])
    assert not after[~inside].any()
