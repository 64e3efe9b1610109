"""How much work a problem is: floating-point operations and least bytes moved, counted from the mask."""

import math
from collections.abc import Iterator
from functools import lru_cache

from attnbench.problem import (
    Additive,
    Causal,
    Direction,
    Dot,
    Full,
    General,
    Linear,
    LocalGaussian,
    Location,
    Mask,
    MultiHead,
    Packed,
    Paged,
    Problem,
    Softmax,
)

WORK = {
    Direction.FORWARD: 1.0,
    Direction.INFERENCE: 1.0,
    Direction.BACKWARD: 2.5,
    Direction.FORWARD_BACKWARD: 3.5,
}
"""Matrix products of a direction relative to the forward pass (Dao 2023, section 4.1)."""


LEAST_WORK = {**WORK, Direction.BACKWARD: 2.0, Direction.FORWARD_BACKWARD: 3.0}
"""Products that none can do without: where the forward pass keeps its weights, two of the forward pass's size fewer
than five are left to the backward pass."""

_PAIRS = 2**22
"""That are looked at together."""
_OUTLINES = 2**18
"""Rows whose outlines are."""


@lru_cache(maxsize=2**16)
def pairs(mask: Mask, sq: int, sk: int, b: int = 0) -> int:
    """Unmasked (query, key) pairs of one head of member b of the batch, exactly.

    Takes time proportional to Sq where the mask is contiguous; else it looks at the pairs one by one.
    """
    if isinstance(mask, Full):
        return sq * sk
    import numpy as np  # which takes long

    total, step = 0, _OUTLINES if mask.contiguous else max(1, _PAIRS // max(sk, 1))
    for start in range(0, sq, step):
        i = np.arange(start, min(start + step, sq))
        first, _, last = mask.outline(i, sq, sk, b)
        if mask.contiguous:
            total += int((last - first + 1).clip(0).sum())
        else:
            j = np.arange(first.min(), last.max() + 1)
            total += int(np.count_nonzero(mask.allowed(i[:, None], j, sq, sk, b)))
    return total


_ROWS = 1024


@lru_cache(maxsize=2**16)
def keys_seen(mask: Mask, sq: int, sk: int, b: int = 0) -> int:
    """Keys that some query of member b may attend to; at least so many where a mask that is not contiguous has over
    1024 queries."""
    import numpy as np

    if not sq or not sk:
        return 0
    if mask.contiguous:
        first, _, last = mask.outline(np.arange(sq), sq, sk, b)
        some = last >= first
        begin, end = (np.bincount(at[some], minlength=sk + 1) for at in (first, last + 1))
        return int(np.count_nonzero(np.cumsum(begin - end)))
    seen = np.zeros(sk, dtype=bool)
    rows = np.unique(np.linspace(0, sq - 1, min(sq, _ROWS)).astype(np.int64))
    step = max(1, _PAIRS // sk)
    for start in range(0, len(rows), step):
        i = rows[start : start + step, None]
        seen |= mask.allowed(i, np.arange(sk), sq, sk, b).any(0)
    return int(np.count_nonzero(seen))


def touched_bytes(problem: Problem) -> int:
    """Bytes of the inputs and dout that any exact computation reads: of k and v, only keys that some query sees."""
    part = tensor_bytes(problem)
    tokens = sum(sk for _, sk in problem.sequences)
    seen = sum(count * keys_seen(problem.mask, sq, sk, b) for sq, sk, b, count in _masks(problem))
    extra = part["extra"]
    of_keys = part["k"] + part["v"] + extra * isinstance(problem.mechanism, Location)
    keys = of_keys * seen // max(tokens, 1)
    backward = problem.direction in (Direction.BACKWARD, Direction.FORWARD_BACKWARD)
    extra *= not isinstance(problem.mechanism, Location)
    return part["q"] + keys + extra + part["out"] * backward  # dout is as large as out


def _masks(problem: Problem) -> Iterator[tuple[int, int, int, int]]:
    """(Sq, Sk, b, count): the members of the batch by the mask that they have, `count` of them the one of member b."""
    if problem.mask.by_member:
        yield from ((*shape, b, 1) for b, shape in enumerate(problem.sequences))
    else:
        yield from ((*shape, 0, problem.sequences.count(shape)) for shape in set(problem.sequences))


def flops(problem: Problem) -> float:
    """Floating-point operations: 2 * pairs * (D + Dv) per query head, backward 2.5 times that.

    The convention of flash-attention's and everybody's tables: only the two matrix products count. What mechanisms
    other than softmax and dot do beside them counts too, and by the same convention 2.5 times backward.
    """
    return WORK[problem.direction] * _forward(problem)


def least_flops(problem: Problem) -> float | None:
    """As `flops`, but only what every exact computation must do: see `LEAST_WORK`.

    None of mechanisms other than softmax and dot: products may change places, and weights of zero need no value.
    """
    return LEAST_WORK[problem.direction] * _forward(problem) if _plain(problem) else None


def explicit_flops(problem: Problem) -> float:
    """As `flops`, with the weight of every pair written out, as the oracle does it."""
    return WORK[problem.direction] * _forward(problem, explicit=True)


def pair_flops(problem: Problem) -> int:
    """Of one query head's pair, forward: its score and its share of the output."""
    if isinstance(problem.mechanism, Additive):  # hidden units: add, tanh, multiply, add
        return 4 * problem.mechanism.width(problem) + 2 * problem.head_dim_v
    return 2 * (problem.head_dim + problem.head_dim_v)


def _plain(problem: Problem) -> bool:
    return isinstance(problem.mechanism, Softmax | Dot)


def _forward(problem: Problem, explicit: bool = False) -> int:
    if problem.uniform is not None and not problem.mask.by_member:
        total = problem.batch * pairs(problem.mask, *problem.uniform)
    else:
        total = sum(count * pairs(problem.mask, sq, sk, b) for sq, sk, b, count in _masks(problem))
    d, dv = problem.head_dim, problem.head_dim_v
    if _plain(problem):
        return 2 * problem.heads_q * total * (d + dv)
    tokens_q, tokens_kv = sum(q for q, _ in problem.sequences), sum(s for _, s in problem.sequences)
    queries, keys = problem.heads_q * tokens_q, problem.heads_kv * tokens_kv
    products = problem.heads_q * total * pair_flops(problem)
    match problem.mechanism:
        case Linear() if isinstance(problem.mask, Full | Causal) and not explicit:
            if isinstance(problem.mask, Causal):  # of more queries than keys, the first see none
                queries = problem.heads_q * sum(min(q, s) for q, s in problem.sequences)
            return 2 * (keys * d * dv + queries * d * (dv + 1))
        case General():
            return products + 2 * queries * d * d
        case Additive() as additive:
            return products + 2 * (queries + keys) * d * additive.width(problem)
        case LocalGaussian():
            return products + 2 * queries * (d * d + d)
        case MultiHead():
            squares = d * d + dv * dv
            return products + 2 * squares * (tokens_q * problem.heads_q**2 + tokens_kv * problem.heads_kv**2)
    return products


def tensor_bytes(problem: Problem) -> dict[str, int]:
    """Bytes of q, k, v, out, the parameters (`extra`), the integers of the layout (`index`) and what is written into pages
    (`append`) that must be moved.

    k and v with the real number of key/value heads; shared ones are stored once, and keys that the mechanism does not
    look at are not read. New ones are read once, from where they are handed over. Of a bias, what belongs to pairs that the mask
    leaves. Padding and the unused ends of pages, never.
    """
    tokens_q = sum(q for q, _ in problem.sequences)
    tokens_kv = sum(s for _, s in problem.sequences)
    kv = problem.heads_kv * tokens_kv * problem.kv_dtype.bytes
    wide = problem.head_dim + (0 if problem.shared_kv else problem.head_dim_v)
    return {
        "q": problem.heads_q * tokens_q * problem.head_dim * problem.dtype.bytes,
        "k": 0 if isinstance(problem.mechanism, Location) else kv * problem.head_dim,
        "v": 0 if problem.shared_kv else kv * problem.head_dim_v,
        "out": problem.heads_q * tokens_q * problem.head_dim_v * problem.out_dtype.bytes,
        "extra": _parameters(problem),
        "index": 4 * _index(problem),
        "append": problem.heads_kv * tokens_q * wide * problem.kv_dtype.bytes if problem.appends else 0,
    }


def pages(problem: Problem) -> tuple[int, ...]:
    """Pages of each member of a paged batch."""
    assert isinstance(problem.layout, Paged)
    return tuple(-(-keys // problem.layout.page) for _, keys in problem.sequences)


def _index(problem: Problem) -> int:
    """Numbers that say where the tokens lie: cumulative lengths, or those of the queries, lengths and pages in use."""
    if isinstance(problem.layout, Packed):
        return 2 * (problem.batch + 1)
    return 2 * problem.batch + 1 + sum(pages(problem)) if isinstance(problem.layout, Paged) else 0


def _parameters(problem: Problem) -> int:
    """Bytes of the parameters that must be read."""
    found = problem.parameters
    sizes = {name: math.prod(parameter.shape) for name, parameter in found.items()}
    if "bias" in found:
        count = max(pairs(problem.mask, sq, sk, b) for sq, sk, b, _ in _masks(problem))
        sizes["bias"] = found["bias"].shape[0] * count
    return sum(size * (found[name].dtype or problem.out_dtype).bytes for name, size in sizes.items())


def least_bytes(problem: Problem) -> int:
    """Bytes that any implementation must move: each input read once, each output written once.

    Forward reads q, k, v, the parameters and writes out, and new k and v into pages. Backward reads these and dout, and
    writes dq, dk, dv and the gradients of what is learned.
    """
    part = tensor_bytes(problem)
    forward = sum(part.values())
    learned = sum(math.prod(problem.parameters[name].shape) for name in problem.learned) * problem.dtype.bytes
    backward = forward + part["out"] + part["q"] + part["k"] + part["v"] + learned
    match problem.direction:
        case Direction.BACKWARD:
            return backward
        case Direction.FORWARD_BACKWARD:
            return forward + backward
        case _:
            return forward
