"""What oracle and yardstick compute of modifiers and mechanisms; they differ in how the result of each step is rounded.

Letters: g groups of G query heads over one key/value head, r query rows, n keys.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnbench.problem import (
    Additive,
    Alibi,
    Bias,
    Entmax,
    General,
    Linear,
    LocalGaussian,
    Location,
    Problem,
    RelativeBias,
    Sparsemax,
)

Rounding = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Which queries, keys and heads are computed at once, and the problem's parameters, all of them."""

    heads: Tensor
    """[g, G]"""
    heads_kv: Tensor
    """[g]"""
    rows: Tensor
    """[r]"""
    keys: Tensor
    """[n]"""
    lengths: tuple[int, int]
    """(Sq, Sk) of the member that they are of, or of all."""
    extra: Mapping[str, Tensor]
    apart: bool = False
    """Whether slopes are to be as large as their terms are apart, for the sizes of gradients: 1 - tanh^2 may cancel."""


def terms(problem: Problem, block: Block, dtype: torch.dtype, rnd: Rounding) -> Iterator[Tensor]:
    """What modifiers add to the scores, one after the other: [g, G, r, n]."""
    if not problem.modifiers:
        return
    sq, sk = block.lengths
    ahead = block.keys - (block.rows[:, None] + (sk - sq))  # j - p
    for modifier in problem.modifiers:
        if isinstance(modifier, Alibi):
            slopes = torch.tensor(modifier.slopes(problem.heads_q), dtype=dtype, device=ahead.device)
            yield rnd(-rnd(slopes)[block.heads][..., None, None] * ahead.abs())
        elif isinstance(modifier, Bias):
            heads = block.heads * (modifier.heads is None)
            index = heads[..., None, None], block.rows[:, None], block.keys
            yield block.extra["bias"][index].to(dtype)
        elif isinstance(modifier, RelativeBias):
            table = block.extra["relative_bias"].to(dtype).mT[block.heads]  # [g, G, buckets]
            yield table[..., modifier.bucket(ahead)]


def sinks(problem: Problem, block: Block, dtype: torch.dtype) -> Tensor | None:
    """The logit of each row's sink, [g, G r, 1]; None without the modifier."""
    if problem.modifier("sinks") is None:
        return None
    logits = block.extra["sinks"].to(dtype)[block.heads]
    return logits.repeat_interleave(len(block.rows), 1)[..., None]


