"""Batches whose members differ in length, and those that are packed or lie in pages: from their inputs to the verdict."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from drawn_masks import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench import Device, Implementation, Inputs, Prepared, costs, inputs, reference, testing, tokens
from attnbench.builtin import numpy_textbook, torch_varlen
from attnbench.problem import Packed, Paged, Problem

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = Device(kind="cpu")
IMPLEMENTATIONS = {
    one.name: one for module in (numpy_textbook, torch_varlen) for one in module.attnbench_implementations()
}
HEADS = "heads_q=4 heads_kv=2 head_dim=8 head_dim_v=12"
RAGGED = "requests=1q5s9_1q0s4_2q1s7_1q6s2_1q3s0"
LAYOUTS = ("dense", "packed", "paged:page=4")
MASKS = (
    "full",
    "causal",
    "window:left=3:right=1",
    "dilated:step=2",
    "document:count=3*causal",
    "tree:width=2:depth=1",
)


def make(problem: Problem, kind: str = "normal", form: str = "bhsd") -> Inputs:
    return inputs.make(problem, kind=kind, seed=0, device="cpu", qkv_format=form)


def taken(problem: Problem, given: Inputs, form: str = "bhsd") -> dict[str, Tensor]:
    """The canonical form of q, k, v and dout."""
    table = given.index.get("block_table")
    there = {name: getattr(given, name) for name in ("q", "k", "v", "dout")}
    return {
        name: tokens.take(tensor, problem, inputs.SIDES[name], form, table)
        for name, tensor in there.items()
        if tensor is not None
    }


lengths = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5).filter(
    lambda found: 0 not in (max(q for q, _ in found), max(k for _, k in found))
)


def ragged(sequences: list[tuple[int, int]], words: str) -> Problem:
    return replace(Problem.parse(f"seqlen=1 {HEADS} {words}"), sequences=tuple(sequences))


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("lengths", [RAGGED, "batch=3 seqlen_q=3 seqlen_kv=6", "batch=2 seqlen=8"])
def test_the_values_do_not_depend_on_the_layout(lengths: str, kind: str, dtype: str) -> None:
    text = f"{lengths} {HEADS} mask=causal dtype={dtype} direction=forward_backward"
    plain = tokens.plain(Problem.parse(text))
    right = taken(plain, make(plain, kind))
    for layout in LAYOUTS:
        problem = Problem.parse(f"{text} layout={layout}")
        for form in ("bshd", "bhsd"):
            found = taken(problem, make(problem, kind, form), form)
            assert found.keys() == right.keys()
            assert all(torch.equal(found[name], right[name]) for name in right)


@settings(deadline=None)
@given(sequences=lengths, layout=st.sampled_from(LAYOUTS), form=st.sampled_from(["bshd", "bhsd"]))
def test_what_is_put_is_taken(sequences: list[tuple[int, int]], layout: str, form: str) -> None:
    problem = ragged(sequences, f"layout={layout}")
    made = make(problem, form=form)
    for name in taken(problem, made, form):
        stored, arguments = getattr(made, name), (problem, inputs.SIDES[name], form)
        table = made.index.get("block_table")
        one = tokens.take(stored, *arguments, table)
        new = torch.randn(one.shape)
        one.copy_(new)
        tokens.put(stored, one, *arguments, table)
        assert torch.equal(tokens.take(stored, *arguments, table), new)


def test_lengths_and_tables_are_named_as_kernels_name_them() -> None:
    packed = make(Problem.parse(f"{RAGGED} {HEADS} layout=packed")).index
    assert {name: tensor.tolist() for name, tensor in packed.items()} == {
        "cu_seqlens_q": [0, 5, 5, 6, 7, 13, 16],
        "cu_seqlens_k": [0, 9, 13, 20, 27, 29, 29],
    }
    paged = make(Problem.parse(f"{RAGGED} {HEADS} layout=paged:page=4"))
    assert list(paged.index) == ["cu_seqlens_q", "seqused_k", "block_table"]
    assert paged.index["seqused_k"].tolist() == [9, 4, 7, 7, 2, 0]
    assert {tensor.dtype for tensor in (*packed.values(), *paged.index.values())} == {torch.int32}
    assert (paged.q.shape, paged.k.shape, paged.v.shape) == ((16, 4, 8), (9, 4, 2, 8), (9, 4, 2, 12))
    assert make(Problem.parse(f"{RAGGED} {HEADS}")).q.shape == (6, 4, 6, 8)


def test_pages_belong_to_one_member_and_are_dealt_anew_with_the_values() -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} layout=paged:page=4")
    made, seen = make(problem), list[list[int]]()
    for kind in inputs.KINDS:
        inputs.overwrite(made, problem, kind=kind, seed=0, qkv_format="bhsd")
        table = made.index["block_table"]
        used = [table[b, : -(-keys // 4)].tolist() for b, (_, keys) in enumerate(problem.sequences)]
        seen.append([page for pages in used for page in pages])
        assert sorted(seen[-1]) == list(range(9))
        assert all(not table[b, len(pages) :].any() for b, pages in enumerate(used))
    assert seen[0] != seen[1] != seen[2]
    assert torch.equal(make(problem, "large").index["block_table"], made.index["block_table"])


def test_what_holds_no_token_is_finite_and_large_and_its_gradient_zero() -> None:
    dense = make(Problem.parse(f"requests=1q4_1q2 {HEADS} direction=backward"), form="bshd")
    for name in ("q", "k", "v", "dout"):
        behind = getattr(dense, name)[1, 2:]
        assert behind.abs().max() == inputs.JUNK[name]
        assert torch.equal(behind, behind[:1, :1].expand_as(behind))
    paged = make(Problem.parse(f"requests=1q3_1q2 {HEADS} layout=paged:page=4"))
    pages = paged.index["block_table"][:, 0].tolist()
    assert [(paged.v[page].abs().amax((1, 2)) == 100).tolist() for page in pages] == [
        [False] * 3 + [True],
        [False] * 2 + [True] * 2,
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_of_a_ragged_batch_looks_at_members_of_all_lengths(layout: str) -> None:
    text = f"requests=2q700_3q1s4k_1q90s2k_4q0s3 heads=8 head_dim=64 mask=causal layout={layout}"
    problem = Problem.parse(text)
    one, other = (inputs.sample(problem, work=1e8, seed=seed) for seed in (0, 1))
    assert one != other
    for sample in (one, other):
        assert 0 < sample.share < 1
        assert {problem.sequences[b] for b, _ in sample.groups} >= {(700, 700), (1, 4096), (90, 2048)}
        assert {0, 89, 699, 64} <= set(sample.rows)
        checked = sum(row < problem.sequences[b][0] for b, _ in sample.groups for row in sample.rows)
        assert sample.share == checked / (8 * (2 * 700 + 3 + 90))


def test_the_gradients_of_a_sample_of_a_ragged_batch_are_those_of_its_rows() -> None:
    text = f"{RAGGED} {HEADS} mask=causal dtype=float64 direction=backward"
    sample = inputs.Sample(
        groups=((0, 1), (2, 0), (4, 0)),
        rows=(0, 3),
        heads_kv=2,
        share=0.2,
        sequences=Problem.parse(text).sequences,
    )
    found = []
    for layout in ("dense", "packed"):
        problem = Problem.parse(f"{text} layout={layout}")
        made = make(problem)
        before = taken(problem, made)["dout"].clone()
        inputs.mask_dout(made, problem, sample, "bhsd")
        dout = taken(problem, made)["dout"]
        kept = torch.zeros(16, 4, dtype=torch.bool)
        for token, head in ((0, 1), (3, 1), (5, 0), (7, 0), (10, 0)):
            kept[token, 2 * head : 2 * head + 2] = True
        assert torch.equal(dout, before * kept[..., None])
        found.append(dout)
    assert torch.equal(*found)


# ---------------------------------------------------------------- the oracle


def turned(problem: Problem, x: Tensor, first: int) -> Tensor:
    """x [H, S, D], whose tokens stand at `first` and behind, a pair of coordinates at a time."""
    if (rotary := problem.modifier("rotary")) is None:
        return x
    half, positions = x.shape[-1] // 2, torch.arange(first, first + x.shape[1], dtype=torch.float64)
    columns: list[Tensor] = [torch.empty(0)] * (2 * half)
    for m in range(half):
        angle = positions * rotary.base ** (-m / half)
        columns[m] = x[..., m] * angle.cos() - x[..., m + half] * angle.sin()
        columns[m + half] = x[..., m + half] * angle.cos() + x[..., m] * angle.sin()
    return torch.stack(columns, -1)


def textbook(problem: Problem, made: Inputs) -> list[dict[str, Tensor]]:
    """Each member alone, in float64, with torch's own derivatives; the mask drawn cell by cell."""
    found, shared = [], problem.heads_q // problem.heads_kv
    for b, ((at_q, at_k), (sq, sk)) in enumerate(zip(problem.spans, problem.sequences, strict=True)):
        q, k, v = (
            tensor[at].transpose(0, 1).double().requires_grad_()
            for tensor, at in ((made.q, at_q), (made.k, at_k), (made.v, at_k))
        )
        one, two = (turned(problem, t, first) for t, first in ((q, sk - sq), (k, 0)))
        s = one @ two.repeat_interleave(shared, 0).mT * problem.softmax_scale
        if problem.softcap:
            s = torch.tanh(s / problem.softcap) * problem.softcap
        if (alibi := problem.modifier("alibi")) is not None:
            away = (torch.arange(sk) - torch.arange(sq)[:, None] - (sk - sq)).abs()
            s = s - torch.tensor(alibi.slopes(problem.heads_q), dtype=torch.float64)[:, None, None] * away
        seen = torch.tensor(draw(problem.mask, sq, sk, b), dtype=torch.bool).view(sq, sk)
        some = seen.any(-1, keepdim=True)
        p = s.masked_fill(~seen & some, -torch.inf).softmax(-1) * some
        out = p @ v.repeat_interleave(shared, 0)
        grads = [None] * 3
        if made.dout is not None:
            dout = made.dout[at_q].transpose(0, 1).double()
            grads = torch.autograd.grad(out, (q, k, v), dout)
        found.append(dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True)))
    return found


