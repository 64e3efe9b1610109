"""How much work a problem is: floating-point operations and least bytes moved, counted from the mask."""

from collections.abc import Iterator
from functools import lru_cache

from attnbench.problem import Direction, Dot, Mask, Problem, Softmax

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
    import numpy as np

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
    """Bytes of q, k, v and dout that any exact computation reads: of k and v, only keys that some query sees."""
    part = tensor_bytes(problem)
    tokens = sum(sk for _, sk in problem.sequences)
    seen = sum(count * keys_seen(problem.mask, sq, sk, b) for sq, sk, b, count in _masks(problem))
    keys = (part["k"] + part["v"]) * seen // max(tokens, 1)
    backward = problem.direction in (Direction.BACKWARD, Direction.FORWARD_BACKWARD)
    return part["q"] + keys + part["out"] * backward  # dout is as large as out


def _masks(problem: Problem) -> Iterator[tuple[int, int, int, int]]:
    """(Sq, Sk, b, count): the members of the batch by the mask that they have, `count` of them the one of member b."""
    if problem.mask.by_member:
        yield from ((*shape, b, 1) for b, shape in enumerate(problem.sequences))
    elif problem.uniform is not None:
        yield (*problem.uniform, 0, problem.batch)
    else:
        yield from ((*shape, 0, problem.sequences.count(shape)) for shape in set(problem.sequences))


def flops(problem: Problem) -> float | None:
    """Floating-point operations: 2 * pairs * (D + Dv) per query head, backward 2.5 times that.

    The convention of flash-attention's and everybody's tables: only the two matrix products count.
    None where the mechanism cannot be counted yet.
    """
    forward = _forward(problem)
    return None if forward is None else WORK[problem.direction] * forward


def least_flops(problem: Problem) -> float | None:
    """As `flops`, but only what every exact computation must do: see `LEAST_WORK`."""
    forward = _forward(problem)
    return None if forward is None else LEAST_WORK[problem.direction] * forward


def _forward(problem: Problem) -> int | None:
    if not isinstance(problem.mechanism, Softmax | Dot):
        return None
    total = sum(count * pairs(problem.mask, sq, sk, b) for sq, sk, b, count in _masks(problem))
    width = problem.head_dim + problem.head_dim_v
    return 2 * total * width * problem.heads_q


def tensor_bytes(problem: Problem) -> dict[str, int]:
    """Bytes of q, k, v and out, with the real number of key/value heads; shared k and v are stored once."""
    tokens_q = sum(q for q, _ in problem.sequences)
    tokens_kv = sum(s for _, s in problem.sequences)
    kv = problem.heads_kv * tokens_kv * problem.kv_dtype.bytes
    return {
        "q": problem.heads_q * tokens_q * problem.head_dim * problem.dtype.bytes,
        "k": kv * problem.head_dim,
        "v": 0 if problem.shared_kv else kv * problem.head_dim_v,
        "out": problem.heads_q * tokens_q * problem.head_dim_v * problem.dtype.bytes,
    }


def least_bytes(problem: Problem) -> int:
    """Bytes that any implementation must move: each input read once, each output written once.

    Forward reads q, k, v and writes out. Backward reads these four and dout, and writes dq, dk, dv.
    """
    part = tensor_bytes(problem)
    forward = sum(part.values())
    backward = forward + part["out"] + part["q"] + part["k"] + part["v"]
    match problem.direction:
        case Direction.BACKWARD:
            return backward
        case Direction.FORWARD_BACKWARD:
            return forward + backward
        case _:
            return forward