def weights(
    problem: Problem,
    s: Tensor,
    near: Tensor | None,
    allowed: Tensor | None,
    rnd: Rounding,
    exact: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights [g, G r, n] of a mechanism other than softmax and dot, those that errors are measured by, and the size
    of the largest score.

    `s` are the `scores`, which are overwritten, `near` is the `gaussian`, `allowed` [r, n]. The first two differ where a
    Gaussian takes most of a row's weight: its place is rounded, so that what is left of such a row is not known to so
    many digits. `exact` is the oracle's way, where there is a plainer one.
    """
    mechanism = problem.mechanism
    if allowed is not None:
        least = 0.0 if isinstance(mechanism, Linear) else -torch.inf
        torch.unflatten(s, 1, (-1, len(allowed))).masked_fill_(~allowed, least)
    if isinstance(mechanism, Linear):
        total = s.sum(-1, keepdim=True)
        p = rnd(s / total.masked_fill(total == 0, 1))
        return p, p, torch.zeros_like(total).amax()
    top = s.amax(-1, keepdim=True)
    blind = top == -torch.inf
    top.masked_fill_(blind, 0)
    s.sub_(top)
    if isinstance(mechanism, Sparsemax):
        p = _sparsemax(s)
    elif isinstance(mechanism, Entmax):
        p = _entmax(s) if mechanism.alpha == 1.5 else (_exact if exact else _halved)(s, mechanism.alpha - 1)
    else:
        p = s.exp()
        p /= p.sum(-1, keepdim=True).masked_fill(blind, 1)
    p = rnd(p.masked_fill_(blind, 0))
    largest = top.abs().amax()
    if isinstance(mechanism, LocalGaussian):  # its place is rounded as a score of Sk / sigma is
        assert problem.uniform is not None
        assert near is not None
        return rnd(p * near), p, largest.clamp(min=2 * problem.uniform[1] / mechanism.window)
    return p, p, largest


def scores(problem: Problem, q: Tensor, k: Tensor, block: Block, rnd: Rounding, product: Product) -> Tensor:
    """Of q [g, G r, D] and k [g, n, D] by a mechanism, before the mask: [g, G r, n]. It may be differentiated."""
    match problem.mechanism:
        case General():
            return rnd(product(_by_head(q, block, "w", rnd, product), k.mT))
        case Additive():
            return _additive(q, k, block, rnd, product)
        case Location():
            w = block.extra["w"][..., block.keys].to(q)[block.heads]  # [g, G, D, n]
            return rnd(product(torch.unflatten(q, 1, (block.heads.shape[1], -1)), w)).flatten(1, 2)
        case Linear():
            return rnd(product(_feature(q, rnd), _feature(k, rnd).mT))
    return rnd(rnd(product(q, k.mT)).mul_(problem.softmax_scale))


def _by_head(q: Tensor, block: Block, name: str, rnd: Rounding, product: Product) -> Tensor:
    """q_h W_h, W the parameter of that name [Hq, D, x]: [g, G r, D] -> [g, G r, x]."""
    w = block.extra[name].to(q)[block.heads]  # [g, G, D, x]
    return rnd(product(torch.unflatten(q, 1, (block.heads.shape[1], -1)), w)).flatten(1, 2)


def _additive(q: Tensor, k: Tensor, block: Block, rnd: Rounding, product: Product) -> Tensor:
    """w . tanh(q Wq + k Wk), a hidden unit at a time, so that [r, n, hidden] is never held."""
    of_q = torch.unflatten(
        _by_head(q, block, "w_q", rnd, product), 1, (block.heads.shape[1], -1)
    )  # [g, G, r, M]
    of_k = rnd(product(k, block.extra["w_k"].to(k)[block.heads_kv]))[:, None]  # [g, 1, n, M]
    w = block.extra["w"].to(q)[block.heads]  # [g, G, M]
    s = q.new_zeros(*of_q.shape[:3], of_k.shape[2])
    for unit in range(w.shape[-1]):
        bent = _bent(rnd(of_q[..., unit, None] + of_k[..., None, :, unit]), block, rnd)
        s.addcmul_(bent, w[..., unit, None, None])
    return rnd(s).flatten(1, 2)


class _Bent(torch.autograd.Function):
    """tanh or the logistic function y, whose slope is taken of the rounded y, as a device has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rnd: Rounding, sigmoid: bool, apart: bool) -> Tensor:
        y = rnd(x.sigmoid() if sigmoid else x.tanh())
        ctx.save_for_backward(y)
        ctx.sigmoid, ctx.apart = sigmoid, apart
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (y,) = ctx.saved_tensors
        one, other = (y, y * y) if ctx.sigmoid else (torch.ones_like(y), y * y)
        slope = (one.square() + other.square()).sqrt() if ctx.apart else one - other
        return grads[0] * slope, None, None, None


def _bent(x: Tensor, block: Block, rnd: Rounding, sigmoid: bool = False) -> Tensor:
    found: Tensor = _Bent.apply(x, rnd, sigmoid, block.apart)  # type: ignore[no-untyped-call]
    return found


def _feature(x: Tensor, rnd: Rounding) -> Tensor:
    """elu(x) + 1 (Katharopoulos et al. 2020, equation 7)."""
    return rnd(torch.where(x > 0, x + 1, x.clamp(max=0).exp()))


