"""The float64 oracle, and the plain chain in the problem's own dtype that its error is measured by.

Both compute the same explicit formulas on blocks of query rows, forward and backward (Dao 2023, section 2.2):
S = scale q k^T, softcap, what modifiers add, mask, P = softmax(S), out = P v; dv = P^T dO, dP = dO v^T,
dS = P (dP - rowsum(P dP)) and back through softcap and scale, dq = dS k, dk = dS^T q. A sink joins the sum of the
softmax alone. Other mechanisms have weights P of their own. Oracle and yardstick differ in the precision in which each
step is kept. A query that may attend to no key has output and gradient zero.

Memory beside inputs and results: about six matrices of `_BLOCK` elements, the keys and values of the groups
in flight (one, at long context) in the wider type, and a byte for each sampled row and key where there is a
mask.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench import formulas, gradients, rotations
from attnbench.elements import TORCH_DTYPES, through_float8
from attnbench.formulas import Block, Product, Rounding
from attnbench.implementation import Inputs
from attnbench.problem import Additive, Direction, Dot, DType, Full, MultiHead, Problem, Softmax

if TYPE_CHECKING:
    from attnbench.inputs import Sample

_BLOCK = 2**20
"""Scores that are held at once: 8 MiB in float64. Less only where one row of a group needs more."""
_ROWS = 128  # query rows at once: so few that keys which none of them may attend to are left out


def oracle(problem: Problem, inputs: Inputs, sample: "Sample") -> dict[str, Tensor]:
    """The right answer in float64 for canonical inputs (`tokens`), on their device: the outputs of the direction.

    Inputs are what is stored, times its descale where it is quantised: of that rounding nobody is accused.

    `out` [G, Hq/Hk, R, Dv], `dq` [G, Hq/Hk, R, D], `dk` [G, Sk, D], `dv` [G, Sk, Dv]; dk and dv are sums over
    the sampled rows, and dv is part of dk where v is part of k. Of members of unlike lengths, Sk is that of the longest,
    and what a member does not have is zero, and -inf in `lse`. With each of them `<name>_size` [G, Hq/Hk, R] or [G, Sk]:
    the norm that a row would have if the terms of its sum were independent. Terms may cancel (dq to zero, for a query
    with a single key); their rounding errors, which are proportional to this norm, do not. Zero where there are no terms
    at all.
    Further `lse` [G, Hq/Hk, R] of the mechanisms softmax and dot, the log-sum-exp of the scores of the keys that a
    query may see, -inf where there is none; where weights are dropped `out_rest_size` [G, Hq/Hk, R], the size of `out`
    without the largest of its terms; `groups` [G, 2] and `rows` [R] of the sample; and `top_score`, the
    largest size of a row's largest score.
    """
    compute = _projected if isinstance(problem.mechanism, MultiHead) else _compute
    found = compute(problem, inputs, sample, torch.float64, _keep, torch.matmul, sizes=True)
    return {**found, "groups": torch.tensor(sample.groups), "rows": torch.tensor(sample.rows)}


def yardstick(problem: Problem, inputs: Inputs, sample: "Sample") -> dict[str, Tensor]:
    """The plain chain of `oracle` with every step kept in the output's dtype; `lse` is summed in float32.

    Half types: products are accumulated in float32 and each step is rounded, which is what the device's
    own chain does; spelled out because float16 matrix products take 15 times longer on a CPU. `tfloat32`
    rounds the factors of every product to TF32. float64 adds products up in another order than the oracle:
    else the two would coincide.

    Of inputs that are stored in another type, converting them, times their descale, is the first step. Where q is
    float8, so are the weights that are multiplied by v.
    """
    dtype = TORCH_DTYPES[problem.out_dtype]
    compute = _projected if isinstance(problem.mechanism, MultiHead) else _compute
    if dtype in (torch.float16, torch.bfloat16):
        found = compute(problem, inputs, sample, torch.float32, lambda x: x.to(dtype).float(), torch.matmul)
    else:
        product = {DType.FLOAT64: _in_halves, DType.TFLOAT32: _tf32_product}.get(problem.dtype, torch.matmul)
        found = compute(problem, inputs, sample, dtype, _keep, product)
    return {name: tensor if name == "lse" else tensor.to(dtype) for name, tensor in found.items()}


def _keep(tensor: Tensor) -> Tensor:
    return tensor


def _in_halves(a: Tensor, b: Tensor) -> Tensor:
    return a[..., ::2] @ b[..., ::2, :] + a[..., 1::2] @ b[..., 1::2, :]


def _tf32_product(a: Tensor, b: Tensor) -> Tensor:
    return _tf32(a) @ _tf32(b)


def _tf32(tensor: Tensor) -> Tensor:
    """float32 rounded to TF32's 10 bits of mantissa, ties away from zero."""
    return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


