"""Attention as the textbooks print it, in numpy, with the gradients written out by hand."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from attnbench import (
    ALL_MASKS,
    Capabilities,
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
            modifiers=frozenset(("softcap", "alibi", "bias", "relative-bias", "sinks")),
            mechanisms=frozenset(("softmax", "dot")),
            grouped_heads=True,
            unequal_head_dims=True,
            kv_dtypes=frozenset(("float32", "float16", "bfloat16", "float8_e4m3", "int8")),
        ),
        prepare=_prepare,
        requires=("numpy",),
        qkv_format="bhsd",
    )


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

    def weights(slope: bool) -> "tuple[Array, Array | None]":
        """softmax(scores) [B, Hk, G Sq, Sk] (Vaswani et al. 2017, equation 1) and, if asked, softcap's slope."""
        s = q @ k.swapaxes(-1, -2)
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
            total += np.exp(sink - peak)
        s /= np.where(total == 0, 1, total)
        return s, derivative

    if problem.direction is Direction.FORWARD:

        def step() -> "Array":
            nonlocal k, v
            if problem.stored_apart:  # by torch: numpy has neither bfloat16 nor float8
                k, v = (tensor.numpy() for tensor in dequantised(problem, inputs)[1:])
            out: Array = weights(slope=False)[0] @ v
            return out

        return Prepared(step=step, read=unfold)
    assert inputs.dout is not None
    dout = fold(inputs.dout)

    def gradients(p: "Array", slope: "Array | None", out: "Array") -> "tuple[Array, Array, Array]":
        """dq, dk, dv by the chain rule (Dao et al. 2022, appendix B.2)."""
        dv = p.swapaxes(-1, -2) @ dout  # summed over the group, for its queries are rows here
        ds = dout @ v.swapaxes(-1, -2)
        ds -= (dout * out).sum(axis=-1, keepdims=True)
        ds *= p
        if slope is not None:
            ds *= slope
        ds *= scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, dv

    def read_gradients(raw: "tuple[Array, Array, Array]") -> "tuple[torch.Tensor, ...]":
        return unfold(raw[0]), torch.from_numpy(raw[1]), torch.from_numpy(raw[2])

    def forward() -> "tuple[Array, Array | None, Array]":
        p, slope = weights(slope=True)
        return p, slope, p @ v

    if problem.direction is Direction.FORWARD_BACKWARD:

        def both() -> "tuple[Array, tuple[Array, Array, Array]]":
            p, slope, out = forward()
            return out, gradients(p, slope, out)

        return Prepared(step=both, read=lambda raw: (unfold(raw[0]), *read_gradients(raw[1])))
    kept = [forward()]

    def refresh() -> None:
        kept[:] = [forward()]

    return Prepared(step=lambda: gradients(*kept[0]), read=read_gradients, refresh=refresh)


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
    ahead = np.arange(sk) - (np.arange(sq)[:, None] + (sk - sq))  # j - p
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
