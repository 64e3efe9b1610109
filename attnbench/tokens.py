"""Where the tokens of a batch lie in memory: from each layout to the canonical one, and back.

Canonical is [B, H, S, n] where the members are of the same lengths, else [T, H, n], one member's T tokens after
another's. A side is 0 for queries (q, out and their gradients), 1 for keys (k, v and theirs). Slots are what holds a token
or nothing: [B, S] of a padded batch, [pages, page] of a paged one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from zlib import crc32

import torch
from torch import Tensor

from attnbench.costs import pages
from attnbench.elements import bits
from attnbench.implementation import Inputs
from attnbench.problem import Dense, Packed, Paged, Problem


def plain(problem: Problem) -> Problem:
    """The problem whose tensors in `bhsd` are canonical: dense, or packed where members differ in length."""
    return replace(problem, layout=Dense() if problem.uniform else Packed())


def canonical(tensor: Tensor, qkv_format: str) -> Tensor:
    """The view [B, H, S, n] of a dense tensor in `qkv_format`."""
    return tensor.transpose(1, 2) if qkv_format == "bshd" else tensor


def shape(problem: Problem, side: int, heads: int, dim: int, qkv_format: str) -> tuple[int, ...]:
    """Of a tensor with so many heads of that dimension."""
    if isinstance(problem.layout, Dense):
        axes = (problem.longest[side], heads) if qkv_format == "bshd" else (heads, problem.longest[side])
        return problem.batch, *axes, dim
    if isinstance(problem.layout, Paged) and side:
        return sum(pages(problem)), problem.layout.page, heads, dim
    return sum(pair[side] for pair in problem.sequences), heads, dim


def index(problem: Problem, device: str) -> dict[str, Tensor]:
    """`Inputs.index`, without pages in the block table yet."""
    if isinstance(problem.layout, Dense):
        return {}

    def integers(numbers: Iterable[int]) -> Tensor:
        return torch.tensor([*numbers], dtype=torch.int32, device=device)

    queries, keys = zip(*problem.sequences, strict=True)
    found = {"cu_seqlens_q": integers((0, *accumulate(queries)))}
    if isinstance(problem.layout, Packed):
        return found | {"cu_seqlens_k": integers((0, *accumulate(keys)))}
    table = torch.zeros(problem.batch, max(pages(problem)), dtype=torch.int32, device=device)
    return found | {"seqused_k": integers(keys), "block_table": table}


def shuffle(inputs: Inputs, problem: Problem, seed: int) -> None:
    """Deal other pages out to the members of a paged batch, in place; what a member has no page for is page 0."""
    if "block_table" in inputs.index:
        table, counts = inputs.index["block_table"], torch.tensor(pages(problem))
        generator = torch.Generator().manual_seed(crc32(f"{seed} block_table".encode()))
        dealt = torch.zeros(table.shape, dtype=torch.int32)
        owned = torch.arange(table.shape[1]) < counts[:, None]
        dealt[owned] = torch.randperm(int(counts.sum()), generator=generator, dtype=torch.int32)
        table.copy_(dealt)


def take(tensor: Tensor, problem: Problem, side: int, qkv_format: str, table: Tensor | None = None) -> Tensor:
    """The canonical form: a view, or a copy where there are slots without a token or a block `table`."""
    if isinstance(problem.layout, Dense):
        tensor = canonical(tensor, qkv_format)
        if problem.uniform:
            return tensor
        return bits(tensor).transpose(1, 2)[_filled(problem, side, tensor.device)].view(tensor.dtype)
    if isinstance(problem.layout, Paged) and side:
        assert table is not None
        tensor = bits(tensor)[_slots(problem, table)].view(tensor.dtype)
    if problem.uniform is None:
        return tensor
    return torch.unflatten(tensor, 0, (problem.batch, problem.uniform[side])).transpose(1, 2)


def put(
    tensor: Tensor, taken: Tensor, problem: Problem, side: int, qkv_format: str, table: Tensor | None = None
) -> None:
    """Write what was taken back, where it is a copy."""
    if taken.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
        return
    tensor, taken = bits(tensor), bits(taken)
    if isinstance(problem.layout, Dense):
        canonical(tensor, qkv_format).transpose(1, 2)[_filled(problem, side, tensor.device)] = taken
    else:
        assert table is not None
        tensor[_slots(problem, table)] = taken if taken.ndim == 3 else taken.transpose(1, 2).flatten(0, 1)


def litter(
    tensor: Tensor, token: Tensor, problem: Problem, side: int, qkv_format: str, table: Tensor | None
) -> None:
    """Write `token` [H, n], which nobody may look at, into all slots that hold none."""
    tensor, token = bits(tensor), bits(token.to(tensor))
    if isinstance(problem.layout, Dense) and problem.uniform is None:
        free = ~_filled(problem, side, tensor.device)
        canonical(tensor, qkv_format).transpose(1, 2)[free] = token
    elif isinstance(problem.layout, Paged) and side:
        assert table is not None
        free = torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device)
        free[_slots(problem, table)] = False
        tensor[free] = token


def before(problem: Problem) -> Problem:
    """The problem whose pages hold all keys already: `problem` itself where the call appends nothing."""
    layout = problem.layout
    if isinstance(layout, Paged) and layout.append:
        return replace(problem, layout=replace(layout, append=0))
    return problem


def appended(problem: Problem, table: Tensor) -> tuple[Tensor, Tensor]:
    """Page and place in it of each of the Tq tokens that a call appends."""
    assert isinstance(problem.layout, Paged)
    counts = torch.tensor([queries for queries, _ in problem.sequences])
    member = torch.arange(problem.batch).repeat_interleave(counts).to(table.device)
    place = torch.cat([torch.arange(keys - queries, keys) for queries, keys in problem.sequences])
    place = place.to(table.device)
    return table[member, place // problem.layout.page].long(), place % problem.layout.page


def members(taken: Tensor, problem: Problem, side: int) -> Sequence[Tensor]:
    """Views [H, S, n] of the members in a canonical tensor."""
    if taken.ndim == 4:
        return taken.unbind()
    lengths = [pair[side] for pair in problem.sequences]
    return [part.transpose(0, 1) for part in torch.split(taken, lengths)]


def _filled(problem: Problem, side: int, device: torch.device) -> Tensor:
    """Which slots [B, S] hold a token."""
    lengths = torch.tensor([pair[side] for pair in problem.sequences], device=device)
    return torch.arange(problem.longest[side], device=device) < lengths[:, None]


def _slots(problem: Problem, table: Tensor) -> tuple[Tensor, Tensor]:
    """Page and place in it of each of the T tokens of keys."""
    assert isinstance(problem.layout, Paged)
    lengths = torch.tensor([keys for _, keys in problem.sequences], device=table.device)
    member = torch.arange(problem.batch, device=table.device).repeat_interleave(lengths)
    place = torch.arange(len(member), device=table.device) - (lengths.cumsum(0) - lengths)[member]
    return table[member, place // problem.layout.page].long(), place % problem.layout.page
