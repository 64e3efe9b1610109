"""Attention mechanisms other than scaled dot product, as their papers print them, in numpy, with gradients by hand."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from attnbench import (
    INDEX_MASKS,
    Capabilities,
    Direction,
    Implementation,
    Inputs,
    Prepared,
    Problem,
    hookimpl,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Array = npt.NDArray[np.floating[Any]]

TILE = 64
"""Queries of causal `linear` at once, between which the sums over keys are brought forward."""


@hookimpl
def attnbench_implementations() -> Iterable[Implementation]:
    yield Implementation(
        name="numpy-mechanisms",
        summary="dot, general, additive, location, linear, local-gaussian, sparsemax and entmax in numpy",
        capabilities=Capabilities(
            dtypes=frozenset(("float32", "float64")),
            directions=frozenset(("forward", "backward", "forward_backward")),
            masks=INDEX_MASKS,
            mechanisms=frozenset(
                ("dot", "general", "additive", "location", "linear", "local-gaussian", "sparsemax", "entmax")
            ),
            grouped_heads=True,
            unequal_head_dims=True,
        ),
        prepare=_prepare,
        requires=("numpy",),
        qkv_format="bhsd",
    )
    yield Implementation(
        name="numpy-multi-head",
        summary="softmax attention between four projections, in numpy",
        capabilities=Capabilities(
            dtypes=frozenset(("float32", "float64")),
            directions=frozenset(("forward", "backward", "forward_backward")),
            masks=INDEX_MASKS,
            mechanisms=frozenset(("multi-head",)),
            grouped_heads=True,
            unequal_head_dims=True,
        ),
        prepare=_prepare_multi_head,
        requires=("numpy",),
    )


def _prepare(problem: Problem, inputs: Inputs) -> Prepared:
    """Letters as in the problem; G query heads to a key/value head. Arrays are views of the inputs."""
    import torch

    assert problem.uniform is not None
    sq, _ = problem.uniform
    hq, hk = problem.heads_q, problem.heads_kv
    q = inputs.q.numpy().reshape(problem.batch, hk, hq // hk, sq, problem.head_dim)  # [B, Hk, G, Sq, D]
    k, v = inputs.k.numpy()[:, :, None], inputs.v.numpy()[:, :, None]  # [B, Hk, 1, Sk, D]
    extra = {
        name: tensor.numpy().reshape(hk, tensor.shape[0] // hk, *tensor.shape[1:])  # [Hk, G or 1, ...]
        for name, tensor in inputs.extra.items()
    }
    linear = problem.mechanism.name == "linear"

    def read(raw: "Array") -> "torch.Tensor":
        return torch.from_numpy(raw.reshape(problem.batch, hq, sq, problem.head_dim_v))

    if problem.direction is Direction.FORWARD:
        return Prepared(
            step=(_linear(problem, q, k, v) if linear else _weighted(problem, q, k, v, extra)), read=read
        )
    assert inputs.dout is not None
    dout = inputs.dout.numpy().reshape(*q.shape[:-1], problem.head_dim_v)
    forward, backward = (_linear_passes if linear else _weighted_passes)(problem, q, k, v, extra, dout)
    shapes = [inputs.q.shape, inputs.k.shape, inputs.v.shape]
    shapes += [inputs.extra[name].shape for name in problem.learned]

    def gradients(raw: "list[Array]") -> "tuple[torch.Tensor, ...]":
        return tuple(torch.from_numpy(x.reshape(shape)) for x, shape in zip(raw, shapes, strict=True))

    return _passes(problem, forward, backward, read, gradients)


Passes = tuple[Callable[[], "tuple[Array, ...]"], Callable[..., "list[Array]"]]
"""A forward pass that returns what the backward pass takes, the output last; and that, which returns the gradients of
q, k, v and the parameters."""


def _passes(
    problem: Problem,
    forward: "Callable[[], tuple[Array, ...]]",
    backward: "Callable[..., list[Array]]",
    read: "Callable[[Array], torch.Tensor]",
    gradients: "Callable[[list[Array]], tuple[torch.Tensor, ...]]",
) -> Prepared:
    """The direction that the problem asks for, of two passes."""
    if problem.direction is Direction.FORWARD_BACKWARD:

        def both() -> "tuple[Array, list[Array]]":
            kept = forward()
            return kept[-1], backward(*kept)

        return Prepared(step=both, read=lambda raw: (read(raw[0]), *gradients(raw[1])))
    kept = [forward()]

    def refresh() -> None:
        kept[:] = [forward()]

    return Prepared(step=lambda: backward(*kept[0]), read=gradients, refresh=refresh)


def _forbidden(problem: Problem) -> "npt.NDArray[np.bool_] | None":
    """True where a query may not see a key, [Sq, Sk]; None where every one may see all."""
    import numpy as np

    assert problem.uniform is not None
    sq, sk = problem.uniform
    if problem.mask.name == "full":
        return None
    allowed: npt.NDArray[np.bool_] = problem.mask.allowed(np.arange(sq)[:, None], np.arange(sk), sq, sk)
    return ~allowed


def _weighted(
    problem: Problem, q: "Array", k: "Array", v: "Array", extra: "dict[str, Array]"
) -> "Callable[[], Array]":
    """Scores, mask, weights, and their sum of the values."""
    forbidden, normalise = _forbidden(problem), _normaliser(problem)
    local = problem.mechanism.name == "local-gaussian"

    def step() -> "Array":
        import numpy as np

        s = _scores(problem, q, k, extra)  # [B, Hk, G, Sq, Sk]
        if forbidden is not None:
            np.copyto(s, -np.inf, where=forbidden)
        p = normalise(s)
        if local:
            p *= _gaussian(problem, q, extra)
        return p @ v

    return step


def _scores(problem: Problem, q: "Array", k: "Array", extra: "dict[str, Array]") -> "Array":
    """[B, Hk, G, Sq, Sk]."""
    import numpy as np

    kt = k.swapaxes(-1, -2)
    match problem.mechanism.name:
        case "general":  # q W k^T (Luong et al. 2015, equation 8)
            return q @ extra["w"] @ kt
        case "location":  # q W (Luong et al. 2015, equation 8)
            return q @ extra["w"]
        case "additive":  # w . tanh(q Wq + k Wk) (Bahdanau et al. 2015, A.1.2), a hidden unit at a time
            of_q, of_k, w = q @ extra["w_q"], k @ extra["w_k"], extra["w"][..., None, None, :]
            s = np.zeros((*q.shape[:-1], k.shape[-2]), dtype=q.dtype)
            for unit in range(w.shape[-1]):
                bent = of_q[..., unit, None] + of_k[..., None, :, unit]
                s += np.tanh(bent, out=bent) * w[..., unit]
            return s
    s = q @ kt
    s *= problem.softmax_scale
    return s


def _softmax(s: "Array") -> "Array":
    """In place; a row of -inf becomes zeros."""
    import numpy as np

    peak = s.max(axis=-1, keepdims=True)
    s -= np.where(np.isneginf(peak), 0, peak)
    np.exp(s, out=s)
    total = s.sum(axis=-1, keepdims=True)
    s /= np.where(total == 0, 1, total)
    return s


def _below_the_largest(s: "Array", least: float = -4) -> "tuple[Array, npt.NDArray[np.bool_]]":
    """Scores less the row's largest one, and where there is none; what is masked becomes `least`, which gets no weight."""
    import numpy as np

    peak = s.max(axis=-1, keepdims=True)
    blind = np.isneginf(peak)
    return np.maximum(s - np.where(blind, 0, peak), least), blind


