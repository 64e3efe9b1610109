"""Sound algorithms are accepted, planted defects are caught, contracts are checked.

`fit_factors.py` fits the factors of the gradients on the sound algorithms below. Each maps (problem, inputs in
`bhsd`) to a dict of out, dq, dk and dv, and takes any mask of indices.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnbench import inputs, reference, verify
from attnbench.implementation import Inputs
from attnbench.problem import Causal, CausalTopLeft, DType, Full, Problem, Softcap, Window
from attnbench.records import Accuracy, worst

Algorithm = Callable[[Problem, Inputs], dict[str, Tensor]]


def allowed(problem: Problem) -> Tensor:
    """[Sq, Sk]."""
    sq, sk = problem.uniform
    return problem.mask.allowed(torch.arange(sq)[:, None], torch.arange(sk)[None], sq, sk)


def gradients(attend: Callable[..., Tensor], given: Inputs) -> dict[str, Tensor]:
    """`attend` with torch's own backward pass, where the inputs have a dout."""
    if given.dout is None:
        return {"out": attend(given.q, given.k, given.v)}
    leaves = [t.detach().requires_grad_() for t in (given.q, given.k, given.v)]
    out = attend(*leaves)
    grads = torch.autograd.grad(out, leaves, given.dout)
    return {"out": out.detach(), **dict(zip(("dq", "dk", "dv"), grads, strict=True))}


