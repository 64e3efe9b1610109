"""Attention mechanisms other than scaled dot product, in plain torch operations, differentiated by torch."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from attnbench import (
    INDEX_MASKS,
    Capabilities,
    Implementation,
    Inputs,
    Prepared,
    Problem,
    differentiable,
    hookimpl,
)

if TYPE_CHECKING:
    import torch

TILE = 64
"""Queries of causal `linear` at once, between which the sums over keys are brought forward."""
HALVINGS = {4: 26, 8: 56}
"""Of the interval in which a threshold of sparsemax or entmax lies, which is 1 wide at first, by the bytes of a score."""


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="torch-mechanisms",
        summary="general, additive, location, linear, local-gaussian, sparsemax and entmax in torch; half types in float32",
        capabilities=Capabilities(
            dtypes=frozenset(("float64", "float32", "float16", "bfloat16")),
            devices=frozenset(("cpu", "cuda")),
            directions=frozenset(("forward", "backward", "forward_backward", "inference")),
            masks=INDEX_MASKS,
            mechanisms=frozenset(
                ("general", "additive", "location", "linear", "local-gaussian", "sparsemax", "entmax")
            ),
            grouped_heads=True,
            unequal_head_dims=True,
        ),
        prepare=_prepare,
        requires=("torch",),
        qkv_format="bhsd",
    )


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    """Products are taken in the problem's dtype, what becomes of scores in at least float32."""
    import torch

    hq, hk = problem.heads_q, problem.heads_kv

    def grouped(tensor: torch.Tensor) -> torch.Tensor:
        """[Hq or Hk, ...] -> [Hk, G or 1, ...]"""
        return tensor.view(hk, tensor.shape[0] // hk, *tensor.shape[1:])

    compute = (_linear if problem.mechanism.name == "linear" else _weighted)(problem, inputs.q.device)

    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
        parameters = {name: grouped(tensor) for name, tensor in extra.items()}
        q = q.view(problem.batch, hk, hq // hk, *q.shape[2:])
        return compute(q, k[:, :, None], v[:, :, None], parameters).view(problem.batch, hq, q.shape[3], -1)

    return differentiable(step, problem, inputs)


Attend = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "dict[str, torch.Tensor]"], "torch.Tensor"]
"""q [B, Hk, G, Sq, D], k [B, Hk, 1, Sk, D], v [B, Hk, 1, Sk, Dv] and the parameters -> out [B, Hk, G, Sq, Dv]."""


def _weighted(problem: Problem, device: "torch.device") -> Attend:
    """Scores, mask, weights, and their sum of the values."""
    import torch

    assert problem.uniform is not None
    sq, sk = problem.uniform
    mechanism: Any = problem.mechanism
    forbidden = blind = None
    if problem.mask.name != "full":
        i, j = (torch.arange(n, device=device) for n in problem.uniform)
        forbidden = ~problem.mask.allowed(i[:, None], j, sq, sk)  # [Sq, Sk]
        blind = forbidden.all(-1, keepdim=True)  # [Sq, 1], queries that see no key
        blind = blind if blind.any() else None
    score = _SCORES.get(mechanism.name, _scaled)
    alpha = 2.0 if mechanism.name == "sparsemax" else getattr(mechanism, "alpha", None)
    position = torch.arange(sk, device=device)
    thresholded = None if alpha is None else _thresholded(1 / (alpha - 1))

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        s = score(problem, q, k, extra)
        s = s.to(torch.promote_types(s.dtype, torch.float32))
        if forbidden is not None:
            s = s.masked_fill(forbidden, float("-inf"))
        p = torch.softmax(s, -1) if thresholded is None else thresholded(s)
        if blind is not None:  # before p meets anything that has a gradient of its own
            p = p.masked_fill(blind, 0)
        if mechanism.name == "local-gaussian":
            off = (position - _centre(q, extra) * sk) / (mechanism.window / 2)
            p = p * torch.exp(off * off * -0.5)
        return p.to(v.dtype) @ v

    return attend


Score = Callable[[Problem, "torch.Tensor", "torch.Tensor", "dict[str, torch.Tensor]"], "torch.Tensor"]
"""[B, Hk, G, Sq, Sk]."""


def _scaled(
    problem: Problem, q: "torch.Tensor", k: "torch.Tensor", extra: "dict[str, torch.Tensor]"
) -> "torch.Tensor":
    return q @ k.mT * problem.softmax_scale


def _general(
    problem: Problem, q: "torch.Tensor", k: "torch.Tensor", extra: "dict[str, torch.Tensor]"
) -> "torch.Tensor":
    """q W k^T (Luong et al. 2015, equation 8)."""
    return q @ extra["w"] @ k.mT


def _location(
    problem: Problem, q: "torch.Tensor", k: "torch.Tensor", extra: "dict[str, torch.Tensor]"
) -> "torch.Tensor":
    """q W (Luong et al. 2015, equation 8)."""
    return q @ extra["w"]