def _sparsemax(s: "Array") -> "Array":
    """Martins and Astudillo 2016, algorithm 1."""
    import numpy as np

    s, blind = _below_the_largest(s)
    ordered = -np.sort(-s, axis=-1)
    count = np.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    total = ordered.cumsum(axis=-1)
    last = (1 + count * ordered > total).sum(axis=-1, keepdims=True) - 1
    tau = (np.take_along_axis(total, last, -1) - 1) / count[last]
    return np.where(blind, 0, np.maximum(s - tau, 0))


def _entmax(s: "Array") -> "Array":
    """Of alpha 1.5 (Peters et al. 2019, algorithm 2)."""
    import numpy as np

    s, blind = _below_the_largest(s)
    s /= 2
    ordered = -np.sort(-s, axis=-1)
    count = np.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    mean = ordered.cumsum(axis=-1) / count
    spread = (ordered**2).cumsum(axis=-1) - count * mean**2
    tau = mean - np.sqrt(np.maximum((1 - spread) / count, 0))
    last = (tau <= ordered).sum(axis=-1, keepdims=True) - 1
    return np.where(blind, 0, np.maximum(s - np.take_along_axis(tau, last, -1), 0) ** 2)


def _halved(s: "Array", power: float) -> "Array":
    """Entmax of any alpha, 1 + `power` (Peters et al. 2019, algorithm 1): tau between -1 and -n^-power."""
    import numpy as np

    s, blind = _below_the_largest(s, -2 / power)
    s *= power
    low, width = np.full_like(s[..., :1], -1), 1 - s.shape[-1] ** -power
    while width > np.finfo(s.dtype).eps / 8:
        width /= 2
        middle = low + width
        total = (np.maximum(s - middle, 0) ** (1 / power)).sum(axis=-1, keepdims=True)
        low = np.where(total >= 1, middle, low)
    p = np.maximum(s - low, 0) ** (1 / power)
    return p / np.where(blind, 1, p.sum(axis=-1, keepdims=True))  # what is masked has no weight


