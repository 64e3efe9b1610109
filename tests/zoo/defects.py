"""Attention with one thing wrong. Without its defect each is the same code and right: its clean twin.

`flash` is a tiled kernel with an online softmax and an explicit backward pass, `chain` the three steps over the whole
matrix of scores; both keep sums in float32 and round the weights to the problem's dtype. A defect is a line in one of
them, or a change of what goes into `flash` or comes out of it. Letters as in `attnbench.problem`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnbench.implementation import Inputs
from attnbench.problem import Causal, CausalTopLeft, Full, KeyPadding, Mask, Problem, Product, Softcap, Window

Outputs = dict[str, Tensor]
Compute = Callable[[Problem, Inputs], Outputs]

TILE = 128  # keys
ROWS = 64  # query rows of what a kernel would call a block


def allowed(problem: Problem) -> Tensor:
    """[Sq, Sk], or [B, 1, Sq, Sk] where the members differ."""
    sq, sk = problem.uniform
    b = torch.arange(problem.batch)[:, None, None, None]
    return problem.mask.allowed(torch.arange(sq)[:, None], torch.arange(sk), sq, sk, b)


def wider(problem: Problem, given: Inputs) -> list[Tensor]:
    """q, k and v in float32, a key/value head for every query head."""
    shared, to = problem.heads_q // problem.heads_kv, torch.promote_types(given.q.dtype, torch.float32)
    return [given.q.to(to), *(t.to(to).repeat_interleave(shared, 1) for t in (given.k, given.v))]


def cap_of(problem: Problem) -> float | None:
    return next((m.cap for m in problem.modifiers if isinstance(m, Softcap)), None)


def t5_bucket(behind: Tensor, buckets: int = 32, distance: int = 128) -> Tensor:
    """Of keys `behind` positions before their query (T5's code, in float64 and away from rounding at its edges)."""
    side, n = buckets // 2, behind.abs()
    exact = side // 2
    far = torch.log(n.double().clamp(min=1) / exact) / math.log(distance / exact) * (side - exact)
    far = (exact + torch.floor(far + 1e-9).long()).clamp(max=side - 1)
    return side * (behind < 0) + torch.where(n < exact, n, far)


def turned(problem: Problem, x: Tensor, first: int, defect: str = "", back: bool = False) -> Tensor:
    """x [B, H, S, D], whose tokens stand at `first` and behind, as pairs of coordinates that are complex numbers."""
    half = x.shape[-1] // 2
    if "rotary" not in [modifier.name for modifier in problem.modifiers] or defect == "rotary-omitted":
        return x
    exponents = torch.arange(half, dtype=torch.float64) / (
        2 * half if defect == "rotary-of-half-the-powers" else half
    )
    positions = torch.arange(first, first + x.shape[2], dtype=torch.float64)
    angles = positions[:, None] * problem.modifier("rotary").base ** -exponents
    turn = torch.polar(torch.ones_like(angles), -angles if back or defect == "rotary-mirrored" else angles)
    if defect == "rotary-interleaved":
        pairs = torch.view_as_complex(x.double().unflatten(-1, (half, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (2, half)).mT.contiguous())
    return torch.view_as_real(pairs * turn).mT.flatten(-2).to(x.dtype)


def added(problem: Problem, given: Inputs, defect: str = "") -> Tensor | None:
    """What modifiers add to the scores, [Hq or 1, Sq, Sk] in float64; None where they add nothing."""
    (sq, sk), heads, total = problem.uniform, problem.heads_q, None
    p = torch.arange(sq)[:, None] + (0 if defect == "relative-bias-top-left" else sk - sq)
    behind = p - torch.arange(sk)
    names = [modifier.name for modifier in problem.modifiers]
    if "alibi" in names and defect != "alibi-omitted":
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / heads) for h in range(heads)], dtype=torch.float64)
        if defect == "alibi-slope-0-for-all":
            slopes = slopes[:1].expand(heads)
        total = -slopes[:, None, None] * behind.abs()
    if "bias" in names:
        total = given.extra["bias"].double()
        if defect == "bias-of-head-0-for-all":
            total = total[:1]
        if defect == "bias-scaled":
            total = total * problem.softmax_scale
    if "relative-bias" in names:
        bucket = t5_bucket(-behind if defect == "relative-bias-mirrored" else behind)
        total = given.extra["relative_bias"].double()[bucket].permute(2, 0, 1)
    return total


