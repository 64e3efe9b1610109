"""A problem's seeded tensors, and the sample of them that is verified.

Values are a function of (problem, kind, seed) alone, so that processes with other axis orders see the same
numbers. Letters: B Sq Sk Hq Hk D Dv as in `problem`; R sampled rows, G sampled (batch, key/value head) groups.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from zlib import crc32

import torch
from torch import Tensor

from attnbench import costs, elements, rotations, tokens
from attnbench.elements import TORCH_DTYPES
from attnbench.implementation import Inputs
from attnbench.problem import (
    Additive,
    Dense,
    Descale,
    Direction,
    DType,
    Linear,
    Mask,
    Paged,
    Parameter,
    Problem,
    Sequences,
)
from attnbench.tokens import canonical

KINDS = ("normal", "peaked", "large")
"""`normal`: N(0, 1) throughout. `peaked`: each query points at the edges of what its mask allows. `large`: all
scores of a row are shifted, up or down, beyond what `exp` can hold; but those of `additive`, a sum of tanh, are bounded, so
that for it they are as `normal`."""
COUNTED = ("normal", "peaked")
"""Kinds whose errors enter the results. Those of `large` are judged alone: as every row is one row of v, they are
small beside a floor that grows with the scores."""

READ_OUT = ("peaked",)
"""Kinds whose values are unit vectors where weights are dropped: row j of v is the j-th but `start`, of the keys `start` to
`start` + Dv, and 0 of the others. What is dropped is read from the output then; in other inputs, such as those that are timed, v is
as ever."""


def counted(problem: Problem) -> tuple[str, ...]:
    """Kinds whose errors enter the results."""
    return tuple(kind for kind in COUNTED if kind in READ_OUT or not problem.dropout)


OUTPUTS = {
    Direction.FORWARD: ("out",),
    Direction.INFERENCE: ("out",),
    Direction.BACKWARD: ("dq", "dk", "dv"),
    Direction.FORWARD_BACKWARD: ("out", "dq", "dk", "dv"),
}
"""What a call returns of a problem without parameters whose v is stored, in this order."""


def token_outputs(problem: Problem) -> tuple[str, ...]:
    """What a call returns of tokens: a v that is part of k has no gradient of its own."""
    names = OUTPUTS[problem.direction]
    return tuple(name for name in names if name != "dv") if problem.shared_kv else names


def outputs(problem: Problem) -> tuple[str, ...]:
    """What a call returns, in this order."""
    names = token_outputs(problem)
    return (*names, *(f"d{name}" for name in problem.learned)) if "dq" in names else names


SIDES = {"q": 0, "out": 0, "dq": 0, "dout": 0, "k": 1, "dk": 1, "v": 1, "dv": 1}
"""Whether the tokens of a tensor are queries, 0, or keys."""
JUNK = {"q": 1.0, "k": 1.0, "v": 100.0, "k and v": 8.0, "dout": 0.0}
"""Size of what stands where there is no token: so large that an output shows it, and so small that weights of zero leave
nothing of it. What is key and value lies between: its score must stay small too. Of a padded batch nobody asks for the
gradient there."""

_CHUNK = 2**22  # elements that are made, or read for a checksum, at once


def make(problem: Problem, *, kind: str, seed: int, device: str, qkv_format: str) -> Inputs:
    """Inputs of a problem, contiguous in `bshd` or `bhsd` where they are dense."""
    hq, hk, d, dv = problem.heads_q, problem.heads_kv, problem.head_dim, problem.head_dim_v

    def empty(side: int, heads: int, dim: int, dtype: DType) -> Tensor:
        shape = tokens.shape(problem, side, heads, dim, qkv_format)
        return torch.empty(shape, dtype=TORCH_DTYPES[dtype], device=device)

    k, k_new, v_new = empty(1, hk, d, problem.kv_dtype), None, None
    if problem.appends:
        k_new = empty(0, hk, d, problem.kv_dtype)
        v_new = k_new[..., :dv] if problem.shared_kv else empty(0, hk, dv, problem.kv_dtype)
    inputs = Inputs(
        q=empty(0, hq, d, problem.dtype),
        k=k,
        v=k[..., :dv] if problem.shared_kv else empty(1, hk, dv, problem.kv_dtype),
        dout=empty(0, hq, dv, problem.out_dtype) if "dq" in OUTPUTS[problem.direction] else None,
        extra={
            name: torch.empty(
                parameter.shape, dtype=TORCH_DTYPES[parameter.dtype or problem.out_dtype], device=device
            )
            for name, parameter in problem.parameters.items()
        },
        index=tokens.index(problem, device),
        k_new=k_new,
        v_new=v_new,
    )
    overwrite(inputs, problem, kind=kind, seed=seed, qkv_format=qkv_format)
    return inputs


def strided(problem: Problem, inputs: Inputs, qkv_format: str) -> Inputs:
    """Tensors like `inputs`, without their values, that are contiguous in their last axis only.

    q, k and v are views of one packed storage [B, max(Sq, Sk), Hq + 2 Hk, max(D, Dv) + 8] (k and v of ones of their
    own where they have another type), dout of another; parameters are contiguous. Of batches that are packed, paged or
    padded, each tensor is a view of one with a longer last axis.
    """
    q, dout = inputs.q, inputs.dout
    extra = {name: torch.empty_like(tensor) for name, tensor in inputs.extra.items()}
    if problem.uniform is None or not isinstance(problem.layout, Dense):
        q, k = _widened(inputs.q), _widened(inputs.k)
        v = k[..., : problem.head_dim_v] if problem.shared_kv else _widened(inputs.v)
        index = {name: tensor.clone() for name, tensor in inputs.index.items()}
        dout, k_new, v_new = (
            None if tensor is None else _widened(tensor) for tensor in (dout, inputs.k_new, inputs.v_new)
        )
        v_new = k_new[..., : problem.head_dim_v] if k_new is not None and problem.shared_kv else v_new
        return Inputs(q=q, k=k, v=v, dout=dout, extra=extra, index=index, k_new=k_new, v_new=v_new)
    heads = [problem.heads_q, problem.heads_kv, problem.heads_kv]
    wide = max(problem.head_dim, problem.head_dim_v) + 8  # a gap of 16 bytes or more
    storage = q.new_empty(problem.batch, max(max(pair) for pair in problem.sequences), sum(heads), wide)

    def view(part: Tensor, like: Tensor) -> Tensor:
        _, _, length, dim = canonical(like, qkv_format).shape
        if like.dtype != part.dtype:
            part = torch.empty_like(part, dtype=like.dtype)
        packed = part[:, :length, :, :dim]
        return packed if qkv_format == "bshd" else packed.transpose(1, 2)

    parts = zip(torch.split(storage, heads, 2), (q, inputs.k, inputs.v), strict=True)
    one, two, three = (view(part, like) for part, like in parts)
    three = two[..., : problem.head_dim_v] if problem.shared_kv else three
    other = None if dout is None else view(torch.empty_like(storage[:, :, : heads[0]]), dout)
    return Inputs(q=one, k=two, v=three, dout=other, extra=extra)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.new_empty(*tensor.shape[:-1], tensor.shape[-1] + 8)[..., : tensor.shape[-1]]


def overwrite(inputs: Inputs, problem: Problem, *, kind: str, seed: int, qkv_format: str) -> None:
    """Write other values into the same storage; of tokens that the call appends, into `k_new` and `v_new` alone."""
    _fill(inputs, tokens.before(problem), kind=kind, seed=seed, qkv_format=qkv_format)
    if inputs.k_new is not None and inputs.v_new is not None:
        at = tokens.appended(problem, inputs.index["block_table"])
        for new, pages in ((inputs.k_new, inputs.k), (inputs.v_new, inputs.v)):
            elements.bits(new).copy_(elements.bits(pages)[at])
        spoil(inputs, problem)


def spoil(inputs: Inputs, problem: Problem) -> None:
    """Leave what nobody may look at in the slots of tokens that the call appends."""
    if problem.appends:
        at = tokens.appended(problem, inputs.index["block_table"])
        held = {"k and v": inputs.k} if problem.shared_kv else {"k": inputs.k, "v": inputs.v}
        for name, pages in held.items():
            junk = torch.linspace(-1, 1, pages.shape[-1], device=pages.device) * JUNK[name]
            elements.bits(pages)[at] = elements.bits(junk.to(pages.dtype))


def _fill(inputs: Inputs, problem: Problem, *, kind: str, seed: int, qkv_format: str) -> None:
    """Write values of all tokens, those of keys into where `problem` has them."""
    first = seed * len(KINDS) + KINDS.index(kind)
    generator = torch.Generator(inputs.q.device).manual_seed(first)
    tokens.shuffle(inputs, problem, first)
    if problem.stored_apart:
        _store(inputs, problem, kind, seed, qkv_format, generator)
        return
    table = inputs.index.get("block_table")
    stored = {
        name: tensor
        for name in ("k", "v", "q", "dout")
        if (tensor := getattr(inputs, name)) is not None and not (name == "v" and problem.shared_kv)
    }
    taken = {name: tokens.take(t, problem, SIDES[name], qkv_format, table) for name, t in stored.items()}
    members = {name: tokens.members(t, problem, SIDES[name]) for name, t in taken.items()}
    for part in (part for several in members.values() for part in _chunks(several)):
        if part.dtype == _wide(part) and part.is_contiguous():
            part.normal_(generator=generator)  # the same numbers without a copy
        else:
            wide = torch.empty(part.shape, dtype=_wide(part), device=part.device)
            part.copy_(wide.normal_(generator=generator))
    if kind == "peaked":
        _point(members["q"], members["k"], problem)
    elif kind == "large" and isinstance(problem.mechanism, Linear):
        taken["q"].mul_(LINEAR)
        taken["k"].mul_(LINEAR)
    elif kind == "large" and not isinstance(problem.mechanism, Additive):
        _shift(members["q"], members["k"], problem, generator)
    if kind in READ_OUT and problem.dropout:
        _unit_vectors(taken["v"], generator)
    if kind != "normal" and problem.modifier("rotary") is not None:
        _turn_back(members["q"], members["k"], problem)
    for name, tensor in stored.items():
        size = JUNK["k and v" if name == "k" and problem.shared_kv else name]
        junk = torch.linspace(-1, 1, tensor.shape[-1], device=tensor.device) * size
        tokens.litter(tensor, junk, problem, SIDES[name], qkv_format, table)
        tokens.put(tensor, taken[name], problem, SIDES[name], qkv_format, table)
    for name, tensor in inputs.extra.items():
        # of a seed, generators for CPUs take 32 bits
        own = torch.Generator(inputs.q.device).manual_seed(crc32(f"{first} {name}".encode()))
        _draw(tensor, problem.parameters[name], kind, own)


ROOM = 8.0
"""What the largest descale leaves unused of the range of its type. Those of q, k and v and of their heads are so far apart
that none does in another's place."""


