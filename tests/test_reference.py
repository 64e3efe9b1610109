"""The oracle against textbook float64 autograd, the yardstick against the native chain."""

import math
import weakref
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from drawn_masks import EXAMPLES, PRODUCTS, TEXTS, drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench import inputs, reference, scope
from attnbench.implementation import Inputs
from attnbench.problem import Linear, Problem, Softcap

GRADIENTS = "direction=forward_backward"


def make(text: str, kind: str = "normal") -> tuple[Problem, Inputs, inputs.Sample]:
    problem = Problem.parse(text)
    made = inputs.make(problem, kind=kind, seed=0, device="cpu", qkv_format="bhsd")
    return problem, made, inputs.sample(problem, work=math.inf, seed=0)


def textbook(problem: Problem, given: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The formula with every score in memory and torch's own gradients, in `dtype`; in `bhsd`."""
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in (given.q, given.k, given.v))
    mask = drawn(problem)[:, None]  # [B, 1, Sq, Sk]
    some = mask.any(-1, keepdim=True)
    shared = problem.heads_q // problem.heads_kv
    s = (q @ k.repeat_interleave(shared, 1).mT) * problem.softmax_scale
    for modifier in problem.modifiers:
        assert isinstance(modifier, Softcap)
        s = modifier.cap * torch.tanh(s / modifier.cap)
    p = s.masked_fill(~mask & some, -math.inf).softmax(-1)
    out = (p if some.all() else p * some) @ v.repeat_interleave(shared, 1)
    found = {"out": out.detach()}
    if given.dout is not None:
        grads = torch.autograd.grad(out, (q, k, v), given.dout.to(dtype))
        found |= dict(zip(("dq", "dk", "dv"), grads, strict=True))
    return found


def picked(problem: Problem, found: dict[str, Tensor], sample: inputs.Sample) -> dict[str, Tensor]:
    names = inputs.OUTPUTS[problem.direction]
    return inputs.pick(tuple(found[name] for name in names), problem, sample, "bhsd")


def relative(actual: Tensor, right: Tensor) -> float:
    return float((actual.double() - right).norm() / right.norm())