def beside_sinks(given: Inputs, s: Tensor) -> Tensor:
    """softmax(s) [B, Hq, Sq, Sk] with the sinks, where there are any, in the sum."""
    if "sinks" not in given.extra:
        return s.softmax(-1)
    sinks = given.extra["sinks"].to(s)[:, None, None].expand(*s.shape[:-1], 1)
    return torch.cat([s, sinks], -1).softmax(-1)[..., :-1]


def flash(problem: Problem, given: Inputs, defect: str = "", mask: Tensor | None = None) -> Outputs:
    """Online softmax over tiles of keys, backward from the log-sum-exp (Dao 2023, algorithms 1 and 2)."""
    dtype, sk, scale, cap = given.q.dtype, given.k.shape[2], problem.softmax_scale, cap_of(problem)
    q, k, v = wider(problem, given)
    first = sk - problem.uniform[0]
    q, k = turned(problem, q, first), turned(problem, k, 0)
    mask = allowed(problem) if mask is None else mask
    tiles = [slice(at, min(at + TILE, sk)) for at in range(0, sk, TILE)]
    if defect == "last-tile-dropped":
        tiles = tiles[:-1]
    if defect == "ragged-tail-dropped" and sk % TILE:
        tiles = tiles[:-1]
    if defect == "tile-read-twice":
        tiles.append(tiles[-1])

    def narrow(t: Tensor) -> Tensor:
        return t.to(dtype).to(t.dtype)

    def scores(at: slice, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        s, slope = q @ k[:, :, at].mT * scale, None
        if cap is not None:
            bent = torch.tanh(s / cap)
            s, slope = cap * bent, 1 - bent * bent
        forbidden = ~mask[..., at]
        if defect == "diagonal-tile-unmasked" and mask[..., at].any() and forbidden.any():
            return s, slope  # only whole tiles are left out
        return s.masked_fill_(forbidden, -math.inf), slope

    top = torch.full((*q.shape[:3], 1), torch.finfo(q.dtype).min, dtype=q.dtype)
    total, acc = torch.zeros_like(top), torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for at in tiles:
        s, _ = scores(at, mask)
        high = torch.maximum(top, s.amax(-1, keepdim=True))
        if defect == "no-max-subtracted":
            high = torch.zeros_like(top)
        if defect == "max-of-first-tile-only" and at.start:
            high = top
        p, shrink = (s - high).exp_(), (top - high).exp()
        if defect == "no-max-subtracted":
            shrink = torch.ones_like(top)
        total = total * (1 if defect == "sum-not-rescaled" else shrink)
        if defect != "last-tile-not-in-the-sum" or at.stop < sk:
            total = total + p.sum(-1, keepdim=True)
        acc = acc * (1 if defect == "output-not-rescaled" else shrink) + narrow(p) @ v[:, :, at]
        if (
            defect == "padding-not-masked" and at.stop - at.start < TILE
        ):  # zero keys score 0, their values are 0
            total = total + (TILE - (at.stop - at.start)) * (-high).exp()
        top = high
    some = total != 0
    out = acc / total.masked_fill(~some, 1)
    if defect == "empty-row-is-the-mean":
        out = torch.where(some, out, v.mean(2, keepdim=True))
    if defect == "empty-row-is-nan":
        out = acc / total
    if defect == "not-divided-by-the-sum":
        out = acc * (top.exp() / sk)
    found = {"out": out.to(dtype)}
    if given.dout is None:
        return found

    dout, lse = given.dout.to(q.dtype), top + total.masked_fill(~some, 1).log()
    if defect == "dout-ignored":
        dout = (dout != 0).to(q.dtype)  # ones, but zero outside the sample
    delta = (dout * narrow(out)).sum(-1, keepdim=True)
    if defect == "backward-without-row-sum":
        delta = torch.zeros_like(delta)
    if defect == "backward-with-max-for-lse":
        lse = top
    if defect == "backward-without-mask":
        mask = torch.ones_like(mask)
    if defect == "backward-mask-one-wide":
        mask = mask | mask.roll(1, -1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for at in tiles:
        s, slope = scores(at, mask)
        p = (s - lse).exp_()
        dv[:, :, at] = narrow(p).mT @ dout
        ds = p * (dout @ v[:, :, at].mT - delta)
        if slope is not None and defect != "backward-without-softcap":
            ds = ds * slope
        ds = narrow(ds)
        part = ds @ k[:, :, at] * (1 if defect == "dq-without-scale" else scale)
        dq = part if defect == "dq-of-last-tile-only" else dq + part
        dk[:, :, at] = ds.mT @ q * (1 if defect == "dk-without-scale" else scale)
    if defect == "dk-scale-2-%":
        dk = dk * 1.02
    dq = turned(problem, dq, first, back=True)
    dk = dk if defect == "dk-not-turned-back" else turned(problem, dk, 0, back=True)
    shared = problem.heads_q // problem.heads_kv
    dk, dv = (narrow(t).unflatten(1, (-1, shared)) for t in (dk, dv))  # [B, Hk, Hq/Hk, Sk, D]
    if defect == "gradients-of-one-head-of-a-group":
        dk, dv = dk[:, :, :1], dv[:, :, :1]
    dk, dv = dk.sum(2), dv.sum(2)
    if problem.shared_kv and defect != "gradient-through-scores-alone":
        first = dk.shape[3] - dv.shape[3] if defect == "gradient-in-the-last-columns" else 0
        dk[..., first : first + dv.shape[3]] += dv
    return found | {"dq": dq.to(dtype), "dk": dk.to(dtype), "dv": dv.to(dtype)}


def chain(problem: Problem, given: Inputs, defect: str = "") -> Outputs:
    """Matmul, softmax, matmul; forward only."""
    dtype, scale, cap = given.q.dtype, problem.softmax_scale, cap_of(problem)
    q, k, v = wider(problem, given)
    (sq, sk), dq_from = (
        problem.uniform,
        {"rotary-off-by-one": 1, "rotary-top-left": problem.uniform[0] - problem.uniform[1]},
    )
    q = turned(problem, q, sk - sq + dq_from.get(defect, 0), defect)
    k = k if defect == "rotary-without-keys" else turned(problem, k, 0, defect)
    v = turned(problem, v, 0) if defect == "rotary-of-values-too" else v
    mask = allowed(problem)
    s = q @ k.mT
    if defect == "scale-after-softcap":
        s = cap * torch.tanh(s / cap) * scale
    elif cap is None or defect == "softcap-omitted":
        s = s * scale
    elif defect == "softcap-after-mask":
        s = cap * torch.tanh((s * scale).masked_fill(~mask, -math.inf) / cap)
        mask = torch.ones_like(mask)
    else:
        s = cap * torch.tanh(s * scale / cap)
    if (terms := added(problem, given, defect)) is not None:
        s = s + terms.to(s)
    if defect == "masked-score-zero":
        s = s.masked_fill(~mask, 0)
    elif defect == "mask-after-softmax":
        s = s.softmax(-1).masked_fill(~mask, 0).log()
    elif not bool(mask.all()):
        s = s.masked_fill(~mask, -math.inf)
    if defect == "dropout-of-scores":
        s = s * (torch.rand(s.shape) >= problem.dropout) / (1 - problem.dropout)
    if defect == "no-softmax":
        p = s / s.abs().sum(-1, keepdim=True)
    elif defect == "softmax-over-queries":
        p = s.softmax(-2)
    elif defect == "mask-after-softmax":
        p = s.exp()
    elif defect == "base-2":
        p = (s * math.log(2)).softmax(-1)
    elif defect == "sinks-omitted":
        p = s.softmax(-1)
    else:
        p = beside_sinks(given, s)
    if defect == "double-softmax":
        p = p.softmax(-1)
    if defect == "weights-in-fp8":
        top = p.amax(-1, keepdim=True)
        p = (p / top * 448).to(torch.float8_e4m3fn).to(p.dtype) * (top / 448)
    if problem.dropout and defect not in ("dropout-ignored", "dropout-of-scores"):
        rate = 0.2 if defect == "dropout-of-a-fifth" else problem.dropout
        shape = [*p.shape[:1], 1, *p.shape[2:]] if defect == "dropout-alike-in-all-heads" else p.shape
        p = p * (torch.rand(shape) >= rate) / (1 if defect == "dropout-not-rescaled" else 1 - rate)
    if defect == "dropout-with-the-value-before":
        v[:, :, -1] = v[:, :, -2]
    if defect.endswith("-of-another-head"):
        place = slice(sk - sk // 16, sk) if "tail" in defect else slice(sk * 3 // 8, sk * 5 // 8)
        v[:, -problem.heads_q // problem.heads_kv :, place] = v[:, :1, place]
    if defect == "dropout-left-on":
        kept = torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) >= 0.1
        p = p * kept / 0.9
    if defect == "largest-quarter-of-keys":
        p = p.masked_fill(
            p < p.quantile(0.75, -1, keepdim=True) if p.shape[-1] < 2**12 else p < p.mean(-1, True), 0
        )
        p = p / p.sum(-1, keepdim=True)
    return {"out": (p.to(dtype).to(v.dtype) @ v).to(dtype)}


def quantised(problem: Problem, given: Inputs, defect: str = "") -> Outputs:
    """k and v dequantised in float32 and q in the output's type, then `flash`; forward only."""
    hk, extra = problem.heads_kv, dict(given.extra)
    stored = {name: getattr(given, name) for name in "qkv"}
    if defect == "int8-read-as-unsigned":
        stored |= {name: stored[name].view(torch.uint8) for name in "kv"}
    if defect == "float8-read-as-fnuz":
        stored["v"] = stored["v"].view(torch.float8_e4m3fnuz)
    if defect == "descale-of-k-for-v":
        extra["v_descale"] = extra["k_descale"]
    if defect == "descale-of-the-next-head":
        extra["k_descale"] = extra["k_descale"].roll(1)
    if defect == "descale-of-head-0-for-all":
        extra["v_descale"] = extra["v_descale"][:1]
    if defect == "descale-by-query-head":
        extra["q_descale"] = extra["q_descale"].repeat(problem.heads_q // hk)  # h % Hk for h // (Hq / Hk)
    if defect == "descale-of-k-forgotten":
        extra["k_descale"] = torch.ones(1)
    if defect == "descale-of-v-forgotten":
        extra["v_descale"] = torch.ones(1)
    if defect == "descale-of-q-squared":
        extra["q_descale"] = extra["q_descale"] ** 2
    if defect == "descale-divided-by":
        extra["v_descale"] = 1 / extra["v_descale"]
    real = {}
    for name, tensor in stored.items():
        factor = extra.get(f"{name}_descale", torch.ones(1))
        factor = factor.repeat_interleave(tensor.shape[1] // len(factor)) if len(factor) > 1 else factor
        real[name] = tensor.float() * factor[:, None, None]
    to = torch.bfloat16 if problem.dtype.quantised else given.q.dtype
    if defect == "weights-in-float8-unscaled":
        q, k, v = wider(problem, Inputs(**real))
        s = (q @ k.mT * problem.softmax_scale).masked_fill(~allowed(problem), -math.inf)
        p = s.softmax(-1)
        return {"out": (p.to(torch.float8_e4m3fn).to(p) @ v).to(to)}
    if defect == "weights-in-four-bits":
        q, k, v = wider(problem, Inputs(**real))
        s = (q @ k.mT * problem.softmax_scale).masked_fill(~allowed(problem), -math.inf)
        p = (s - s.amax(-1, keepdim=True)).exp()
        return {"out": ((p * 15).round() / 15 @ v / p.sum(-1, keepdim=True)).to(to)}
    return flash(problem, Inputs(**(real | {"q": real["q"].to(to)})))


# ---------------------------------------------------------------- the members


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A wrong algorithm and its twin, on the problems of one kind."""

    name: str
    what: str
    shape: str
    """The name of its problems in `cage.SHAPES`."""
    broken: Compute
    clean: Compute


def inside(name: str, shape: str, what: str, body: Callable[..., Outputs] = flash) -> Defect:
    """A line of `body`."""
    return Defect(
        name=name,
        what=what,
        shape=shape,
        clean=body,
        broken=lambda problem, given: body(problem, given, name),
    )


def masked(name: str, shape: str, what: str, edit: Callable[[Tensor], Tensor]) -> Defect:
    """Another mask."""

    def broken(problem: Problem, given: Inputs) -> Outputs:
        return flash(problem, given, mask=edit(allowed(problem)))

    return Defect(name=name, what=what, shape=shape, clean=flash, broken=broken)


def drawn(name: str, shape: str, what: str, rule: Callable[[Problem], Tensor]) -> Defect:
    """Another mask, from the problem."""

    def broken(problem: Problem, given: Inputs) -> Outputs:
        return flash(problem, given, mask=rule(problem))

    return Defect(name=name, what=what, shape=shape, clean=flash, broken=broken)


def instead(name: str, shape: str, what: str, change: Callable[[Problem], Problem]) -> Defect:
    """The right answer to another problem."""

    def broken(problem: Problem, given: Inputs) -> Outputs:
        return flash(change(problem), given)

    return Defect(name=name, what=what, shape=shape, clean=flash, broken=broken)


def fed(name: str, shape: str, what: str, change: Callable[[Inputs], Inputs]) -> Defect:
    """The right answer to other inputs."""

    def broken(problem: Problem, given: Inputs) -> Outputs:
        return flash(problem, change(given))

    return Defect(name=name, what=what, shape=shape, clean=flash, broken=broken)


def spoilt(name: str, shape: str, what: str, edit: Callable[[Outputs], Outputs]) -> Defect:
    """The right answer, changed afterwards."""

    def broken(problem: Problem, given: Inputs) -> Outputs:
        return edit(flash(problem, given))

    return Defect(name=name, what=what, shape=shape, clean=flash, broken=broken)


def out(edit: Callable[[Tensor], Tensor]) -> Callable[[Outputs], Outputs]:
    return lambda found: found | {"out": edit(found["out"].clone())}


def without(*columns: int) -> Callable[[Tensor], Tensor]:
    def edit(mask: Tensor) -> Tensor:
        mask = mask.clone()
        mask[..., list(columns)] = False
        return mask

    return edit


def zero(*index: object) -> Callable[[Tensor], Tensor]:
    def edit(tensor: Tensor) -> Tensor:
        tensor[index] = 0
        return tensor

    return edit


def some_nan(tensor: Tensor) -> Tensor:
    lost = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) < 0.04
    return tensor.masked_fill_(lost, math.nan)


def coarser(given: Inputs) -> Inputs:
    """Rounded to the next shorter type: bfloat16, or float8 where it is that already."""
    to = torch.float8_e4m3fn if given.q.dtype == torch.bfloat16 else torch.bfloat16
    return replace(given, **{name: getattr(given, name).to(to).to(given.q.dtype) for name in "qkv"})


def cyclic_groups(given: Inputs) -> Inputs:
    """Query head h reads key/value head h % Hk; as inputs in which every query head has its own."""
    take = torch.arange(given.q.shape[1]) % given.k.shape[1]
    return replace(given, k=given.k[:, take], v=given.v[:, take])


def columns(start: int) -> Callable[[Inputs], Inputs]:
    """Values that are other columns of the keys."""

    def change(given: Inputs) -> Inputs:
        first = start % given.k.shape[-1]
        return replace(given, v=given.k[..., first : first + given.v.shape[-1]])

    return change


def normalised(given: Inputs) -> Inputs:
    """Every key with the norm that keys have on average, and its value with it."""
    k = given.k.double()
    k = (k / k.norm(dim=-1, keepdim=True) * k.shape[-1] ** 0.5).to(given.k)
    return replace(given, k=k, v=k[..., : given.v.shape[-1]])


def without_the_rest(given: Inputs) -> Inputs:
    """Scores of the columns that are values too."""
    k = given.k.clone()
    k[..., given.v.shape[-1] :] = 0
    return replace(given, k=k)


def scaled_in_place(problem: Problem, given: Inputs) -> Outputs:
    return flash(problem, replace(given, v=(given.v.double() * problem.softmax_scale).to(given.v)))


def one_head_each(problem: Problem) -> Problem:
    return replace(problem, heads_kv=problem.heads_q)


def cyclic(problem: Problem, given: Inputs) -> Outputs:
    return flash(one_head_each(problem), cyclic_groups(given))


def first_for_all(problem: Problem, given: Inputs) -> Outputs:
    k, v = (t[:, :1].expand_as(t) for t in (given.k, given.v))
    return flash(problem, replace(given, k=k, v=v))


def uniform_weights(problem: Problem, given: Inputs) -> Outputs:
    return flash(problem, replace(given, q=torch.zeros_like(given.q)))


def one_key(edge: Callable[[Window], Window]) -> Callable[[Problem], Problem]:
    def change(problem: Problem) -> Problem:
        assert isinstance(problem.mask, Window)
        return replace(problem, mask=edge(problem.mask))

    return change


def remasked(change: Callable[[Any], Mask]) -> Callable[[Problem], Problem]:
    return lambda problem: replace(problem, mask=change(problem.mask))


def early(mask: Tensor) -> Tensor:
    """With the key before each run of keys."""
    return mask | mask.roll(-1, -1)


def childless(mask: Tensor) -> Tensor:
    """Of the 40 nodes of the tree, each query sees its own alone."""
    sq, sk = mask.shape
    keys, own = torch.arange(sk), torch.arange(sk - sq, sk)[:, None]
    return mask & ((keys < sk - 40) | (keys == own))


def of_the_first(problem: Problem) -> Tensor:
    sq, sk = problem.uniform
    return problem.mask.allowed(torch.arange(sq)[:, None], torch.arange(sk), sq, sk)


def united(problem: Problem) -> Tensor:
    one, other = (allowed(replace(problem, mask=factor)) for factor in problem.mask.factors)
    return one | other


def scaled(factor: float) -> Callable[[Problem], Problem]:
    return lambda problem: replace(problem, scale=factor * problem.softmax_scale)


DEFECTS = (
    # masks
    masked("causal-one-wide", "causal", "j <= p + 1", lambda m: m | m.roll(1, -1)),
    masked("causal-one-narrow", "causal", "j < p", lambda m: m & m.roll(-1, -1)),
    instead("top-left", "causal", "causal from the top left", lambda p: replace(p, mask=CausalTopLeft())),
    instead("mask-ignored", "causal", "no mask", lambda p: replace(p, mask=Full())),
    inside("diagonal-tile-unmasked", "causal", "only whole tiles of keys are left out"),
    inside("masked-score-zero", "causal", "masked scores are 0 instead of -inf", chain),
    inside("mask-after-softmax", "window", "weights masked after they were normalised", chain),
    instead(
        "window-left-wide", "window", "one key too many", one_key(lambda w: replace(w, left=w.left + 1))
    ),
    instead(
        "window-left-narrow", "window", "one key too few", one_key(lambda w: replace(w, left=w.left - 1))
    ),
    instead(
        "window-right-wide", "window", "one key too many", one_key(lambda w: replace(w, right=w.right + 1))
    ),
    instead(
        "window-right-narrow", "window", "one key too few", one_key(lambda w: replace(w, right=w.right - 1))
    ),
    instead("window-causal-only", "window", "the left edge is ignored", lambda p: replace(p, mask=Causal())),
    instead("bottom-right", "top-left", "causal from the bottom right", remasked(lambda m: Causal())),
    masked("chunk-begins-early", "chunked", "one key too many", early),
    masked(
        "dilated-from-the-first-key",
        "dilated",
        "j = 0, 3, 6 ... for all",
        lambda m: (torch.arange(m.shape[-1]) % 3 == 0).expand(m.shape),
    ),
    instead(
        "prefix-one-short", "prefix-lm", "one key too few", remasked(lambda m: replace(m, prefix=m.prefix - 1))
    ),
    instead("prefix-left-out", "prefix-lm", "causal", remasked(lambda m: Causal())),
    instead("blocks-causal-within", "block-causal", "causal within a block too", remasked(lambda m: Causal())),
    instead(
        "global-tokens-left-out", "global-window", "the window alone", remasked(lambda m: replace(m, tokens=0))
    ),
    instead(
        "global-tokens-one-more", "global-window", "five for four", remasked(lambda m: replace(m, tokens=m.tokens + 1))
    ),
    instead("tree-is-causal", "tree", "what is no ancestor is seen too", remasked(lambda m: Causal())),
    masked("tree-without-ancestors", "tree", "only itself and what is before the tree", childless),
    instead("tiles-ignored", "block-sparse", "causal", remasked(lambda m: m.factors[1])),
    masked("tiles-begin-early", "block-sparse", "one key too many of each", early),
    masked("first-tile-left-out", "block-sparse", "of each row of tiles", lambda m: m & (m.cumsum(-1) > 64)),
    instead("documents-ignored", "documents", "causal", remasked(lambda m: m.factors[1])),
    masked("documents-begin-early", "documents", "one key too many", early),
    masked("documents-begin-late", "documents", "one key too few", lambda m: m & (m.cumsum(-1) > 1)),
    drawn("documents-of-the-first-member", "documents", "in all members of the batch", of_the_first),
    instead("second-factor-ignored", "documents", "documents, not causal", remasked(lambda m: m.factors[0])),
    drawn("factors-united", "documents", "what either factor allows", united),
    instead("padding-seen", "key-padding", "no mask", remasked(lambda m: Full())),
    masked("padding-one-key-seen", "key-padding", "one key too many", lambda m: m | m.roll(1, -1)),
    drawn("padding-of-the-first-member", "key-padding", "in all members of the batch", of_the_first),
    instead(
        "left-padding-on-the-right",
        "left-padding",
        "the last keys masked in place of the first",
        remasked(lambda m: Product((KeyPadding(share=m.factors[0].share), m.factors[1]))),
    ),
    masked("left-padding-one-key-seen", "left-padding", "one key too many", early),
    inside("empty-row-is-the-mean", "empty-rows", "a fully masked row is the mean of v"),
    inside("empty-row-is-nan", "empty-rows", "a fully masked row is 0 / 0"),
    # scores
    instead("scale-1-%-large", "full", "scale x 1.01", scaled(1.01)),
    instead("scale-1-%-small", "full", "scale x 0.99", scaled(0.99)),
    instead("scale-of-dv", "wide-values", "1 / sqrt(Dv)", lambda p: replace(p, scale=p.head_dim_v**-0.5)),
    instead("scale-omitted", "full", "scale 1", lambda p: replace(p, scale=1.0)),
    inside("base-2", "full", "2^s in place of e^s", chain),
    inside("softcap-omitted", "capped", "no softcap", chain),
    inside("softcap-after-mask", "capped-window", "what is masked scores -cap", chain),
    inside("scale-after-softcap", "capped", "cap tanh(q k / cap) scale", chain),
    inside("alibi-omitted", "alibi", "no slope", chain),
    inside("alibi-slope-0-for-all", "alibi", "every head has the first slope", chain),
    inside("bias-of-head-0-for-all", "biased", "every head reads the first plane", chain),
    inside("bias-scaled", "biased", "scale (q k + bias)", chain),
    inside("relative-bias-mirrored", "relative", "keys behind for keys ahead", chain),
    inside("relative-bias-top-left", "relative", "distances i - j", chain),
    inside("sinks-omitted", "sinks", "the denominator misses the sink", chain),
    inside("rotary-omitted", "rotary", "nothing turned", chain),
    inside("rotary-interleaved", "rotary", "pairs 2m and 2m + 1", chain),
    inside("rotary-off-by-one", "rotary", "queries at p + 1", chain),
    inside("rotary-top-left", "rotary", "queries at i", chain),
    inside("rotary-without-keys", "rotary", "q alone turned", chain),
    inside("rotary-of-values-too", "rotary", "v turned like k", chain),
    inside("rotary-mirrored", "rotary", "turned the other way", chain),
    inside("rotary-of-half-the-powers", "rotary", "p base^(-m/D)", chain),
    # softmax
    inside("no-max-subtracted", "large", "exp(s) overflows"),
    inside("max-of-first-tile-only", "large", "exp(s - m) overflows"),
    inside("output-not-rescaled", "full", "online softmax: the output keeps an old maximum"),
    inside("sum-not-rescaled", "full", "online softmax: the sum keeps an old maximum"),
    inside("last-tile-not-in-the-sum", "full", "the denominator misses the last tile"),
    inside("not-divided-by-the-sum", "full", "divided by the number of keys"),
    inside("double-softmax", "full", "softmax of softmax", chain),
    inside("no-softmax", "full", "scores over the sum of their sizes", chain),
    inside("softmax-over-queries", "full", "the wrong axis", chain),
    Defect(
        name="uniform-weights", what="q ignored: the mean of v", shape="full", broken=uniform_weights, clean=flash
    ),
    # precision and approximation
    inside("weights-in-fp8", "full", "an undeclared precision class", chain),
    fed("inputs-one-type-shorter", "full", "bfloat16 inside float32 or float16, float8 inside bfloat16", coarser),
    inside("dropout-left-on", "full", "a tenth of the weights dropped", chain),
    inside("dropout-ignored", "dropout", "nothing dropped", chain),
    inside("dropout-not-rescaled", "dropout", "what is left is not larger by 1 / (1 - p)", chain),
    inside("dropout-of-a-fifth", "dropout", "p = 0.2 for 0.1", chain),
    inside("dropout-alike-in-all-heads", "dropout", "the same weights dropped in each head", chain),
    inside("dropout-of-scores", "dropout", "before the softmax", chain),
    inside("dropout-with-the-value-before", "grouped-dropout", "the last key has the value of the one before it", chain),
    inside("dropout-with-a-tail-of-another-head", "grouped-dropout", "the last sixteenth of the values", chain),
    inside("dropout-with-a-middle-of-another-head", "grouped-dropout", "the middle quarter of the values", chain),
    inside("largest-quarter-of-keys", "full", "the smaller weights left out", chain),
    inside("int8-read-as-unsigned", "int8-keys", "negative values plus 256", quantised),
    inside("descale-of-the-next-head", "int8-keys", "k of head h times the factor of h - 1", quantised),
    inside("descale-of-head-0-for-all", "int8-keys", "every head of v times the first factor", quantised),
    inside("descale-of-k-for-v", "float8-keys", "k's factor in place of v's", quantised),
    inside("descale-of-k-forgotten", "float8-keys", "scores of what is stored", quantised),
    inside("descale-of-v-forgotten", "float8-keys", "the output is that of what is stored", quantised),
    inside("descale-divided-by", "float8-keys", "the output over v's factor", quantised),
    inside("float8-read-as-fnuz", "float8-keys", "AMD's e4m3: half the value", quantised),
    inside("descale-of-q-squared", "float8", "q's factor in the scale, and once more", quantised),
    inside("descale-by-query-head", "float8", "the factor of h % Hk", quantised),
    inside("weights-in-float8-unscaled", "float8", "small ones are lost", quantised),
    inside("weights-in-four-bits", "float8", "a coarser class than the declared one", quantised),
    # tiles and tails
    masked("last-key-dropped", "full", "n - 1 keys", without(-1)),
    masked("first-key-dropped", "full", "keys from 1", without(0)),
    inside("last-tile-dropped", "full", "the last 128 keys"),
    inside("ragged-tail-dropped", "ragged", "keys beyond a multiple of 128"),
    inside("padding-not-masked", "ragged", "zero keys of the padded tile count in the sum"),
    inside("tile-read-twice", "full", "the last 128 keys count twice"),
    masked("every-other-key", "full", "half of the keys", lambda m: m & (torch.arange(m.shape[-1]) % 2 == 0)),
    # layout
    spoilt("heads-swapped", "full", "first and last head", out(lambda t: t.flip(1))),
    spoilt("batch-swapped", "batch", "first and last member", out(lambda t: t.flip(0))),
    Defect(name="groups-cyclic", what="head h reads h % Hk", shape="grouped", broken=cyclic, clean=flash),
    Defect(
        name="group-0-for-all", what="every head reads the first", shape="grouped", broken=first_for_all, clean=flash
    ),
    spoilt(
        "axes-reinterpreted",
        "full",
        "[B, S, H, D] read as [B, H, S, D]",
        out(lambda t: t.transpose(1, 2).reshape(t.shape)),
    ),
    fed("keys-shifted", "full", "k one row late beside v", lambda g: replace(g, k=g.k.roll(1, 2))),
    fed("keys-for-values", "full", "k in place of v", lambda g: replace(g, v=g.k)),
    # keys that are values too
    fed("values-of-the-last-columns", "shared", "v = k[..., -Dv:]", columns(-48)),
    fed("values-one-column-late", "shared", "v = k[..., 1 : Dv + 1]", columns(1)),
    fed("scores-without-the-rest", "shared", "q and k of the first Dv columns", without_the_rest),
    fed("keys-normalised-in-place", "shared", "k over its norm, v with it", normalised),
    Defect(
        name="keys-scaled-in-place", what="v times the scale", shape="shared", broken=scaled_in_place, clean=flash
    ),
    # outputs
    spoilt("one-row-zero", "full", "row 63 of one head, the last of a block", out(zero(0, 0, 63))),
    spoilt("last-rows-unwritten", "full", "the last block of query rows is 0", out(zero(..., slice(-ROWS, None), slice(None)))),
    spoilt("wrong-dv-slice", "wide-values", "columns of v beyond D are 0", out(zero(..., slice(64, None)))),
    spoilt("columns-shifted", "full", "one column late", out(lambda t: t.roll(1, 3))),
    spoilt("rows-shifted", "full", "one row late", out(lambda t: t.roll(1, 2))),
    spoilt("4-%-nan", "full", "one value in 25", out(some_nan)),
    spoilt("all-zero", "full", "zeros", out(torch.zeros_like)),
    # gradients
    spoilt("dk-dv-swapped", "gradients", "dk in place of dv", lambda f: f | {"dk": f["dv"], "dv": f["dk"]}),
    inside("dq-without-scale", "gradients", "dS k without the scale"),
    inside("dk-without-scale", "gradients", "dS^T q without the scale"),
    inside("dk-scale-2-%", "gradients", "dk x 1.02"),
    spoilt("dv-misses-a-row", "gradients", "that of the last key", lambda f: f | {"dv": zero(0, 0, -1)(f["dv"].clone())}),
    inside("backward-without-mask", "gradients", "forward right, backward full"),
    inside("backward-mask-one-wide", "gradients", "forward right, backward j <= p + 1"),
    inside("backward-without-row-sum", "gradients", "dS = P dP"),
    inside("backward-with-max-for-lse", "gradients", "weights are not normalised"),
    inside("backward-without-softcap", "capped-gradients", "the slope of tanh left out"),
    inside("dq-of-last-tile-only", "gradients", "overwritten instead of added up"),
    inside("gradients-of-one-head-of-a-group", "grouped-gradients", "dk, dv not summed over the group"),
    inside("dk-not-turned-back", "rotary-gradients", "that of the turned keys"),
    inside("gradient-through-scores-alone", "shared-gradients", "dv not added to dk"),
    inside("gradient-in-the-last-columns", "shared-gradients", "dv added to the columns from D - Dv on"),
    inside("dout-ignored", "gradients", "ones"),
)  # fmt: skip
