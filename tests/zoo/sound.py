"""Algorithms that are right, each in its own way: none may be rejected."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from zoo.defects import (
    TILE,
    Compute,
    Outputs,
    added,
    allowed,
    beside_sinks,
    cap_of,
    chain,
    flash,
    quantised,
    turned,
    wider,
)

from attnbench.implementation import Inputs, dequantised
from attnbench.problem import Full, Problem

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A right algorithm and the problems that it can compute."""

    name: str
    what: str
    compute: Compute
    shapes: tuple[str, ...]
    """Names of `cage.SHAPES`."""


def gradients(attend: Attend, given: Inputs) -> Outputs:
    """`attend` with torch's own backward pass, where there is a dout."""
    if given.dout is None:
        return {"out": attend(given.q, given.k, given.v)}
    leaves = [t.detach().requires_grad_() for t in (given.q, given.k, given.v)]
    out = attend(*leaves)
    dq, dk, dv = torch.autograd.grad(out, leaves, given.dout)
    if given.shared_kv:
        dk[..., : dv.shape[3]] += dv
    return {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}


def sdpa(*backends: SDPBackend) -> Compute:
    def compute(problem: Problem, given: Inputs) -> Outputs:
        mask = None if isinstance(problem.mask, Full) else allowed(problem)
        options = {"attn_mask": mask, "scale": problem.softmax_scale, "dropout_p": problem.dropout}
        if problem.heads_q != problem.heads_kv:
            options["enable_gqa"] = True
        with sdpa_kernel(list(backends)):
            return gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), given)

    return compute


