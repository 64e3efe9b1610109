"""What `torch.compile` makes of attention: of the plain chain, and of `flex_attention`, which is here uncompiled too."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from attnbench import (
    INDEX_MASKS,
    Capabilities,
    Device,
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
    from torch.nn.attention.flex_attention import BlockMask

_PRELOAD = ("torch._inductor.compile_fx", "torch.nn.attention.flex_attention")


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="torch-compile-naive",
        summary="torch-naive compiled by Inductor; `kernel` says where Inductor has put SDPA in its place",
        capabilities=_capabilities("float64", "float32", "float16", "bfloat16"),
        prepare=_prepare_naive,
        requires=("torch",),
        preload=_PRELOAD,
        qkv_format="bhsd",
        unavailable=_unavailable,
    )
    yield Implementation(
        name="torch-flex",
        summary="flex_attention, compiled; tiles that the mask rules out are left out",
        capabilities=_capabilities("float32", "float16", "bfloat16"),
        prepare=_prepare_flex,
        requires=("torch",),
        preload=_PRELOAD,
        qkv_format="bhsd",
        objection=_flex_objection,
        unavailable=_unavailable,
    )
    yield Implementation(
        name="torch-flex-eager",
        summary="flex_attention as it runs uncompiled: mask and softcap of each pair of tokens, the scores [Sq, Sk] stored",
        capabilities=_capabilities("float64", "float32", "float16", "bfloat16"),
        prepare=_prepare_flex_eager,
        requires=("torch",),
        preload=_PRELOAD,
        qkv_format="bhsd",
        objection=_flex_eager_objection,
        unavailable=_disabled,
    )


def _capabilities(*dtypes: str) -> Capabilities:
    return Capabilities(
        dtypes=frozenset(dtypes),
        devices=frozenset(("cpu", "cuda")),
        directions=frozenset(("forward", "backward", "forward_backward")),
        masks=INDEX_MASKS,
        modifiers=frozenset(("softcap",)),
        grouped_heads=True,
        unequal_head_dims=True,
    )


def _unavailable(device: Device) -> str | None:
    """What Inductor needs beside torch: Triton for CUDA; for a CPU a C++ compiler, found as Inductor finds it."""
    if reason := _disabled(device):
        return reason
    if device.kind == "cuda":
        return None if importlib.util.find_spec("triton") else "needs triton, which is not installed"
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"needs a C++ compiler: there is no `{compiler}`"


def _disabled(device: Device) -> str | None:
    return "TORCH_COMPILE_DISABLE is set" if os.environ.get("TORCH_COMPILE_DISABLE") == "1" else None


def _flex_eager_objection(problem: Problem, device: Device) -> str | None:
    assert problem.uniform is not None
    if 0 in problem.uniform:
        return "flex takes no empty sequences"
    if device.kind == "cpu" and problem.direction is not Direction.FORWARD:
        return "flex has no backward pass on a cpu"
    return None


def _flex_objection(problem: Problem, device: Device) -> str | None:
    least = min(problem.head_dim, problem.head_dim_v)
    if device.kind == "cuda" and least < 16:
        return f"flex on CUDA takes no head dimension {least}: at least 16"
    return _flex_eager_objection(problem, device)


@dataclass(kw_only=True)
class _Program:
    """`attend(q, k, v)` compiled, and Inductor's counts of its first call."""

    attend: "Callable[..., torch.Tensor]"
    counts: dict[str, int] | None = None


# Copies of a problem's inputs share what is compiled, and `reset` leaves nothing of earlier problems.
@lru_cache(maxsize=1)
def _program(
    make: "Callable[[Problem, torch.device], Callable[..., torch.Tensor]]",
    problem: Problem,
    device: "torch.device",
) -> _Program:
    """What `make(problem, device)` returns, to be compiled at its first call.

    `fullgraph` makes dynamo raise where it would run eagerly instead: at a graph break, and from the ninth
    shape on.
    """
    import torch

    torch.compiler.reset()  # shapes compiled earlier count for nothing
    function: Any = make(problem, device)
    given = getattr(function, "keywords", {})
    compiled = torch.compile(getattr(function, "func", function), fullgraph=True, dynamic=False)
    return _Program(attend=partial(compiled, **given))


def _compiled(
    make: "Callable[[Problem, torch.device], Callable[..., torch.Tensor]]", problem: Problem, inputs: Inputs
) -> tuple[Prepared, dict[str, int]]:
    """The compiled function prepared and called once, and Inductor's counts of when that was done first.

    Raises RuntimeError where nothing was compiled all the same (`TORCH_COMPILE_DISABLE=1`).
    """
    import torch._functorch.config
    import torch._inductor.config
    from torch._dynamo.utils import counters

    program = _program(make, problem, inputs.q.device)
    if program.counts is not None:
        return differentiable(program.attend, problem, inputs), program.counts
    counters.clear()
    with (
        # An entry of AOTAutograd's cache would skip the pass that rewrites to SDPA, and with it the count.
        torch._functorch.config.patch(enable_autograd_cache=False),
        torch._inductor.config.patch(compile_threads=1),  # more are processes, which would outlive the job
    ):
        prepared = differentiable(program.attend, problem, inputs)
        prepared.step()
    if not counters["stats"]["unique_graphs"]:
        raise RuntimeError("torch.compile compiled nothing")
    program.counts = dict(counters["inductor"])
    return prepared, program.counts


