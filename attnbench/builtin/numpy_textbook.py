"""Attention as the textbooks print it, in numpy, with the gradients written out by hand."""

from collections.abc import Callable, Iterable
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
    dequantised,
    hookimpl,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="numpy",
        summary="softmax(scale q k^T) v in numpy, gradients by hand; the scores [Sq, Sk] are stored",
        capabilities=Capabilities(
            dtypes=frozenset(("float32", "float64")),
            directions=frozenset(("forward", "backward", "forward_backward")),
            masks=ALL_MASKS,
            modifiers=frozenset(("softcap", "alibi", "bias", "relative-bias", "sinks", "rotary")),
            mechanisms=frozenset(("softmax", "dot")),
            grouped_heads=True,
            unequal_head_dims=True,
            kv_dtypes=frozenset(("float32", "float16", "bfloat16", "float8_e4m3", "int8")),
            dropout=True,
            shared_kv=True,
        ),
        prepare=_prepare,
        requires=("numpy",),
        qkv_format="bhsd",
    )
    yield Implementation(
        name="numpy-loop",
        summary="softmax(scale q k^T) v in numpy for one member of the batch after the other",
        capabilities=Capabilities(
            dtypes=frozenset(("float32", "float64")),
            masks=ALL_MASKS,
            modifiers=frozenset(("softcap", "rotary")),
            mechanisms=frozenset(("softmax", "dot")),
            layouts=frozenset(("dense", "packed", "paged")),
            grouped_heads=True,
            unequal_head_dims=True,
            ragged=True,
            shared_kv=True,
            append=True,
            kv_dtypes=frozenset(("float32", "float16", "bfloat16", "float8_e4m3", "int8")),
        ),
        prepare=_prepare_loop,
        requires=("numpy",),
        qkv_format="bhsd",
        objection=_nothing_unlike,
    )