_Block = tuple[slice, slice, Tensor | None]


def _portions(
    problem: Problem, sample: "Sample", most: int, device: torch.device
) -> Iterator[tuple[slice, tuple[int, int], list[_Block]]]:
    """Places of at most so many groups, (Sq, Sk) and their blocks: groups of one member where mask or length differ."""
    apart = problem.mask.by_member or problem.uniform is None
    for b, places in groupby(range(len(sample.groups)), lambda at: sample.groups[at][0] if apart else 0):
        ordered = list(places)
        blocks, end = _blocks(problem, sample, device, b), ordered[-1] + 1
        for start in range(ordered[0], end, most):
            yield slice(start, min(start + most, end)), problem.sequences[b], blocks


def _blocks(problem: Problem, sample: "Sample", device: torch.device, b: int) -> list[_Block]:
    """Places in the sampled rows, the keys from the first to the last that one of these rows may attend to in member
    b, and which of the keys each may: [r, n], or None for all. Rows that may attend to none are in no block."""
    sq, sk = problem.sequences[b]
    count = min(_ROWS, max(1, _at_once(problem) // (problem.heads_q // problem.heads_kv * max(1, sk))))
    rows = torch.tensor([row for row in sample.rows if row < sq], device=device)
    blocks: list[_Block] = []
    for start in range(0, len(rows) if sk else 0, count):
        here = slice(start, min(start + count, len(rows)))
        if isinstance(problem.mask, Full):
            blocks.append((here, slice(0, sk), None))
            continue
        first, _, last = problem.mask.outline(rows[here], sq, sk, b)
        low = int(first.min())
        j = torch.arange(low, max(low, int(last.max()) + 1), device=device)
        allowed = problem.mask.allowed(rows[here, None], j, sq, sk, b)
        some = allowed.any(0).nonzero()
        if len(some):
            seen = slice(int(some[0]), int(some[-1]) + 1)
            allowed = allowed[:, seen].clone()
            keys = slice(low + seen.start, low + seen.stop)
            blocks.append((here, keys, None if bool(allowed.all()) else allowed))
    return blocks


def _compute(
    problem: Problem,
    inputs: Inputs,
    sample: "Sample",
    dtype: torch.dtype,
    rnd: Rounding,
    product: Product,
    sizes: bool = False,
) -> dict[str, Tensor]:
    """Compute in `dtype`; `rnd` rounds the result of each step."""
    sk, shared, total = problem.longest[1], problem.heads_q // problem.heads_kv, len(sample.groups)
    together = max(1, _at_once(problem) // (shared * min(len(sample.rows), _ROWS) * sk))  # groups at once
    shapes = {
        "out": (total, shared, len(sample.rows), problem.head_dim_v),
        "dq": (total, shared, len(sample.rows), problem.head_dim),
        "dk": (total, sk, problem.head_dim),
        "dv": (total, sk, problem.head_dim_v),
    }
    names = ["out"] if problem.direction is not Direction.BACKWARD else []
    names += ["dq", "dk", "dv"] if inputs.dout is not None else []
    learned = _learned(problem, sample) if inputs.dout is not None else {}
    if sizes:
        shapes |= {f"{name}_size": (*shape[:-1], 1) for name, shape in shapes.items()}
        names += [*(f"{name}_size" for name in names), "top_score"]
        if problem.dropout:
            names.append("out_rest_size")
            shapes["out_rest_size"] = shapes["out_size"]
        shapes["top_score"] = ()
    results = {name: torch.zeros(shapes[name], dtype=dtype, device=inputs.q.device) for name in names}
    if isinstance(problem.mechanism, Softmax | Dot):
        names.append("lse")
        results["lse"] = torch.full((total, shared, len(sample.rows)), -torch.inf).to(results[names[0]])
    device = inputs.q.device
    sums = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in learned.items()}
    of_squares = {name: torch.zeros_like(tensor) for name, tensor in sums.items() if sizes}
    planes = torch.tensor(sample.planes(problem.heads_q), device=device)
    queries, all_keys = torch.tensor(sample.rows, device=device), torch.arange(sk, device=device)
    turning = problem.modifier("rotary") is not None

    @lru_cache(maxsize=2)
    def tables(ahead: int | None) -> rotations.Turns:
        """How the modifier rotary turns the sampled queries of a member with so many more keys, or, of None, the keys."""
        at = all_keys if ahead is None else queries + ahead
        cos, sin = rotations.exact(problem, at) if sizes else rotations.plain(problem, at, dtype)
        return rnd(cos), rnd(sin)

    def turns(name: str, lengths: tuple[int, int]) -> rotations.Turns:
        return tables(lengths[1] - lengths[0] if name == "q" else None)

    def real(name: str, stored: Tensor, heads_kv: Tensor, lengths: tuple[int, int]) -> Tensor:
        """What is meant by `stored` [g, ...] of these heads [g] of a member."""
        wide, descale = stored.to(dtype), inputs.extra.get(f"{name}_descale")
        if descale is not None:
            wide *= descale.to(dtype).expand(problem.heads_kv)[heads_kv].view(-1, *[1] * (wide.ndim - 1))
        wide = rnd(wide) if problem.stored_apart else wide
        return rotations.turned(wide, turns(name, lengths), rnd) if turning and name != "v" else wide

    for here, lengths, blocks in _portions(problem, sample, together, device):
        part = replace(sample, groups=sample.groups[here])
        heads_kv = torch.tensor(part.groups, device=device)[:, 1]
        k, v = (real(name, part.keys(getattr(inputs, name)), heads_kv, lengths) for name in "kv")
        squares = (
            tuple(t.square().sum(-1, keepdim=True) for t in (k, v)) if sizes else ()
        )  # once, not in each block
        q = real("q", part.queries(inputs.q), heads_kv, lengths)  # [g, Hq/Hk, R, D]
        dout = None if inputs.dout is None else part.queries(inputs.dout).to(dtype)
        heads = heads_kv[:, None] * shared + torch.arange(shared, device=device)
        for rows, keys, allowed in blocks:
            block = Block(
                heads=heads,
                heads_kv=heads_kv,
                rows=queries[rows],
                keys=all_keys[keys],
                lengths=lengths,
                extra=inputs.extra,
            )
            found = _attend(
                problem,
                block,
                q[:, :, rows].flatten(1, 2),
                k[:, keys],
                v[:, keys],
                None if dout is None else dout[:, :, rows].flatten(1, 2),
                allowed,
                rnd,
                product,
                tuple(t[:, keys] for t in squares),
            )
            for name in names:
                tensor = found[name]
                if name == "top_score":
                    results[name] = torch.maximum(results[name], tensor)
                elif name.startswith(("out", "dq", "lse")):
                    results[name][here, :, rows] = torch.unflatten(tensor, 1, (shared, -1))
                else:
                    results[name][here, keys] += tensor
            if not isinstance(problem.mechanism, Softmax | Dot):
                for name, tensor in sums.items():
                    tensor += found[name].view(tensor.shape)
                for name, tensor in of_squares.items():
                    tensor += found[f"{name}_size"].view(tensor.shape)
                continue
            place = torch.searchsorted(planes, heads.flatten()), rows, keys
            for end, into in (("", sums), ("_size", of_squares)):
                if into:
                    ds, dsink = found[f"ds{end}"], found.get(f"dsink{end}")
                    gradients.add_modifiers(problem, block, place, ds, dsink, into)
    for name in ("q", "k") if turning and inputs.dout is not None else ():  # before they were turned
        for (b, _), tensor in zip(sample.groups, results[f"d{name}"], strict=True):
            back = rotations.back(turns(name, problem.sequences[b]))
            tensor.copy_(rotations.turned(rnd(tensor), back, rnd))
    if problem.shared_kv and "dk" in results:
        results["dk"] = rnd(results["dk"])  # through the scores, and then through the values
        results["dk"][..., : problem.head_dim_v] += rnd(results.pop("dv"))
        if sizes:
            results["dk_size"] += results.pop("dv_size")
    results |= sums | {f"{name}_size": tensor for name, tensor in of_squares.items()}
    for name in results:
        if name.endswith("_size"):
            results[name] = results[name].sum(-1).sqrt()
    return results


def _at_once(problem: Problem) -> int:
    """Scores that are held at once: fewer where each keeps a number of every hidden unit for its gradient."""
    forward = problem.direction in (Direction.FORWARD, Direction.INFERENCE)
    additive = problem.mechanism if isinstance(problem.mechanism, Additive) and not forward else None
    return _BLOCK // (additive.width(problem) if additive else 1)


def _learned(problem: Problem, sample: "Sample") -> dict[str, tuple[int, ...]]:
    """Shapes of the gradients of the parameters, as `Sample.parameter` returns them."""
    shapes = {f"d{name}": problem.parameters[name].shape for name in problem.learned}
    if "dbias" in shapes:
        count, _, sk = shapes["dbias"]
        shapes["dbias"] = len(sample.planes(count)), len(sample.rows), sk
    return {name: shape if len(shape) > 1 else (1, *shape) for name, shape in shapes.items()}


def _projected(
    problem: Problem,
    inputs: Inputs,
    sample: "Sample",
    dtype: torch.dtype,
    rnd: Rounding,
    product: Product,
    sizes: bool = False,
) -> dict[str, Tensor]:
    """As `_compute`, of the mechanism multi-head: every head of the sampled members, because projections mix them.

    Y = X W has the gradients dX = dY W^T and dW = X^T dY. Of sizes: the terms of an element of Y are the elements of
    all heads of X times those of a column of W.
    """
    members = sorted({batch for batch, _ in sample.groups})
    hk = problem.heads_kv
    every = tuple((batch, head) for batch in members for head in range(hk))
    w = {name: inputs.extra[f"w_{name}"].to(dtype) for name in "qkvo"}
    rows = torch.tensor(sample.rows, device=inputs.q.device)

    def projected(x: Tensor, w: Tensor) -> Tensor:
        """[B, H, S, D], of these members; the others are never touched."""
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        for batch in members:
            member = x[batch].to(dtype).transpose(0, 1)  # [S, H, D]
            y[batch] = rnd(product(member.flatten(1), w)).view(member.shape).transpose(0, 1)
        return y

    def beside(tensor: Tensor, queries: bool) -> Tensor:
        """[b Hk, Hq/Hk, R, x] or [b Hk, Sk, x] -> [b, R or Sk, H x]: the heads side by side."""
        tensor = torch.unflatten(tensor, 0, (-1, hk))
        return (tensor.permute(0, 3, 1, 2, 4) if queries else tensor.transpose(1, 2)).flatten(2)

    def sampled(tensor: Tensor, heads: int, queries: bool) -> Tensor:
        """[b, R or Sk, H x] -> [G, Hq/Hk, R, x] or [G, Sk, x]."""
        place = torch.tensor([members.index(batch) for batch, _ in sample.groups], device=tensor.device)
        head = torch.tensor([head for _, head in sample.groups], device=tensor.device)
        tensor = torch.unflatten(tensor, 2, (heads, -1))
        if not queries:
            return tensor[place, :, head]
        return torch.unflatten(tensor, 2, (hk, -1))[place, :, head].transpose(1, 2)

    def spread(size: Tensor, w: Tensor, heads: int, queries: bool) -> Tensor:
        """The squared sizes [b, S, H] of the rows of Y = X W, of those of X."""
        dim = w.shape[0] // heads
        between = w.square().reshape(heads, dim, heads, dim).sum((1, 3))  # [H, H]
        return beside(size.square()[..., None], queries) / dim @ between

    q, k, v = (projected(getattr(inputs, name), w[name]) for name in "qkv")
    dout = None if inputs.dout is None else projected(inputs.dout, w["o"].mT)
    inner = replace(
        problem,
        mechanism=Softmax(),
        direction=Direction.FORWARD if dout is None else Direction.FORWARD_BACKWARD,
    )
    within = replace(sample, groups=every)
    found = _compute(inner, Inputs(q=q, k=k, v=v, dout=dout), within, dtype, rnd, product, sizes)
    heads_out = beside(found["out"], True)
    results = {}
    if problem.direction is not Direction.BACKWARD:
        results["out"] = sampled(rnd(product(heads_out, w["o"])), problem.heads_q, True)
        if sizes:
            size = spread(found["out_size"], w["o"], problem.heads_q, True)
            results["out_size"] = sampled(size, problem.heads_q, True).squeeze(-1).sqrt()
    if sizes:
        results["top_score"] = found["top_score"]
    if inputs.dout is None:
        return results
    given = {"o": heads_out, "do": inputs.dout[members].to(dtype).transpose(1, 2)[:, rows].flatten(2)}
    for name, heads in (("q", problem.heads_q), ("k", hk), ("v", hk)):
        queries = name == "q"
        x = getattr(inputs, name)[members].to(dtype).transpose(1, 2)
        given[name] = (x[:, rows] if queries else x).flatten(2)
        given[f"d{name}"] = dy = rnd(beside(found[f"d{name}"], queries))
        results[f"d{name}"] = sampled(rnd(product(dy, w[name].mT)), heads, queries)
        if sizes:
            size = spread(found[f"d{name}_size"], w[name].mT, heads, queries)
            results[f"d{name}_size"] = sampled(size, heads, queries).squeeze(-1).sqrt()
    for name in "qkvo":
        x, dy = given[name].flatten(0, 1), given[f"d{name}"].flatten(0, 1)  # [b S, H D]
        results[f"dw_{name}"] = product(x.mT, dy)
        if not sizes:
            continue
        size = dy.square().sum(-1, keepdim=True)
        if name == "o":
            part = beside(found["out_size"].square()[..., None], True).flatten(0, 1) / problem.head_dim_v
            x2 = part.repeat_interleave(problem.head_dim_v, 1)
        else:
            x2 = x.square()
            size = (
                beside(found[f"d{name}_size"].square()[..., None], name == "q")
                .flatten(0, 1)
                .sum(-1, keepdim=True)
            )
        results[f"dw_{name}_size"] = (x2.mT @ size).squeeze(-1).sqrt()
    return results


def _attend(
    problem: Problem,
    block: Block,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor | None,
    allowed: Tensor | None,
    rnd: Rounding,
    product: Product,
    squares: tuple[Tensor, ...],
) -> dict[str, Tensor]:
    """Attention of `q` [g, Hq/Hk * r, D] over `k` [g, n, D] and `v` [g, n, Dv], and its gradients where
    `dout` [g, Hq/Hk * r, Dv] is given; `allowed` [r, n]. With the squared norms of k and v, `squares` [g, n, 1] each,
    the squared sizes too."""
    if not isinstance(problem.mechanism, Softmax | Dot):
        if dout is not None:
            return gradients.of_mechanism(problem, block, (q, k, v), dout, allowed, rnd, product, squares)
        s = formulas.scores(problem, q, k, block, rnd, product)
        near = formulas.gaussian(problem, q, block, rnd, product)
        p, measure, top = formulas.weights(problem, s, near, allowed, rnd, exact=bool(squares))
        found = {"out": rnd(product(p, v))}
        if squares:
            found |= {"out_size": measure.square() @ squares[1], "top_score": top}
        return found
    s = rnd(rnd(product(q, k.mT)).mul_(problem.softmax_scale))  # [g, Hq/Hk * r, n]
    cap, slope = problem.softcap, None
    if cap is not None:
        s = rnd(s.div_(cap))
        exact = s.cosh().square_().reciprocal_() if squares and dout is not None else None
        bent = rnd(s.tanh_())
        # 1 - tanh^2 loses digits where tanh is near 1: that is the yardstick's error, and not the oracle's
        slope = None if dout is None else 1 - bent * bent if exact is None else exact
        s = rnd(bent.mul_(cap))
    for term in formulas.terms(problem, block, s.dtype, rnd):
        s = rnd(s + term.flatten(1, 2))
    if allowed is not None:
        torch.unflatten(s, 1, (-1, len(allowed))).masked_fill_(~allowed, -torch.inf)
    top = s.amax(-1, keepdim=True).clamp_(min=torch.finfo(s.dtype).min)  # -inf where no key is allowed
    p = s.sub_(top).exp_()
    total = p.sum(-1, keepdim=True)  # 0, or at least exp(0)
    lse, beside = (top + total.log()).squeeze(-1), None
    if (sink := formulas.sinks(problem, block, s.dtype)) is not None:
        high = torch.maximum(top, sink)
        shrink, beside = (top - high).exp_(), (sink - high).exp_()
        p, total = p.mul_(shrink), total * shrink + beside
        beside = rnd(beside / total)  # the sink's weight; the total is at least 1
    p = rnd(p.div_(total.clamp_(min=1)))
    if problem.dtype is DType.FLOAT8_E4M3 and rnd is not _keep:
        p = through_float8(p)
    out = rnd(product(p, v))
    found = {"out": out, "lse": lse}
    if dout is not None:
        found["dv"] = product(p.mT, dout)
        ds = rnd(product(dout, v.mT))  # dP
        inner = (p * ds).sum(-1, keepdim=True)
        ds = rnd(ds.sub_(inner).mul_(p))
        if problem.learned:
            found["ds"] = ds.clone()  # of what modifiers add
        if beside is not None:
            found["dsink"] = rnd(-beside * inner).squeeze(-1)
        if cap is not None and slope is not None:
            ds = rnd(rnd(rnd(ds.mul_(cap)).mul_(slope)).div_(cap))
        ds = rnd(ds.mul_(problem.softmax_scale))
        found["dq"] = rnd(product(ds, k))
        found["dk"] = product(ds.mT, q)
    if squares:
        found |= _squared_sizes(problem, q, squares, dout, out, p, slope, beside)
        found["top_score"] = top.masked_fill_(top == torch.finfo(top.dtype).min, 0).abs().max()
    return found


def _squared_sizes(
    problem: Problem,
    q: Tensor,
    squares: tuple[Tensor, ...],
    dout: Tensor | None,
    out: Tensor,
    p: Tensor,
    slope: Tensor | None,
    beside: Tensor | None,
) -> dict[str, Tensor]:
    """Sums of the squared norms of the terms of each row, from those of keys and values; `p` is overwritten.

    dP = dO . v and its row sum dO . out are taken for products of independent vectors:
    (dO . v)^2 is |dO|^2 |v|^2 / Dv on average.
    """
    p.square_()
    (k2, v2), out2 = squares, out.square().sum(-1, keepdim=True)
    found = {"out_size": p @ v2}
    if problem.dropout:
        terms = p * v2.mT
        found["out_rest_size"] = terms.scatter_(-1, terms.argmax(-1, True), 0).sum(-1, keepdim=True)
    if dout is not None:
        q2, dout2 = (t.square().sum(-1, keepdim=True) for t in (q, dout))
        found["dv_size"] = p.mT @ dout2
        if problem.learned:
            found["ds_size"] = p * (dout2 / problem.head_dim_v) * (v2.mT + out2)
        if beside is not None:
            squared = beside.square() * dout2 * found["out_size"] / problem.head_dim_v
            found["dsink_size"] = squared.squeeze(-1)
        if slope is not None:
            p.mul_(1 + (1 - slope).square())  # of the terms of 1 - tanh^2
        p.mul_(problem.softmax_scale**2 / problem.head_dim_v)
        found["dq_size"] = dout2 * (p @ (v2 * k2) + out2 * (p @ k2))
        found["dk_size"] = v2 * (p.mT @ (dout2 * q2)) + p.mT @ (dout2 * out2 * q2)
    return found
