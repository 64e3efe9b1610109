"""Sound algorithms, forward and backward, that no rule may reject; `test_verify` and `fit_factors` use them.

Each maps (problem, inputs in `bhsd`) to a dict of out, dq, dk and dv, and takes any mask of indices.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnbench.implementation import Inputs
from attnbench.problem import Causal, Full, Problem, Softcap

Algorithm = Callable[[Problem, Inputs], dict[str, Tensor]]


def allowed(problem: Problem) -> Tensor:
    """[Sq, Sk]."""
    sq, sk = problem.uniform
    return problem.mask.allowed(torch.arange(sq)[:, None], torch.arange(sk)[None], sq, sk)


def gradients(attend: Callable[..., Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """`attend` with torch's own backward pass, where the inputs have a dout."""
    if inputs.dout is None:
        return {"out": attend(inputs.q, inputs.k, inputs.v)}
    leaves = [t.detach().requires_grad_() for t in (inputs.q, inputs.k, inputs.v)]
    out = attend(*leaves)
    grads = torch.autograd.grad(out, leaves, inputs.dout)
    return {"out": out.detach(), **dict(zip(("dq", "dk", "dv"), grads, strict=True))}


def plain(problem: Problem, inputs: Inputs) -> dict[str, Tensor]:
    """The plain chain as everybody writes it, in the dtype of the inputs."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shared = problem.heads_q // problem.heads_kv
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        s = (q @ k.mT) * problem.softmax_scale
        for cap in caps(problem):
            s = cap * torch.tanh(s / cap)
        mask = allowed(problem)
        some = mask.any(-1, keepdim=True)
        p = s.masked_fill(~mask & some, -math.inf).softmax(-1)
        return (p * some if not some.all() else p) @ v

    return gradients(attend, inputs)


def wide(problem: Problem, inputs: Inputs) -> dict[str, Tensor]:
    """Everything in float32 (float64 for float64), rounded once at the end."""
    dtype = inputs.q.dtype
    to = torch.promote_types(dtype, torch.float32)
    given = {n: None if t is None else t.to(to) for n, t in vars(inputs).items()}
    return {name: t.to(dtype) for name, t in plain(problem, Inputs(**given)).items()}


def sdpa(problem: Problem, inputs: Inputs) -> dict[str, Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sq, sk = problem.uniform
        causal = isinstance(problem.mask, Causal) and sq == sk
        mask = None if causal or isinstance(problem.mask, Full) else allowed(problem)
        gqa = problem.heads_q != problem.heads_kv
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=problem.softmax_scale, enable_gqa=gqa
        )

    assert not problem.modifiers
    return gradients(attend, inputs)


def sdpa_math(problem: Problem, inputs: Inputs) -> dict[str, Tensor]:
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(problem, inputs)


def caps(problem: Problem) -> list[float]:
    return [m.cap for m in problem.modifiers if isinstance(m, Softcap)]


def tiled(problem: Problem, inputs: Inputs, tile: int = 64, half_partials: bool = False) -> dict[str, Tensor]:
    """Flash-attention: online softmax over key tiles, and a backward pass from the log-sum-exp.

    Sums are kept in float32; P and dS are rounded to the dtype before their products, dk and dv per query
    head before they are summed over a group (Dao 2023, algorithms 1 and 2, and its CUDA kernels).
    With `half_partials` each tile's output is rounded before the tiles are combined (split-KV).
    """
    dtype = inputs.q.dtype
    to = torch.promote_types(dtype, torch.float32)
    shared, scale = problem.heads_q // problem.heads_kv, problem.softmax_scale

    def narrow(t: Tensor) -> Tensor:
        return t.to(dtype).to(to)

    q = inputs.q.to(to)
    k, v = (t.to(to).repeat_interleave(shared, 1) for t in (inputs.k, inputs.v))
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
    if inputs.dout is None:
        return found
    dout, lse = inputs.dout.to(to), top + total.masked_fill(total == 0, 1).log()
    delta = (dout * narrow(out)).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for at in tiles:
        s, slope = scores(at)
        p = (s - lse).exp()
        dv[:, :, at] = narrow(p).mT @ dout
        ds = narrow(p * (dout @ v[:, :, at].mT - delta) * slope)
        dq += ds @ k[:, :, at] * scale
        dk[:, :, at] = ds.mT @ q * scale
    grouped = (narrow(t).unflatten(1, (-1, shared)).sum(2) for t in (dk, dv))
    return found | dict(zip(("dq", "dk", "dv"), (dq.to(dtype), *(t.to(dtype) for t in grouped)), strict=True))


def split_kv(problem: Problem, inputs: Inputs) -> dict[str, Tensor]:
    return tiled(problem, inputs, tile=128, half_partials=True)


SOUND: dict[str, Algorithm] = {
    "plain": plain,
    "wide": wide,
    "sdpa": sdpa,
    "sdpa-math": sdpa_math,
    "tiled": tiled,
    "split-kv": split_kv,
}