def _nothing_unlike(problem: Problem, device: Device) -> str | None:
    if problem.uniform is not None and problem.layout.name == "dense":
        return "a dense batch of equal lengths is numpy's"
    return None


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    import numpy as np
    import torch

    shape = problem.uniform
    assert shape is not None
    sq, sk = shape
    group = problem.heads_q // problem.heads_kv
    scale, cap = problem.softmax_scale, problem.softcap
    forbidden, terms, sinks = _forbidden(problem, sq, sk), _terms(problem, inputs), inputs.extra.get("sinks")

    def fold(tensor: torch.Tensor) -> "Array":
        """[B, Hq, Sq, X] -> [B, Hk, G Sq, X], a view: a group's queries become rows over the same keys."""
        array: Array = tensor.numpy()
        return array.reshape(problem.batch, problem.heads_kv, group * sq, array.shape[-1])

    def unfold(array: "Array") -> torch.Tensor:
        return torch.from_numpy(array.reshape(problem.batch, problem.heads_q, sq, array.shape[-1]))

    given = dequantised(problem, inputs) if problem.stored_apart else (inputs.q, inputs.k, inputs.v)
    q, k, v = fold(given[0]), given[1].numpy(), given[2].numpy()  # views: they see values written later
    turn_q, turn_k = _turns(problem)

    def weights(slope: bool) -> "tuple[Array, Array | None, Array | None]":
        """softmax(scores) [B, Hk, G Sq, Sk] (Vaswani et al. 2017, equation 1), if asked softcap's slope, and the sinks'
        weights [B, Hk, G Sq, 1]."""
        s = turn_q(q, 1) @ turn_k(k, 1).swapaxes(-1, -2)
        s *= scale
        derivative = None
        if cap is not None:
            s /= cap
            np.tanh(s, out=s)
            derivative = 1 - s * s if slope else None
            s *= cap
        for term in terms:
            by_head = s.reshape(problem.batch, problem.heads_q, sq, sk)  # a view
            by_head += term()
        if forbidden is not None:
            np.copyto(s.reshape(problem.batch, problem.heads_kv, group, sq, sk), -np.inf, where=forbidden)
        peak = s.max(axis=-1, keepdims=True, initial=-np.inf)
        sink = None
        if sinks is not None:
            sink = np.repeat(sinks.numpy(), sq).reshape(problem.heads_kv, group * sq, 1)
            peak = np.maximum(peak, sink)
        s -= np.where(np.isneginf(peak), 0, peak)  # a row that sees no key stays at -inf: its weights are 0
        np.exp(s, out=s)
        total = s.sum(axis=-1, keepdims=True)
        if sink is not None:
            sink = np.exp(sink - peak)
            total += sink
            sink /= total
        s /= np.where(total == 0, 1, total)
        return s, derivative, sink

    generator = np.random.default_rng(0)

    def dropped(p: "Array") -> "Array":
        """In place: 0 with the chance of the problem, else larger in turn (Srivastava et al. 2014, section 10)."""
        if problem.dropout:
            p *= generator.random(p.shape, dtype=np.float32) >= problem.dropout
            p /= 1 - problem.dropout
        return p

    if problem.direction is Direction.FORWARD:

        def step() -> "Array":
            nonlocal k, v
            if problem.stored_apart:  # by torch: numpy has neither bfloat16 nor float8
                k, v = (tensor.numpy() for tensor in dequantised(problem, inputs)[1:])
            out: Array = dropped(weights(slope=False)[0]) @ v
            return out

        return Prepared(step=step, read=unfold)
    assert inputs.dout is not None
    dout, learned = fold(inputs.dout), _learned(problem)

    def gradients(p: "Array", slope: "Array | None", sink: "Array | None", out: "Array") -> "list[Array]":
        """dq, dk, dv by the chain rule (Dao et al. 2022, appendix B.2), and those of the parameters."""
        dv = p.swapaxes(-1, -2) @ dout  # summed over the group, for its queries are rows here
        ds = dout @ v.swapaxes(-1, -2)
        inner = (dout * out).sum(axis=-1, keepdims=True)
        ds -= inner
        ds *= p
        more = learned(ds, None if sink is None else -sink * inner)
        if slope is not None:
            ds *= slope
        ds *= scale
        dq, dk = ds @ turn_k(k, 1), ds.swapaxes(-1, -2) @ turn_q(q, 1)
        dk = turn_k(dk, -1)
        if problem.shared_kv:  # a key is a value too
            dk[..., : problem.head_dim_v] += dv
        return [turn_q(dq, -1), dk, *([] if problem.shared_kv else [dv]), *more]

    def read_gradients(raw: "list[Array]") -> "tuple[torch.Tensor, ...]":
        return unfold(raw[0]), *map(torch.from_numpy, raw[1:])

    def forward() -> "tuple[Array, Array | None, Array | None, Array]":
        p, slope, sink = weights(slope=True)
        return p, slope, sink, p @ v

    if problem.direction is Direction.FORWARD_BACKWARD:

        def both() -> "tuple[Array, list[Array]]":
            kept = forward()
            return kept[-1], gradients(*kept)

        return Prepared(step=both, read=lambda raw: (unfold(raw[0]), *read_gradients(raw[1])))
    kept = [forward()]

    def refresh() -> None:
        kept[:] = [forward()]

    return Prepared(step=lambda: gradients(*kept[0]), read=read_gradients, refresh=refresh)


def _turns(problem: Problem) -> "tuple[Callable[[Array, int], Array], ...]":
    """How the modifier rotary turns q [..., G Sq, D] and k [..., Sk, D], forth (1) or back (-1); as they are without it."""
    import numpy as np

    rotary = problem.modifier("rotary")
    if rotary is None:
        return (lambda x, way: x,) * 2
    assert problem.uniform is not None
    (sq, sk), group = problem.uniform, problem.heads_q // problem.heads_kv
    return _turn(problem, np.tile(np.arange(sk - sq, sk), group)), _turn(problem, np.arange(sk))