@settings(max_examples=60, deadline=None)  # the first is slow
@given(
    sequences=lengths,
    mask=st.sampled_from(MASKS),
    modifiers=st.sampled_from(["none", "softcap:cap=2", "alibi", "rotary:base=100"]),
    direction=st.sampled_from(["forward", "forward_backward"]),
    kind=st.sampled_from(["normal", "peaked"]),
)
def test_the_oracle_computes_each_member_as_if_it_were_alone(
    sequences: list[tuple[int, int]], mask: str, modifiers: str, direction: str, kind: str
) -> None:
    words = f"mask={mask} modifiers={modifiers} direction={direction} dtype=float64"
    problem = ragged(sequences, words)
    plain = tokens.plain(problem)
    made = make(plain, kind)
    sample = inputs.sample(problem, work=1e9, seed=0)
    assert sample.share == 1
    found = reference.oracle(problem, made, sample)
    packed = made
    if problem.uniform:
        packed = make(replace(problem, layout=Packed()), kind)
    for b, right in enumerate(textbook(problem, packed)):
        for head in range(2):
            at = sample.groups.index((b, head))
            for name in inputs.OUTPUTS[problem.direction]:
                want, got = right[name], found[name][at]
                want = want[head] if name in ("dk", "dv") else want[2 * head : 2 * head + 2]
                own, rest = got.split([want.shape[-2], got.shape[-2] - want.shape[-2]], -2)
                torch.testing.assert_close(own, want, rtol=1e-11, atol=1e-12)
                assert not rest.any()