CASES = [
    f"{shape} {mask} {more} {direction}"
    for shape, mask, more, direction in (
        ("batch=1 seqlen=33 heads=2 head_dim=16", "mask=full", "", ""),
        ("batch=2 seqlen=64 heads_q=4 heads_kv=2 head_dim=16", "mask=causal", "", GRADIENTS),
        ("batch=2 seqlen_q=20 seqlen_kv=50 heads_q=6 heads_kv=2 head_dim=8 head_dim_v=24", "mask=causal", "", GRADIENTS),
        ("batch=1 seqlen_q=20 seqlen_kv=50 heads=2 head_dim=24 head_dim_v=8", "mask=causal-top-left", "", GRADIENTS),
        ("batch=1 seqlen_q=50 seqlen_kv=20 heads_q=2 heads_kv=1 head_dim=16", "mask=causal", "", GRADIENTS),
        ("batch=2 seqlen=70 heads=2 head_dim=16", "mask=window:left=9:right=2", "", GRADIENTS),
        ("batch=1 seqlen=40 heads=2 head_dim=16", "mask=causal*chunked:size=16", "scale=0.7", GRADIENTS),
        ("batch=1 seqlen=40 heads=2 head_dim=16", "mask=dilated:step=3*window:left=20", "", GRADIENTS),
        ("batch=1 seqlen=40 heads=2 head_dim=16", "mask=causal", "modifiers=softcap:cap=1.5", GRADIENTS),
        ("batch=1 seqlen=40 heads_q=4 heads_kv=2 head_dim=16", "mask=full", "modifiers=softcap:cap=3 scale=-1.5", "direction=backward"),
        ("batch=8 seqlen_q=1 seqlen_kv=300 heads_q=8 heads_kv=2 head_dim=16", "mask=full", "", "direction=inference"),
        ("batch=1 seqlen=300 heads_q=2 heads_kv=1 head_dim=8", "mask=causal", "", GRADIENTS),
    )
]  # fmt: skip


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("block", [1, 500, 2**20])
@pytest.mark.parametrize("text", CASES)
def test_the_oracle_agrees_with_textbook_autograd(
    text: str, block: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_BLOCK", block)  # blocks of a row, of some rows, of several groups
    agree_with_textbook(f"{text} dtype=bfloat16", kind)


MASK_SHAPES = (
    "batch=2 seqlen=14 heads_q=4 heads_kv=2 head_dim=8",
    "batch=3 seqlen_q=9 seqlen_kv=21 heads=2 head_dim=8 head_dim_v=6",
    "batch=2 seqlen_q=19 seqlen_kv=8 heads=1 head_dim=8",  # rows that see no key
)


@pytest.mark.parametrize("direction", ["forward", "backward", "forward_backward"])
@pytest.mark.parametrize("shape", MASK_SHAPES)
@pytest.mark.parametrize("mask", [*EXAMPLES.values(), *PRODUCTS])
def test_the_oracle_agrees_with_brute_force_for_every_mask(
    mask: str, shape: str, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_BLOCK", 100)  # blocks of a few rows
    agree_with_textbook(f"{shape} dtype=float64 mask={mask} direction={direction}", "normal")


@settings(deadline=None, max_examples=60)
@hypothesis.given(
    mask=TEXTS,
    shape=st.sampled_from(MASK_SHAPES),
    direction=st.sampled_from(["forward", "backward", "forward_backward"]),
    kind=st.sampled_from(inputs.KINDS),
)
def test_the_oracle_agrees_with_brute_force_for_any_product_of_masks(
    mask: str, shape: str, direction: str, kind: str
) -> None:
    agree_with_textbook(f"{shape} dtype=float64 mask={mask} direction={direction}", kind)


@pytest.mark.parametrize("shape", MASK_SHAPES)
@pytest.mark.parametrize("mask", [*EXAMPLES.values(), *PRODUCTS])
def test_the_oracle_agrees_with_torchs_own_attention_for_every_mask(mask: str, shape: str) -> None:
    problem, given, sample = make(f"{shape} dtype=float64 mask={mask} {GRADIENTS}")
    leaves = [t.detach().requires_grad_() for t in (given.q, given.k, given.v)]
    out = F.scaled_dot_product_attention(*leaves, attn_mask=drawn(problem)[:, None], enable_gqa=True)
    grads = torch.autograd.grad(out, leaves, given.dout)
    right = dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))
    oracle = reference.oracle(problem, given, sample)
    for name, tensor in picked(problem, right, sample).items():
        assert (oracle[name] - tensor).norm() <= 1e-12 * oracle[f"{name}_size"].norm()


def agree_with_textbook(text: str, kind: str) -> None:
    problem, given, sample = make(text, kind)
    right = picked(problem, textbook(problem, given, torch.float64), sample)
    oracle = reference.oracle(problem, given, sample)
    for name, tensor in right.items():
        assert oracle[name].dtype == torch.float64
        assert oracle[name].shape == tensor.shape
        size = max(tensor.norm(), oracle[f"{name}_size"].norm())  # terms cancel where one key has all weight
        assert (oracle[name] - tensor).norm() <= 1e-12 * size