def flex(problem: Problem, given: Inputs) -> Outputs:
    """Without a compiler, so in several steps of torch."""
    sq, sk = problem.uniform
    cap, block = cap_of(problem), None
    if not isinstance(problem.mask, Full):

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return problem.mask.allowed(i, j, sq, sk)

        block = create_block_mask(seen, None, None, sq, sk, device="cpu")

    terms = added(problem, given)

    def bend(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        s = s if cap is None else cap * torch.tanh(s / cap)
        return s if terms is None else s + terms[h % len(terms), i, j].to(s)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gqa = problem.heads_q != problem.heads_kv
        with warnings.catch_warnings(action="ignore"):  # that it is not compiled
            return flex_attention(
                q,
                k,
                v,
                bend if problem.modifiers else None,
                block,
                scale=problem.softmax_scale,
                enable_gqa=gqa,
            )

    return gradients(attend, given)


def naive(problem: Problem, given: Inputs) -> Outputs:
    """Every step in the problem's dtype."""
    mask, shared = allowed(problem), problem.heads_q // problem.heads_kv
    some = mask.any(-1, keepdim=True)
    terms = added(problem, given)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = turned(problem, q, k.shape[2] - q.shape[2]), turned(problem, k, 0)
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        s = (q @ k.mT) * problem.softmax_scale
        if (cap := cap_of(problem)) is not None:
            s = cap * torch.tanh(s / cap)
        if terms is not None:
            s = s + terms.to(s)
        p = beside_sinks(given, s.masked_fill(~mask & some, -math.inf)) * some
        return (F.dropout(p, problem.dropout) if problem.dropout else p) @ v

    return gradients(attend, given)


def chunked(problem: Problem, given: Inputs) -> Outputs:
    """Blocks of query rows, each over all keys."""
    mask, shared = allowed(problem), problem.heads_q // problem.heads_kv

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        parts = []
        for rows in range(0, q.shape[2], 24):
            here = slice(rows, rows + 24)
            s = (q[:, :, here] * problem.softmax_scale) @ k.mT
            parts.append(s.masked_fill(~mask[..., here, :], -math.inf).softmax(-1) @ v)
        return torch.cat(parts, 2)

    return gradients(attend, given)


def scores(problem: Problem, given: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Masked scores [B, Hq, Sq, Sk] in float32, what may be seen [Sq, 1], v."""
    q, k, v = wider(problem, given)
    s, mask = q @ k.mT * problem.softmax_scale, allowed(problem)
    if (cap := cap_of(problem)) is not None:
        s = cap * torch.tanh(s / cap)
    some = mask.any(-1, keepdim=True)
    return s.masked_fill(~mask & some, -math.inf), some, v


def base_two(problem: Problem, given: Inputs) -> Outputs:
    """exp2 of scores times log2(e), as kernels do."""
    s, some, v = scores(problem, given)
    s = s * math.log2(math.e)
    p = torch.exp2(s - s.amax(-1, keepdim=True))
    out = (p.to(given.q.dtype).to(v.dtype) @ v) / p.sum(-1, keepdim=True)
    return {"out": (out * some).to(given.q.dtype)}


def split_keys(problem: Problem, given: Inputs) -> Outputs:
    """Flash-decoding: parts of the keys apart, each part's output rounded to the dtype, combined by log-sum-exp."""
    dtype = given.q.dtype
    s, some, v = scores(problem, given)
    size = -(-s.shape[-1] // 8)
    outs, sums = [], []
    for s_part, v_part in zip(s.split(size, -1), v.split(size, 2), strict=True):
        lse = s_part.logsumexp(-1, keepdim=True)
        p = (s_part - lse.clamp(min=torch.finfo(s.dtype).min)).exp()
        outs.append((p.to(dtype).to(v.dtype) @ v_part).to(dtype).to(v.dtype))
        sums.append(lse)
    weights = torch.stack(sums).softmax(0)
    return {"out": ((torch.stack(outs) * weights).sum(0) * some).to(dtype)}


def backwards(problem: Problem, given: Inputs) -> Outputs:
    """Keys from the last to the first, even ones before odd ones."""
    sk = problem.uniform[1]
    order = torch.arange(sk).flip(0)
    order = torch.cat([order[::2], order[1::2]])
    turned = Inputs(q=given.q, k=given.k[:, :, order], v=given.v[:, :, order], dout=given.dout)
    found = flash(problem, turned, mask=allowed(problem)[..., order])
    return found | {name: found[name][:, :, order.argsort()] for name in ("dk", "dv") if name in found}


def one_by_one(problem: Problem, given: Inputs) -> Outputs:
    """The output summed over single tiles of keys in order, in float32, after a first pass for the sum."""
    s, some, v = scores(problem, given)
    p = s.softmax(-1)
    out = torch.zeros(*s.shape[:-1], v.shape[-1], dtype=v.dtype)
    for at in range(0, s.shape[-1], TILE // 4):
        here = slice(at, at + TILE // 4)
        out += p[..., here].to(given.q.dtype).to(v.dtype) @ v[:, :, here]
    return {"out": (out * some).to(given.q.dtype)}


def wide_throughout(problem: Problem, given: Inputs) -> Outputs:
    """Everything in float64, rounded once at the end."""
    dtype = given.q.dtype
    dout = None if given.dout is None else given.dout.double()
    extra = {name: tensor.double() for name, tensor in given.extra.items()}
    q, k, v = given.q.double(), given.k.double(), given.v.double()
    v = k[..., : v.shape[3]] if given.shared_kv else v
    wide = Inputs(q=q, k=k, v=v, dout=dout, extra=extra)
    return {name: t.to(dtype) for name, t in naive(problem, wide).items()}


def shifted(problem: Problem, given: Inputs) -> Outputs:
    """A bound of the scores in place of their maximum (as where all of a row is not seen at once), in float64."""
    s, some, v = (t.double() if t.is_floating_point() else t for t in scores(problem, given))
    q, k, _ = wider(problem, given)
    bound = problem.softmax_scale * q.norm(dim=-1, keepdim=True) * k.norm(dim=-1).amax(-1)[..., None, None]
    p = (s - bound.clamp(max=cap_of(problem) or math.inf)).exp()
    return {"out": (p @ v / p.sum(-1, keepdim=True) * some).to(given.q.dtype)}


def narrow_throughout(problem: Problem, given: Inputs) -> Outputs:
    """k and v dequantised and rounded to the output's type, then every step in it."""
    return naive(problem, Inputs(**dict(zip("qkv", dequantised(problem, given), strict=True))))


def factors(problem: Problem, given: Inputs, name: str) -> Tensor:
    """[Hq, 1, 1], 1 where there is no descale."""
    found = given.extra.get(f"{name}_descale", torch.ones(1)).expand(problem.heads_kv)
    return found.repeat_interleave(problem.heads_q // problem.heads_kv)[:, None, None]


def folded(problem: Problem, given: Inputs) -> Outputs:
    """Products of what is stored; descales only in the scale and on the output."""
    to = torch.bfloat16 if problem.dtype.quantised else given.q.dtype
    q, k, v = wider(problem, Inputs(q=given.q.float(), k=given.k.float(), v=given.v.float()))
    s = q @ k.mT * (problem.softmax_scale * factors(problem, given, "q") * factors(problem, given, "k"))
    p = s.masked_fill(~allowed(problem), -math.inf).softmax(-1)
    return {"out": (p.to(to).to(v) @ v * factors(problem, given, "v")).to(to)}


def float8_tiles(problem: Problem, given: Inputs) -> Outputs:
    """FlashAttention-3 (Shah et al. 2024): products of float8, weights too, in units of a 256th of the largest so far."""
    q, k, v = wider(problem, Inputs(q=given.q.float(), k=given.k.float(), v=given.v.float()))
    s = q @ k.mT * (problem.softmax_scale * factors(problem, given, "q") * factors(problem, given, "k"))
    s = s.masked_fill(~allowed(problem), -math.inf)
    top = torch.full((*s.shape[:3], 1), torch.finfo(s.dtype).min)
    total, acc = torch.zeros_like(top), torch.zeros(*s.shape[:3], v.shape[3])
    for at in range(0, s.shape[-1], TILE):
        part = s[..., at : at + TILE]
        high = torch.maximum(top, part.amax(-1, keepdim=True))
        p, shrink = (part - high).exp() * 256, (top - high).exp()
        total = total * shrink + p.sum(-1, keepdim=True)
        acc = acc * shrink + p.to(torch.float8_e4m3fn).float() @ v[:, :, at : at + TILE]
        top = high
    return {"out": (acc / total * factors(problem, given, "v")).bfloat16()}


ALL = ("full", "causal", "window", "empty-rows", "ragged", "grouped", "gradients", "grouped-gradients")
UNCAPPED = ("full", "causal", "window", "ragged", "grouped", "gradients")
CAPPED = ("capped", "capped-gradients")
STORED = ("int8-keys", "float8-keys", "float8")
MASKED = (
    *("top-left", "chunked", "dilated", "prefix-lm", "block-causal", "global-window", "tree"),
    *("block-sparse", "documents", "key-padding", "left-padding"),
)
ADDED = ("alibi", "biased", "relative")
TURNED = ("rotary", "rotary-gradients")
SHARED = ("shared", "shared-gradients")
FORWARD = ("full", "causal", "window", "empty-rows", "ragged", "wide-values", "grouped", "capped", "large")

SOUND = (
    Sound(name="naive", what="every step in the problem's dtype", compute=naive, shapes=(*ALL, *MASKED, *CAPPED, *ADDED, *TURNED, *SHARED, "sinks", "dropout", "grouped-dropout")),
    Sound(name="float64", what="float64, rounded once", compute=wide_throughout, shapes=(*ALL, *CAPPED, *ADDED, *TURNED, *SHARED, "sinks", "dropout", "grouped-dropout")),
    Sound(name="flash", what="tiles, online softmax, explicit backward", compute=flash, shapes=ALL + MASKED + CAPPED + TURNED + SHARED),
    Sound(name="keys-reversed", what="flash over keys in another order", compute=backwards, shapes=ALL + MASKED + SHARED),
    Sound(name="chain", what="float32 sums, rounded weights", compute=chain, shapes=("full", "causal", "large", *ADDED, "sinks", "rotary", "dropout", "grouped-dropout", "shared")),
    Sound(name="exp2", what="powers of two, divided at the end", compute=base_two, shapes=FORWARD),
    Sound(name="split-keys", what="8 parts with rounded outputs", compute=split_keys, shapes=(*FORWARD, *MASKED, "shared")),
    Sound(name="tiles-in-order", what="the output summed over 32 keys at a time", compute=one_by_one, shapes=FORWARD),
    Sound(name="bound-for-maximum", what="an upper bound subtracted", compute=shifted, shapes=("full", "ragged", "grouped")),
    Sound(name="query-blocks", what="24 rows at a time, scale on q", compute=chunked, shapes=UNCAPPED),
    Sound(name="sdpa-math", what="torch's chain", compute=sdpa(SDPBackend.MATH), shapes=(*UNCAPPED, *SHARED, "dropout", "grouped-dropout")),
    Sound(
        name="sdpa-flash",
        what="torch's fused kernel",
        compute=sdpa(SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
        shapes=UNCAPPED + MASKED,
    ),
    Sound(name="flex", what="flex_attention, not compiled", compute=flex, shapes=("full", "causal", "window", "capped", *ADDED)),
    Sound(name="dequantised", what="k and v in float32, then flash", compute=quantised, shapes=STORED),
    Sound(name="dequantised-narrow", what="in the output's type from the first step", compute=narrow_throughout, shapes=STORED),
    Sound(name="descales-folded", what="products of what is stored", compute=folded, shapes=STORED),
    Sound(name="float8-tiles", what="weights in float8 too, tile by tile", compute=float8_tiles, shapes=("float8",)),
)  # fmt: skip
