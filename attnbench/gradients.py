"""Gradients of parameters and of mechanisms other than softmax and dot, for oracle and yardstick.

Letters as in `formulas`. With dS the gradient of what the softmax is taken of: bias has dS itself, a bucket of
relative-bias the sum of its pairs, and a sink, whose value is 0, - sum over its rows of its weight times rowsum(P dP).

Of a mechanism dS is derived by hand from dP = dO v^T, and differentiated further by torch, through the steps in which
its scores are computed: a rounded step rounds the gradient too, as a chain in that type does. Tests hold all of it
against differences of the forward pass.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnbench import formulas
from attnbench.formulas import Block, Product, Rounding
from attnbench.problem import Bias, DType, Entmax, Linear, Problem, RelativeBias, Sinks, Sparsemax


def add_modifiers(
    problem: Problem,
    block: Block,
    place: tuple[Tensor, slice, slice],
    ds: Tensor,
    dsink: Tensor | None,
    into: Mapping[str, Tensor],
) -> None:
    """Add what a block brings, dS [g, G r, n] and the gradient of each row's sink [g, G r], to the tensors of `into`.

    These are `dbias` [heads, R, Sk], `drelative_bias` [buckets, Hq] and `dsinks` [1, Hq]. `place` is the plane of
    `dbias` that belongs to each of the block's heads [g G], the rows among R, and the keys.
    """
    sq, sk = block.lengths
    (planes, rows, keys), heads, count = place, block.heads.flatten(), len(block.rows)
    by_head = ds.reshape(len(heads), count, -1)
    for modifier in problem.modifiers:
        if isinstance(modifier, Bias) and modifier.grad:
            plane = planes if modifier.heads is None else planes * 0
            into["dbias"][:, rows, keys].index_add_(0, plane, by_head)
        elif isinstance(modifier, RelativeBias):
            bucket = modifier.bucket(block.keys - (block.rows[:, None] + (sk - sq))).flatten()
            sums = ds.new_zeros(len(heads), modifier.buckets)
            sums.scatter_add_(1, bucket.expand(len(heads), -1), by_head.flatten(1))
            into["drelative_bias"].index_add_(1, heads, sums.mT)
        elif isinstance(modifier, Sinks):
            assert dsink is not None
            into["dsinks"].index_add_(1, heads, dsink.reshape(len(heads), count).sum(-1)[None])


PROBES = 2
"""Random signs by which the sizes of a mechanism's gradients are found: their mean square is the sum of the squares."""