def _turn(problem: Problem, positions: "npt.NDArray[np.int64]") -> "Callable[[Array, int], Array]":
    """How the modifier rotary turns x [..., n, D], whose tokens stand at these positions [n], forth (1) or back (-1)."""
    import numpy as np

    angles = np.outer(positions, problem.modifier("rotary").frequencies(problem.head_dim))
    tables = [table.astype(problem.dtype.value) for table in (np.cos(angles), np.sin(angles))]

    def turn(x: "Array", way: int) -> "Array":
        cos, sin = tables[0], way * tables[1]
        one, two = np.split(x, 2, axis=-1)
        return np.concatenate((one * cos - two * sin, two * cos + one * sin), axis=-1)

    return turn


def _learned(problem: Problem) -> "Callable[[Array, Array | None], list[Array]]":
    """Gradients of `problem.learned` from those of the scores [B, Hk, G Sq, Sk], before the softcap's slope, and of the
    rows' sinks [B, Hk, G Sq, 1]."""
    import numpy as np

    assert problem.uniform is not None
    sq, sk = problem.uniform
    relative = problem.modifier("relative-bias")
    bucket = None if relative is None else relative.bucket(_ahead(sq, sk)).ravel()

    def found(ds: "Array", dsink: "Array | None") -> "list[Array]":
        several: list[Array] = []
        for name in problem.learned:
            shape = problem.parameters[name].shape
            if name == "sinks":
                assert dsink is not None
                several.append(dsink.reshape(problem.batch, problem.heads_q, sq).sum(axis=(0, 2)))
                continue
            by_head = ds.reshape(problem.batch, problem.heads_q, sq, sk).sum(axis=0)
            if name == "bias":
                several.append(by_head if shape[0] > 1 else by_head.sum(axis=0, keepdims=True))
                continue
            assert bucket is not None
            sums = [np.bincount(bucket, weights=one.ravel(), minlength=shape[0]) for one in by_head]
            several.append(np.stack(sums, axis=1).astype(ds.dtype))
        return several

    return found


def _ahead(sq: int, sk: int) -> "npt.NDArray[np.int64]":
    """j - p, [Sq, Sk]."""
    import numpy as np

    return np.arange(sk) - (np.arange(sq)[:, None] + (sk - sq))


def _forbidden(problem: Problem, sq: int, sk: int) -> "npt.NDArray[np.bool_] | None":
    """True where a query may not see a key, [Sq, Sk] or, where members differ, [B, 1, 1, Sq, Sk]; None where all may
    see all."""
    import numpy as np

    if problem.mask.name == "full":
        return None
    i, j, b = np.arange(sq)[:, None], np.arange(sk), np.arange(problem.batch)[:, None, None, None, None]
    allowed: npt.NDArray[np.bool_] = problem.mask.allowed(i, j, sq, sk, b)
    return ~allowed


def _terms(problem: Problem, inputs: Inputs) -> "list[Callable[[], Array]]":
    """What modifiers add to the scores, each a function of the parameters as they are then: [Hq or 1, Sq, Sk]."""
    import numpy as np

    assert problem.uniform is not None
    sq, sk = problem.uniform
    found: list[Callable[[], Array]] = []
    if not problem.modifiers:
        return found
    ahead = _ahead(sq, sk)
    if (alibi := problem.modifier("alibi")) is not None:
        slopes = np.array(alibi.slopes(problem.heads_q))[:, None, None]
        fixed = (-slopes * abs(ahead)).astype(problem.dtype.value)
        found.append(lambda: fixed)
    if "bias" in inputs.extra:
        bias = inputs.extra["bias"].numpy()
        found.append(lambda: bias)
    if (relative := problem.modifier("relative-bias")) is not None:
        table, bucket = inputs.extra["relative_bias"].numpy(), relative.bucket(ahead)
        found.append(lambda: table.T[:, bucket])
    return found