# ---------------------------------------------------------------- implementations


@cache
def problems(name: str) -> tuple[Problem, ...]:
    """Of each layout that it takes, shuffled, so that either half has all masks and types."""
    found = []
    for lengths in (RAGGED, "batch=3 seqlen_q=3 seqlen_kv=6", "batch=2 seqlen=8", "requests=3q1s20_2q1s33"):
        for layout in LAYOUTS:
            for mask in MASKS:
                for more in (
                    "dtype=float32",
                    "dtype=bfloat16 direction=forward_backward",
                    "dtype=float64 direction=backward",
                ):
                    if "paged" in layout and "bfloat16" in more:
                        continue  # gradients of float64 are enough
                    problem = Problem.parse(f"{lengths} {HEADS} mask={mask} layout={layout} {more}")
                    if IMPLEMENTATIONS[name].why_not(problem, CPU) is None:
                        found.append(problem)
    random.Random(0).shuffle(found)
    return tuple(found)


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize(("name", "count"), [("numpy-loop", 60), ("torch-loop", 156), ("torch-padded", 156)])
def test_what_the_capabilities_allow_runs_and_is_right(name: str, count: int, part: int) -> None:
    assert len(problems(name)) == count
    for problem in problems(name)[part::2]:
        assert testing.verdict(IMPLEMENTATIONS[name], problem) is None, problem.text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["numpy-loop", "torch-loop", "torch-padded"])