def plain(problem: Problem, given: Inputs, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The plain chain as everybody writes it, in the dtype of the inputs; `mask` in place of the problem's."""
    mask = allowed(problem) if mask is None else mask
    some = mask.any(-1, keepdim=True)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shared = problem.heads_q // problem.heads_kv
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        s = (q @ k.mT) * problem.softmax_scale
        for cap in caps(problem):
            s = cap * torch.tanh(s / cap)
        p = s.masked_fill(~mask & some, -math.inf).softmax(-1)
        return (p if some.all() else p * some) @ v

    return gradients(attend, given)


def wide(problem: Problem, given: Inputs, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Everything in float32 (float64 for float64), rounded once at the end."""
    dtype = given.q.dtype
    to = torch.promote_types(dtype, torch.float32)
    dout = None if given.dout is None else given.dout.to(to)
    wider = Inputs(q=given.q.to(to), k=given.k.to(to), v=given.v.to(to), dout=dout)
    return {name: t.to(dtype) for name, t in plain(problem, wider, mask).items()}


def sdpa(problem: Problem, given: Inputs) -> dict[str, Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sq, sk = problem.uniform
        causal = isinstance(problem.mask, Causal) and sq == sk
        mask = None if causal or isinstance(problem.mask, Full) else allowed(problem)
        gqa = problem.heads_q != problem.heads_kv
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=problem.softmax_scale, enable_gqa=gqa
        )

    assert not problem.modifiers
    return gradients(attend, given)


def sdpa_math(problem: Problem, given: Inputs) -> dict[str, Tensor]:
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(problem, given)


def caps(problem: Problem) -> list[float]:
    return [m.cap for m in problem.modifiers if isinstance(m, Softcap)]


def tiled(
    problem: Problem,
    given: Inputs,
    *,
    tile: int = 64,
    half_partials: bool = False,
    row_sum: bool = True,
    slopes: bool = True,
) -> dict[str, Tensor]:
    """Flash-attention: online softmax over key tiles, and a backward pass from the log-sum-exp.

    Sums are kept in float32; P and dS are rounded to the dtype before their products, dk and dv per query
    head before they are summed over a group (Dao 2023, algorithms 1 and 2, and its CUDA kernels).
    With `half_partials` each tile's output is rounded before the tiles are combined (split-KV). Without
    `row_sum` or `slopes` the backward pass is wrong.
    """
    dtype = given.q.dtype
    to = torch.promote_types(dtype, torch.float32)
    shared, scale = problem.heads_q // problem.heads_kv, problem.softmax_scale

    def narrow(t: Tensor) -> Tensor:
        return t.to(dtype).to(to)

    q = given.q.to(to)
    k, v = (t.to(to).repeat_interleave(shared, 1) for t in (given.k, given.v))
    mask = allowed(problem)
    tiles = [slice(at, at + tile) for at in range(0, k.shape[2], tile)]

    def scores(at: slice) -> tuple[Tensor, Tensor]:
        s, slope = q @ k[:, :, at].mT * scale, torch.ones(())
        for cap in caps(problem):
            bent = torch.tanh(s / cap)
            s, slope = cap * bent, slope * (1 - bent * bent)
        return s.masked_fill(~mask[:, at], -math.inf), slope

    top = torch.full((*q.shape[:3], 1), torch.finfo(to).min, dtype=to)
    total, acc = torch.zeros_like(top), torch.zeros(*q.shape[:3], v.shape[3], dtype=to)
    for at in tiles:
        s, _ = scores(at)
        high = torch.maximum(top, s.amax(-1, keepdim=True))
        p, shrink = (s - high).exp(), (top - high).exp()
        part = narrow(p) @ v[:, :, at]
        if half_partials:
            size = p.sum(-1, keepdim=True).clamp(min=1e-30)
            part = narrow(part / size) * size
        total, acc, top = total * shrink + p.sum(-1, keepdim=True), acc * shrink + part, high
    out = acc / total.masked_fill(total == 0, 1)
    found = {"out": out.to(dtype)}
    if given.dout is None:
        return found
    dout, lse = given.dout.to(to), top + total.masked_fill(total == 0, 1).log()
    delta = (dout * narrow(out)).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for at in tiles:
        s, slope = scores(at)
        p = (s - lse).exp()
        dv[:, :, at] = narrow(p).mT @ dout
        ds = narrow(p * (dout @ v[:, :, at].mT - delta * row_sum) * (slope if slopes else 1))
        dq += ds @ k[:, :, at] * scale
        dk[:, :, at] = ds.mT @ q * scale
    grouped = (narrow(t).unflatten(1, (-1, shared)).sum(2) for t in (dk, dv))
    return found | dict(zip(("dq", "dk", "dv"), (dq.to(dtype), *(t.to(dtype) for t in grouped)), strict=True))


def split_kv(problem: Problem, given: Inputs) -> dict[str, Tensor]:
    return tiled(problem, given, tile=128, half_partials=True)


SOUND: dict[str, Algorithm] = {
    "plain": plain,
    "wide": wide,
    "sdpa": sdpa,
    "sdpa-math": sdpa_math,
    "tiled": tiled,
    "split-kv": split_kv,
}


# ---------------------------------------------------------------- the rule


class Case:
    """A problem with inputs, oracle and yardstick of one kind."""

    def __init__(self, problem: Problem, kind: str) -> None:
        self.problem, self.kind = problem, kind
        self.sample = inputs.sample(problem, work=math.inf, seed=0)
        self.inputs = inputs.make(problem, kind=kind, seed=0, device="cpu", qkv_format="bhsd")
        self.oracle = reference.oracle(problem, self.inputs, self.sample)
        self.yard = reference.yardstick(problem, self.inputs, self.sample)
        self.standard = verify.Standard(problem, self.oracle, self.yard, self.sample.share)

    def judge(self, found: dict[str, Tensor]) -> tuple[Accuracy, str | None]:
        names = inputs.OUTPUTS[self.problem.direction]
        picked = inputs.pick(tuple(found[n] for n in names), self.problem, self.sample, "bhsd")
        return self.standard.compare(picked)


@lru_cache(maxsize=32)
def case(text: str, kind: str) -> Case:
    return Case(Problem.parse(text), kind)


DTYPES = ("float32", "bfloat16", "float16")
GRADIENTS = "direction=forward_backward"
SHAPES = {
    "square": "batch=1 seqlen=160 heads=2 head_dim=64",
    "grouped": "batch=2 seqlen_q=64 seqlen_kv=160 heads_q=4 heads_kv=2 head_dim=32 head_dim_v=64",
    "more-queries": "batch=1 seqlen_q=96 seqlen_kv=40 heads=2 head_dim=64",
    "decode": "batch=3 seqlen_q=1 seqlen_kv=256 heads=2 head_dim=64",
}


@pytest.mark.parametrize("algorithm", SOUND)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sound_algorithms_are_accepted(shape: str, dtype: str, algorithm: str) -> None:
    for mask, kind in product(("full", "causal", "window:left=15:right=3"), inputs.KINDS):
        there = case(f"{SHAPES[shape]} dtype={dtype} mask={mask} {GRADIENTS}", kind)
        _, reason = there.judge(SOUND[algorithm](there.problem, there.inputs))
        assert reason is None, (mask, kind)


@pytest.mark.parametrize("algorithm", ["plain", "wide", "tiled", "split-kv"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sound_algorithms_with_a_softcap_are_accepted(dtype: str, algorithm: str) -> None:
    for kind in inputs.KINDS:
        there = case(
            f"{SHAPES['square']} dtype={dtype} mask=causal modifiers=softcap:cap=20 {GRADIENTS}", kind
        )
        _, reason = there.judge(SOUND[algorithm](there.problem, there.inputs))
        assert reason is None, kind


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_narrow_heads_whose_rows_are_zero_by_chance_are_accepted(dim: int) -> None:
    for dtype, kind in product((*DTYPES, "float64"), inputs.KINDS):
        there = case(f"batch=2 seqlen=64 heads=4 head_dim={dim} dtype={dtype} mask=causal {GRADIENTS}", kind)
        assert there.judge(tiled(there.problem, there.inputs))[1] is None, (dtype, kind)


def test_many_weights_may_be_added_up_in_order() -> None:
    there = case("seqlen_q=64 seqlen_kv=32768 heads=2 head_dim=64 dtype=float32 mask=causal", "peaked")
    q, k, v = there.inputs.q, there.inputs.k, there.inputs.v
    s = (q @ k.mT * there.problem.softmax_scale).masked_fill(~allowed(there.problem), -math.inf)
    p = (s - s.amax(-1, keepdim=True)).exp()
    total = torch.zeros(*p.shape[:-1], 8)  # as a vector of eight lanes does it
    for part in p.split(8, -1):
        total += part
    assert there.judge({"out": p / total.sum(-1, keepdim=True) @ v})[1] is None


def test_queries_with_a_single_key_do_not_reject_gradients_that_vanish_only_by_cancellation() -> None:
    for dtype, kind in product((*DTYPES, "float64"), inputs.KINDS):
        there = case(f"{SHAPES['square']} dtype={dtype} mask=window:left=0:right=0 {GRADIENTS}", kind)
        found = tiled(there.problem, there.inputs)
        assert not there.oracle["dq"].any()
        assert there.judge(found)[1] is None, (dtype, kind)


@pytest.mark.parametrize("kind", inputs.COUNTED)
def test_each_dtype_is_a_class_and_tf32_products_are_accepted_only_for_tfloat32(kind: str) -> None:
    over = {}
    for dtype, accepted in (("tfloat32", True), ("float32", False)):
        there = case(f"{SHAPES['square']} dtype={dtype} mask=causal", kind)
        given = there.inputs
        rounded = Inputs(q=reference._tf32(given.q), k=reference._tf32(given.k), v=reference._tf32(given.v))
        accuracy, reason = there.judge(wide(there.problem, rounded))
        assert (reason is None) == accepted
        over[dtype] = accuracy.rms / (verify.FACTORS["out"][1] * accuracy.yardstick_rms)
    assert over["tfloat32"] < 1
    assert over["float32"] > 100


# ---------------------------------------------------------------- planted defects

Defect = Callable[[Case], dict[str, Tensor]]


def altered(there: Case, **change: object) -> dict[str, Tensor]:
    """The right answer of a problem that differs."""
    return wide(replace(there.problem, **change), there.inputs)


def masked(there: Case, edit: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return wide(there.problem, there.inputs, edit(allowed(there.problem)))


def edited(there: Case, name: str, edit: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    found = wide(there.problem, there.inputs)
    return found | {name: edit(found[name].clone())}


def without(column: int) -> Callable[[Tensor], Tensor]:
    return lambda mask: mask & (torch.arange(mask.shape[1]) != column % mask.shape[1])


def zero_row(tensor: Tensor) -> Tensor:
    tensor[-1, -1, tensor.shape[2] // 2] = 0
    return tensor


def some_nan(tensor: Tensor) -> Tensor:
    lost = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) < 0.04
    return tensor.masked_fill_(lost, math.nan)


def without_softmax(there: Case) -> dict[str, Tensor]:
    p, given = there.problem, there.inputs
    k, v = (t.float().repeat_interleave(p.heads_q // p.heads_kv, 1) for t in (given.k, given.v))
    s = (given.q.float() @ k.mT * p.softmax_scale) * allowed(p)
    return {"out": (s / s.abs().sum(-1, keepdim=True) @ v).to(given.q.dtype)}


def tiled_groups(there: Case) -> dict[str, Tensor]:
    """Query head h reads key/value head h % Hk."""
    p, given = there.problem, there.inputs
    order = torch.arange(p.heads_q).view(-1, p.heads_kv).T.flatten()
    out = wide(p, replace(given, q=given.q[:, order]))["out"]
    return {"out": out[:, order.argsort()]}


def stale(there: Case) -> dict[str, Tensor]:
    """The answer to the other kind of inputs."""
    other = inputs.KINDS[there.kind == inputs.KINDS[0]]
    return wide(there.problem, case(there.problem.text, other).inputs)


FORWARD_DEFECTS: dict[str, Defect] = {
    "mask one key too wide": lambda c: masked(c, lambda m: m | m.roll(1, 1)),
    "mask one key too narrow": lambda c: masked(c, lambda m: m & m.roll(-1, 1)),
    "causal from the top left": lambda c: altered(c, mask=CausalTopLeft()),
    "mask ignored": lambda c: altered(c, mask=Full()),
    "half the keys left out": lambda c: altered(c, mask=Window(left=c.problem.uniform[1] // 2, right=0)),
    "scale 1 % too large": lambda c: altered(c, scale=1.01 * c.problem.softmax_scale),
    "no softmax": without_softmax,
    "last key dropped": lambda c: masked(c, without(-1)),
    "first key dropped": lambda c: masked(c, without(0)),
    "heads swapped": lambda c: edited(c, "out", lambda t: t.flip(1)),
    "batch members swapped": lambda c: edited(c, "out", lambda t: t.flip(0)),
    "wrong key/value group": tiled_groups,
    "one row zero": lambda c: edited(c, "out", zero_row),
    "4 % NaN": lambda c: edited(c, "out", some_nan),
    "all zero": lambda c: edited(c, "out", torch.zeros_like),
    "rows shifted by one": lambda c: edited(c, "out", lambda t: t.roll(1, 2)),
    "stale": stale,
}


def caught(defect: Defect, text: str) -> list[str]:
    """The reasons that the kinds of inputs give against it."""
    reasons = (case(text, kind).judge(defect(case(text, kind)))[1] for kind in inputs.KINDS)
    return [reason for reason in reasons if reason]


@pytest.mark.parametrize("defect", FORWARD_DEFECTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [128, 512, 2048])
def test_a_planted_defect_is_caught(keys: int, dtype: str, defect: str) -> None:
    text = f"batch=2 seqlen_q=96 seqlen_kv={keys} heads_q=4 heads_kv=2 head_dim=64 dtype={dtype} mask=causal"
    assert caught(FORWARD_DEFECTS[defect], text)


def with_maximum(of: Callable[[Tensor], Tensor | float]) -> Defect:
    """Textbook attention in float32, or wider, that subtracts `of(scores)` in place of each row's maximum."""

    def defect(there: Case) -> dict[str, Tensor]:
        p, given = there.problem, there.inputs
        to = torch.promote_types(given.q.dtype, torch.float32)
        k, v = (t.to(to).repeat_interleave(p.heads_q // p.heads_kv, 1) for t in (given.k, given.v))
        s = (given.q.to(to) @ k.mT * p.softmax_scale).masked_fill(~allowed(p), -math.inf)
        e = (s - of(s)).exp()
        return {"out": (e @ v / e.sum(-1, keepdim=True).clamp(min=1e-30)).to(given.q.dtype)}

    return defect


WRONG_MAXIMA: dict[str, Defect] = {
    "none": with_maximum(lambda s: 0.0),
    "never below zero": with_maximum(lambda s: s.amax(-1, keepdim=True).clamp(min=0)),
    "of a whole head": with_maximum(lambda s: s.amax((-1, -2), keepdim=True)),
    "of four rows": with_maximum(
        lambda s: s.unflatten(2, (-1, 4)).amax((-1, -2), keepdim=True).expand(-1, -1, -1, 4, 1).flatten(2, 3)
    ),
    "of the first 64 keys": with_maximum(lambda s: s[..., :64].amax(-1, keepdim=True)),
}


@pytest.mark.parametrize("defect", WRONG_MAXIMA)
@pytest.mark.parametrize("dtype", [*DTYPES, "tfloat32", "float64"])
@pytest.mark.parametrize(("heads_q", "head_dim"), [(2, 64), (4, 128), (2, 16)])
def test_a_maximum_that_is_missing_or_not_the_rows_own_shows_at_large_scores(
    heads_q: int, head_dim: int, dtype: str, defect: str
) -> None:
    for mask in ("full", "causal"):
        text = f"batch=1 seqlen_q=96 seqlen_kv=512 heads_q={heads_q} heads_kv=2 head_dim={head_dim} dtype={dtype}"
        there = case(f"{text} mask={mask}", "large")
        if (defect, dtype) == ("of the first 64 keys", "float64"):
            continue  # float64 holds what exp makes of any difference between two tiles
        assert there.judge(WRONG_MAXIMA[defect](there))[1]
        assert there.judge(with_maximum(lambda s: s.amax(-1, keepdim=True))(there))[1] is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_missing_maximum_does_not_show_at_ordinary_scores(dtype: str) -> None:
    for kind in ("normal", "peaked"):
        there = case(f"{SHAPES['square']} dtype={dtype} mask=causal", kind)
        assert there.judge(WRONG_MAXIMA["none"](there))[1] is None


def summed(there: Case, **wrong: object) -> dict[str, Tensor]:
    return tiled(there.problem, there.inputs, **wrong)


def backward_only(there: Case, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return found | {"out": wide(there.problem, there.inputs)["out"]}


def swapped(there: Case) -> dict[str, Tensor]:
    found = wide(there.problem, there.inputs)
    return found | {"dk": found["dv"], "dv": found["dk"]}


def last_head_only(there: Case) -> dict[str, Tensor]:
    """dk and dv of one query head of each group, not of all."""
    given, shared = there.inputs, there.problem.heads_q // there.problem.heads_kv
    dout = given.dout.clone()
    dout.unflatten(1, (-1, shared))[:, :, :-1] = 0
    found = wide(there.problem, replace(given, dout=dout))
    return wide(there.problem, given) | {"dk": found["dk"], "dv": found["dv"]}


BACKWARD_DEFECTS: dict[str, Defect] = {
    "dk and dv swapped": swapped,
    "dq without scale": lambda c: edited(c, "dq", lambda t: t / c.problem.softmax_scale),
    "dk without scale": lambda c: edited(c, "dk", lambda t: t / c.problem.softmax_scale),
    "dk of the wrong sign": lambda c: edited(c, "dk", torch.neg),
    "dv without the group's other heads": last_head_only,
    "row sum left out of dS": lambda c: summed(c, row_sum=False),
    "softcap left out of the backward pass": lambda c: summed(c, slopes=False),
    "backward mask one key too wide": lambda c: backward_only(c, masked(c, lambda m: m | m.roll(1, 1))),
    "backward mask from the top left": lambda c: backward_only(c, altered(c, mask=CausalTopLeft())),
    "backward without the last key": lambda c: backward_only(c, masked(c, without(-1))),
    "dq row zero": lambda c: edited(c, "dq", zero_row),
    "dk row zero": lambda c: edited(c, "dk", zero_row),
    "dv row zero": lambda c: edited(c, "dv", zero_row),
    "dq all zero": lambda c: edited(c, "dq", torch.zeros_like),
    "NaN in dk": lambda c: edited(c, "dk", some_nan),
    "dq shifted by a row": lambda c: edited(c, "dq", lambda t: t.roll(1, 2)),
    "gradients of other inputs": lambda c: backward_only(c, stale(c)),
}


@pytest.mark.parametrize("defect", BACKWARD_DEFECTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [128, 1024])
def test_a_planted_defect_of_the_backward_pass_is_caught(keys: int, dtype: str, defect: str) -> None:
    text = (
        f"batch=1 seqlen_q=96 seqlen_kv={keys} heads_q=4 heads_kv=2 head_dim=64 dtype={dtype} mask=causal "
        f"modifiers=softcap:cap=10 {GRADIENTS}"
    )
    assert caught(BACKWARD_DEFECTS[defect], text)


# ---------------------------------------------------------------- zeros, numbers, words


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype", [*DTYPES, "tfloat32", "float64"])
def test_a_row_that_sees_no_key_must_be_exactly_zero(dtype: str, kind: str) -> None:
    there = case(
        f"batch=1 seqlen_q=8 seqlen_kv=4 heads=1 head_dim=16 dtype={dtype} mask=causal {GRADIENTS}", kind
    )
    right = wide(there.problem, there.inputs)
    assert there.judge(right)[1] is None
    for name in ("out", "dq"):
        wrong = right[name].clone()
        wrong[0, 0, 3, 5] = 6e-8 if dtype == "float16" else 1e-30  # float16's least is 5.96e-8
        reason = there.judge(right | {name: wrong})[1]
        assert reason == f"{name}: not zero at batch 0 head 0 row 3, where nothing contributes"


def lse_of(there: Case) -> Tensor:
    """[G, Hq/Hk, R], summed in float32."""
    p, given = there.problem, there.inputs
    s = given.q.float() @ given.k.float().repeat_interleave(p.heads_q // p.heads_kv, 1).mT * p.softmax_scale
    return inputs.pick_lse(s.masked_fill(~allowed(p), -math.inf).logsumexp(-1), p, there.sample)


LSE_SHAPE = "batch=2 seqlen_q=96 seqlen_kv=40 heads_q=4 heads_kv=2 head_dim=128 mask=causal"


@pytest.mark.parametrize("kind", inputs.KINDS)
@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_a_log_sum_exp_is_judged_and_must_be_minus_infinity_where_no_key_is_seen(
    dtype: str, kind: str
) -> None:
    there = case(f"{LSE_SHAPE} dtype={dtype}", kind)
    out, lse = there.yard["out"], lse_of(there)
    accuracy, reason = there.standard.compare({"out": out, "lse": lse})
    assert reason is None
    assert 0 < accuracy.lse <= verify.LSE_FACTOR * there.standard.lse_allowed
    assert there.standard.compare({"out": out})[0].lse is None
    seen = lse.masked_fill(lse.isinf(), 0)
    for wrong, told in (
        (seen, "lse: not -inf at batch 0 head 0 row 0, where no key may be seen"),
        (-lse, "lse: not -inf at batch 0 head 0 row 0, where no key may be seen"),
        (lse / math.log(2), "lse: error "),  # of base 2
        (torch.where(lse.isinf(), lse, math.nan), "lse: error inf"),
    ):
        accuracy, reason = there.standard.compare({"out": out, "lse": wrong})
        assert (reason or "").startswith(told)


def test_a_key_that_no_query_sees_must_have_gradients_of_exactly_zero() -> None:
    text = (
        f"batch=1 seqlen_q=4 seqlen_kv=8 heads=1 head_dim=16 dtype=float32 mask=causal-top-left {GRADIENTS}"
    )
    there = case(text, "normal")
    right = wide(there.problem, there.inputs)
    for name in ("dk", "dv"):
        wrong = right[name].clone()
        wrong[0, 0, 6, 0] = 1e-30
        reason = there.judge(right | {name: wrong})[1]
        assert reason == f"{name}: not zero at batch 0 key/value head 0 key 6, where nothing contributes"


def test_a_wrong_row_is_named_with_its_error_and_its_budget() -> None:
    there = case("batch=2 seqlen=128 heads_q=4 heads_kv=2 head_dim=64 dtype=float32 mask=full", "normal")
    out = wide(there.problem, there.inputs)["out"]
    out[1, 3, 17] *= 1.5
    accuracy, reason = there.judge({"out": out})
    budget = 3 * accuracy.yardstick_row
    assert accuracy.row == pytest.approx(0.5, rel=1e-5)
    assert reason == (
        f"out: row error 0.5 is {0.5 / budget:.3g} x the budget (3 x yardstick {accuracy.yardstick_row:.2g}), "
        "worst at batch 1 head 3 row 17"
    )


def test_what_is_not_finite_is_counted_and_never_averaged_away() -> None:
    there = case("batch=1 seqlen=100 heads=1 head_dim=10 dtype=float32 mask=full", "normal")
    out = wide(there.problem, there.inputs)["out"]
    out[0, 0, :4] = math.inf
    accuracy, reason = there.judge({"out": out})
    assert reason == "out: 4 % of it is not finite"
    assert (accuracy.row, accuracy.rms, accuracy.max) == (math.inf, math.inf, math.inf)
    assert 0.9 < accuracy.cosine < 1


def test_the_yardstick_is_credited_with_the_rounding_of_the_result() -> None:
    """One key: every chain is exact, yet a result may be half an epsilon off."""
    for dtype in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
        there = case(
            f"batch=1 seqlen_q=4 seqlen_kv=1 heads=1 head_dim=16 dtype={dtype.value} mask=full", "normal"
        )
        accuracy, reason = there.judge({"out": there.inputs.v.expand(-1, -1, 4, -1)})
        assert reason is None
        half = torch.finfo(there.inputs.q.dtype).eps / 2
        assert accuracy.row == 0
        scores = max(4, float(there.oracle["top_score"]))  # sqrt(head_dim), or the size of the scores
        assert accuracy.yardstick_row == half * (scores if dtype is DType.FLOAT32 else 1)


def test_a_yardstick_that_overflowed_allows_no_more_than_its_other_rows_do() -> None:
    there = case("batch=1 seqlen=32 heads=1 head_dim=16 dtype=float16 mask=full", "normal")
    out = wide(there.problem, there.inputs)["out"]
    yard = there.yard["out"].clone()
    yard[0, 0, 3], yard[0, 0, 4, 0] = math.inf, math.nan
    wrong = torch.cat([out[:, :, :1] * 1.5, out[:, :, 1:]], 2)
    standard = verify.Standard(there.problem, there.oracle, {"out": yard}, 1.0)
    for given, accepted in ((out, True), (wrong, False)):
        accuracy, reason = standard.compare({"out": given})
        assert (reason is None) == accepted
        assert math.isfinite(accuracy.yardstick_row)


def test_the_worst_of_two_kinds_takes_every_field_from_the_worse_one() -> None:
    one = Accuracy(row=1, rms=4, max=1, cosine=0.9, yardstick_row=2, yardstick_rms=1, checked_share=1)
    two = Accuracy(row=2, rms=3, max=5, cosine=0.99, yardstick_row=1, yardstick_rms=3, checked_share=0.5)
    assert worst([one, two]) == Accuracy(
        row=2, rms=4, max=5, cosine=0.9, yardstick_row=2, yardstick_rms=3, checked_share=0.5
    )


# ---------------------------------------------------------------- the contract


def contract(
    text: str, edit: Callable[[Inputs, Tensor], object], form: str = "bshd"
) -> tuple[Tensor, ...] | str:
    problem = Problem.parse(text)
    given = inputs.make(problem, kind="normal", seed=0, device="cpu", qkv_format=form)
    out = torch.zeros(*given.q.shape[:-1], problem.head_dim_v, dtype=given.q.dtype)
    return verify.inspect(edit(given, out), problem, given, "cpu", form)


class Subclass(Tensor):
    pass


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda given, out: None, "the output is a NoneType, expected a plain torch.Tensor"),
        (lambda given, out: out.numpy(), "the output is a ndarray, expected a plain torch.Tensor"),
        (
            lambda given, out: out.as_subclass(Subclass),
            "the output is a Subclass, expected a plain torch.Tensor",
        ),
        (lambda given, out: out.to("meta"), "the output has no storage of its own: on meta, torch.strided"),
        (
            lambda given, out: out.to_sparse(),
            "the output has no storage of its own: on cpu, torch.sparse_coo",
        ),
        (lambda given, out: (out, out), "2 outputs, expected 1: out"),
        (lambda given, out: out.transpose(1, 2), "shape [2, 4, 6, 8], expected [2, 6, 4, 8]"),
        (lambda given, out: out.double(), "dtype float64, expected float32"),
        (lambda given, out: given.q, "the output is a view of an input"),
        (lambda given, out: given.k[:, :1].expand_as(out), "the output is a view of an input"),
    ],
)
def test_an_output_that_breaks_the_contract_is_refused_in_words(
    edit: Callable[[Inputs, Tensor], object], reason: str
) -> None:
    assert contract("batch=2 seqlen=6 heads=4 head_dim=8 dtype=float32 mask=full", edit) == reason


def test_a_gradient_that_breaks_the_contract_is_named() -> None:
    text = "batch=1 seqlen=6 heads_q=4 heads_kv=2 head_dim=8 dtype=float32 mask=full direction=backward"
    wrong = contract(text, lambda given, out: (out, out, out))
    assert wrong == "dk: shape [1, 6, 4, 8], expected [1, 6, 2, 8]"


def test_outputs_that_keep_the_contract_come_back_without_their_graph() -> None:
    text = "batch=1 seqlen=6 heads=4 head_dim=8 head_dim_v=16 dtype=bfloat16 mask=full"
    for form in ("bshd", "bhsd"):
        for edit in (lambda given, out: out.requires_grad_() * 2, lambda given, out: [out]):
            found = contract(text, edit, form)
            assert isinstance(found, tuple)
            assert not found[0].requires_grad