def gaussian(problem: Problem, q: Tensor, block: Block, rnd: Rounding, product: Product) -> Tensor | None:
    """exp(-(j - c)^2 / 2 sigma^2), c = Sk sigmoid(v_p . tanh(q W_p)): [g, G r, n]; None but for local-gaussian.

    It may be differentiated.
    """
    mechanism = problem.mechanism
    if not isinstance(mechanism, LocalGaussian):
        return None
    assert problem.uniform is not None
    bent = _bent(_by_head(q, block, "w_p", rnd, product), block, rnd)
    v_p = block.extra["v_p"].to(q)[block.heads][..., None]  # [g, G, D, 1]
    place = rnd(product(torch.unflatten(bent, 1, (block.heads.shape[1], -1)), v_p)).flatten(
        1, 2
    )  # [g, G r, 1]
    centre = rnd(_bent(place, block, rnd, sigmoid=True) * problem.uniform[1])
    off = rnd(rnd(block.keys - centre) / (mechanism.window / 2))
    return rnd(rnd(off.square_().div_(-2)).exp_())


_BELOW = -2.0
"""In place of scores (halves of them, for entmax) that are at least 1 below the largest, and so get no weight: one
that is -inf cannot be added up."""


def _sparsemax(s: Tensor) -> Tensor:
    """max(s - tau, 0), tau so that it sums to 1 (Martins and Astudillo 2016, algorithm 1); the largest s is 0."""
    s = s.clamp(min=_BELOW)
    ordered = s.sort(-1, descending=True).values
    count = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype, device=s.device)
    total = ordered.cumsum(-1)
    support = (1 + count * ordered > total).sum(-1, keepdim=True)
    tau = (total.gather(-1, support - 1) - 1) / support
    return (s - tau).clamp_(min=0)


def _entmax(s: Tensor) -> Tensor:
    """max(s / 2 - tau, 0)^2, tau so that it sums to 1 (Peters et al. 2019, algorithm 2); the largest s is 0."""
    s = (s / 2).clamp_(min=_BELOW)
    ordered = s.sort(-1, descending=True).values
    count = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype, device=s.device)
    mean = ordered.cumsum(-1) / count
    spread = ordered.square().cumsum(-1) / count - mean.square()
    tau = mean - (1 / count - spread).clamp_(min=0).sqrt_()
    support = (tau <= ordered).sum(-1, keepdim=True)
    return (s - tau.gather(-1, support - 1)).clamp_(min=0).square_()


def _halved(s: Tensor, power: float) -> Tensor:
    """max(power s - tau, 0)^(1 / power), power = alpha - 1, tau by halving so that it sums to 1 (Peters et al. 2019,
    algorithm 1), as everybody does it; the largest s is 0.

    tau lies between -1, where the largest alone weighs 1, and 0; halved until it is known to an eighth of an epsilon.
    """
    s, low, width = s * power, torch.full_like(s[..., :1], -1), 1.0
    while width > torch.finfo(s.dtype).eps / 8:
        width /= 2
        middle = low + width
        enough = (s - middle).clamp_(min=0).pow_(1 / power).sum(-1, keepdim=True) >= 1
        low = torch.where(enough, middle, low)
    p = (s - low).clamp_(min=0).pow_(1 / power)
    return p.div_(p.sum(-1, keepdim=True))


def _exact(s: Tensor, power: float) -> Tensor:
    """As `_halved`, without the digits that power s - tau loses where alpha is near 1 and all of it is near 1.

    With tau = -e^(-power x) a weight is exp(log1p(power s e^(power x)) / power - x): softmax is its limit, and x there the
    log-sum-exp. The sum is convex in -tau, so that Newton's steps from x = 0, where it is at least 1, come down on the root.
    Its slope there is at least 1 / power (of t = power s - tau, t^(1 / power - 1) sums to more than the weights), so that
    a sum of 1 + e leaves -tau off by at most power e.
    """
    x = torch.zeros_like(s[..., :1])
    for _ in range(64):  # about log(n) and five
        bent = (s * ((power * x).exp() * power)).clamp_(min=-1)  # t / -tau - 1
        p = (bent.log1p() / power).sub_(x).exp_()
        total = p.sum(-1, keepdim=True)
        excess = (total - 1).clamp_(min=0)  # 0 where there is no key
        if not bool((excess > 2.0**-46).any()):
            break
        slope = (p / bent.add_(1).clamp_(min=1e-300)).sum(-1, keepdim=True)
        x -= (-power * excess / slope.clamp_(min=1)).log1p_() / power
    return p.div_(total)
