"""torch's `MultiheadAttention`, with identity matrices for its four projections."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

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


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="torch-mha",
        summary="nn.MultiheadAttention with identity weights: SDPA and, in the same time, four [E, E] projections, E = H D",
        capabilities=Capabilities(
            dtypes=frozenset(("float64", "float32", "float16", "bfloat16")),
            devices=frozenset(("cpu", "cuda")),
            directions=frozenset(("forward", "backward", "forward_backward")),
            masks=INDEX_MASKS,
            scale=False,
        ),
        prepare=_prepare,
        requires=("torch",),
    )


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    """Its fast path is out of reach: that takes one tensor for query, key and value.

    The weights want no gradient: backward is dq, dk and dv, as everywhere.
    """
    import torch
    from torch.nn.attention import SDPBackend

    assert problem.uniform is not None
    sq, sk = problem.uniform
    width = problem.heads_q * problem.head_dim
    mha = torch.nn.MultiheadAttention(
        width, problem.heads_q, bias=False, batch_first=True, device=inputs.q.device, dtype=inputs.q.dtype
    )
    mha.eval().requires_grad_(False)
    one = torch.eye(width, device=inputs.q.device, dtype=inputs.q.dtype)
    mha.in_proj_weight.copy_(one.repeat(3, 1))
    mha.out_proj.weight.copy_(one)
    mask, causal = _mask(problem, inputs)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        packed = (t.flatten(2) for t in (q, k, v))  # [B, S, E]
        out: torch.Tensor = mha(*packed, need_weights=False, attn_mask=mask, is_causal=causal)[0]
        return out.view(q.shape)

    q, k, v = (t.transpose(1, 2) for t in (inputs.q, inputs.k, inputs.v))  # [B, H, S, D]
    seen = None if mask is None or causal else mask.expand(problem.batch, 1, sq, sk)
    choice = SDPBackend(torch._fused_sdp_choice(q, k, v, attn_mask=seen, is_causal=causal))
    return differentiable(
        attend, problem, inputs, kernel=f"projections, sdpa {choice.name.removesuffix('_ATTENTION').lower()}"
    )


def _mask(problem: Problem, inputs: Inputs) -> "tuple[torch.Tensor | None, bool]":
    """None or what is added to the scores [Sq, Sk], and whether it may be left out as `is_causal`.

    A boolean mask would be made into this one in every call.
    """
    import torch

    assert problem.uniform is not None
    sq, sk = problem.uniform
    if problem.mask.name == "full":
        return None, False
    i, j = (torch.arange(n, device=inputs.q.device) for n in problem.uniform)
    allowed = problem.mask.allowed(i[:, None], j[None, :], sq, sk)
    added = torch.zeros(sq, sk, device=inputs.q.device, dtype=inputs.q.dtype).masked_fill(
        ~allowed, float("-inf")
    )
    top_left = problem.mask.name == "causal-top-left" or (problem.mask.name == "causal" and sq == sk)
    return added, top_left