def _store(
    inputs: Inputs, problem: Problem, kind: str, seed: int, qkv_format: str, generator: torch.Generator
) -> None:
    """Make all values in float32 (float64 beside such a q), and store them in the problem's types, q, k and v once more.

    Of quantised types, a slot without a token holds the largest values that are stored.
    """
    wide = DType.FLOAT64 if problem.dtype is DType.FLOAT64 else DType.FLOAT32
    device, hk, table = inputs.q.device, problem.heads_kv, inputs.index.get("block_table")
    plain = tokens.plain(replace(problem, dtype=wide, kv_dtype=wide))
    real = make(plain, kind=kind, seed=seed, device=str(device), qkv_format="bhsd")
    for name, tensor in real.extra.items():
        inputs.extra[name].copy_(tensor)
    count = hk if problem.descale is Descale.HEAD else 1
    places = torch.randperm(3 * count, generator=generator, device=device)
    rooms = dict(zip("qkv", (ROOM ** (places / (3 * count))).view(3, count), strict=True))
    types = {"q": problem.dtype, "k": problem.kv_dtype, "v": problem.kv_dtype, "dout": problem.out_dtype}
    for name, dtype in types.items():
        stored, of, side = getattr(inputs, name), getattr(real, name), SIDES[name]
        if stored is None:
            continue
        to = tokens.take(stored, problem, side, qkv_format, table)
        size = elements.LARGEST[dtype] if dtype.quantised else JUNK[name]
        if dtype.quantised:
            one, other = (torch.unflatten(tensor, 1, (hk, -1)) for tensor in (of, to))
            elements.quantise(one, other, inputs.extra[f"{name}_descale"], rooms[name], dtype)
        else:
            to.copy_(of)
        junk = torch.linspace(-size, size, stored.shape[-1], device=device)
        tokens.litter(stored, junk, problem, side, qkv_format, table)
        tokens.put(stored, to, problem, side, qkv_format, table)