def _prepare_naive(problem: Problem, inputs: Inputs) -> Prepared:
    prepared, counts = _compiled(_naive, problem, inputs)
    kernel = "inductor: rewritten to sdpa" if counts.get("fuse_attention") else "inductor"
    return replace(prepared, kernel=kernel)


def _naive(problem: Problem, device: "torch.device") -> "Callable[..., torch.Tensor]":
    """The operations of torch-naive, of which Inductor replaces those that it knows to be SDPA (mask `full`,
    no softcap: `torch/_inductor/fx_passes/fuse_attention.py`)."""
    import torch

    shape = problem.uniform
    assert shape is not None
    sq, sk = shape
    group = problem.heads_q // problem.heads_kv
    scale, cap = problem.softmax_scale, problem.softcap
    forbidden = blind = None
    if problem.mask.name != "full":
        i, j = (torch.arange(n, device=device) for n in shape)
        forbidden = ~problem.mask.allowed(i[:, None], j[None, :], sq, sk)  # [Sq, Sk]
        blind = forbidden.all(-1, keepdim=True)  # [Sq, 1], queries that see no key
        blind = blind if blind.any() else None

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = q.reshape(problem.batch, problem.heads_kv, group * sq, problem.head_dim)
        s = q @ k.mT * scale  # [B, Hk, G Sq, Sk]
        if cap is not None:
            s = torch.tanh(s / cap) * cap
        s = s.view(problem.batch, problem.heads_q, sq, sk)
        if forbidden is not None:
            s = s.masked_fill(forbidden, float("-inf"))
        p = torch.softmax(s, -1)
        if blind is not None:
            p = p.masked_fill(blind, 0)
        out = p.view(problem.batch, problem.heads_kv, group * sq, sk) @ v
        return out.view(problem.batch, problem.heads_q, sq, problem.head_dim_v)

    return attend


def _prepare_flex(problem: Problem, inputs: Inputs) -> Prepared:
    prepared, counts = _compiled(_flex, problem, inputs)
    if inputs.q.is_cuda:
        return replace(prepared, kernel="inductor")
    if not counts.get("cpp_templated_kernel_counter"):
        raise RuntimeError("Inductor did not use its C++ template of flex_attention")
    return replace(prepared, kernel="inductor: C++ template")


def _prepare_flex_eager(problem: Problem, inputs: Inputs) -> Prepared:
    import torch

    _program.cache_clear()
    torch.compiler.reset()  # dynamo traces it, and counts shapes, without compiling it
    attend = _flex(problem, inputs.q.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")  # it says so once
        prepared = differentiable(attend, problem, inputs, kernel="eager")
        prepared.step()
    return prepared


def _flex(problem: Problem, device: "torch.device") -> "partial[torch.Tensor]":
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    assert problem.uniform is not None
    sq, sk = problem.uniform
    cap = problem.softcap

    def softcap(s: torch.Tensor, b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
        assert cap is not None
        return torch.tanh(s / cap) * cap

    def allowed(b: Any, h: Any, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = problem.mask.allowed(i, j, sq, sk)
        return seen

    full = problem.mask.name == "full"
    return partial(
        flex_attention,
        score_mod=None if cap is None else softcap,
        block_mask=None if full else _block_mask(problem, allowed, device),
        scale=problem.scale,
        enable_gqa=problem.heads_q != problem.heads_kv,
    )


_TILE = 128
"""Of flex's block masks, in queries and in keys."""
_KEYS = 2**13
"""Of a row of tiles that are looked at together."""


def _block_mask(problem: Problem, allowed: Callable[..., Any], device: "torch.device") -> "BlockMask":
    """What `create_block_mask(allowed, ...)` returns, without its mask [Sq, Sk]."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    assert problem.uniform is not None
    sq, sk = problem.uniform
    counts = torch.zeros(-(-sq // _TILE), -(-sk // _TILE), dtype=torch.int64, device=device)
    for tile in range(len(counts)):
        i = torch.arange(tile * _TILE, min(sq, (tile + 1) * _TILE), device=device)
        for start in range(0, sk, _KEYS):
            j = torch.arange(start, min(sk, start + _KEYS), device=device)
            seen = allowed(None, None, i[:, None], j).expand(len(i), len(j))
            seen = seen.view(torch.uint8).sum(0, dtype=torch.uint8)  # [keys], at most 128 each
            seen = torch.nn.functional.pad(seen, (0, -len(j) % _TILE)).view(-1, _TILE).sum(-1)  # [tiles]
            counts[tile, start // _TILE : start // _TILE + len(seen)] = seen
    full = counts == _TILE**2  # what ends short of a whole tile is not full, so that flex masks it

    def ordered(kind: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row of tiles, how many are of a kind, and their indices with the others behind."""
        indices = kind.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return kind.sum(-1, dtype=torch.int32)[None, None], indices.to(torch.int32)[None, None]

    return BlockMask.from_kv_blocks(
        *ordered((counts > 0) & ~full),
        *ordered(full),
        BLOCK_SIZE=_TILE,
        mask_mod=allowed,
        seq_lengths=(sq, sk),
    )
