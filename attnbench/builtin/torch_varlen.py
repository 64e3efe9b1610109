"""torch over batches whose members differ in length, or whose tokens lie packed or in pages."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attnbench import (
    ALL_MASKS,
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
    import torch

_CAPABILITIES = Capabilities(
    dtypes=frozenset(("float64", "float32", "float16", "bfloat16", "float8_e4m3")),
    devices=frozenset(("cpu", "cuda")),
    directions=frozenset(("forward", "backward", "forward_backward")),
    masks=ALL_MASKS,
    modifiers=frozenset(("rotary",)),
    layouts=frozenset(("dense", "packed", "paged")),
    grouped_heads=True,
    unequal_head_dims=True,
    ragged=True,
    shared_kv=True,
    append=True,
    kv_dtypes=frozenset(("float32", "float16", "bfloat16", "float8_e4m3", "int8")),
)


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
            layouts=frozenset(("dense", "packed")),
            head_dims=(8, 256),
            head_dim_multiple=8,
            grouped_heads=True,
            ragged=True,
            compute_capability=(8, 0),
        ),
        prepare=_prepare,
        requires=("torch",),
        objection=_objection,
    )
    yield Implementation(
        name="torch-loop",
        summary="a call of SDPA for each member of the batch, whose pages are gathered first",
        capabilities=_CAPABILITIES,
        prepare=_prepare_loop,
        requires=("torch",),
        qkv_format="bhsd",
        objection=_nothing_unlike,
    )
    yield Implementation(
        name="torch-padded",
        summary="one call of SDPA over the batch padded to its longest member; what is packed or paged is padded by the call",
        capabilities=_CAPABILITIES,
        prepare=_prepare_padded,
        requires=("torch",),
        qkv_format="bhsd",
        objection=_nothing_unlike,
    )


def _objection(problem: Problem, device: Device) -> str | None:
    if any(not (sq and sk) for sq, sk in problem.sequences):
        return "varlen takes no empty sequences"
    if problem.uniform is None and problem.layout.name == "dense":
        return "of ragged batches only packed ones"
    if problem.mask.name != "full" and any(sq > sk for sq, sk in problem.sequences):
        return f"no {problem.mask.name} mask with Sq > Sk"
    return None


def _nothing_unlike(problem: Problem, device: Device) -> str | None:
    if problem.uniform is not None and problem.layout.name == "dense":
        return "a dense batch of equal lengths is torch-sdpa's"
    return None


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    import inspect

    import torch
    from torch.nn.attention.varlen import varlen_attn

    arguments: dict[str, Any] = {"scale": problem.scale, "window_size": _window(problem)}
    for which, length in zip("qk", problem.longest, strict=True):
        starts = inputs.index.get(f"cu_seqlens_{which}")
        if starts is None:
            starts = torch.arange(problem.batch + 1, device=inputs.q.device, dtype=torch.int32) * length
        arguments |= {f"cu_seq_{which}": starts, f"max_{which}": length}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.11 asks for no such word
        arguments["enable_gqa"] = problem.heads_q != problem.heads_kv
    packed: Any = partial(varlen_attn, **arguments)
    if problem.layout.name == "packed":
        return differentiable(packed, problem, inputs, kernel="flash")

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


# ---------------------------------------------------------------- SDPA


def _words(problem: Problem) -> dict[str, Any]:
    return {"scale": problem.scale, "enable_gqa": problem.heads_q != problem.heads_kv}


def _arguments(problem: Problem, b: int, device: "torch.device") -> dict[str, Any]:
    """Of SDPA for member b alone; a mask that SDPA has no word for is [Sq, Sk]."""
    import torch

    sq, sk = problem.sequences[b]
    match problem.mask.name:
        case "full":
            return _words(problem)
        case "causal" if sq == 1:  # the one query is the last: it sees every key
            return _words(problem)
        case "causal" if sq == sk:
            return _words(problem) | {"is_causal": True}
    i, j = torch.arange(sq, device=device)[:, None], torch.arange(sk, device=device)
    return _words(problem) | {"attn_mask": problem.mask.allowed(i, j, sq, sk, b)}


def _cuts(problem: Problem, inputs: Inputs) -> "list[tuple[Callable[[torch.Tensor], torch.Tensor], ...]]":
    """For each member, what takes its queries out of q and its keys out of k or v: [1, H, S, n]."""
    table = inputs.index.get("block_table")

    def padded(b: int, length: int, t: "torch.Tensor") -> "torch.Tensor":
        return t[b : b + 1, :, :length]

    def packed(at: slice, t: "torch.Tensor") -> "torch.Tensor":
        return t[at].transpose(0, 1)[None]

    def paged(b: int, length: int, t: "torch.Tensor") -> "torch.Tensor":
        assert table is not None
        pages = t[table[b, : -(-length // t.shape[1])]]  # [pages, page, Hk, n]
        return pages.flatten(0, 1)[:length].transpose(0, 1)[None]

    match problem.layout.name:
        case "dense":
            return [
                (partial(padded, b, q), partial(padded, b, k)) for b, (q, k) in enumerate(problem.sequences)
            ]
        case "packed":
            return [(partial(packed, q), partial(packed, k)) for q, k in problem.spans]
    keys = (partial(paged, b, k) for b, (_, k) in enumerate(problem.sequences))
    return [(partial(packed, q), one) for (q, _), one in zip(problem.spans, keys, strict=True)]


def _turn(
    problem: Problem, inputs: Inputs, positions: "torch.Tensor"
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """What the modifier rotary does to x [..., S, D], whose tokens stand at the first S of `positions` [..., n]; cos and sin
    are made once. Nothing without it."""
    import torch

    if (rotary := problem.modifier("rotary")) is None:
        return lambda x: x
    dtype = torch.bfloat16 if problem.dtype.quantised else inputs.q.dtype
    frequencies = torch.tensor(rotary.frequencies(problem.head_dim), dtype=torch.float64).to(positions.device)
    angles = positions[..., None] * frequencies
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def turn(x: torch.Tensor) -> torch.Tensor:
        (one, two), n = x.chunk(2, -1), x.shape[-2]
        c, s = cos[..., :n, :], sin[..., :n, :]
        return torch.cat((one * c - two * s, two * c + one * s), -1)

    return turn


def _prepare_loop(problem: Problem, inputs: Inputs) -> Prepared:
    import torch
    import torch.nn.functional as F

    sdpa: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
    calls, device = [], inputs.q.device
    for b, (sequence, cuts) in enumerate(zip(problem.sequences, _cuts(problem, inputs), strict=True)):
        call = partial(sdpa, **_arguments(problem, b, device))
        turn_q = _turn(problem, inputs, torch.arange(sequence[1] - sequence[0], sequence[1], device=device))
        calls.append((cuts, turn_q, call if all(sequence) else None))
    turn_k = _turn(problem, inputs, torch.arange(problem.longest[1], device=device))
    longest, dense = problem.longest[0], problem.layout.name == "dense"

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = []
        for (queries, keys), turn_q, call in calls:
            one = queries(q)
            if call is None:  # SDPA takes no empty sequences
                part = one.new_zeros(*one.shape[:-1], problem.head_dim_v)
            else:
                part = call(turn_q(one), turn_k(keys(k)), keys(v))  # [1, Hq, Sq, Dv]
            parts.append(
                F.pad(part, (0, 0, 0, longest - part.shape[2])) if dense else part[0].transpose(0, 1)
            )
        return torch.cat(parts)

    return _appending(problem, inputs, differentiable(attend, problem, inputs))


def _prepare_padded(problem: Problem, inputs: Inputs) -> Prepared:
    import torch
    import torch.nn.functional as F

    device, layout, table = inputs.q.device, problem.layout.name, inputs.index.get("block_table")
    width = problem.longest[1] if table is None else table.shape[1] * inputs.k.shape[1]
    if problem.uniform == (problem.longest[0], width) and not problem.mask.by_member:
        arguments = _arguments(problem, 0, device)
    else:
        arguments = _words(problem) | {"attn_mask": _allowed(problem, width, device)}
    function: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
    call = partial(function, **arguments)
    behind = torch.tensor([sk - sq for sq, sk in problem.sequences], device=device)[:, None, None]
    turn_q = _turn(problem, inputs, behind + torch.arange(problem.longest[0], device=device))
    turn_k = _turn(problem, inputs, torch.arange(width, device=device))

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return call(turn_q(q), turn_k(k), v)

    if layout == "dense":
        return differentiable(sdpa, problem, inputs)
    of_queries, of_keys = (_places(problem, side, device) for side in (0, 1))
    even = None if len({q for q, _ in problem.sequences}) > 1 else (problem.batch, problem.longest[0])
    filled = (of_queries >= 0).flatten().nonzero().squeeze(1)

    def pad(t: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return t[places.clamp(min=0)].transpose(1, 2)  # [B, H, S, n]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = torch.unflatten(q, 0, even).transpose(1, 2) if even else pad(q, of_queries)
        if table is None:
            k, v = pad(k, of_keys), pad(v, of_keys)
        else:
            k, v = (t[table].flatten(1, 2).transpose(1, 2) for t in (k, v))
        out = sdpa(q, k, v).transpose(1, 2).flatten(0, 1)  # [B Sq, Hq, Dv]
        return out if even else out[filled]

    return _appending(problem, inputs, differentiable(attend, problem, inputs))


def _places(problem: Problem, side: int, device: "torch.device") -> "torch.Tensor":
    """Which token of a packed batch stands in each place of a padded one, -1 for none: [B, S]."""
    import torch

    places = torch.full((problem.batch, problem.longest[side]), -1)
    for b, spans in enumerate(problem.spans):
        at = spans[side]
        places[b, : at.stop - at.start] = torch.arange(at.start, at.stop)
    return places.to(device)


def _appending(problem: Problem, inputs: Inputs, ready: Prepared) -> Prepared:
    """Its step writes the new tokens into their places in the pages first, where there are any."""
    import torch

    if inputs.k_new is None or inputs.v_new is None:
        return ready
    table, page = inputs.index["block_table"], inputs.k.shape[1]
    stored = [  # on a CPU, float8 cannot be indexed
        t.view(torch.int8) if t.element_size() == 1 else t
        for t in (inputs.k, inputs.v, inputs.k_new, inputs.v_new)
    ]
    k, v, k_new, v_new = stored
    shared = problem.shared_kv
    member = torch.cat([torch.full((sq,), b) for b, (sq, _) in enumerate(problem.sequences)])
    place = torch.cat([torch.arange(sk - sq, sk) for sq, sk in problem.sequences])
    column, offset, member = (t.to(table.device) for t in (place // page, place % page, member))

    def step() -> "torch.Tensor":
        at = table[member, column], offset
        k[at] = k_new
        if not shared:
            v[at] = v_new
        out: torch.Tensor = ready.step()
        return out

    return replace(ready, step=step)


def _allowed(problem: Problem, width: int, device: "torch.device") -> "torch.Tensor":
    """Which of so many keys the queries of the padded batch may see: [B, 1, Sq, width]."""
    import torch

    allowed = torch.zeros(problem.batch, 1, problem.longest[0], width, dtype=torch.bool, device=device)
    for b, (sq, sk) in enumerate(problem.sequences):
        i, j = torch.arange(sq, device=device)[:, None], torch.arange(sk, device=device)
        allowed[b, 0, :sq, :sk] = problem.mask.allowed(i, j, sq, sk, b)
    return allowed