def _normaliser(problem: Problem) -> "Callable[[Array], Array]":
    mechanism: Any = problem.mechanism
    if mechanism.name == "entmax":
        return _entmax if mechanism.alpha == 1.5 else partial(_halved, power=mechanism.alpha - 1)
    return _sparsemax if mechanism.name == "sparsemax" else _softmax


def _gaussian(problem: Problem, q: "Array", extra: "dict[str, Array]") -> "Array":
    """exp(-(j - c)^2 / 2 sigma^2), c = Sk sigmoid(v_p . tanh(q W_p)) (Luong et al. 2015, equations 9 and 10)."""
    import numpy as np

    assert problem.uniform is not None
    mechanism: Any = problem.mechanism
    sk, sigma = problem.uniform[1], mechanism.window / 2
    place = np.tanh(q @ extra["w_p"]) @ extra["v_p"][..., None]  # [B, Hk, G, Sq, 1]
    off = (np.arange(sk, dtype=q.dtype) - sk / (1 + np.exp(-place))) / sigma
    found: Array = np.exp(-0.5 * off * off)
    return found


def _turned(x: "Array") -> "Array":
    return x.swapaxes(-1, -2)


def _weighted_passes(
    problem: Problem, q: "Array", k: "Array", v: "Array", extra: "dict[str, Array]", dout: "Array"
) -> Passes:
    """As `_weighted`, and its gradients: those of a threshold are in Peters et al. 2019, section 3.2."""
    forbidden, normalise = _forbidden(problem), _normaliser(problem)
    mechanism: Any = problem.mechanism
    name = mechanism.name

    def forward() -> "tuple[Array, ...]":
        import numpy as np

        s = _scores(problem, q, k, extra)  # [B, Hk, G, Sq, Sk]
        if forbidden is not None:
            np.copyto(s, -np.inf, where=forbidden)
        p = normalise(s)
        near = p * _gaussian(problem, q, extra) if name == "local-gaussian" else p
        return p, near, near @ v

    def backward(p: "Array", near: "Array", out: "Array") -> "list[Array]":
        import numpy as np

        dv = (_turned(near) @ dout).sum(axis=2)
        dp = dout @ _turned(v)
        dq = np.zeros_like(q)
        found: dict[str, Array] = {}
        if name == "local-gaussian":
            dq, found = _gaussian_gradients(problem, q, extra, dp * near)
            dp *= _gaussian(problem, q, extra)
        w = (p > 0).astype(p.dtype) if name == "sparsemax" else p
        w = p ** (2 - mechanism.alpha) if name == "entmax" else w
        total = w.sum(axis=-1, keepdims=True)
        ds = w * (dp - (w * dp).sum(axis=-1, keepdims=True) / np.where(total == 0, 1, total))
        more, dk, others = _score_gradients(problem, q, k, extra, ds)
        found |= others
        return [dq + more, dk, dv, *(found[name] for name in problem.learned)]

    return forward, backward


