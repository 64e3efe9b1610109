"""Dropped weights: read out of the output where values are unit vectors, elsewhere by the output's moments."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_formulas import CPU, IMPLEMENTATIONS, everything, make
from torch import Tensor

from attnbench import dropout, inputs, reference, scope, verify
from attnbench.implementation import Inputs
from attnbench.problem import Problem
from attnbench.testing import verdict

TEXT = "batch=2 seqlen=128 heads_q=4 heads_kv=2 head_dim=32 dtype=float32 mask=causal dropout=0.1"
Drop = Callable[[Tensor], Tensor]


def fairly(p: Tensor, rate: float = 0.1) -> Tensor:
    return p * (torch.rand(p.shape) >= rate) / (1 - rate)


def attention(problem: Problem, made: Inputs, drop: Drop, on_scores: Drop = lambda s: s) -> Tensor:
    shared = problem.heads_q // problem.heads_kv
    q, k, v = made.q, *(t.repeat_interleave(shared, 1) for t in (made.k, made.v))
    (sq, sk) = problem.uniform
    allowed = problem.mask.allowed(torch.arange(sq)[:, None], torch.arange(sk), sq, sk)
    s = on_scores(q @ k.mT * problem.softmax_scale).masked_fill(~allowed, -math.inf)
    return drop(s.softmax(-1)) @ v


def reason(text: str, kind: str, drop: Drop, on_scores: Drop = lambda s: s) -> str | None:
    problem = Problem.parse(text)
    made, sample = make(problem, kind), everything(problem)
    oracle, yard = (f(problem, made, sample) for f in (reference.oracle, reference.yardstick))
    out = inputs.pick((attention(problem, made, drop, on_scores),), problem, sample, "bhsd")
    return verify.Standard(problem, oracle, yard, 1.0, kind).compare(out)[1]


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_a_fair_dropout_is_right(rate: float, kind: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        text = TEXT.replace("dropout=0.1", f"dropout={rate}")
        assert reason(text, kind, lambda p: fairly(p, rate)) is None, seed


DEFECTS: dict[str, tuple[Drop, str]] = {
    "ignored": (lambda p: p, "row error"),
    "not rescaled": (lambda p: p * (torch.rand(p.shape) >= 0.1), "row error"),
    "of a fifth, rescaled by it": (lambda p: fairly(p, 0.2), "row error"),
    "of a fifth, rescaled by a tenth": (
        lambda p: fairly(p, 0.2) * 0.8 / 0.9,
        "% of .* weights dropped, expected 10 %",
    ),
    "of whole rows": (
        lambda p: p * (torch.rand(*p.shape[:3], 1) >= 0.1) / 0.9,
        "neighbouring keys drop the same|weights dropped",
    ),
    "of whole columns": (
        lambda p: p * (torch.rand(*p.shape[:2], 1, p.shape[3]) >= 0.1) / 0.9,
        "neighbouring rows|weights dropped",
    ),
    "alike in all heads": (
        lambda p: p * (torch.rand(p.shape[2:]) >= 0.1) / 0.9,
        "neighbouring heads drop the same",
    ),
    "leaves a little": (lambda p: p * ((torch.rand(p.shape) >= 0.1) + 0.01) / 0.9, "row error"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_an_unfair_dropout_is_wrong(defect: str) -> None:
    torch.manual_seed(0)
    drop, what = DEFECTS[defect]
    told = reason(TEXT, "peaked", drop)
    assert told is not None
    assert re.search(what, told), told


def test_dropout_of_scores_is_wrong() -> None:
    torch.manual_seed(0)
    told = reason(TEXT, "peaked", lambda p: p, lambda s: s * (torch.rand(s.shape) >= 0.1) / 0.9)
    assert told is not None
    assert "row error" in told


@pytest.mark.parametrize(
    ("drop", "what"),
    [
        (lambda p: p, "the variance is"),
        (lambda p: fairly(p, 0.3), "the variance is"),
        (lambda p: p * (torch.rand(p.shape) >= 0.1), "the mean is -0."),
        (lambda p: p * math.nan, "100 % of it is not finite"),
    ],
)
def test_moments_tell_what_values_hide(drop: Drop, what: str) -> None:
    torch.manual_seed(0)
    text = TEXT.replace("batch=2", "batch=8").replace("mask=causal", "mask=full")
    told = reason(text, "normal", drop)
    assert told is not None
    assert what in told


def spoilt(edit: Callable[[Tensor], None], seed: int) -> str | None:
    problem = Problem.parse(TEXT.replace("mask=causal", "mask=full"))
    made = inputs.make(problem, kind="large", seed=seed, device="cpu", qkv_format="bhsd")
    sample, other = everything(problem), replace(made, v=made.v.clone())
    oracle, yard = (f(problem, made, sample) for f in (reference.oracle, reference.yardstick))
    edit(other.v)
    out = inputs.pick((attention(problem, other, fairly),), problem, sample, "bhsd")
    return verify.Standard(problem, oracle, yard, 1.0, "large").compare(out)[1]


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v[:, :, -1].copy_(v[:, :, -2]),
        lambda v: v[:, :, 0].zero_(),
        lambda v: v[:, 1, -8:].copy_(v[:, 0, -8:]),
        lambda v: v[:, 1, 56:72].copy_(v[:, 0, 56:72]),
        lambda v: v[-1, :, 40:80].mul_(1.001),
    ],
)
def test_a_wrong_value_shows_whatever_is_dropped(edit: Callable[[Tensor], None]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        assert spoilt(lambda v: None, seed) is None
        assert spoilt(edit, seed) is not None, seed


def test_large_rows_look_at_all_keys_under_dropout() -> None:
    chance = inputs._spread(0.3, 4, 128, torch.device("cpu"))
    for head in (
        chance
    ):  # of 64 multiples no two neighbours are farther apart than 1 / 24, one row having gone to the end
        keys = (head * 24).long().bincount(minlength=24)
        assert len(keys) == 24
        assert int(keys.min()) >= 1
        assert min(int(keys[0]), int(keys[-1])) >= 32


def test_few_rare_drops_are_no_reason() -> None:
    """At p = 0.01 the two of three equal rows are dropped once in 3,400 times, far beyond six standard deviations."""
    right = torch.zeros(1, 1, 50, 4, dtype=torch.float64)
    right[0, 0, :3, 0] = 1
    actual = right / 0.99
    actual[0, 0, :2] = 0
    assert dropout.unlikely(actual, right, right.norm(dim=-1), 0.01) is None
    kept = torch.ones(1, 1, 5, 4, dtype=torch.bool)
    kept[0, 0, :3, 0] = False
    assert dropout.unfair(kept, torch.ones(1, 1, 5, 4), 0.01, 0.5) is None


def test_the_mean_over_many_calls_is_the_output_without_dropout() -> None:
    """A mean over n calls is off by sqrt(p / (1 - p) / n) times the size of its independent terms."""
    problem = Problem.parse("batch=1 seqlen=48 heads=2 head_dim=16 dtype=float32 mask=causal dropout=0.1")
    made, sample, calls = make(problem), everything(problem), 400
    oracle = reference.oracle(problem, made, sample)
    for name in ("torch-naive", "torch-sdpa", "numpy"):
        prepared = IMPLEMENTATIONS[name].prepare(problem, made)
        total = sum(prepared.read(prepared.step()).double() for _ in range(calls)) / calls
        off = inputs.pick((total,), problem, sample, "bhsd")["out"] - oracle["out"]
        bound = dropout.SIGMAS * math.sqrt(0.1 / 0.9 / calls)
        assert float(off.norm() / oracle["out_size"].norm()) < bound / 2
        assert float((off.norm(dim=-1) / oracle["out_size"]).max()) < bound


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["numpy", "torch-naive", "torch-sdpa", "torch-sdpa-math"])
def test_implementations_of_dropout_are_right(name: str, dtype: str) -> None:
    torch.manual_seed(0)
    tried = 0
    for shape in (
        "batch=2 seqlen=70 heads_q=4 heads_kv=2 head_dim=16 head_dim_v=12",
        "seqlen_q=33 seqlen_kv=150 heads=3 head_dim=8",
        "seqlen_q=150 seqlen_kv=33 heads=2 head_dim=8",
    ):
        for mask in ("full", "causal", "window:left=9:right=3"):
            problem = Problem.parse(f"{shape} dtype={dtype} mask={mask} dropout=0.1")
            if (IMPLEMENTATIONS[name].why_not(problem, CPU) or scope.computable(problem)) is None:
                tried += 1
                assert verdict(IMPLEMENTATIONS[name], problem) is None, problem.text
    assert tried or (name == "numpy" and dtype.endswith("16"))


def test_dropout_goes_with_modifiers() -> None:
    torch.manual_seed(0)
    for modifiers in ("alibi", "sinks", "rotary", "bias+relative-bias+softcap:cap=5"):
        problem = Problem.parse(f"{TEXT} modifiers={modifiers}")
        for name in ("numpy", "torch-naive"):
            assert verdict(IMPLEMENTATIONS[name], problem) is None, (name, modifiers)


def test_values_are_unit_vectors_where_weights_are_read_out() -> None:
    problem = Problem.parse("batch=2 seqlen=40 heads=2 head_dim=8 dropout=0.1")
    assert torch.equal(make(problem).v, make(replace(problem, dropout=0.0)).v)
    for kind in inputs.READ_OUT:
        v = make(problem, kind).v
        assert torch.equal(v.sum(2), torch.ones(2, 2, 8))
        start = int(v[0, 0, :, 0].argmax())
        assert torch.equal(v[:, :, start : start + 8], torch.eye(8).expand(2, 2, 8, 8))
        assert torch.equal(make(problem, kind).q, make(replace(problem, dropout=0.0), kind).q)


def test_errors_of_dropped_outputs_are_those_of_read_out_weights() -> None:
    assert inputs.counted(Problem.parse(TEXT)) == ("peaked",)
    assert inputs.counted(Problem.parse(TEXT.replace(" dropout=0.1", ""))) == ("normal", "peaked")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("direction=backward", "no reference for the gradients of dropout yet"),
        ("mechanism=linear", "no reference for dropout with the linear mechanism yet"),
        ("mechanism=dot", None),
        ("direction=inference", None),
    ],
)
def test_what_is_not_verified_yet_is_said(words: str, why: str | None) -> None:
    assert scope.computable(Problem.parse(f"{TEXT} {words}")) == why