def _additive(
    problem: Problem, q: "torch.Tensor", k: "torch.Tensor", extra: "dict[str, torch.Tensor]"
) -> "torch.Tensor":
    """w . tanh(q Wq + k Wk) (Bahdanau et al. 2015, A.1.2), a hidden unit at a time."""
    import torch

    wide = torch.promote_types(q.dtype, torch.float32)
    of_q, of_k = (
        (q @ extra["w_q"]).to(wide),
        (k @ extra["w_k"]).to(wide),
    )  # [B, Hk, G, Sq, M], [B, Hk, 1, Sk, M]
    w = extra["w"].to(wide)[..., None, None, :]  # [Hk, G, 1, 1, M]
    s = of_q.new_zeros(*q.shape[:-1], k.shape[-2])
    for unit in range(w.shape[-1]):
        bent = (of_q[..., unit, None] + of_k[..., None, :, unit]).tanh_()
        s.addcmul_(bent, w[..., unit])
    return s


_SCORES: dict[str, Score] = {"general": _general, "location": _location, "additive": _additive}


def _centre(q: "torch.Tensor", extra: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """Where among the keys a query looks, from 0 to 1: sigmoid(v_p . tanh(q W_p)) (Luong et al. 2015, equation 9)."""
    import torch

    wide = torch.promote_types(q.dtype, torch.float32)
    place = torch.tanh(q @ extra["w_p"]) @ extra["v_p"][..., None]
    return torch.sigmoid(place.to(wide))  # [B, Hk, G, Sq, 1]


def _thresholded(power: float) -> "Callable[[torch.Tensor], torch.Tensor]":
    """max(s / power - tau, 0)^power, tau found by halving so that it sums to 1 (Peters et al. 2019, algorithm 1); `power`
    is 1 / (alpha - 1).

    A row of -inf becomes NaN. The gradient is w (g - sum(w g) / sum(w)), w = p^(1 - 1 / power) where p is above 0
    (their section 3.2): halving is not differentiated.
    """
    import torch

    class Thresholded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, s: torch.Tensor) -> torch.Tensor:
            s = s / power
            s = s - s.amax(-1, keepdim=True)
            low = torch.full_like(s[..., :1], -1)  # there the largest alone weighs 1
            width = 1.0
            for _ in range(HALVINGS[s.element_size()]):
                width /= 2
                middle = low + width
                total = (s - middle).clamp_(min=0).pow_(power).sum(-1, keepdim=True)
                low = torch.where(total >= 1, middle, low)
            p = (s - low).clamp_(min=0).pow_(power)
            p = p / p.sum(-1, keepdim=True)
            ctx.save_for_backward(p)
            return p

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            (p,) = ctx.saved_tensors
            w = (p > 0).to(p.dtype) if power == 1 else p.pow(1 - 1 / power)
            mean = (w * grads[0]).sum(-1, keepdim=True) / w.sum(-1, keepdim=True)
            found: torch.Tensor = w * (grads[0] - mean)
            return found

    def thresholded(s: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = Thresholded.apply(s)  # type: ignore[no-untyped-call]
        return found

    return thresholded


def _linear(problem: Problem, device: "torch.device") -> Attend:
    """phi(q) (phi(k)^T v) / phi(q) sum phi(k) (Katharopoulos et al. 2020, equations 5, and 9 to 12 where causal)."""
    import torch
    import torch.nn.functional as F

    assert problem.uniform is not None
    sq, sk = problem.uniform

    def divided(sums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """All columns but the last, over that one; 0 where that is 0."""
        total = sums[..., -1:]
        return (sums[..., :-1] / total.masked_fill(total == 0, 1)).to(dtype)

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        exact = torch.promote_types(q.dtype, torch.float32)
        fq, fk = (F.elu(x.to(exact)) + 1 for x in (q, k))
        values = F.pad(v.to(exact), (0, 1), value=1.0)  # the last column sums the weights
        if problem.mask.name == "full":
            return divided(fq @ (fk.mT @ values), q.dtype)
        out = fq.new_zeros(*fq.shape[:-1], values.shape[-1])
        state = fk.new_zeros(*fk.shape[:-2], fk.shape[-1], values.shape[-1])
        done = 0  # keys that the state holds
        for start in range(max(0, sq - sk), sq, TILE):
            end = min(start + TILE, sq)
            before, until = start + sk - sq, end + sk - sq  # the keys that stand where these queries do
            state = state + fk[..., done:before, :].mT @ values[..., done:before, :]
            near = (fq[..., start:end, :] @ fk[..., before:until, :].mT).tril()
            out[..., start:end, :] = near @ values[..., before:until, :] + fq[..., start:end, :] @ state
            done = before
        return divided(out, q.dtype)

    return attend