def _score_gradients(
    problem: Problem, q: "Array", k: "Array", extra: "dict[str, Array]", ds: "Array"
) -> "tuple[Array, Array, dict[str, Array]]":
    """Gradients of q, of k and of the parameters, from those of the scores."""
    import numpy as np

    match problem.mechanism.name:
        case "general":
            ahead, of_keys = q @ extra["w"], ds @ k
            dk = (_turned(ds) @ ahead).sum(axis=2)
            return of_keys @ _turned(extra["w"]), dk, {"w": (_turned(q) @ of_keys).sum(axis=0)}
        case "location":
            return ds @ _turned(extra["w"]), np.zeros_like(k), {"w": (_turned(q) @ ds).sum(axis=0)}
        case "additive":
            of_q, of_k, w = q @ extra["w_q"], k @ extra["w_k"], extra["w"][..., None, None, :]
            dof_q, dof_k, dw = np.zeros_like(of_q), np.zeros_like(of_k), np.zeros_like(extra["w"])
            for unit in range(w.shape[-1]):
                bent = np.tanh(of_q[..., unit, None] + of_k[..., None, :, unit])
                dw[..., unit] = (ds * bent).sum(axis=(0, 3, 4))
                inside = ds * w[..., unit] * (1 - bent * bent)
                dof_q[..., unit] = inside.sum(axis=-1)
                dof_k[..., unit] = inside.sum(axis=-2).sum(axis=2, keepdims=True)
            dw_q, dw_k = (_turned(q) @ dof_q).sum(axis=0), (_turned(k) @ dof_k).sum(axis=0)
            found = {"w_q": dw_q, "w_k": dw_k, "w": dw}
            return dof_q @ _turned(extra["w_q"]), dof_k @ _turned(extra["w_k"]), found
    ds *= problem.softmax_scale
    return ds @ k, (_turned(ds) @ q).sum(axis=2), {}


def _gaussian_gradients(
    problem: Problem, q: "Array", extra: "dict[str, Array]", dexponent: "Array"
) -> "tuple[Array, dict[str, Array]]":
    """Gradients of q and of the parameters from those of -(j - c)^2 / 2 sigma^2."""
    import numpy as np

    assert problem.uniform is not None
    mechanism: Any = problem.mechanism
    sk, sigma = problem.uniform[1], mechanism.window / 2
    bent = np.tanh(q @ extra["w_p"])
    v_p = extra["v_p"][..., None]
    share = 1 / (1 + np.exp(-(bent @ v_p)))  # [B, Hk, G, Sq, 1]
    off = (np.arange(sk, dtype=q.dtype) - sk * share) / sigma
    dcentre = (dexponent * off).sum(axis=-1, keepdims=True) / sigma
    dplace = dcentre * sk * share * (1 - share)
    dbent = dplace * _turned(v_p) * (1 - bent * bent)
    found = {"w_p": (_turned(q) @ dbent).sum(axis=0), "v_p": (bent * dplace).sum(axis=(0, 3))}
    return dbent @ _turned(extra["w_p"]), found


