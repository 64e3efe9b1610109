"""Attention over members of unlike lengths, padded, packed or in pages, with one thing wrong. See `defects`.

`members` computes one member after the other; a defect is another choice of the slots that it reads. Slots are places of
the flattened storage of k and v.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from zoo.defects import Defect, Outputs, beside_sinks, flash, inside, turned
from zoo.sound import Sound

from attnbench.implementation import Inputs
from attnbench.problem import Dense, Paged, Problem


def paged_slots(table: Tensor, at: Tensor, page: int) -> Tensor:
    """Of tokens `at` [n], through a member's row of the block table."""
    return table[at // page] * page + at % page


def slots(problem: Problem, given: Inputs, b: int, defect: str) -> tuple[Tensor, Tensor]:
    """Which slots [n] member b reads, and which of them its queries see, [Sq, n]."""
    sq, sk = problem.sequences[b]
    longest_q, longest_k = problem.longest
    i, at = torch.arange(sq)[:, None], torch.arange(sk)
    seen = problem.mask.allowed(i, at, sq, sk, b)
    start = problem.spans[b][1].start

    def also(count: int) -> Tensor:
        """With so many more, which all queries see; of a negative number so many fewer."""
        return torch.cat([seen[:, : sk + min(count, 0)], torch.ones(sq, max(0, count), dtype=torch.bool)], 1)

    if isinstance(problem.layout, Dense):
        if defect == "padding-of-the-batch-seen":
            at, seen = torch.arange(longest_k), also(longest_k - sk)
        if defect == "one-slot-of-padding-seen" and sk < longest_k:
            at, seen = torch.arange(sk + 1), also(1)
        if defect == "aligned-with-the-longest":
            seen = at <= i + longest_k - longest_q
        return b * longest_k + at, seen
    if not isinstance(problem.layout, Paged):
        total = problem.spans[-1][1].stop
        if defect == "previous-member-seen" and start:
            return start - 1 + torch.arange(sk + 1), also(1).roll(1, 1)
        if defect == "boundaries-ignored":
            return torch.arange(total), torch.arange(total) <= start + i + sk - sq
        if defect == "members-of-one-length":
            start = b * (total // problem.batch)
        if defect == "keys-begin-where-queries-do":
            start = problem.spans[b][0].start
        if defect == "last-key-of-each-left-out" and sk > 1:
            at, seen = at[:-1], also(-1)
        return (start + at) % total, seen
    page, table = problem.layout.page, given.index["block_table"].long()
    own, used = table[b], -(-sk // page)
    if defect == "block-table-ignored":
        own = sum(-(-keys // page) for _, keys in problem.sequences[:b]) + torch.arange(used)
    if defect == "pages-of-the-first-member":
        own = table[0]
    if defect == "pages-in-reverse":
        own = own[:used].flip(0)
    if defect == "last-page-whole":
        at, seen = torch.arange(used * page), also(used * page - sk)
    if defect == "last-page-left-out" and sk > page:
        at, seen = at[: (sk - 1) // page * page], also((sk - 1) // page * page - sk)
    if defect == "one-key-too-many" and sk % page:
        at, seen = torch.arange(sk + 1), also(1)
    if defect == "one-key-too-few" and sk > 1:
        at, seen = at[:-1], also(-1)
    return paged_slots(own, at, page), seen


def queries(problem: Problem, given: Inputs, b: int) -> Tensor:
    """[1, Hq, Sq, D]"""
    if isinstance(problem.layout, Dense):
        return given.q[b : b + 1, :, : problem.sequences[b][0]]
    return given.q[problem.spans[b][0]].transpose(0, 1)[None]


def flattened(problem: Problem, tensor: Tensor) -> Tensor:
    """[slots, Hk, n]"""
    if isinstance(problem.layout, Dense):
        return tensor.transpose(1, 2).flatten(0, 1)
    return tensor.flatten(0, 1) if isinstance(problem.layout, Paged) else tensor


def joined(problem: Problem, parts: list[Tensor]) -> Tensor:
    """The members' outputs [1, Hq, Sq, Dv] as the layout has them."""
    if not isinstance(problem.layout, Dense):
        return torch.cat([part[0].transpose(0, 1) for part in parts])
    out = parts[0].new_zeros(problem.batch, problem.heads_q, problem.longest[0], problem.head_dim_v)
    for b, part in enumerate(parts):
        out[b, :, : part.shape[2]] = part[0]
    return out


def members(problem: Problem, given: Inputs, defect: str = "") -> Outputs:
    """`flash` over one member after the other."""
    k, v = (flattened(problem, t) for t in (given.k, given.v))
    parts = []
    for b in range(problem.batch):
        q, (read, seen) = queries(problem, given, b), slots(problem, given, b, defect)
        if not len(read) or not q.shape[2]:
            parts.append(q.new_zeros(*q.shape[:3], problem.head_dim_v))
            continue
        one = replace(problem, sequences=((q.shape[2], len(read)),), layout=Dense())
        own = Inputs(q=q, **{name: t[read].transpose(0, 1)[None] for name, t in (("k", k), ("v", v))})
        parts.append(flash(one, own, mask=seen)["out"])
    return {"out": joined(problem, parts)}


def block_diagonal(problem: Problem, given: Inputs) -> Outputs:
    """All members at once, as one sequence whose mask keeps them apart; sums in float32, rounded weights."""
    found = [slots(problem, given, b, "") for b in range(problem.batch)]
    read, mask = torch.cat([at for at, _ in found]), torch.block_diag(*(seen for _, seen in found)).bool()
    lengths = [seen.shape for _, seen in found]
    assert mask.shape == (sum(q for q, _ in lengths), sum(k for _, k in lengths))
    wide, shared = torch.promote_types(given.q.dtype, torch.float32), problem.heads_q // problem.heads_kv
    q = torch.cat([queries(problem, given, b)[0] for b in range(problem.batch)], 1).to(wide)  # [Hq, Tq, D]
    k, v = (
        flattened(problem, t)[read].transpose(0, 1).to(wide).repeat_interleave(shared, 0)
        for t in (given.k, given.v)
    )
    some = mask.any(-1, keepdim=True)
    s = (q @ k.mT * problem.softmax_scale).masked_fill(~mask & some, -math.inf)
    p = beside_sinks(given, s[None])[0].to(given.q.dtype).to(wide)
    out = ((p @ v) * some).to(given.q.dtype)[None]
    return {"out": joined(problem, list(out.split([q for q, _ in problem.sequences], 2)))}


def stored(problem: Problem, given: Inputs, defect: str = "") -> Outputs:
    """k and v of a packed or paged batch times their descales, in float32, then `members`."""
    hk, real = problem.heads_kv, dict[str, Tensor]()
    for name in "kv":
        tensor, factor = getattr(given, name).float(), given.extra[f"{name}_descale"].expand(hk)[:, None]
        if defect == "descale-of-the-next-head-in-pages" and name == "k":
            factor = factor.roll(1, 0)
        if defect == "descale-by-place-in-the-page" and name == "v":
            factor = factor[torch.arange(tensor.shape[1]) % hk][:, None]
        if defect == "descale-by-member" and name == "v":
            keys = torch.tensor([sk for _, sk in problem.sequences])
            factor = factor[torch.arange(problem.batch).repeat_interleave(keys) % hk][:, None]
        real[name] = tensor * factor
    if defect == "last-page-not-descaled":
        page, table = problem.layout.page, given.index["block_table"]
        last = [int(table[b, (sk - 1) // page]) for b, (_, sk) in enumerate(problem.sequences) if sk]
        real["v"][last] = given.v.float()[last]
    return members(problem, replace(given, **real), defect.removesuffix("-in-stored-pages"))


def stored_folded(problem: Problem, given: Inputs) -> Outputs:
    """Products of what is stored; descales multiplied into q and the output."""
    k, v = (
        given.extra[f"{name}_descale"]
        .expand(problem.heads_kv)
        .repeat_interleave(problem.heads_q // problem.heads_kv)[:, None]
        for name in "kv"
    )
    own = replace(given, q=given.q.float() * k, k=given.k.float(), v=given.v.float())
    return {"out": (members(problem, own)["out"] * v).to(given.q.dtype)}


def turned_first(problem: Problem, given: Inputs, defect: str = "") -> Outputs:
    """q and k of a packed batch turned by their positions, in float32, then `members`."""
    q, k = given.q.clone().float(), given.k.clone().float()
    for (at_q, at_k), (sq, sk) in zip(problem.spans, problem.sequences, strict=True):
        if not sq:
            continue
        first_q, first_k = sk - sq, 0
        if defect == "positions-of-the-storage":
            first_q, first_k = at_q.start, at_k.start
        if defect == "queries-counted-from-their-first":
            first_q = 0
        if defect == "positions-of-the-longest":
            first_q = problem.longest[1] - sq
        for x, at, first in ((q, at_q, first_q), (k, at_k, first_k)):
            x[at] = turned(problem, x[at].transpose(0, 1)[None], first)[0].transpose(0, 1)
    own = replace(given, q=q, k=k, v=given.v.float())
    return {"out": members(replace(problem, modifiers=()), own)["out"].to(given.q.dtype)}


DEFECTS: tuple[Defect, ...] = (
    inside("padding-of-the-batch-seen", "padded", "keys up to those of the longest member", members),
    inside("one-slot-of-padding-seen", "padded", "one key too many of each member", members),
    inside("aligned-with-the-longest", "padded", "positions of the longest member in all", members),
    inside("boundaries-ignored", "packed", "one long sequence", members),
    inside("previous-member-seen", "packed", "the last key of the member before", members),
    inside("members-of-one-length", "packed", "each begins where it would if all had the same length", members),
    inside("keys-begin-where-queries-do", "packed", "cu_seqlens_q in place of cu_seqlens_k", members),
    inside("last-key-of-each-left-out", "packed", "n - 1 keys of each member", members),
    inside("block-table-ignored", "paged", "pages in the order of the storage", members),
    inside("pages-of-the-first-member", "paged", "in all members of the batch", members),
    inside("pages-in-reverse", "paged", "each member's last page first", members),
    inside("last-page-whole", "paged", "also what stands behind the last key", members),
    inside("last-page-left-out", "paged", "whole pages alone", members),
    inside("one-key-too-many", "paged", "one more than seqused_k", members),
    inside("one-key-too-few", "paged", "one less than seqused_k", members),
    inside("descale-by-member", "packed-stored", "the factor of head b % Hk in all heads of member b", stored),
    inside("descale-of-the-next-head-in-pages", "paged-stored", "k of head h times the factor of h - 1", stored),
    inside("descale-by-place-in-the-page", "paged-stored", "v of place p in a page times the factor of p % Hk", stored),
    inside("last-page-not-descaled", "paged-stored", "the last v of each member as they are stored", stored),
    inside("one-key-too-many-in-stored-pages", "paged-stored", "one more than seqused_k", stored),
    inside("positions-of-the-storage", "packed-rotary", "they go on over the members of q, and of k", turned_first),
    inside("queries-counted-from-their-first", "packed-rotary", "queries of a member at i", turned_first),
    inside("positions-of-the-longest", "packed-rotary", "the last query at the last key of the longest member", turned_first),
)  # fmt: skip

SHAPES = ("padded", "packed", "paged")
STORED = ("packed-stored", "paged-stored")
SOUND = (
    Sound(name="members", what="flash over one member after the other", compute=members, shapes=(*SHAPES, "packed-rotary")),
    Sound(name="block-diagonal", what="one sequence, members kept apart by the mask", compute=block_diagonal, shapes=SHAPES),
    Sound(name="turned-first", what="q and k turned in float32, then members", compute=turned_first, shapes=("packed-rotary",)),
    Sound(name="stored-members", what="k and v times their descales, then members", compute=stored, shapes=STORED),
    Sound(name="descales-folded-in-members", what="products of what is stored", compute=stored_folded, shapes=STORED),
)  # fmt: skip