def of_mechanism(
    problem: Problem,
    block: Block,
    qkv: tuple[Tensor, Tensor, Tensor],
    dout: Tensor,
    allowed: Tensor | None,
    rnd: Rounding,
    product: Product,
    squares: tuple[Tensor, ...],
) -> dict[str, Tensor]:
    """`out`, `dq`, `dk`, `dv` and `d<name>` of the parameters, whole, of a block as in `reference`; with `squares`, the
    squared norms of k and v, the squared sizes too: those of parameters element by element."""
    q, k, v = (tensor.detach() for tensor in qkv)
    extra = {name: tensor.detach().to(q).requires_grad_() for name, tensor in block.extra.items()}
    leaves = {"dq": q.clone().requires_grad_(), "dk": k.clone().requires_grad_()}
    leaves |= {f"d{name}": tensor for name, tensor in extra.items()}

    def scored(apart: bool) -> list[Tensor]:
        """The scores and, of local-gaussian, the Gaussian, for torch to differentiate."""
        parts, through = replace(block, extra=extra, apart=apart), _differentiable(product)
        with torch.enable_grad():
            scores = formulas.scores(problem, leaves["dq"], leaves["dk"], parts, rnd, through)
            near = formulas.gaussian(problem, leaves["dq"], parts, rnd, through)
        return [scores] if near is None else [scores, near]

    def pulled(ends: list[Tensor], given: list[Tensor]) -> dict[str, Tensor]:
        """Gradients of the leaves, from those of `scored`."""
        grads = torch.autograd.grad(
            ends, [*leaves.values()], given[: len(ends)], retain_graph=True, materialize_grads=True
        )
        return dict(zip(leaves, grads, strict=True))

    ends = scored(False)
    s, gauss = ends[0].detach(), ends[1].detach() if len(ends) > 1 else None
    p, plain, top = formulas.weights(problem, s.clone(), gauss, allowed, rnd, exact=bool(squares))
    out, dp = rnd(product(p, v)), rnd(product(dout, v.mT))
    seen = torch.ones_like(s[0], dtype=torch.bool)
    if allowed is not None:
        seen = allowed.repeat(s.shape[1] // len(allowed), 1)  # [G r, n]
    edge = _edge(problem, s, plain, seen)
    support = plain > 0 if squares else _doubted(problem, q, k, allowed, seen)
    slope, share = _slope(problem, s, plain, seen, support)
    dweight = dp if gauss is None else rnd(dp * gauss)
    ds = rnd(slope * (dweight - (share * dweight).sum(-1, keepdim=True)))
    found = {"out": out, "dv": product(p.mT, dout), **pulled(ends, [ds, rnd(dp * plain)])}
    if gauss is not None:
        top = 2 * top  # the slope of the Gaussian has its rounded place once more
    if squares:
        _, v2 = squares
        dout2 = dout.square().sum(-1, keepdim=True)
        dp2 = dout2 * (v2.mT / problem.head_dim_v)  # dO . v as of independent vectors, as in `reference`
        found |= {"out_size": plain.square() @ v2, "top_score": top}
        found["dv_size"] = _alike(plain, edge).mT @ dout2
        dweight2 = dp2 if gauss is None else dp2 * gauss.square()
        mean2 = (share.square() * dweight2).sum(-1, keepdim=True)
        sizes = (_alike(slope, edge) * (dweight2 + mean2)).sqrt(), dp2.sqrt() * plain
        found |= {f"{name}_size": torch.zeros_like(leaf) for name, leaf in leaves.items()}
        generator, ends = torch.Generator(q.device).manual_seed(0), scored(True)
        for _ in range(PROBES):
            signs = torch.randint(0, 2, (2, *s.shape), generator=generator, device=s.device) * 2 - 1
            given = [sign * size for sign, size in zip(signs, sizes, strict=True)]
            for name, tensor in pulled(ends, given).items():
                found[f"{name}_size"] += tensor.square() / PROBES
        for name in ("dq_size", "dk_size"):
            found[name] = found[name].sum(-1, keepdim=True)
    return {name: tensor.detach() for name, tensor in found.items()}


def _threshold(problem: Problem, s: Tensor, p: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Of a sparse normaliser: the score above which there is weight, and by how much rounding could move a score from it."""
    top = s.masked_fill(~seen, -torch.inf).amax(-1, keepdim=True)
    most = p.amax(-1, keepdim=True)
    power = problem.mechanism.alpha - 1 if isinstance(problem.mechanism, Entmax) else 1.0
    below = top - most**power / power
    return below, _epsilon(problem.dtype) * (top.abs() + 1)


def _edge(problem: Problem, s: Tensor, p: Tensor, seen: Tensor) -> Tensor | None:
    """Where a sparse normaliser gives weight, or could if the scores had been rounded otherwise; None of the others."""
    if not isinstance(problem.mechanism, Sparsemax | Entmax):
        return None
    below, doubt = _threshold(problem, s, p, seen)
    return seen & (s > below - doubt)


def _doubted(problem: Problem, q: Tensor, k: Tensor, allowed: Tensor | None, seen: Tensor) -> Tensor:
    """The yardstick's support of sparsemax: wrong wherever rounding could make it so.

    The gradient jumps where a score is at the edge of the support; so the yardstick's error has these jumps.
    """
    if not isinstance(problem.mechanism, Sparsemax):
        return seen
    s = q.double() @ k.double().mT * problem.softmax_scale
    p, _, _ = formulas.weights(problem, s.clone(), None, allowed, lambda x: x)
    below, doubt = _threshold(problem, s, p, seen)
    return (p > 0) ^ (seen & ((s - below).abs() < doubt))


def _alike(x: Tensor, edge: Tensor | None) -> Tensor:
    """The squared sizes of weights, or of slopes. Those of a sparse normaliser are differences of scores and a threshold:
    all of a row's err alike, and are at least as large as its root mean square."""
    if edge is None:
        return x.square()
    mean = x.square().sum(-1, keepdim=True) / edge.sum(-1, keepdim=True).clamp(min=1)
    return x.square() + edge * mean


def _slope(problem: Problem, s: Tensor, p: Tensor, seen: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """w and u, so that dS = w (dP - sum(u dP)): [g, G r, n] both.

    Of alpha-entmax w = p^(2 - alpha) and u = w / sum(w), which has softmax (1), entmax-1.5 and sparsemax (2) in it (Peters
    et al. 2019, section 3.2); of scores over their sum, u = p. `support` is that of sparsemax.
    """
    if isinstance(problem.mechanism, Linear):
        total = s.masked_fill(~seen, 0).sum(-1, keepdim=True)
        return torch.where(seen & (total > 0), 1 / total, 0), p
    if isinstance(problem.mechanism, Entmax):
        return _normalised(p ** (2 - problem.mechanism.alpha))
    if isinstance(problem.mechanism, Sparsemax):
        return _normalised(support.to(p))
    return p, p


def _normalised(w: Tensor) -> tuple[Tensor, Tensor]:
    return w, w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)


def _epsilon(dtype: DType) -> float:
    return 2.0**-10 if dtype is DType.TFLOAT32 else torch.finfo(getattr(torch, dtype.value)).eps


def _differentiable(product: Product) -> Product:
    """The matrix product `product` for torch to differentiate: the gradients are such products too."""

    class Multiplied(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(a, b)
            return product(a, b)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
            a, b = ctx.saved_tensors
            return product(grads[0], b.mT).sum_to_size(a.shape), product(a.mT, grads[0]).sum_to_size(b.shape)

    def multiplied(a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = Multiplied.apply(a, b)  # type: ignore[no-untyped-call]
        return found

    return multiplied