def _linear(problem: Problem, q: "Array", k: "Array", v: "Array") -> "Callable[[], Array]":
    """phi(q) (phi(k)^T v) / phi(q) sum phi(k) (Katharopoulos et al. 2020, equations 5, and 9 to 12 where causal)."""
    import numpy as np

    assert problem.uniform is not None
    sq, sk = problem.uniform

    def feature(x: "Array") -> "Array":
        """elu(x) + 1"""
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    def step() -> "Array":
        fq, fk = feature(q), feature(k)
        values = np.concatenate((v, np.ones_like(v[..., :1])), axis=-1)  # their last column sums the weights
        if problem.mask.name == "full":
            return _divided(fq @ (fk.swapaxes(-1, -2) @ values))
        out = np.zeros((*fq.shape[:-1], values.shape[-1]), dtype=fq.dtype)
        state = np.zeros((*fk.shape[:-2], fk.shape[-1], values.shape[-1]), dtype=fq.dtype)
        done = 0  # keys that the state holds
        for start in range(max(0, sq - sk), sq, TILE):
            end = min(start + TILE, sq)
            before, until = start + sk - sq, end + sk - sq  # the keys that stand where these queries do
            some = fk[..., done:before, :]
            state += some.swapaxes(-1, -2) @ values[..., done:before, :]
            near = fq[..., start:end, :] @ fk[..., before:until, :].swapaxes(-1, -2)
            out[..., start:end, :] = (
                np.tril(near) @ values[..., before:until, :] + fq[..., start:end, :] @ state
            )
            done = before
        return _divided(out)

    return step


def _linear_passes(
    problem: Problem, q: "Array", k: "Array", v: "Array", extra: "dict[str, Array]", dout: "Array"
) -> Passes:
    """As `_linear`, and its gradients, in as many steps: where causal, sums over queries are brought backward."""
    import numpy as np

    assert problem.uniform is not None
    sq, sk = problem.uniform
    attend = _linear(problem, q, k, v)

    def forward() -> "tuple[Array, ...]":
        return (attend(),)

    def backward(out: "Array") -> "list[Array]":
        (fq, slope_q), (fk, slope_k) = (
            (np.where(x > 0, x + 1, low := np.exp(np.minimum(x, 0))), np.where(x > 0, 1, low)) for x in (q, k)
        )
        values = np.concatenate((v, np.ones_like(v[..., :1])), axis=-1)
        dfq, dfk, dvalues = np.zeros_like(fq), np.zeros_like(fk), np.zeros_like(values)

        def dsums(total: "Array", rows: slice) -> "Array":
            """Of the sums that the output is the quotient of, from those of queries `rows` and their divisors."""
            given, found = dout[..., rows, :] / total, out[..., rows, :]
            return np.concatenate((given, -(given * found).sum(axis=-1, keepdims=True)), axis=-1)

        if problem.mask.name == "full":
            state = _turned(fk) @ values
            ds = dsums((fq @ state)[..., -1:], slice(None))
            dstate = (_turned(fq) @ ds).sum(axis=2, keepdims=True)
            return [
                (ds @ _turned(state)) * slope_q,
                values @ _turned(dstate) * slope_k,
                (fk @ dstate)[..., :-1],
            ]
        state = np.zeros((*fk.shape[:-2], fk.shape[-1], values.shape[-1]), dtype=fq.dtype)
        dstate, done, tiles = np.zeros_like(state), 0, []
        for start in range(max(0, sq - sk), sq, TILE):
            rows = slice(start, min(start + TILE, sq))
            keys, older = slice(start + sk - sq, rows.stop + sk - sq), slice(done, start + sk - sq)
            state = state + _turned(fk[..., older, :]) @ values[..., older, :]
            near = np.tril(fq[..., rows, :] @ _turned(fk[..., keys, :]))
            total = near.sum(axis=-1, keepdims=True) + fq[..., rows, :] @ state[..., -1:]
            ds = dsums(total, rows)
            dnear = np.tril(ds @ _turned(values[..., keys, :]))
            dfq[..., rows, :] = dnear @ fk[..., keys, :] + ds @ _turned(state)
            dfk[..., keys, :] += (_turned(dnear) @ fq[..., rows, :]).sum(axis=2, keepdims=True)
            dvalues[..., keys, :] += (_turned(near) @ ds).sum(axis=2, keepdims=True)
            tiles.append((rows, older, ds))
            done = older.stop
        for rows, older, ds in reversed(tiles):
            dstate += (_turned(fq[..., rows, :]) @ ds).sum(axis=2, keepdims=True)
            dfk[..., older, :] += values[..., older, :] @ _turned(dstate)
            dvalues[..., older, :] += fk[..., older, :] @ dstate
        return [dfq * slope_q, dfk * slope_k, dvalues[..., :-1]]

    return forward, backward


