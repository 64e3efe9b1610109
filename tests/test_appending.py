"""New k and v that a call writes into pages: from the text of the layout to the verdict."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import appending, cage

from attnbench import (
    Device,
    Implementation,
    Inputs,
    changes,
    costs,
    inputs,
    reference,
    scope,
    testing,
    tokens,
    worker,
)
from attnbench.builtin import numpy_textbook, torch_varlen
from attnbench.errors import ProblemError
from attnbench.problem import Paged, Problem, parse_layout

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = Device(kind="cpu")
IMPLEMENTATIONS = {
    one.name: one for module in (numpy_textbook, torch_varlen) for one in module.attnbench_implementations()
}
NAMES = ("torch-loop", "torch-padded", "numpy-loop")
HEADS = "heads_q=4 heads_kv=2 head_dim=8 head_dim_v=12"
RAGGED = "requests=1q3s37_1q0s5_2q1s40_1q7"
LAYOUT = "layout=paged:page=4:append=1"


def make(problem: Problem, kind: str = "normal") -> Inputs:
    return inputs.make(problem, kind=kind, seed=0, device="cpu", qkv_format="bhsd")


sequences = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda found: (found[0], sum(found))),
    min_size=1,
    max_size=5,
).filter(lambda found: max(q for q, _ in found) > 0)


def ragged(lengths: list[tuple[int, int]], page: int, words: str = "") -> Problem:
    of = Problem.parse(f"seqlen=1 {HEADS} {words}")
    return replace(of, sequences=tuple(lengths), layout=Paged(page=page, append=1))


# ---------------------------------------------------------------- the text


@given(page=st.integers(1, 2**16), append=st.integers(0, 1))
def test_the_text_is_read_back(page: int, append: int) -> None:
    layout = Paged(page=page, append=append)
    assert parse_layout(str(layout)) == layout
    problem = replace(Problem.parse(f"seqlen=4 {HEADS}"), layout=layout)
    assert Problem.parse(problem.text) == problem
    assert problem.appends == bool(append)


def test_without_append_the_text_is_what_it_was() -> None:
    assert str(parse_layout("paged:page=32:append=0")) == "paged:page=32"
    assert str(parse_layout("paged:append=1")) == "paged:append=1"


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("paged:append=2", "append of paged must be at most 1, got 2"),
        ("paged:append=-1", "append of paged must be at least 0, got -1"),
        ("paged:append=true", "append of paged must be a whole number, got 'true'"),
        ("paged:page=99999999999", "page of paged must be at most 65536, got 99999999999"),
        ("paged:append=", "append of paged must be a whole number, got ''"),
        ("paged:append=1:append=1", "layout `paged` is given `append` twice"),
        ("paged:apend=1", "layout `paged` has no `apend`"),
        ("paged:page=0:append=1", "page of paged must be at least 1, got 0"),
        ("packed:append=1", "layout `packed` has no `append`"),
        ("append", "unknown layout `append`"),
    ],
)
def test_what_cannot_be_meant_is_refused(layout: str, reason: str) -> None:
    with pytest.raises(ProblemError) as caught:
        Problem.parse(f"seqlen=4 {HEADS} layout={layout}")
    assert caught.value.message == reason


@pytest.mark.parametrize("lengths", ["seqlen_q=5 seqlen_kv=3", "requests=1q4_1q5s3_1q0s3"])
def test_a_member_cannot_append_more_keys_than_it_has(lengths: str) -> None:
    assert Problem.parse(f"{lengths} {HEADS} layout=paged").sequences
    with pytest.raises(
        ProblemError, match="last Sq keys of each member: its Sq must be at most its Sk, got 5 and 3"
    ):
        Problem.parse(f"{lengths} {HEADS} layout=paged:append=1")


# ---------------------------------------------------------------- inputs


@settings(deadline=None, max_examples=30)
@given(lengths=sequences, page=st.integers(1, 5), kind=st.sampled_from(inputs.KINDS))
def test_new_tokens_are_those_that_the_pages_lack(
    lengths: list[tuple[int, int]], page: int, kind: str
) -> None:
    problem = ragged(lengths, page)
    made, whole = make(problem, kind), make(tokens.before(problem), kind)
    table = made.index["block_table"]
    assert torch.equal(table, whole.index["block_table"])
    assert torch.equal(made.q, whole.q)
    for name in "kv":
        pages, right, new = getattr(made, name), getattr(whole, name), getattr(made, f"{name}_new")
        slots = [
            (int(table[b, at // page]), at % page)
            for b, (sq, sk) in enumerate(lengths)
            for at in range(sk - sq, sk)
        ]
        assert len(new) == len(slots)
        for slot, token in zip(slots, new, strict=True):
            assert torch.equal(right[slot], token)
            assert pages[slot].abs().max() <= inputs.JUNK[name]
            assert not torch.equal(pages[slot], token)
            pages[slot] = token
        assert torch.equal(pages, right)


@settings(deadline=None, max_examples=20)
@given(lengths=sequences, kind=st.sampled_from(["normal", "peaked"]))
def test_the_right_answer_is_that_of_pages_that_hold_all_keys(
    lengths: list[tuple[int, int]], kind: str
) -> None:
    problem = ragged(lengths, 3, "mask=causal dtype=float64")
    assert tokens.plain(problem) == tokens.plain(tokens.before(problem))
    sample = inputs.sample(problem, work=1e9, seed=0)
    assert sample == inputs.sample(tokens.before(problem), work=1e9, seed=0)
    made = make(tokens.plain(problem), kind)
    one, other = (reference.oracle(of, made, sample) for of in (problem, tokens.before(problem)))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_new_values_that_are_keys_too_are_stored_once() -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS.replace('dim_v=12', 'dim_v=6')} {LAYOUT} shared_kv=true")
    made = make(problem)
    for one in (made, inputs.strided(problem, made, "bhsd"), worker._copy(made)):
        assert one.k_new is not None
        assert one.v_new is not None
        assert one.k_new.data_ptr() == one.v_new.data_ptr()
        assert (one.k_new.shape, one.v_new.shape) == ((12, 2, 8), (12, 2, 6))
        assert len(one.tensors) == 6
    assert made.k.abs().max() <= inputs.JUNK["k and v"]


@pytest.mark.parametrize("strided", [False, True])
def test_other_values_are_written_into_the_same_storage(strided: bool) -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} {LAYOUT}")
    made, right = make(problem), make(problem, "peaked")
    if strided:
        made = inputs.strided(problem, made, "bhsd")
        assert made.k_new is not None
        assert not made.k_new.is_contiguous()
    before = [tensor.data_ptr() for tensor in made.tensors]
    inputs.overwrite(made, problem, kind="peaked", seed=0, qkv_format="bhsd")
    assert [tensor.data_ptr() for tensor in made.tensors] == before
    assert len(before) == len(right.tensors) == 8
    assert all(torch.equal(one, other) for one, other in zip(made.tensors, right.tensors, strict=True))


# ---------------------------------------------------------------- what a call has changed


def test_only_new_values_may_be_written_and_only_into_their_slots() -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} {LAYOUT}")
    given = make(problem)
    untouched = [tensor.clone() for tensor in given.tensors]
    promised = changes.promised(given, problem)
    assert all(torch.equal(one, other) for one, other in zip(untouched, given.tensors, strict=True))
    several = "12 of 12 new tokens are not in their slots after the call, the first is key 34 of member 0"
    assert changes.broken(given, problem, promised) == f"k: {several}"
    appending.append(problem, given)
    assert changes.broken(given, problem, promised) is None
    appending.append(problem, given)
    assert changes.broken(given, problem, promised) is None, "to write them again changes nothing"
    assert given.k_new is not None
    for tensor in (given.q, given.k_new, given.k[given.index["block_table"][0, 0]]):
        tensor[0, 0, 0].neg_()
        assert "changed" in (changes.broken(given, problem, promised) or "")
        tensor[0, 0, 0].neg_()
    assert given.v_new is not None
    place = given.index["block_table"][3, 39 // 4], 39 % 4
    given.v[place] = torch.nextafter(given.v[place], torch.tensor(torch.inf))
    one = "v: 1 of 12 new tokens are not in their slots after the call, the first is key 39 of member 3"
    assert changes.broken(given, problem, promised) == one


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "appended-to-nothing": r"k: 5 of 5 .* key 34 of member 0 \(",
        "appended-too-late": r"out: row error .* x the budget",
        "appended-one-slot-early": r"k: 5 of 5 .* key 34 of member 0, and the inputs were changed elsewhere",
        "appended-the-other-way-round": r"k: 5 of 5 .* key 34 of member 0 \(",
        "appended-to-the-first-member": r"k: 2 of 5 .* key 39 of member 1, and the inputs were changed elsewhere",
        "appended-last-token-alone": r"k: 2 of 5 .* key 34 of member 0 \(",
        "appended-and-cleared-behind": r"the inputs were changed by the call",
        "newest-token-left-out": r"out: row error .* x the budget",
    }.items(),
)
def test_each_defect_is_wrong_for_its_own_reason(name: str, reason: str) -> None:
    of = Problem.parse(f"requests=1q3s37_2q1s40_1q0s9 heads=2 head_dim=16 mask=causal {LAYOUT}")
    one = next(one for one in appending.DEFECTS if one.name == name)
    assert cage.judge(one.clean, of).reason is None
    found = cage.judge(one.broken, of).reason
    assert re.match(reason, found or "right"), found


def test_every_defect_has_its_reason_here() -> None:
    (mark,) = test_each_defect_is_wrong_for_its_own_reason.pytestmark  # type: ignore[attr-defined]
    assert [name for name, _ in mark.args[1]] == [one.name for one in appending.DEFECTS]


# ---------------------------------------------------------------- implementations


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [RAGGED, "batch=3 seqlen_q=1 seqlen_kv=40", "batch=2 seqlen=8"])
def test_ours_append_and_are_right(name: str, lengths: str) -> None:
    for words in (
        "mask=causal",
        "mask=full dtype=float64",
        "mask=causal dtype=bfloat16",
        "mask=window:left=3",
    ):
        problem = Problem.parse(f"{lengths} {HEADS} {words} {LAYOUT}")
        if IMPLEMENTATIONS[name].why_not(problem, CPU) is None:
            assert testing.verdict(IMPLEMENTATIONS[name], problem) is None
            assert testing.verdict(IMPLEMENTATIONS[name], problem, strided=True) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "words",
    [
        "kv_dtype=int8 descale=head",
        "dtype=bfloat16 kv_dtype=float8_e4m3",
        "modifiers=rotary",
        "head_dim_v=6 shared_kv=true",
    ],
)
def test_what_is_stored_in_another_type_or_turned_or_shared_is_appended_too(name: str, words: str) -> None:
    problem = Problem.parse(f"{RAGGED} heads_q=4 heads_kv=2 head_dim=8 mask=causal {words} {LAYOUT}")
    ours = IMPLEMENTATIONS[name]
    if ours.why_not(problem, CPU) is None:
        assert scope.computable(problem) is None
        assert testing.verdict(ours, problem, strided=True) is None
        assert "not in their slots" in (testing.verdict(without(name), problem) or "right")
    else:
        assert (name, problem.dtype) == ("numpy-loop", "bfloat16")


def test_a_sample_of_a_long_batch_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "WORK", 1e7)
    text = f"requests=1q300_2q1s900_1q70s400 heads=4 head_dim=16 mask=causal {LAYOUT}"
    problem, loop = Problem.parse(text), IMPLEMENTATIONS["torch-loop"]
    assert inputs.sample(problem, work=1e7, seed=0).share < 0.9
    assert testing.verdict(loop, problem) is None


def without(name: str) -> Implementation:
    """One of ours that never writes: it attends over what is in the pages."""
    ours = IMPLEMENTATIONS[name]
    return replace(
        ours,
        prepare=lambda problem, given: ours.prepare(
            tokens.before(problem), replace(given, k_new=None, v_new=None)
        ),
    )


@pytest.mark.parametrize("name", NAMES)
def test_who_does_not_append_is_told_so(name: str) -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} {LAYOUT}")
    assert "not in their slots after the call" in (testing.verdict(without(name), problem) or "right")


def test_who_cannot_append_says_why_not() -> None:
    problem = Problem.parse(f"{RAGGED} {HEADS} {LAYOUT}")
    loop = IMPLEMENTATIONS["torch-loop"]
    unable = replace(loop, capabilities=replace(loop.capabilities, append=False))
    assert unable.why_not(problem, CPU) == "no append of new k and v"
    assert unable.why_not(tokens.before(problem), CPU) is None


def test_small_problems_append_where_an_implementation_takes_that() -> None:
    tried = [one for one in testing.samples(IMPLEMENTATIONS["torch-loop"], CPU) if one.appends]
    assert {one.dtype for one in tried} == IMPLEMENTATIONS["torch-loop"].capabilities.dtypes
    assert {one.uniform is None for one in tried} == {True, False}


# ---------------------------------------------------------------- costs


@settings(deadline=None, max_examples=40)
@given(lengths=sequences, page=st.integers(1, 5))
def test_what_is_appended_is_read_once_and_written_once(lengths: list[tuple[int, int]], page: int) -> None:
    problem = ragged(lengths, page, "dtype=float16")
    made = make(problem)
    assert made.k_new is not None
    assert made.v_new is not None
    table, moved = made.index["block_table"], 2 * made.q.numel() + 2 * len(made.q) * 4 * 12  # q and out
    moved += 4 * (len(made.index["cu_seqlens_q"]) + len(made.index["seqused_k"]))
    for b, (sq, sk) in enumerate(lengths):
        moved += 4 * table[b, : len(range(0, sk, page))].numel()
        for at in range(sk):
            token = 2 * (made.k[0, 0].numel() + made.v[0, 0].numel())
            moved += token if at < sk - sq else 2 * token  # from its page, or from k_new and v_new into it
    assert costs.least_bytes(problem) == moved
    assert costs.flops(problem) == costs.flops(tokens.before(problem))
    assert costs.touched_bytes(problem) == costs.touched_bytes(tokens.before(problem))
