"""What `torch.compile` makes of attention: of the plain chain, and of `flex_attention`, which is here uncompiled too."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import TYPE_CHECKING, Any

from attnbench import (
    ALL_MASKS,
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

_PRELOAD = ("attnbench.builtin._inductor",)


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
        preload=("torch._inductor.compile_fx", "torch.nn.attention.flex_attention"),
        qkv_format="bhsd",
        objection=_flex_eager_objection,
        unavailable=_disabled,
    )


def _capabilities(*dtypes: str) -> Capabilities:
    return Capabilities(
        dtypes=frozenset(dtypes),
        devices=frozenset(("cpu", "cuda")),
        directions=frozenset(("forward", "backward", "forward_backward")),
        masks=ALL_MASKS,
        modifiers=frozenset(("softcap",)),
        grouped_heads=True,
        unequal_head_dims=True,
        shared_kv=True,
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
    make: "Callable[[Problem, torch.device], Callable[..., torch.Tensor]]",
    problem: Problem,
    inputs: Inputs,
    *,
    rewrites: bool = False,
) -> tuple[Prepared, dict[str, int]]:
    """The compiled function prepared and called once, and Inductor's counts of when that was done first.

    `rewrites` has them hold the rewriting to SDPA: an entry of AOTAutograd's cache would skip that pass, and with
    it the count. Raises RuntimeError where nothing was compiled all the same (`TORCH_COMPILE_DISABLE=1`).
    """
    import torch._functorch.config
    import torch._inductor.config
    from torch._dynamo.utils import counters

    program = _program(make, problem, inputs.q.device)
    if program.counts is not None:
        return differentiable(program.attend, problem, inputs), program.counts
    counters.clear()
    with (
        torch._functorch.config.patch(enable_autograd_cache=not rewrites),
        torch._inductor.config.patch(compile_threads=1),  # more are processes, which would outlive the job
    ):
        prepared = differentiable(program.attend, problem, inputs)
        prepared.step()
    if not counters["stats"]["unique_graphs"]:
        raise RuntimeError("torch.compile compiled nothing")
    program.counts = dict(counters["inductor"])
    return prepared, program.counts


def _prepare_naive(problem: Problem, inputs: Inputs) -> Prepared:
    prepared, counts = _compiled(_naive, problem, inputs, rewrites=True)
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
        i, j, b = (torch.arange(n, device=device) for n in (sq, sk, problem.batch))
        forbidden = ~problem.mask.allowed(i[:, None], j, sq, sk, b[:, None, None, None])
        blind = forbidden.all(-1, keepdim=True)  # [..., Sq, 1], queries that see no key
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
    from torch.nn.attention.flex_attention import and_masks, flex_attention

    cap = problem.softcap

    def softcap(s: torch.Tensor, b: Any, h: Any, i: Any, j: Any) -> torch.Tensor:
        assert cap is not None
        return torch.tanh(s / cap) * cap

    block_mask = None
    if problem.mask.name != "full":
        parts = [_mask_mod(part, problem, device) for part in problem.mask.parts]
        allowed = parts[0] if len(parts) == 1 else and_masks(*parts)
        block_mask = _block_mask(problem, allowed, device)
    return partial(
        flex_attention,
        score_mod=None if cap is None else softcap,
        block_mask=block_mask,
        scale=problem.scale,
        enable_gqa=problem.heads_q != problem.heads_kv,
    )


def _mask_mod(mask: Any, problem: Problem, device: "torch.device") -> Callable[..., Any]:
    """A factor of the mask as a user of flex writes it: what is seeded is looked up in a tensor made beforehand."""
    import torch

    assert problem.uniform is not None
    sq, sk = problem.uniform
    before = sk - sq

    match mask.name:
        case "document":
            p = torch.arange(sk)
            cuts = (torch.tensor(mask.cuts(sk, b), dtype=torch.int64) for b in range(problem.batch))
            of_key = torch.stack([torch.bucketize(p, c, right=True) for c in cuts]).to(device)  # [B, Sk]
            of_query = torch.nn.functional.pad(
                of_key, (-before, 0), value=-1
            )  # [B, Sq]; -1 before the first key
            return lambda b, h, i, j: of_query[b, i] == of_key[b, j]
        case "key-padding":
            keys = torch.tensor([mask.keys(sk, b) for b in range(problem.batch)], device=device)
            return lambda b, h, i, j: j < keys[b]
        case "left-padding":
            first = torch.tensor([sk - mask.keys(sk, b) for b in range(problem.batch)], device=device)
            return lambda b, h, i, j: j >= first[b]
        case "tree":
            until = mask.until(torch.arange(sk, device=device), sk)
            return lambda b, h, i, j: (j <= i + before) & (i + before < until[j])
        case "block-sparse":
            shift = before % mask.block  # a query's place in its tile, that of query 0
            corner = torch.arange(-shift, sq, mask.block, device=device).clamp(min=0)
            seen = mask.allowed(corner[:, None], torch.arange(0, sk, mask.block, device=device), sq, sk)
            return lambda b, h, i, j: seen[(i + shift) // mask.block, j // mask.block]
    return lambda b, h, i, j: mask.allowed(i, j, sq, sk)


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
    members = torch.arange(problem.batch if problem.mask.by_member else 1, device=device)
    counts = torch.zeros(len(members), 1, -(-sq // _TILE), -(-sk // _TILE), dtype=torch.int64, device=device)
    for b, tile in product(members, range(counts.shape[2])):
        i = torch.arange(tile * _TILE, min(sq, (tile + 1) * _TILE), device=device)
        for start in range(0, sk, _KEYS):
            j = torch.arange(start, min(sk, start + _KEYS), device=device)
            seen = allowed(b, None, i[:, None], j).expand(len(i), len(j))
            seen = seen.view(torch.uint8).sum(0, dtype=torch.uint8)  # [keys], at most 128 each
            seen = torch.nn.functional.pad(seen, (0, -len(j) % _TILE)).view(-1, _TILE).sum(-1)  # [tiles]
            counts[b, 0, tile, start // _TILE : start // _TILE + len(seen)] = seen
    full = counts == _TILE**2  # what ends short of a whole tile is not full, so that flex masks it

    def ordered(kind: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row of tiles, how many are of a kind, and their indices with the others behind."""
        indices = kind.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return kind.sum(-1, dtype=torch.int32), indices.to(torch.int32)

    return BlockMask.from_kv_blocks(
        *ordered((counts > 0) & ~full),
        *ordered(full),
        BLOCK_SIZE=_TILE,
        mask_mod=allowed,
        seq_lengths=(sq, sk),
    )
