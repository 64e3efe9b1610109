"""torch's `MultiheadAttention`: with the projections of the mechanism multi-head, else with identity matrices."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from attnbench import (
    INDEX_MASKS,
    Capabilities,
    Direction,
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
        summary="nn.MultiheadAttention: SDPA and, in the same time, four [E, E] projections, E = H D; by the identity for softmax",
        capabilities=Capabilities(
            dtypes=frozenset(("float64", "float32", "float16", "bfloat16")),
            devices=frozenset(("cpu", "cuda")),
            directions=frozenset(("forward", "backward", "forward_backward")),
            masks=INDEX_MASKS,
            mechanisms=frozenset(("softmax", "multi-head")),
            scale=False,
        ),
        prepare=_prepare,
        requires=("torch",),
    )


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    """Its fast path is out of reach: that takes one tensor for query, key and value.

    Where its weights are the problem's, they want gradients too.
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

    def load() -> None:
        """The weights as they are now; torch's are transposed."""
        w = [inputs.extra.get(f"w_{name}", one).mT for name in "qkvo"]
        mha.in_proj_weight.copy_(torch.cat(w[:3]))
        mha.out_proj.weight.copy_(w[3])

    load()
    mask, causal = _mask(problem, inputs)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
        packed = (t.flatten(2) for t in (q, k, v))  # [B, S, E]
        out: torch.Tensor = mha(*packed, need_weights=False, attn_mask=mask, is_causal=causal)[0]
        return out.view(q.shape)

    q, k, v = (t.transpose(1, 2) for t in (inputs.q, inputs.k, inputs.v))  # [B, H, S, D]
    seen = None if mask is None or causal else mask.expand(problem.batch, 1, sq, sk)
    choice = SDPBackend(torch._fused_sdp_choice(q, k, v, attn_mask=seen, is_causal=causal))
    name = choice.name.removesuffix("_ATTENTION").lower()
    kernel = f"projections, sdpa {name}"
    if inputs.extra and inputs.dout is not None:
        return _with_gradients(problem, inputs, mha, attend, load, kernel)
    prepared = differentiable(attend, problem, inputs, kernel=kernel)
    again = prepared.refresh

    def refresh() -> None:
        load()
        if again:
            again()

    return replace(prepared, refresh=refresh) if inputs.extra else prepared


def _with_gradients(
    problem: Problem,
    inputs: Inputs,
    mha: "torch.nn.MultiheadAttention",
    attend: "Callable[..., torch.Tensor]",
    load: Callable[[], None],
    kernel: str,
) -> Prepared:
    """Gradients of the module's weights too: of its three packed ones, and of the last, which are transposed to ours."""
    import torch

    mha.requires_grad_(True)
    qkv = [t.detach().requires_grad_() for t in (inputs.q, inputs.k, inputs.v)]
    leaves = [*qkv, mha.in_proj_weight, mha.out_proj.weight]
    graph: list[torch.Tensor] = []

    def refresh() -> None:
        with torch.no_grad():
            load()
        graph.clear()
        if problem.direction is Direction.BACKWARD:
            graph.append(attend(*qkv))

    def both() -> "tuple[torch.Tensor, ...]":
        out = attend(*qkv)
        return (out.detach(), *torch.autograd.grad(out, leaves, inputs.dout))

    def backward() -> "tuple[torch.Tensor, ...]":
        return torch.autograd.grad(graph[0], leaves, inputs.dout, retain_graph=True)

    def read(raw: "tuple[torch.Tensor, ...]") -> "tuple[torch.Tensor, ...]":
        *rest, packed, last = raw
        return (*rest, *(w.mT for w in packed.chunk(3)), last.mT)

    refresh()
    step = backward if problem.direction is Direction.BACKWARD else both
    return Prepared(step=step, read=read, refresh=refresh, kernel=kernel)


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