def test_strided_inputs_are_taken_too(name: str, layout: str) -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} mask=causal layout={layout} dtype=float32")
    assert testing.verdict(IMPLEMENTATIONS[name], problem, strided=True) is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["numpy-loop", "torch-loop", "torch-padded"])
def test_q_and_k_are_turned_by_the_positions_of_their_own_member(name: str, layout: str) -> None:
    tried = 0
    for lengths in (RAGGED, "batch=3 seqlen_q=3 seqlen_kv=6", "requests=1q9s4_1q1s30"):
        for more in (
            "dtype=float64 mask=causal",
            "dtype=bfloat16 head_dim=32 direction=forward_backward",  # of 8, scores of `large` may lie too near
            "dtype=float32 direction=backward",
            "dtype=float32 kv_dtype=int8 descale=head mask=causal",
        ):
            words = more if "head_dim" in more else f"head_dim=8 {more}"
            problem = Problem.parse(
                f"{lengths} heads_q=4 heads_kv=2 modifiers=rotary:base=100 layout={layout} {words}"
            )
            if IMPLEMENTATIONS[name].why_not(problem, CPU) is None:
                assert testing.verdict(IMPLEMENTATIONS[name], problem) is None, problem.text
                tried += 1
    assert tried >= 4


def test_gradients_of_pages_are_those_of_their_tokens_whatever_stands_behind_the_last_key() -> None:
    problem = Problem.parse(
        f"{RAGGED} {HEADS} mask=causal dtype=float32 layout=paged:page=4 direction=backward"
    )
    loop = IMPLEMENTATIONS["torch-loop"]

    def spoilt(member: int, token: int, value: float) -> str | None:
        """With that value in dk in the slot of a member's token."""

        def prepare(problem: Problem, given: Inputs) -> Prepared:
            ready = loop.prepare(problem, given)
            assert isinstance(ready, Prepared)

            def step() -> tuple[Tensor, ...]:
                dq, dk, dv = ready.step()
                dk[given.index["block_table"][member, token // 4], token % 4] = value
                return dq, dk, dv

            return replace(ready, step=step)

        return testing.verdict(replace(loop, prepare=prepare), problem)

    made = make(problem)
    _, dk, dv = loop.prepare(problem, made).step()
    assert (dk.shape, dv.shape) == (made.k.shape, made.v.shape)
    assert spoilt(0, 11, torch.nan) is None  # it has nine keys in three pages
    assert spoilt(0, 9, 1e6) is None
    assert "not finite" in (spoilt(0, 8, torch.nan) or "")
    assert "dk: row error" in (spoilt(0, 8, 1e6) or "")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_of_a_long_ragged_batch_is_judged(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "WORK", 1e7)
    text = f"requests=1q300_2q1s900_1q70s400 heads=4 head_dim=16 mask=causal dtype=float32 layout={layout}"
    problem = Problem.parse(f"{text} direction=forward_backward")
    assert inputs.sample(problem, work=1e7, seed=0).share < 0.9
    assert testing.verdict(IMPLEMENTATIONS["torch-loop"], problem) is None
    wrong = replace(problem, mask=Problem.parse("seqlen=1 heads=1 head_dim=1").mask)
    loop = IMPLEMENTATIONS["torch-loop"]
    broken = replace(loop, prepare=lambda problem, given: loop.prepare(wrong, given))
    assert "x the budget" in (testing.verdict(broken, problem) or "right")


def test_what_stands_in_the_padding_of_an_output_is_not_looked_at_but_all_else_is() -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} dtype=float32")
    loop = IMPLEMENTATIONS["torch-loop"]

    def spoilt(place: tuple[Any, ...]) -> Implementation:
        def prepare(problem: Problem, given: Inputs) -> Prepared:
            ready = loop.prepare(problem, given)
            assert isinstance(ready, Prepared)

            def step() -> Tensor:
                out: Tensor = ready.step()
                out[place] = torch.nan
                return out

            return Prepared(step=step)

        return replace(loop, prepare=prepare)

    assert testing.verdict(spoilt((0, 0, 5)), problem) is None  # the first member has five queries
    assert "not finite" in (testing.verdict(spoilt((0, 0, 4)), problem) or "")


def test_a_block_table_that_was_read_once_is_stale() -> None:
    problem = Problem.parse(f"requests=1q5s90_1q3s64 {HEADS} mask=causal dtype=float32 layout=paged:page=4")
    loop = IMPLEMENTATIONS["torch-loop"]

    def prepare(problem: Problem, given: Inputs) -> Any:
        kept = {name: tensor.clone() for name, tensor in given.index.items()}
        return loop.prepare(problem, replace(given, index=kept))

    assert testing.verdict(loop, problem) is None
    assert "x the budget" in (testing.verdict(replace(loop, prepare=prepare), problem) or "right")


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("numpy-loop", "layout=paged direction=backward", "no backward"),
        ("torch-padded", "", "a dense batch of equal lengths is torch-sdpa's"),
        ("numpy", "layout=packed", "no packed layout"),
        ("torch-varlen", "layout=paged dtype=float16", "no paged layout"),
    ],
)
def test_they_say_why_not(name: str, words: str, reason: str) -> None:
    problem = Problem.parse(f"batch=2 seqlen=8 heads=2 head_dim=8 {words}")
    device = Device(kind="cuda" if name == "torch-varlen" else "cpu")
    assert IMPLEMENTATIONS[name].why_not(problem, device) == reason


