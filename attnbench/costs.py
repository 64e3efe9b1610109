"""How much work a problem is: floating-point operations and least bytes moved, counted from the mask."""

from attnbench.problem import (
    BlockCausal,
    Causal,
    CausalTopLeft,
    Direction,
    Dot,
    Full,
    Mask,
    PrefixLM,
    Problem,
    Softmax,
    Window,
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


def _sum_clamped(first: int, count: int, top: int) -> int:
    """sum over i < count of min(max(first + i, 0), top)."""
    start, end = max(first, 0), first + count  # the terms first .. end - 1; negative ones add nothing
    if end <= start:
        return 0
    split = min(max(top, start), end)
    return (start + split - 1) * (split - start) // 2 + (end - split) * top


def pairs(mask: Mask, sq: int, sk: int) -> int | None:
    """Unmasked (query, key) pairs of one head, exactly; None where the mask cannot be counted yet."""
    match mask:
        case Full():
            return sq * sk
        case Causal():
            return _sum_clamped(sk - sq + 1, sq, sk)
        case CausalTopLeft():
            return _sum_clamped(1, sq, sk)
        case Window(left=left, right=right):
            high = sq * sk if right is None else _sum_clamped(sk - sq + right + 1, sq, sk)
            return high - (0 if left is None else _sum_clamped(sk - sq - left, sq, sk))
        case _ if mask.by_index:
            return _count(mask, sq, sk)
    return None


def _count(mask: Mask, sq: int, sk: int) -> int:
    import numpy as np

    total, j = 0, np.arange(sk)[None, :]
    step = max(1, 2**22 // max(sk, 1))
    for start in range(0, sq, step):
        i = np.arange(start, min(start + step, sq))[:, None]
        total += int(np.count_nonzero(mask.allowed(i, j, sq, sk)))
    return total


_ROWS = 1024


def keys_seen(mask: Mask, sq: int, sk: int) -> int:
    """Keys that some query may attend to; of masks without a formula here, at least so many for over 1024 queries."""
    if not sq:
        return 0
    match mask:
        case Full() | Causal() | PrefixLM() | BlockCausal():  # the last query sees all
            return sk
        case CausalTopLeft():
            return min(sq, sk)
        case Window(left=left):  # the windows of queries side by side overlap, up to the last key
            return sk if left is None else sk - max(0, sk - sq - left)
    if not mask.by_index:
        return sk
    import numpy as np

    seen = np.zeros(sk, dtype=bool)
    rows = np.unique(np.linspace(0, sq - 1, min(sq, _ROWS)).astype(np.int64))
    step = max(1, 2**22 // max(sk, 1))
    for start in range(0, len(rows), step):
        i = rows[start : start + step, None]
        seen |= np.broadcast_to(mask.allowed(i, np.arange(sk)[None, :], sq, sk), (len(i), sk)).any(0)
    return int(np.count_nonzero(seen))


def touched_bytes(problem: Problem) -> int:
    """Bytes of q, k, v and dout that any exact computation reads: of k and v, only keys that some query sees."""
    part = tensor_bytes(problem)
    tokens = sum(sk for _, sk in problem.sequences)
    seen = sum(keys_seen(problem.mask, *shape) for shape in problem.sequences)
    keys = (part["k"] + part["v"]) * seen // max(tokens, 1)
    backward = problem.direction in (Direction.BACKWARD, Direction.FORWARD_BACKWARD)
    return part["q"] + keys + part["out"] * backward  # dout is as large as out


def flops(problem: Problem) -> float | None:
    """Floating-point operations: 2 * pairs * (D + Dv) per query head, backward 2.5 times that.

    The convention of flash-attention's and everybody's tables: only the two matrix products count.
    None where the mask or the mechanism cannot be counted yet.
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
    total = 0
    for shape in set(problem.sequences):
        count = pairs(problem.mask, *shape)
        if count is None:
            return None
        total += problem.sequences.count(shape) * count
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
