"""Attention in plain torch operations: the chain that everybody writes first, and online softmax over tiles."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnbench import (
    ALL_MASKS,
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

TILE = 256
"""Keys in a tile of `torch-chunked`: on a CPU core within 6 % of the fastest (128) at 2048 tokens, and 1.6 times
as fast as that for one query over 4096 keys, where each tile is a handful of small calls."""

_CAPABILITIES = Capabilities(
    dtypes=frozenset(("float64", "float32", "tfloat32", "float16", "bfloat16", "float8_e4m3")),
    devices=frozenset(("cpu", "cuda")),
    directions=frozenset(("forward", "backward", "forward_backward")),
    masks=ALL_MASKS,
    modifiers=frozenset(("softcap",)),
    mechanisms=frozenset(("softmax", "dot")),
    grouped_heads=True,
    unequal_head_dims=True,
    kv_dtypes=frozenset(("float32", "float16", "bfloat16", "float8_e4m3", "int8")),
    shared_kv=True,
)


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="torch-naive",
        summary="matmul, softmax, matmul in the problem's own dtype; the scores [Sq, Sk] are stored",
        capabilities=replace(
            _CAPABILITIES,
            modifiers=frozenset(("softcap", "alibi", "bias", "relative-bias", "sinks", "rotary")),
            dropout=True,
        ),
        prepare=_prepare_naive,
        requires=("torch",),
        qkv_format="bhsd",
    )
    yield Implementation(
        name="torch-chunked",
        summary=f"online softmax over tiles of {TILE} keys, recomputed in the backward pass; half types in float32",
        capabilities=_CAPABILITIES,
        prepare=_prepare_chunked,
        requires=("torch",),
        qkv_format="bhsd",
    )


def _dtype(problem: Problem, inputs: Inputs) -> "torch.dtype":
    """That of the output, also where q is float8. Products of `tfloat32` may be TF32 from here on, others not."""
    import torch

    if inputs.q.is_cuda:
        torch.backends.cuda.matmul.allow_tf32 = problem.dtype.value == "tfloat32"
    return torch.bfloat16 if problem.dtype.quantised else inputs.q.dtype


def _allowed(problem: Problem, i: "torch.Tensor", j: "torch.Tensor") -> "torch.Tensor":
    """True where query i [rows, 1] may see key j [1, keys]: [rows, keys], or [B, 1, rows, keys] where members differ."""
    import torch

    assert problem.uniform is not None
    b = torch.arange(problem.batch, device=i.device)[:, None, None, None]
    allowed: torch.Tensor = problem.mask.allowed(i, j, *problem.uniform, b)
    return allowed


def _prepare_naive(problem: Problem, inputs: Inputs) -> Prepared:
    import torch

    shape = problem.uniform
    assert shape is not None
    sq, sk = shape
    group = problem.heads_q // problem.heads_kv
    scale, cap = problem.softmax_scale, problem.softcap
    dtype = _dtype(problem, inputs)
    terms, turns = _terms(problem, inputs, dtype), _turns(problem, inputs, dtype)
    forbidden = blind = None
    if problem.mask.name != "full":
        i, j = (torch.arange(n, device=inputs.q.device) for n in shape)
        forbidden = ~_allowed(problem, i[:, None], j[None, :])
        blind = forbidden.all(-1, keepdim=True)  # [..., Sq, 1], queries that see no key
        blind = blind if blind.any() else None

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
        q, k = (turn(x) for turn, x in zip(turns, (q, k), strict=True)) if turns else (q, k)
        # A group's queries become rows over the same keys, so that k and v are never expanded.
        q = q.reshape(problem.batch, problem.heads_kv, group * sq, problem.head_dim)
        s = q @ k.mT * scale  # [B, Hk, G Sq, Sk]
        if cap is not None:
            s = torch.tanh(s / cap) * cap
        s = s.view(problem.batch, problem.heads_q, sq, sk)
        for term in terms:
            s = s + term(extra)
        if forbidden is not None:
            s = s.masked_fill(forbidden, float("-inf"))
        sinks = extra.get("sinks")
        if sinks is not None:  # one more key, without a value
            s = torch.cat((s, sinks[:, None, None].expand(problem.batch, -1, sq, 1)), -1)
        p = torch.softmax(s, -1)
        if sinks is not None:
            p = p[..., :-1]
        if blind is not None:
            p = p.masked_fill(blind, 0)
        if problem.dropout:
            p = torch.dropout(p, problem.dropout, train=True)
        out = p.reshape(problem.batch, problem.heads_kv, group * sq, sk) @ v
        return out.view(problem.batch, problem.heads_q, sq, problem.head_dim_v)

    return differentiable(attend, problem, inputs)


def _terms(
    problem: Problem, inputs: Inputs, dtype: "torch.dtype"
) -> "list[Callable[[dict[str, torch.Tensor]], torch.Tensor]]":
    """What modifiers add to the scores, each a function of the parameters: [Hq or 1, Sq, Sk]."""
    import torch

    assert problem.uniform is not None
    sq, sk = problem.uniform
    device = inputs.q.device
    found: list[Callable[[dict[str, torch.Tensor]], torch.Tensor]] = []
    if not problem.modifiers:
        return found
    ahead = torch.arange(sk, device=device) - (torch.arange(sq, device=device)[:, None] + (sk - sq))  # j - p
    if (alibi := problem.modifier("alibi")) is not None:
        slopes = torch.tensor(alibi.slopes(problem.heads_q), dtype=torch.float64, device=device)[
            :, None, None
        ]
        fixed = (-slopes * ahead.abs()).to(dtype)
        found.append(lambda extra: fixed)
    if "bias" in inputs.extra:
        found.append(lambda extra: extra["bias"])
    if (relative := problem.modifier("relative-bias")) is not None:
        bucket = relative.bucket(ahead)
        # a bucket's gradient is a sum over all of its pairs, which torch adds up in the dtype of the table
        forward = problem.direction is Direction.FORWARD
        exact = dtype if forward else torch.promote_types(dtype, torch.float32)
        found.append(lambda extra: extra["relative_bias"].to(exact).mT[:, bucket].to(dtype))
    return found


def _turns(
    problem: Problem, inputs: Inputs, dtype: "torch.dtype"
) -> "list[Callable[[torch.Tensor], torch.Tensor]]":
    """What the modifier rotary does to q and to k, whose cos and sin are made once; empty without it."""
    import torch

    if (rotary := problem.modifier("rotary")) is None:
        return []
    assert problem.uniform is not None
    sq, sk = problem.uniform
    device = inputs.q.device
    frequencies = torch.tensor(rotary.frequencies(problem.head_dim), dtype=torch.float64, device=device)
    found: list[Callable[[torch.Tensor], torch.Tensor]] = []
    for first, length in ((sk - sq, sq), (0, sk)):
        angles = torch.arange(first, first + length, device=device)[:, None] * frequencies  # [S, D/2]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

        def turn(x: torch.Tensor, cos: torch.Tensor = cos, sin: torch.Tensor = sin) -> torch.Tensor:
            one, two = x.chunk(2, -1)
            return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)

        found.append(turn)
    return found


def _prepare_chunked(problem: Problem, inputs: Inputs) -> Prepared:
    """Online softmax (Milakov and Gimelshein 2018, algorithm 3) with memory linear in Sq (Rabe and Staats 2021);
    the backward pass recomputes each tile from the logsumexp (Dao et al. 2022, algorithm 4)."""
    import torch

    shape = problem.uniform
    assert shape is not None
    sq, sk = shape
    group = problem.heads_q // problem.heads_kv
    scale, cap = problem.softmax_scale, problem.softcap
    pairs = problem.batch * problem.heads_kv
    dtype = _dtype(problem, inputs)
    exact = torch.promote_types(dtype, torch.float32)
    row = torch.arange(sq, device=inputs.q.device).repeat_interleave(group)[:, None]  # [Sq G, 1]
    key = torch.arange(sk, device=inputs.q.device)[None, :]

    # (keys, rows that see any of them, whether each of these rows sees all of them)
    tiles: list[tuple[slice, slice, bool]] = []
    for start in range(0, sk, TILE):
        keys = slice(start, min(start + TILE, sk))
        if problem.mask.name == "full":
            tiles.append((keys, slice(0, sq * group), True))
            continue
        seen = _allowed(problem, row[::group], key[:, keys])  # [..., Sq, keys]
        queries = seen.any(-1).view(seen.shape[:-2].numel(), sq).any(0).nonzero()
        if len(queries):
            first, end = int(queries[0]), int(queries[-1]) + 1
            tiles.append((keys, slice(first * group, end * group), bool(seen[..., first:end, :].all())))

    def fold(tensor: torch.Tensor) -> torch.Tensor:
        """[B, Hq, Sq, X] -> [B Hk, Sq G, X] in at least float32: a group's queries become neighbouring rows."""
        tensor = tensor.reshape(pairs, group, sq, tensor.shape[-1]).transpose(1, 2)
        return tensor.reshape(pairs, sq * group, tensor.shape[-1]).to(exact)

    def unfold(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.view(pairs, sq, group, tensor.shape[-1]).transpose(1, 2)
        return tensor.reshape(problem.batch, problem.heads_q, sq, tensor.shape[-1]).to(dtype)

    def scores(
        q: torch.Tensor, k: torch.Tensor, tile: tuple[slice, slice, bool], differentiate: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The tile's scores [B Hk, rows, keys] from scaled q [B Hk, Sq G, D] and, if asked, softcap's slope."""
        keys, rows, whole = tile
        s, slope = q[:, rows] @ k.mT, None
        if cap is not None:
            s.div_(cap).tanh_()
            slope = 1 - s * s if differentiate else None
            s.mul_(cap)
        if not whole:
            forbidden = ~_allowed(problem, row[rows], key[:, keys])
            torch.unflatten(s, 0, (problem.batch, problem.heads_kv)).masked_fill_(forbidden, -torch.inf)
        return s, slope

    def descaled(tensor: torch.Tensor, *names: str) -> torch.Tensor:
        """[B Hk, Sq G, X] times descales, in place: k's may be multiplied into q, v's into the output."""
        for name in names:
            if (descale := inputs.extra.get(f"{name}_descale")) is not None:
                tensor *= descale.expand(problem.heads_kv).repeat(problem.batch)[:, None, None]
        return tensor

    class Tiled(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, q_in: torch.Tensor, k_in: torch.Tensor, v_in: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            q, k, v = descaled(fold(q_in) * scale, "q", "k"), k_in.flatten(0, 1), v_in.flatten(0, 1)
            out = q.new_zeros(*q.shape[:2], problem.head_dim_v)
            total = q.new_zeros(*q.shape[:2], 1)
            peak = torch.full_like(total, float("-inf"))
            for tile in tiles:
                keys, rows, _ = tile
                s, _ = scores(q, k[:, keys].to(exact), tile, False)
                new = torch.maximum(peak[:, rows], s.amax(-1, keepdim=True))
                finite = new.masked_fill(new == float("-inf"), 0)  # rows that have seen no key yet
                shrink = torch.exp(peak[:, rows] - finite)
                p = s.sub_(finite).exp_()
                total[:, rows] = total[:, rows] * shrink + p.sum(-1, keepdim=True)
                out[:, rows] = out[:, rows] * shrink + p @ v[:, keys].to(exact)
                peak[:, rows] = new
            blind = total == 0
            out /= total.masked_fill(blind, 1)
            out_in = unfold(descaled(out, "v"))
            lse = (peak + total.log()).masked_fill_(blind, float("inf"))  # so that exp(s - lse) is 0 there
            ctx.save_for_backward(q_in, k_in, v_in, out_in, lse)
            ctx.mark_non_differentiable(lse)
            return out_in, lse

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, ...]:
            q_in, k_in, v_in, out_in, lse = ctx.saved_tensors
            q, k, v = fold(q_in) * scale, k_in.flatten(0, 1), v_in.flatten(0, 1)
            dout = fold(grads[0])
            delta = (dout * fold(out_in)).sum(-1, keepdim=True)  # = sum over keys of p dp
            dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for tile in tiles:
                keys, rows, _ = tile
                k_tile = k[:, keys].to(exact)
                s, slope = scores(q, k_tile, tile, True)
                p = s.sub_(lse[:, rows]).exp_()
                dv[:, keys] = p.mT @ dout[:, rows]
                ds = (dout[:, rows] @ v[:, keys].to(exact).mT).sub_(delta[:, rows]).mul_(p)
                if slope is not None:
                    ds *= slope
                dq[:, rows] += ds @ k_tile
                dk[:, keys] = ds.mT @ q[:, rows]
            return unfold(dq * scale), dk.view_as(k_in), dv.view_as(v_in)

    def tiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = Tiled.apply(q, k, v)  # type: ignore[no-untyped-call]
        return found

    def lse_of(raw: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[B Hk, Sq G, 1] -> [B, Hq, Sq]"""
        lse = raw[1].view(pairs, sq, group).transpose(1, 2).reshape(problem.batch, problem.heads_q, sq)
        return lse.masked_fill(lse == float("inf"), float("-inf"))

    if problem.direction is Direction.FORWARD:
        return Prepared(step=lambda: tiled(inputs.q, inputs.k, inputs.v), read=lambda raw: raw[0], lse=lse_of)
    return differentiable(lambda q, k, v: tiled(q, k, v)[0], problem, inputs)