def test_varlen_takes_a_packed_batch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch's function, by its documentation, on a CPU."""
    text = (
        "requests=1q5s9_2q1s7_1q4s4 heads_q=4 heads_kv=2 head_dim=8 mask=causal dtype=float32 layout=packed"
    )
    problem = Problem.parse(text)

    def stand_in(
        q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        assert (max_q, max_k, window_size, enable_gqa) == (5, 9, (-1, 0), True)
        assert cu_seq_q.tolist() == [0, 5, 6, 7, 11]
        assert cu_seq_k.tolist() == [0, 9, 16, 23, 27]
        return IMPLEMENTATIONS["torch-loop"].prepare(problem, Inputs(q=q, k=k, v=v)).step()

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    assert testing.verdict(IMPLEMENTATIONS["torch-varlen"], problem) is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("requests=1q4_1q3 layout=packed", None),
        ("requests=1q4_1q3", "of ragged batches only packed ones"),
        ("requests=1q4_1q3s0 layout=packed", "varlen takes no empty sequences"),
        ("requests=1q4s3_1q3 layout=packed mask=causal", "no causal mask with Sq > Sk"),
    ],
)
def test_varlen_takes_no_other_ragged_batch(words: str, reason: str | None) -> None:
    problem = Problem.parse(f"{words} heads=2 head_dim=8 dtype=float16")
    assert IMPLEMENTATIONS["torch-varlen"].why_not(problem, Device(kind="cuda")) == reason


def test_small_problems_are_ragged_where_an_implementation_takes_such() -> None:
    tried = {
        (problem.layout.name, problem.uniform is None)
        for problem in testing.samples(IMPLEMENTATIONS["torch-loop"], CPU)
    }
    assert tried == {
        ("dense", True),
        *((layout, ragged) for layout in ("packed", "paged") for ragged in (True, False)),
    }
    assert all(problem.uniform for problem in testing.samples(IMPLEMENTATIONS["numpy"], CPU))


# ---------------------------------------------------------------- costs


@settings(deadline=None)
@given(sequences=lengths, page=st.integers(1, 5))
def test_least_bytes_are_those_of_tokens_and_of_what_finds_them(
    sequences: list[tuple[int, int]], page: int
) -> None:
    problem = ragged(sequences, "dtype=float16")
    queries = sum(4 * q * (8 + 12) for q, _ in sequences)
    keys = sum(2 * k * (8 + 12) for _, k in sequences)
    assert costs.least_bytes(problem) == 2 * (queries + keys)
    for layout in (Packed(), Paged(page=page)):
        found = replace(problem, layout=layout)
        index = tokens.index(found, "cpu")
        read = sum(index[name].numel() for name in index if name != "block_table")
        if "block_table" in index:
            read += sum(len(range(0, k, page)) for _, k in sequences)
        assert costs.least_bytes(found) - costs.least_bytes(problem) == 4 * read
        assert costs.flops(found) == costs.flops(problem)