@pytest.mark.parametrize("mask", ["document:count=4*causal", "left-padding:share=0.4*causal"])
def test_blocks_of_the_oracle_take_no_more_memory_for_masks_that_differ_by_member(
    mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time there are blocks of one member."""
    alive: list[weakref.ref[Tensor]] = []
    blocks = reference._blocks

    def counted(*words: Any) -> Any:
        assert sum(ref() is not None for ref in alive) <= most  # those of the member before
        found = blocks(*words)
        alive.extend(weakref.ref(allowed) for _, _, allowed in found if allowed is not None)
        return found

    monkeypatch.setattr(reference, "_blocks", counted)
    problem, given, sample = make(f"batch=9 seqlen=300 heads=1 head_dim=8 dtype=float32 mask={mask}")
    most = len(blocks(problem, sample, torch.device("cpu"), 0))
    reference.oracle(problem, given, sample)
    assert len(alive) > 9


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "tfloat32", "bfloat16", "float16"])
def test_a_query_that_sees_no_key_has_output_and_gradient_zero_and_no_log_sum_exp(
    dtype: str, kind: str
) -> None:
    problem, given, sample = make(
        f"batch=1 seqlen_q=9 seqlen_kv=4 heads=2 head_dim=8 dtype={dtype} mask=causal {GRADIENTS}", kind
    )
    for found in (reference.oracle(problem, given, sample), reference.yardstick(problem, given, sample)):
        assert not found["out"][:, :, :5].any()
        assert not found["dq"][:, :, :5].any()
        assert found["out"][:, :, 5:].any(-1).all()
        assert all(t.isfinite().all() for name, t in found.items() if name != "lse")
        assert torch.equal(found["lse"].isinf()[0, 0], torch.arange(9) < 5)
    sizes = reference.oracle(problem, given, sample)["dq_size"]
    assert not sizes[:, :, :5].any()
    assert sizes[:, :, 5:].all()  # also that of row 5, whose gradient cancels to zero


def test_a_sample_of_rows_that_see_no_key_is_all_zero() -> None:
    text = f"batch=1 seqlen_q=9 seqlen_kv=4 heads=2 head_dim=8 dtype=float32 mask=causal {GRADIENTS}"
    problem, given, _ = make(text)
    sample = inputs.Sample(groups=((0, 0), (0, 1)), rows=(0, 2, 4), heads_kv=2, share=1 / 3)
    found = reference.oracle(problem, given, sample)
    assert {name: tuple(t.shape) for name, t in found.items() if name in ("out", "dk")} == {
        "out": (2, 1, 3, 8),
        "dk": (2, 4, 8),
    }
    assert not any(found[name].any() for name in ("out", "dq", "dk", "dv", "dq_size", "dk_size"))


@pytest.mark.parametrize("mask", ["full", "causal", "window:left=9:right=2"])
def test_sampled_rows_are_the_same_rows_of_the_whole(mask: str) -> None:
    text = f"batch=2 seqlen=80 heads_q=4 heads_kv=2 head_dim=16 dtype=float32 mask={mask} {GRADIENTS}"
    problem, given, everything = make(text)
    sample = inputs.Sample(groups=((0, 1), (1, 0)), rows=(0, 7, 40, 63, 79), heads_kv=2, share=0.1)
    inputs.mask_dout(given, problem, sample, "bhsd")
    whole = picked(problem, textbook(problem, given, torch.float64), sample)
    part = reference.oracle(problem, given, sample)
    for name, right in whole.items():
        assert relative(part[name], right) < 1e-12
    assert part["groups"].tolist() == [[0, 1], [1, 0]]
    assert part["rows"].tolist() == [0, 7, 40, 63, 79]
    assert reference.oracle(problem, given, everything)["out"].shape == (4, 2, 80, 16)


NATIVE = (
    "batch=1 seqlen=200 heads=2 head_dim=64 mask=causal",
    "batch=1 seqlen_q=64 seqlen_kv=400 heads=2 head_dim=64 mask=full",
    "batch=1 seqlen=200 heads=2 head_dim=64 mask=full modifiers=softcap:cap=20",
)


@pytest.mark.parametrize("text", NATIVE)
@pytest.mark.parametrize("kind", inputs.COUNTED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])  # what is emulated
def test_the_yardsticks_error_is_that_of_the_native_chain(dtype: str, kind: str, text: str) -> None:
    """Not bit by bit: a device may add up in another order. RMS errors over some 10^4 elements that are
    rounded independently differ by a few percent."""
    problem, given, sample = make(f"{text} dtype={dtype} {GRADIENTS}", kind)
    oracle = reference.oracle(problem, given, sample)
    yard = reference.yardstick(problem, given, sample)
    native = picked(problem, textbook(problem, given, given.q.dtype), sample)
    for name, tensor in native.items():
        assert yard[name].dtype == given.q.dtype
        ratio = relative(yard[name], oracle[name]) / relative(tensor, oracle[name])
        assert 0.8 < ratio < 1.25, name


def test_tf32_rounds_to_ten_bits_and_errs_like_it() -> None:
    x = torch.randn(10_000)
    error = (reference._tf32(x) - x).abs() / x.abs()
    assert 2**-12 < float(error.max()) <= 2**-11
    assert torch.equal(reference._tf32(reference._tf32(x)), reference._tf32(x))
    text = "batch=1 seqlen=200 heads=2 head_dim=64 mask=full"
    errors = {}
    for dtype in ("float32", "tfloat32", "bfloat16"):
        problem, given, sample = make(f"{text} dtype={dtype}")
        oracle = reference.oracle(problem, given, sample)["out"]
        errors[dtype] = relative(reference.yardstick(problem, given, sample)["out"], oracle)
    assert 100 * errors["float32"] < errors["tfloat32"] < errors["bfloat16"] / 4


@pytest.mark.parametrize("kind", inputs.COUNTED)
def test_the_float64_yardstick_errs_by_rounding_only_but_does_err(kind: str) -> None:
    problem, given, sample = make(
        f"batch=1 seqlen=200 heads=2 head_dim=64 dtype=float64 mask=causal {GRADIENTS}", kind
    )
    oracle, yard = reference.oracle(problem, given, sample), reference.yardstick(problem, given, sample)
    for name in yard:
        assert 0 < relative(yard[name], oracle[name]) < 1e-14


def test_size_is_the_norm_without_cancellation() -> None:
    """For values independent of dout, norms and sizes agree; where they cancel, the norm is smaller."""
    problem, given, sample = make(
        f"batch=1 seqlen=512 heads=4 head_dim=64 dtype=float32 mask=full {GRADIENTS}"
    )
    oracle = reference.oracle(problem, given, sample)
    for name in ("out", "dq", "dk", "dv"):
        ratio = float(oracle[name].norm() / oracle[f"{name}_size"].norm())
        assert 0.9 < ratio < 1.1
    single = replace(problem, mask=Problem.parse(problem.text.replace("full", "window:left=0:right=0")).mask)
    oracle = reference.oracle(single, given, sample)
    assert not oracle["dq"].any()
    assert not oracle["dk"].any()
    assert oracle["dq_size"].all()
    assert oracle["dk_size"].all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("mask=full", None),
        ("mask=causal*window:left=3 modifiers=softcap:cap=30 scale=0.1 direction=backward", None),
        ("mask=full mechanism=linear", None),
        ("mask=document:count=4*causal", None),
        ("mask=full modifiers=rotary", None),
        ("mask=full kv_dtype=int8", None),
        ("mask=full layout=paged kv_dtype=int8", None),
        ("mask=full layout=packed direction=backward", None),
        ("mask=full layout=paged", None),
        ("mask=full layout=paged direction=backward", None),
        (
            "mask=full layout=paged:append=1 direction=backward",
            "no gradients of a call that appends: it changes what they are taken of",
        ),
        ("mask=full layout=paged modifiers=rotary", None),
        ("mask=full dropout=0.1", None),
        ("mask=full dropout=0.1 direction=backward", "no reference for the gradients of dropout yet"),
        ("mask=full shared_kv=true direction=backward", None),
        ("mask=full shared_kv=true layout=paged", None),
        (
            "mask=full shared_kv=true kv_dtype=int8",
            "no reference for shared k and v with a type of their own yet",
        ),
        ("mask=full shared_kv=true dropout=0.1", "no reference for shared k and v with dropout yet"),
        (
            "mask=full shared_kv=true mechanism=linear",
            "no reference for shared k and v with the linear mechanism yet",
        ),
    ],
)
def test_what_cannot_be_computed_yet_is_said_in_words(change: str, reason: str | None) -> None:
    problem = Problem.parse(f"batch=1 seqlen=8 heads=1 head_dim=8 dtype=float32 {change}")
    assert scope.computable(problem) == reason


def test_ragged_batches_can_be_computed_but_of_softmax_alone_and_not_without_tokens() -> None:
    problem = Problem.parse("requests=1q8_1q4_1q0s3 heads=1 head_dim=8 dtype=float32 mask=full")
    assert scope.computable(problem) is None
    linear = scope.computable(replace(problem, mechanism=Linear()))
    assert linear == "no reference for the linear mechanism in packed, paged or ragged batches yet"
    empty = replace(problem, sequences=((0, 4), (0, 2)))
    assert scope.computable(empty) == "no reference for batches without queries or keys yet"