def _prepare_loop(problem: Problem, inputs: Inputs) -> Prepared:
    import numpy as np
    import torch

    group, cap = problem.heads_q // problem.heads_kv, problem.softcap
    given = dequantised(problem, inputs) if problem.stored_apart else (inputs.q, inputs.k, inputs.v)
    q, k, v = (t.numpy() for t in given)  # views: they see values written later
    table = inputs.index["block_table"].numpy() if "block_table" in inputs.index else None
    forbidden: list[npt.NDArray[np.bool_] | None] = [None] * problem.batch
    if problem.mask.name != "full":
        for b, (sq, sk) in enumerate(problem.sequences):
            forbidden[b] = ~problem.mask.allowed(np.arange(sq)[:, None], np.arange(sk), sq, sk, b)
    turns = []
    if problem.modifier("rotary") is not None:
        for sq, sk in problem.sequences:
            turns.append((_turn(problem, np.arange(sk - sq, sk)), _turn(problem, np.arange(sk))))

    def queries(array: "Array", b: int) -> "Array":
        """[Hq, Sq, n], a view."""
        if problem.layout.name == "dense":
            return array[b, :, : problem.sequences[b][0]]
        return array[problem.spans[b][0]].swapaxes(0, 1)

    def keys(array: "Array", b: int) -> "Array":
        """[Hk, Sk, n]: a view, or a copy of pages."""
        sk = problem.sequences[b][1]
        if problem.layout.name == "dense":
            return array[b, :, :sk]
        if table is None:
            return array[problem.spans[b][1]].swapaxes(0, 1)
        pages = array[table[b, : -(-sk // array.shape[1])]]  # [pages, page, Hk, n]
        tokens: Array = pages.reshape(-1, *pages.shape[2:])[:sk]
        return tokens.swapaxes(0, 1)

    def append() -> None:
        """Write the new tokens of each member into their places in its pages, as bytes: numpy has not all types."""
        assert table is not None
        assert inputs.k_new is not None
        assert inputs.v_new is not None
        both = ((inputs.k, inputs.k_new), (inputs.v, inputs.v_new))
        for stored, tokens in both[:1] if problem.shared_kv else both:
            pages, new = (t.view(torch.uint8).numpy() for t in (stored, tokens))
            for b, (sq, sk) in enumerate(problem.sequences):
                at = np.arange(sk - sq, sk)
                pages[table[b, at // pages.shape[1]], at % pages.shape[1]] = new[problem.spans[b][0]]

    def step() -> "Array":
        nonlocal k, v
        if problem.appends:
            append()
        if problem.stored_apart:
            k, v = (tensor.numpy() for tensor in dequantised(problem, inputs)[1:])
        out = np.zeros((*q.shape[:-1], problem.head_dim_v), dtype=q.dtype)
        for b, (sq, sk) in enumerate(problem.sequences):
            if not (sq and sk):
                continue
            rows, columns = queries(q, b), keys(k, b)
            if turns:
                turn_q, turn_k = turns[b]
                rows, columns = turn_q(rows, 1), turn_k(columns, 1)
            rows = rows.reshape(problem.heads_kv, group * sq, problem.head_dim)
            s = rows @ columns.swapaxes(-1, -2)
            s *= problem.softmax_scale
            if cap is not None:
                s = np.tanh(s / cap) * cap
            if (hidden := forbidden[b]) is not None:
                np.copyto(s.reshape(problem.heads_q, sq, sk), -np.inf, where=hidden)
            peak = s.max(axis=-1, keepdims=True)
            s -= np.where(
                np.isneginf(peak), 0, peak
            )  # a row that sees no key stays at -inf: its weights are 0
            np.exp(s, out=s)
            total = s.sum(axis=-1, keepdims=True)
            s /= np.where(total == 0, 1, total)
            queries(out, b)[...] = (s @ keys(v, b)).reshape(problem.heads_q, sq, problem.head_dim_v)
        return out

    return Prepared(step=step, read=torch.from_numpy)