def _draw(tensor: Tensor, parameter: Parameter, kind: str, generator: torch.Generator) -> None:
    """Values of a parameter. Of the kind `large`, square matrices are multiples of the identity, or the scores would no
    longer be those that `_shift` has made."""
    for part in tensor.flatten(0, -3) if tensor.ndim > 2 else [tensor]:  # as wide as one matrix at a time
        wide = torch.empty(part.shape, dtype=_wide(part), device=part.device).normal_(generator=generator)
        wide *= 0.0 if kind == "large" and parameter.identity else parameter.deviation
        wide += parameter.mean
        if parameter.identity:
            wide.diagonal().add_(parameter.identity)
        part.copy_(wide)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(members: Iterable[Tensor]) -> Iterator[Tensor]:
    """Views [H', S, D] that cover the members [H, S, D] in order, of `_CHUNK` elements or of one head."""
    for member in members:
        heads = max(1, _CHUNK // max(1, member.shape[1] * member.shape[2]))
        for start in range(0, len(member), heads):
            yield member[start : start + heads]


def _turn_back(q: Sequence[Tensor], k: Sequence[Tensor], problem: Problem) -> None:
    """Turn queries and keys of the members [H, S, D] back, so that what the modifier rotary makes of them are those that
    point at each other."""
    first = min(0, *(sk - sq for sq, sk in problem.sequences))
    positions = torch.arange(first, problem.longest[1], device=q[0].device)
    cos, sin = (table.to(_wide(q[0])) for table in rotations.back(rotations.exact(problem, positions)))
    for pair in zip(q, k, strict=True):
        end = pair[1].shape[1] - first  # behind the last query and the last key
        for tensor in pair:
            here = slice(end - tensor.shape[1], end)
            for part in _chunks([tensor]):
                part.copy_(rotations.turned(part.to(_wide(part)), (cos[here], sin[here])))


def _unit_vectors(v: Tensor, generator: torch.Generator) -> None:
    """Make v [B, Hk, Sk, Dv] read out the weights of Dv neighbouring keys at a random place, the same in all heads, so that
    heads can be compared."""
    _, _, sk, width = v.shape
    start = int(torch.randint(max(0, sk - width) + 1, (1,), generator=generator, device=v.device))
    v.zero_()
    v[:, :, start : start + width].diagonal(dim1=-2, dim2=-1).fill_(1)


PEAK = 12.0
"""Score that a query of the `peaked` kind gives each key it points at; those of the others are about N(0, 1)
and a small multiple of it. Less moves less weight, more makes the yardstick itself worse (8 to 24 tried)."""


def _point(q: Sequence[Tensor], k: Sequence[Tensor], problem: Problem) -> None:
    """Add to every query of the members [H, S, D] the keys at its mask's edges: first and last allowed, first forbidden
    on each side.

    Where there are gaps between allowed keys, also the edge of the one nearest before the query's own position. A mask
    that is off by one then moves a large part of the weights. Queries are divided by scale * sqrt(D), so that a
    problem's own scale does not change its scores. Where members differ in length, also the keys on either side of their
    own, which are those of others.
    """
    shared, root = problem.heads_q // problem.heads_kv, math.sqrt(problem.head_dim)
    edges, of = list[tuple[Tensor, Tensor]](), (-1, -1)
    for b, (queries, keys) in enumerate(zip(q, k, strict=True)):  # [Hq, Sq, D], [Hk, Sk, D]
        sq, sk = problem.sequences[b]
        if not (sq and sk):
            continue
        if of != (sq, sk) or problem.mask.by_member:
            edges, of = _edges(problem.mask, torch.arange(sq, device=queries.device), sq, sk, b), (sq, sk)
        heads = (
            torch.arange(problem.heads_q, device=queries.device)[:, None] // shared
        )  # key/value head of each
        step = max(1, _CHUNK // (sq * queries.shape[2]))
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            total = part.to(_wide(part))
            for index, there in edges:
                found = keys[heads[start : start + step], index.clamp(0, sk - 1)]
                total += found * (there * (PEAK / root)).to(total.dtype)[:, None]
            for key in _beside(k, b) if problem.uniform is None else ():
                total += key[heads[start : start + step]] * (PEAK / root)
            part.copy_(total / (problem.softmax_scale * root))


def _beside(k: Sequence[Tensor], b: int) -> Iterator[Tensor]:
    """The last key before those of member b of a packed batch, and the first one behind them: [Hk, D] each."""
    for others, place in ((range(b - 1, -1, -1), -1), (range(b + 1, len(k)), 0)):
        yield from islice((k[other][:, place] for other in others if k[other].shape[1]), 1)


def _edges(mask: Mask, i: Tensor, sq: int, sk: int, b: int) -> list[tuple[Tensor, Tensor]]:
    """Keys that the queries `i` [n] of member b point at, and whether each of them does: [n] both."""
    first, near, last = mask.outline(i, sq, sk, b)
    found = [(first - 1, True), (first, first <= last), (last, first < last), (last + 1, True)]
    if not mask.contiguous:
        inner = (near - 1 > first) & (near <= last)
        found += [(near - 1, inner), (near, inner & (near < last))]
    return [(index, (index >= 0) & (index < sk) & wanted) for index, wanted in found]


SHIFT = {DType.FLOAT64: 880.0}
"""By which all scores of a row of the `large` kind are shifted, up or down: exp overflows from 710 on and, after a
shift down, is zero even at the row's largest score, below -745."""
NARROW_SHIFT = 240.0
"""Likewise where scores are kept in float32, as those of half types are: 89 and -104."""
HEAVY = 110.0
"""Score of a row's own key above that; those of the others are N(0, HEAVY^2 / D). So much lower that it takes all
the weight whatever such scores are rounded to, and that in float32 another tile's maximum will not do in its place."""
HEAVY_WITH_GRADIENTS = 32.0
"""Likewise where gradients are asked for. A backward pass may add up the score in another order than the forward
pass, whose log-sum-exp it takes: at 110 and D = 128, sound ones exceeded the budget of dv by a tenth."""
FARTHER = 8.0
"""Times as heavy where q and k are turned in half types, and rounded then, so that scores are off by 2^-8 of their size: a
key that scores 2 % less than the heavy one must still be far behind."""
LINEAR = 8.0
"""Factor of q and k of the mechanism linear in their place: no exponential of its overflows, and the coordinate that all
keys would share is a constant, of which a sum in order errs by more than one of random terms (1.5 x the budget at 512)."""


def _shift(q: Iterable[Tensor], k: Iterable[Tensor], problem: Problem, generator: torch.Generator) -> None:
    """Make every query of the members [H, S, D] a multiple of one key that it may attend to, and shift all its scores.

    The last coordinate of every key is sqrt(D), that of a query its shift: up in two rows, down in the next two,
    so that no maximum but the row's own will do. The right answer is the chosen key's v: neither a sound
    algorithm nor the yardstick loses accuracy. The last, because each term that is added to a large one is
    rounded as coarsely as that: with the first, backward passes exceeded the budget. A softcap flattens large
    scores, and its slope is lost to rounding: where gradients are asked for, scores are kept within the cap.
    """
    device, most = generator.device, problem.longest[0]
    shared, root = problem.heads_q // problem.heads_kv, math.sqrt(problem.head_dim)
    i, chosen, of = torch.arange(most, device=device), torch.empty(0), (-1, -1)
    chance = torch.rand(most, generator=generator, device=device, dtype=torch.float64)
    if problem.dropout:
        chance = _spread(float(chance[0]), problem.heads_q, most, device)
    size, heavy, unit = SHIFT.get(problem.dtype, NARROW_SHIFT), HEAVY, 1.0
    if problem.modifier("rotary") is not None and problem.dtype.bytes == 2:
        heavy *= FARTHER
    if "dq" in OUTPUTS[problem.direction]:
        heavy = HEAVY_WITH_GRADIENTS
        unit = min(unit, (problem.softcap or math.inf) / (size + heavy))
    shift = unit * size * (1 - i // 2 % 2 * 2)
    heads = torch.arange(problem.heads_q, device=device)[:, None] // shared  # key/value head of each
    for b, (queries, keys) in enumerate(zip(q, k, strict=True)):  # [Hq, Sq, D], [Hk, Sk, D]
        sq, sk = problem.sequences[b]
        keys[..., -1] = 0
        if sk and (of != (sq, sk) or problem.mask.by_member):
            of = (sq, sk)
            chosen = _heavy_keys(problem.mask, chance[..., :sq], sq, sk, b).expand(problem.heads_q, sq)
        step = max(1, _CHUNK // max(1, sq * queries.shape[2]))
        for start in range(0, len(queries) if sk else 0, step):
            found = keys[heads[start : start + step], chosen[start : start + step]]
            total = found.to(_wide(found))
            total *= unit * heavy * root / total.square().sum(-1, keepdim=True).clamp(min=1)
            total[..., -1] = shift[:sq]
            queries[start : start + step].copy_(total / (problem.softmax_scale * root))
        keys[..., -1] = root


GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples leave the most even gaps on a circle, however many there are (Knuth 1998, section 6.4)."""


def _spread(first: float, heads: int, rows: int, device: torch.device) -> Tensor:
    """Numbers from 0 to 1 for each head and row, [Hq, Sq], of which any few neighbours are far apart and all are evenly
    spread; by turns one row in four has 0, and one almost 1, which the last row has in every other head."""
    row, head = torch.arange(rows, device=device), torch.arange(heads, device=device)[:, None]
    place = int(first * 4096) + head + row
    among = head * rows + place // 4 * 2 + place % 2  # of those that have neither 0 nor almost 1, one by one
    chance = (first + GOLDEN * among.double()) % 1
    chance[place % 4 == 0] = 0
    chance[place % 4 == 1] = 1 - 2.0**-40
    chance[::2, -1] = 1 - 2.0**-40
    return chance


def _heavy_keys(mask: Mask, chance: Tensor, sq: int, sk: int, b: int) -> Tensor:
    """A key that each query of member b may attend to, where there is one, by its `chance` [..., Sq] from 0 to 1: [..., Sq]."""
    i = torch.arange(sq, device=chance.device)
    first, near, last = mask.outline(i, sq, sk, b)
    chosen: Tensor = first + (chance * (last - first + 1)).long()
    for other in (last, near):
        chosen = torch.where(mask.allowed(i, chosen, sq, sk, b), chosen, other)
    return chosen.clamp(0, sk - 1)


def checksum(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """Numbers for each tensor that change with any one element's bits, and with their order."""
    return checksums(inputs.tensors)


def checksums(tensors: Iterable[Tensor]) -> tuple[tuple[int, ...], ...]:
    """As `checksum`, of any tensors."""
    return tuple(map(_checksum, tensors))


def _checksum(tensor: Tensor) -> tuple[int, ...]:
    """Sums over the rows and over the columns of its words laid out in lines, each sum weighted by its place.

    No memory is taken but for the sums, because a process's first touch of a page costs more than the rest.
    """
    flat = tensor.detach().reshape(-1).contiguous()  # the same memory, but for one expanded from a number
    size = tensor.element_size()
    words = flat.view(torch.int64) if flat.numel() * size % 8 == 0 else flat.view(_INTEGERS[size])
    whole = words.numel() // _LINE * _LINE
    lines = words[:whole].view(-1, _LINE)
    found = []
    for sums in (lines.sum(0), lines.sum(1), words[whole:].long()):
        place = torch.arange(len(sums), device=sums.device)
        odd = (2 * place + 1) * 0x5851F42D4C957F2D  # odd factors: no change of one word is lost mod 2**64
        found.append(int((sums * odd).sum()))
    return tuple(found)


_LINE = 1024
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# ---------------------------------------------------------------- the sample that is verified

MEMORY_BYTES = 2**28
"""Bound of what one of oracle, yardstick and picked outputs may hold in float64, where more than two groups
are checked."""
RANDOM_ROWS = 4
"""Of a sample at the least: an implementation that computes only the others is found out."""
_MASK_FLOP = 64  # what deciding one (query, key) pair costs the oracle, in flop; once for all groups


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Which parts of the tensors are verified: some query rows of some groups.

    A group is a key/value head of a member of the batch, with the Hq / Hk query heads that share it.
    """

    groups: tuple[tuple[int, int], ...]
    """(batch, key/value head), ascending."""
    rows: tuple[int, ...]
    """Query rows, ascending, the same in every group."""
    heads_kv: int
    share: float
    """Checked rows of the output over all of them, in (0, 1]."""
    sequences: Sequences = ()
    """(Sq, Sk) of the members of the batch, where they differ."""

    def queries(self, tensor: Tensor, nothing: float = 0.0) -> Tensor:
        """Canonical, [B, Hq, Sq, n] or [Tq, Hq, n] -> [G, Hq/Hk, R, n]; `nothing` in rows that a member does not have."""
        by_head = torch.unflatten(elements.bits(tensor), 1, (self.heads_kv, -1))
        if tensor.ndim == 4:
            return by_head[self._index(tensor)].view(tensor.dtype)
        token, there = self._tokens(0, torch.tensor(self.rows, device=tensor.device))
        head = torch.tensor(self.groups, device=tensor.device)[:, 1, None, None]
        shared = torch.arange(by_head.shape[2], device=tensor.device)[:, None]
        found = by_head[token[:, None], head, shared].masked_fill_(~there[:, None, :, None], nothing)
        return found.view(tensor.dtype)

    def keys(self, tensor: Tensor) -> Tensor:
        """Canonical, [B, Hk, Sk, n] or [Tk, Hk, n] -> [G, Sk, n], with zeros behind a member's last key."""
        batch, head = torch.tensor(self.groups, device=tensor.device).unbind(1)
        stored = elements.bits(tensor)
        if tensor.ndim == 4:
            return stored[batch, head].view(tensor.dtype)
        longest = max(keys for _, keys in self.sequences)
        token, there = self._tokens(1, torch.arange(longest, device=tensor.device))
        return stored[token, head[:, None]].masked_fill_(~there[..., None], 0).view(tensor.dtype)

    def planes(self, count: int) -> list[int]:
        """Of so many planes, one for each query head, those of the groups; the one where all heads share it."""
        shared, heads = count // self.heads_kv, sorted({head for _, head in self.groups})
        return [head * shared + place for head in heads for place in range(shared)] or [0]

    def parameter(self, name: str, tensor: Tensor) -> Tensor:
        """The gradient of the parameter `name`, whose rows lie along the last axis, at least 2-D.

        All of it, because dout is zero outside the sample; of a bias [heads, Sq, Sk] the planes of the sampled heads
        and the sampled rows.
        """
        if name == "bias":
            return tensor[self.planes(len(tensor))][:, list(self.rows)]
        return tensor if tensor.ndim > 1 else tensor[None]

    def keep(self, tensor: Tensor) -> None:
        """Zero, in place, what lies outside the sample in a canonical tensor, [B, Hq, Sq, n] or [Tq, Hq, n]."""
        if tensor.ndim == 3:
            token, there = self._tokens(0, torch.tensor(self.rows, device=tensor.device))
            head = torch.tensor(self.groups, device=tensor.device)[:, 1, None].expand_as(token)
            outside = torch.ones(len(tensor), self.heads_kv, dtype=torch.bool, device=tensor.device)
            outside[token[there], head[there]] = False
            torch.unflatten(tensor, 1, (self.heads_kv, -1)).masked_fill_(outside[..., None, None], 0)
            return
        kept = self.queries(tensor)
        tensor.zero_()
        torch.unflatten(tensor, 1, (self.heads_kv, -1))[self._index(tensor)] = kept

    def _index(self, tensor: Tensor) -> tuple[Tensor, ...]:
        batch, head = torch.tensor(self.groups, device=tensor.device).unbind(1)
        shared = torch.arange(tensor.shape[1] // self.heads_kv, device=tensor.device)
        rows = torch.tensor(self.rows, device=tensor.device)
        return batch[:, None, None], head[:, None, None], shared[:, None], rows

    def _tokens(self, side: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """For each group, which tokens of a packed batch stand at the `places` [P], 0 where there is none, and whether
        there is one: [G, P] both."""
        lengths = torch.tensor([pair[side] for pair in self.sequences], device=places.device)
        batch = torch.tensor(self.groups, device=places.device)[:, 0, None]
        there = places < lengths[batch]
        return ((lengths.cumsum(0) - lengths)[batch] + places) * there, there


def sample(problem: Problem, *, work: float, seed: int) -> Sample:
    """Everything where the oracle needs at most `work` flop and `MEMORY_BYTES`; else a seeded choice.

    The choice always holds the first and the last row, rows at the edges of the first and last blocks of 64
    and 128, the first and the last rows where the mask's outline bends (a window leaves the ends of the keys, a
    chunk or a document begins), `RANDOM_ROWS` that nobody can know beforehand,
    and the first and the last group; the rest of `work` goes to further groups, then to random rows and block
    edges. Where two groups are all that `work` allows, they are one of the ends and a random one. Where those that
    are always held (up to 26 rows of two groups, 42 where the mask differs by member) already cost more than `work`,
    it is exceeded: 2e9 flop are too few from some 25k keys on for groups of four heads of 128, and from 8k with
    gradients. Where members differ in length, up to `SHAPES` of them, from the shortest to the longest, have a group each,
    and rows at their own edges.
    """
    sq, sk = problem.longest
    groups = [(b, h) for b in range(problem.batch) for h in range(problem.heads_kv)]
    gradients = "dq" in OUTPUTS[problem.direction]
    shared, width = problem.heads_q // problem.heads_kv, problem.head_dim + problem.head_dim_v
    apart = problem.mask.by_member or problem.uniform is None
    several = range(problem.batch) if apart else range(1)
    unlike = {shape: b for b, shape in enumerate(problem.sequences)}.values()
    keys = torch.zeros(sq, dtype=torch.int64)  # of each row, at the most
    for b in several if problem.mask.by_member else unlike:
        first, _, last = problem.mask.outline(torch.arange(problem.sequences[b][0]), *problem.sequences[b], b)
        keys[: len(first)] = torch.maximum(keys[: len(first)], last - first + 1)
    per_pair = costs.pair_flops(problem) * shared * (3.5 if gradients else 1)
    once = 0 if apart else _MASK_FLOP * sk  # for deciding the mask of a row, whatever the groups
    per_row = (keys * per_pair + (_MASK_FLOP * sk - once)).tolist()  # flop of a row in one group

    def choice(picked: list[tuple[int, int]], rows: Iterable[int]) -> Sample:
        rows = tuple(sorted(rows))
        checked = sum(bisect_left(rows, problem.sequences[b][0]) for b, _ in picked)
        return Sample(
            groups=tuple(sorted(picked)),
            rows=rows,
            heads_kv=problem.heads_kv,
            share=checked / sum(problem.sequences[b][0] for b, _ in groups),
            sequences=() if problem.uniform else problem.sequences,
        )

    planes = 2 * sk if "bias" in problem.learned and gradients else 0  # its gradient, and the size of that

    def most(rows: int) -> int:
        """Groups of so many rows that the memory bound allows."""
        held = width * (shared * rows + (sk if gradients else 0)) + planes * shared * rows
        return max(2, MEMORY_BYTES // (8 * held))

    whole = costs.explicit_flops(problem)
    exact = whole * 3.5 / costs.WORK[problem.direction] if gradients else whole
    pairs = sum(q * k for q, k in problem.sequences[: len(several)])
    if exact + _MASK_FLOP * pairs <= work and len(groups) <= most(sq):
        return choice(groups, range(sq))

    rng = random.Random(seed)
    held = _held(problem)
    rows = {i for b in held for i in _always(problem, b)}
    cost = sum(per_row[i] for i in rows)
    left = work - once * len(rows)
    part = 1 if len(rows) == sq else 2  # half for groups, half for rows
    affordable = max(2, int(min(left / part / max(cost, 1), len(groups))))
    count = min(len(groups), most(len(rows)), affordable)
    ends, middle = [groups[0], groups[-1]], groups[1:-1]
    if problem.uniform is None:
        ends = [(b, rng.randrange(problem.heads_kv)) for b in held]
        middle = [group for group in groups if group not in ends]
    elif count == 2 and middle:
        ends = [rng.choice(ends)]
        if problem.mask.by_member:  # two members, whatever their masks
            middle = [group for group in middle if group[0] != ends[0][0]] or middle
    picked = list(dict.fromkeys([*ends, *rng.sample(middle, min(len(middle), max(0, count - len(ends))))]))
    left -= cost * len(picked)
    least = len(rows) + RANDOM_ROWS
    for attempt in range(4 * sq):
        i = rng.randrange(sq)
        if attempt % 2:
            i = min(max(i // 64 * 64 + rng.choice((-1, 0, 1)), 0), sq - 1)
        if i in rows:
            continue
        left -= per_row[i] * len(picked) + once
        if (left < 0 and len(rows) >= least) or len(picked) > most(len(rows) + 1):
            break
        rows.add(i)
    return choice(picked, rows)


SHAPES = 8
"""Members of unlike lengths that a sample always looks at."""


def _held(problem: Problem) -> list[int]:
    """Members of the batch whose edges a sample always holds."""
    if problem.uniform is not None:
        return [0, problem.batch - 1] if problem.mask.by_member else [0]
    unlike = sorted({shape: b for b, shape in enumerate(problem.sequences) if shape[0]}.items())
    count = min(SHAPES, len(unlike))
    return [unlike[nth * (len(unlike) - 1) // max(1, count - 1)][1] for nth in range(count)]


def _always(problem: Problem, b: int) -> Iterator[int]:
    sq, sk = problem.sequences[b]
    rows = [0, sq - 1]
    for edge in (64, 128, (sq - 1) // 64 * 64, (sq - 1) // 128 * 128):
        rows += (edge - 1, edge, edge + 1)
    for line in problem.mask.outline(torch.arange(sq), sq, sk, b):
        line = line.clamp(-1, sk)
        bends = (line[2:] - 2 * line[1:-1] + line[:-2]).nonzero() + 1
        if len(bends):
            rows += (int(bends[0]), int(bends[0]) + 1, int(bends[-1]) - 1, int(bends[-1]))
    yield from (row for row in rows if 0 <= row < sq)


def mask_dout(inputs: Inputs, problem: Problem, sample: Sample, qkv_format: str) -> None:
    """Zero dout, in place, outside the sample, so that dk and dv are sums over its rows alone."""
    if inputs.dout is not None:
        dout = tokens.take(inputs.dout, problem, 0, qkv_format)
        sample.keep(dout)
        tokens.put(inputs.dout, dout, problem, 0, qkv_format)


def gapless(
    tensors: tuple[Tensor, ...], problem: Problem, qkv_format: str, table: Tensor | None = None
) -> tuple[Tensor, ...]:
    """A call's outputs without what stands in the padding of a batch, or behind the last key in its pages by a block `table`,
    of which nothing is promised."""
    padded = problem.uniform is None and isinstance(problem.layout, Dense)
    if not (padded or isinstance(problem.layout, Paged)):
        return tensors
    named = zip(token_outputs(problem), tensors, strict=True)
    return tuple(tokens.take(t.detach(), problem, SIDES[name], qkv_format, table) for name, t in named)


def pick(
    tensors: tuple[Tensor, ...],
    problem: Problem,
    sample: Sample,
    qkv_format: str,
    table: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sampled parts of a call's outputs, contiguous in CPU memory and of their own dtype; gradients of pages by the block
    `table`.

    `out` [G, Hq/Hk, R, Dv], `dq` [G, Hq/Hk, R, D], `dk` [G, Sk, D], `dv` [G, Sk, Dv], and `d<name>` of each
    parameter that is learned, as `Sample.parameter` has it.
    """
    found = {}
    for name, tensor in zip(outputs(problem), tensors, strict=True):
        if name[1:] in problem.learned:
            found[name] = sample.parameter(name[1:], tensor.detach()).cpu().contiguous()
            continue
        part = sample.keys if SIDES[name] else sample.queries
        taken = tokens.take(tensor.detach(), problem, SIDES[name], qkv_format, table)
        found[name] = part(taken).cpu().contiguous()
    return found


def pick_lse(lse: Tensor, problem: Problem, sample: Sample) -> Tensor:
    """The sampled parts [G, Hq/Hk, R] of a log-sum-exp, [B, Hq, Sq] or [Hq, Tq], in CPU memory; -inf in rows that a
    member does not have."""
    rows = lse[..., None] if lse.ndim == 3 else lse.mT[..., None]
    return sample.queries(tokens.take(rows, problem, 0, "bhsd"), -math.inf).squeeze(-1).cpu()