def _divided(sums: "Array") -> "Array":
    """All columns but the last, over that one; 0 where that is 0."""
    import numpy as np

    total = sums[..., -1:]
    return sums[..., :-1] / np.where(total == 0, 1, total)


def _prepare_multi_head(problem: Problem, inputs: Inputs) -> Prepared:
    """Vaswani et al. 2017, 3.2.2, without biases: the heads of q, k and v side by side are what is projected."""
    import torch

    assert problem.uniform is not None
    hk, group = problem.heads_kv, problem.heads_q // problem.heads_kv
    given = {name: getattr(inputs, name).numpy() for name in "qkv"}
    extra = {name: tensor.numpy() for name, tensor in inputs.extra.items()}
    forbidden = _forbidden(problem)

    def projected(name: str) -> "Array":
        """[B, S, H, D] -> [B, Hk, H / Hk, S, D]."""
        x = given[name]
        y = x.reshape(*x.shape[:2], -1) @ extra[f"w_{name}"]
        found: Array = y.reshape(*x.shape[:2], hk, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)
        return found

    def forward() -> "tuple[Array, ...]":
        import numpy as np

        q, k, v = map(projected, "qkv")
        s = q @ k.swapaxes(-1, -2)
        s *= problem.softmax_scale
        if forbidden is not None:
            np.copyto(s, -np.inf, where=forbidden)
        p = _softmax(s)
        heads = p @ v  # [B, Hk, G, Sq, Dv]
        beside = heads.transpose(0, 3, 1, 2, 4).reshape(problem.batch, -1, hk * group * problem.head_dim_v)
        return q, k, v, p, beside, beside @ extra["w_o"]

    def read(raw: "Array") -> "torch.Tensor":
        return torch.from_numpy(raw.reshape(problem.batch, -1, problem.heads_q, problem.head_dim_v))

    if problem.direction is Direction.FORWARD:
        return Prepared(step=lambda: forward()[-1], read=read)
    assert inputs.dout is not None
    dout = inputs.dout.numpy().reshape(
        problem.batch, -1, problem.heads_q * problem.head_dim_v
    )  # [B, Sq, Hq Dv]

    def backward(
        q: "Array", k: "Array", v: "Array", p: "Array", beside: "Array", out: "Array"
    ) -> "list[Array]":
        of_heads = (dout @ extra["w_o"].T).reshape(problem.batch, -1, hk, group, problem.head_dim_v)
        dheads = of_heads.transpose(0, 2, 3, 1, 4)  # [B, Hk, G, Sq, Dv]
        ds = dheads @ _turned(v)
        ds -= (p * ds).sum(axis=-1, keepdims=True)
        ds *= p
        ds *= problem.softmax_scale
        several = (
            ds @ k,
            (_turned(ds) @ q).sum(axis=2, keepdims=True),
            (_turned(p) @ dheads).sum(axis=2, keepdims=True),
        )
        found, matrices = [], []
        for name, dy in zip("qkv", several, strict=True):
            flat = dy.transpose(0, 3, 1, 2, 4).reshape(*given[name].shape[:2], -1)  # [B, S, H D]
            found.append(flat @ extra[f"w_{name}"].T)
            matrices.append((_turned(given[name].reshape(flat.shape)) @ flat).sum(axis=0))
        return [*found, *matrices, (_turned(beside) @ dout).sum(axis=0)]

    def gradients(raw: "list[Array]") -> "tuple[torch.Tensor, ...]":
        shaped = [x.reshape(given[name].shape) for name, x in zip("qkv", raw[:3], strict=True)]
        return tuple(map(torch.from_numpy, [*shaped, *raw[3:]]))

    return _passes(problem, forward, backward, read, gradients)
