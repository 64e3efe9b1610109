"""torch's `varlen_attn`: its flash kernel over sequences packed one after another."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from attnbench import (
    Capabilities,
    Device,
    Implementation,
    Inputs,
    Prepared,
    Problem,
    differentiable,
    hookimpl,
)

if TYPE_CHECKING:
    pass


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="torch-varlen",
        summary="torch.nn.attention.varlen over the batch packed into one sequence of tokens",
        capabilities=Capabilities(
            dtypes=frozenset(("float16", "bfloat16")),
            devices=frozenset(("cuda",)),
            directions=frozenset(("forward", "backward", "forward_backward")),
            masks=frozenset(("full", "causal", "window")),
            head_dims=(8, 256),
            head_dim_multiple=8,
            grouped_heads=True,
            compute_capability=(8, 0),
        ),
        prepare=_prepare,
        requires=("torch",),
        objection=_objection,
    )


def _objection(problem: Problem, device: Device) -> str | None:
    assert problem.uniform is not None
    sq, sk = problem.uniform
    if not (sq and sk):
        return "varlen takes no empty sequences"
    if sq > sk and problem.mask.name != "full":
        return f"no {problem.mask.name} mask with Sq > Sk"
    return None


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    import inspect

    import torch
    from torch.nn.attention.varlen import varlen_attn

    assert problem.uniform is not None
    arguments: dict[str, Any] = {"scale": problem.scale, "window_size": _window(problem)}
    for which, length in zip("qk", problem.uniform, strict=True):
        starts = torch.arange(problem.batch + 1, device=inputs.q.device, dtype=torch.int32) * length
        arguments |= {f"cu_seq_{which}": starts, f"max_{which}": length}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.11 asks for no such word
        arguments["enable_gqa"] = problem.heads_q != problem.heads_kv
    packed: Any = partial(varlen_attn, **arguments)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = packed(*(t.flatten(0, 1) for t in (q, k, v)))  # [B Sq, Hq, D]
        return out.view(q.shape)

    return differentiable(attend, problem, inputs, kernel="flash")


def _window(problem: Problem) -> tuple[int, int]:
    """Keys that a query sees to its left and right, counted from the bottom right corner; -1 is no bound."""
    match problem.mask.name:
        case "full":
            return -1, -1
        case "causal":
            return -1, 0
    mask: Any = problem.mask
    return tuple(-1 if side is None else side for side in (mask.left, mask.right))  # type: ignore[return-value]
