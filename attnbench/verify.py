"""Whether an output keeps the contract, and whether its error lies within a multiple of the yardstick's.

The measure is the relative L2 norm of the error against the float64 oracle, per row and per tensor. A fixed
tolerance would mean nothing: the output's spread falls with Sk, and so does the error of a sound algorithm.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench import dropout
from attnbench.elements import TORCH_DTYPES
from attnbench.implementation import Device, Implementation, Inputs, Prepared
from attnbench.inputs import READ_OUT, token_outputs
from attnbench.inputs import outputs as names_of
from attnbench.problem import Additive, Dense, DType, Problem
from attnbench.records import FACTORS, Accuracy, worst

LSE_FACTOR = 3.0
"""Likewise of the largest absolute error of a log-sum-exp: that of a row of `out`."""

FLOORS = {
    DType.FLOAT64: 16 * 2.0**-52,
    DType.FLOAT32: 2.0**-24,
    DType.TFLOAT32: 2.0**-11,
    DType.FLOAT16: 2.0**-11,
    DType.BFLOAT16: 2.0**-8,
    DType.FLOAT8_E4M3: 2.0**-4 * math.sqrt(1 / (8 * math.log(2))),
}
"""Half an epsilon: the rounding of the result itself. More for float64, where every chain is this good. Of float8, whose
result is bfloat16, the root mean square of the rounding of weights: an error uniform within 2^-4 over a mantissa m whose
logarithm is uniform, so that the mean of 1 / (3 m^2) is 1 / (8 ln 2)."""


FLUSHED = {DType.FLOAT64: 1e-290}
"""Rows smaller than this, or 1e-30 in narrower types, are measured by this: weights below the least normal number
may be flushed to zero."""

REST = 2.0**-8
"""Epsilons of a row that all its terms but one may be together where that one is taken for the whole row under dropout: in
bfloat16 scores of 350 may be a few units off, which makes weights e^5 times as large at most."""


def factors(name: str) -> tuple[float, float]:
    """Those in `FACTORS` of a tensor."""
    return FACTORS.get(name, FACTORS["parameters"])


def _summands(problem: Problem, name: str, rows: int) -> int:
    """The most terms that an element of a tensor is the sum of, or a score that goes into it. Of `rows` query rows in
    all a parameter's gradient is, or, where its terms are pairs, of each of their keys."""
    terms = max(problem.head_dim, problem.head_dim_v, *problem.longest)
    if name[1:] not in problem.learned:
        return terms
    pairs = name == "drelative_bias" or (name == "dw" and isinstance(problem.mechanism, Additive))
    return max(terms, rows * (problem.longest[1] if pairs else 1))


def _floor(problem: Problem, top_score: float, terms: int) -> float:
    """Least error that the yardstick is credited with.

    Half types keep scores and sums in float32, so only the rounding of the result remains. In a wide type a
    sum of n terms is about eps / 2 * sqrt(n) off where they are added up in order (Higham and Mary 2019): of
    scores n is D, of weights Sk, of gradients up to Sq. Scores are also rounded to eps / 2 * |score|, and the
    weights relatively as much. A yardstick that rounds better than that was lucky, or added up in pairs.
    """
    floor = FLOORS[problem.dtype]
    if problem.dtype in (DType.FLOAT32, DType.FLOAT64):
        half = torch.finfo(TORCH_DTYPES[problem.dtype]).eps / 2
        return max(floor, half * max(math.sqrt(terms), top_score))
    return floor


def _lse_floor(problem: Problem, top_score: float) -> float:
    """The rounding of the scores in float32: sums of D products, which err by sqrt(D) / 3 times as much as one
    rounding of the largest score where all products have the same sign."""
    largest = top_score + math.log(max(problem.longest[1], 1))
    return 2.0**-24 * math.sqrt(problem.head_dim) * max(1.0, largest / 3)


def inspect(
    outputs: object, problem: Problem, inputs: Inputs, device: str, qkv_format: str
) -> tuple[Tensor, ...] | str:
    """The tensors that a call returned, without their graph, or what is wrong with them in words."""
    names = names_of(problem)
    found = tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
    if len(found) != len(names):
        return f"{len(found)} outputs, expected {len(names)}: {', '.join(names)}"
    out = (*inputs.q.shape[:-1], problem.head_dim_v)
    shapes: dict[str, tuple[int, ...]] = dict(
        zip(("out", "dq", "dk", "dv"), (out, inputs.q.shape, inputs.k.shape, inputs.v.shape), strict=True)
    )
    shapes |= {f"d{name}": tuple(inputs.extra[name].shape) for name in problem.learned}
    for name, tensor in zip(names, found, strict=True):
        wrong = _inspect(tensor, shapes[name], problem, inputs, torch.device(device))
        if wrong:
            return f"{name}: {wrong}" if len(names) > 1 else wrong
    return tuple(tensor.detach() for tensor in found)


def alone(
    implementation: Implementation, problem: Problem, inputs: Inputs, device: str
) -> tuple[Tensor, ...]:
    """What the first member of a batch comes out as where it is the whole batch; empty where that is unsupported, or
    members do not lie side by side in a dense batch.

    Without gradients of parameters, which have no members. Raises `ValueError` where that breaks the contract, and what the implementation raises.
    """
    single = replace(problem, sequences=problem.sequences[:1])
    if not isinstance(problem.layout, Dense) or problem.uniform is None:
        return ()
    if implementation.why_not(single, Device(kind=torch.device(device).type)):
        return ()
    q, k, v = (t[:1].clone() for t in (inputs.q, inputs.k, inputs.v))
    v = k[..., : problem.head_dim_v] if problem.shared_kv else v
    dout = None if inputs.dout is None else inputs.dout[:1].clone()
    given = Inputs(q=q, k=k, v=v, dout=dout, extra=inputs.extra)
    prepared = implementation.prepare(single, given)
    prepared = prepared if isinstance(prepared, Prepared) else Prepared(step=prepared)
    found = inspect(prepared.read(prepared.step()), single, given, device, implementation.qkv_format)
    if isinstance(found, str):
        raise ValueError(f"{found} (the first member of the batch alone)")
    return found[: len(token_outputs(problem))]


def _inspect(
    tensor: object, shape: tuple[int, ...], problem: Problem, inputs: Inputs, device: torch.device
) -> str | None:
    if type(tensor) is not Tensor:
        return f"the output is a {type(tensor).__name__}, expected a plain torch.Tensor"
    if tensor.layout is not torch.strided or tensor.is_meta:
        return f"the output has no storage of its own: on {tensor.device}, {tensor.layout}"
    if tuple(tensor.shape) != tuple(shape):
        return f"shape {list(tensor.shape)}, expected {list(shape)}"
    expected = TORCH_DTYPES[problem.out_dtype]
    if tensor.dtype != expected:
        return f"dtype {str(tensor.dtype)[6:]}, expected {str(expected)[6:]}"
    if (tensor.device.type, tensor.device.index or 0) != (device.type, device.index or 0):
        return f"the output is on {tensor.device}, expected {device}"
    low, high = _extent(tensor)
    for given in inputs.tensors:
        if low < _extent(given)[1] and _extent(given)[0] < high:
            return "the output is a view of an input"
    return None


def inspect_lse(tensor: object, problem: Problem, device: str) -> Tensor | str:
    """A log-sum-exp without its graph, or what is wrong with it in words."""
    if type(tensor) is not Tensor:
        return f"lse: it is a {type(tensor).__name__}, expected a plain torch.Tensor"
    shape = [problem.batch, problem.heads_q, problem.longest[0]]
    if not isinstance(problem.layout, Dense):
        shape = [problem.heads_q, sum(q for q, _ in problem.sequences)]
    if list(tensor.shape) != shape:
        return f"lse: shape {list(tensor.shape)}, expected {shape}"
    wide = (torch.float32, torch.float64) if problem.dtype is DType.FLOAT64 else (torch.float32,)
    if tensor.dtype not in wide:
        return f"lse: dtype {str(tensor.dtype)[6:]}, expected float32"
    if tensor.device.type != torch.device(device).type:
        return f"lse: it is on {tensor.device}, expected {device}"
    return tensor.detach()


def _extent(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


class Standard:
    """What the outputs for one kind of inputs are compared with; the yardstick's own errors are computed once.

    `oracle` and `yard` are what `reference.oracle` and `reference.yardstick` return for inputs of a kind; `share` is the
    sample's.
    """

    def __init__(
        self,
        problem: Problem,
        oracle: dict[str, Tensor],
        yard: dict[str, Tensor],
        share: float,
        kind: str = "normal",
    ) -> None:
        self.problem, self.oracle, self.share, self.kind = problem, oracle, share, kind
        top_score = float(oracle["top_score"])
        rows = len(oracle["groups"]) * len(oracle["rows"])
        self.sizes: dict[str, Tensor] = {}
        """Norm of each row, or of independent terms where that is larger; 0 where nothing contributes, else at
        least `FLUSHED`."""
        self.squares: dict[str, float] = {}
        self.allowed: dict[str, tuple[float, float]] = {}
        """Error of the yardstick's worst row and of its whole tensor, floored."""
        self.lse_allowed = _lse_floor(problem, top_score)
        for name, tensor in yard.items():
            right = oracle[name]
            if name == "lse":
                off = (tensor - right).abs()
                known = off[off.isfinite()]
                self.lse_allowed = max(
                    [self.lse_allowed, *(known.max()[None].tolist() if len(known) else ())]
                )
                continue
            norms = torch.stack([_norms(group) for group in right])
            sizes = torch.maximum(norms, oracle[f"{name}_size"])
            least = FLUSHED.get(problem.dtype, 1e-30)
            self.sizes[name] = torch.where((sizes > 0) | (right != 0).any(-1), sizes.clamp(min=least), 0)
            self.squares[name] = float(norms.square().sum())
            # a chain that overflowed must not allow anything
            sound = torch.where(tensor.isfinite(), tensor, right.to(tensor))
            errors = self._errors(name, sound)
            floor = _floor(problem, top_score, _summands(problem, name, rows))
            self.allowed[name] = max(float(errors.rows.max()), floor), max(errors.rms, floor)

    def compare(self, actual: dict[str, Tensor]) -> tuple[Accuracy, str | None]:
        """The worst errors over the outputs in `actual`, and None or the first reason why they are wrong.

        `actual` holds what `inputs.pick` returns. Errors are infinite where the output is not finite and the
        oracle is.
        """
        there = {name: tensor.to(self.oracle[name].device) for name, tensor in actual.items()}
        lse = there.pop("lse", None)
        compare = self._compare_dropped if self.problem.dropout else self._compare
        found = [compare(name, tensor) for name, tensor in there.items()]
        accuracy = worst(accuracy for accuracy, _ in found)
        reasons = [reason for _, reason in found]
        if lse is not None:
            error, reason = self._compare_lse(lse)
            accuracy = replace(accuracy, lse=error)
            reasons.append(reason)
        return accuracy, next(filter(None, reasons), None)

    def _compare_lse(self, tensor: Tensor) -> tuple[float, str | None]:
        """The largest absolute error, infinite where one of both is not finite, and a reason."""
        right = self.oracle["lse"]
        off = torch.where(
            tensor == right, 0, (tensor - right).abs().nan_to_num_(nan=math.inf, posinf=math.inf)
        )
        error, reason = float(off.max()), None
        if error > LSE_FACTOR * self.lse_allowed:
            where, blind = self._place("lse", off), bool((off.isinf() & right.isinf()).any())
            reason = f"lse: not -inf at {where}, where no key may be seen"
            if not blind:
                budget = f"the budget ({LSE_FACTOR:g} x yardstick {self.lse_allowed:.2g})"
                times = error / (LSE_FACTOR * self.lse_allowed)
                reason = f"lse: error {error:.2g} is {times:.3g} x {budget}, worst at {where}"
        return error, reason

    def _compare(self, name: str, tensor: Tensor) -> tuple[Accuracy, str | None]:
        found, (yardstick_row, yardstick_rms) = self._errors(name, tensor), self.allowed[name]
        accuracy = Accuracy(
            row=float(found.rows.max()),
            rms=found.rms,
            max=found.max,
            cosine=found.cosine,
            yardstick_row=yardstick_row,
            yardstick_rms=yardstick_rms,
            checked_share=self.share,
        )
        row_factor, rms_factor = factors(name)
        reason = None
        if not math.isfinite(found.max) and bool((lost := ~tensor.isfinite()).any()):
            reason = f"{100 * float(lost.double().mean()):.3g} % of it is not finite"
        elif bool((stray := self._stray(name, tensor)).any()):
            reason = f"not zero at {self._place(name, stray)}, where nothing contributes"
        elif accuracy.row > row_factor * yardstick_row:
            reason = _excess("row", accuracy.row, row_factor, yardstick_row)
            reason += f", worst at {self._place(name, found.rows)}"
        elif accuracy.rms > rms_factor * yardstick_rms:
            reason = _excess("RMS", accuracy.rms, rms_factor, yardstick_rms)
        return accuracy, f"{name}: {reason}" if reason else None

    def _compare_dropped(self, name: str, tensor: Tensor) -> tuple[Accuracy, str | None]:
        """Of an output in which weights were dropped: where values are unit vectors (`inputs.READ_OUT`), the errors of what is
        left and how it was dropped; else those of rows in which one weight is all, and what its moments tell."""
        right, p = self.oracle[name], self.problem.dropout
        if self.kind in READ_OUT:
            restored, kept = dropout.read_out(tensor.to(right), right, p)
            accuracy, reason = self._compare(name, restored)
            finest = torch.finfo(tensor.dtype)
            least = (
                8 * finest.tiny * finest.eps
            )  # so many times the smallest number: enough to tell it from its half
            told = dropout.unfair(kept, right, p, least)
            return accuracy, reason or (f"{name}: {told}" if told else None)
        alone = self.oracle[f"{name}_rest_size"] <= REST * torch.finfo(tensor.dtype).eps * self.sizes[name]
        restored = dropout.rows_of_one(tensor.to(right), right, p)
        accuracy, reason = self._compare(name, torch.where(alone[..., None], restored, right))
        told = dropout.unlikely(tensor.to(right), right, self.oracle[f"{name}_size"], p)
        return accuracy, reason or (f"{name}: {told}" if told else None)

    def _stray(self, name: str, tensor: Tensor) -> Tensor:
        """Rows that are not zero although nothing contributes to them."""
        empty = self.sizes[name] == 0
        return empty & (tensor != 0).any(-1) if bool(empty.any()) else empty

    def _errors(self, name: str, tensor: Tensor) -> "_Errors":
        """Group by group, so that the differences stay in the cache."""
        sizes, wrong, largest = self.sizes[name], [], [0.0]
        sums = torch.zeros(2, dtype=torch.float64)
        for group, want in zip(tensor, self.oracle[name], strict=True):
            got = group.to(want)
            difference = (got - want).nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)
            wrong.append(_norms(difference))
            largest.append(float(difference.abs_().max()))
            if not math.isfinite(largest[-1]):
                got = got.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            a, b = got.flatten(), want.flatten()
            sums += torch.stack([a @ b, a @ a]).cpu()
        norms = torch.stack(wrong)
        dot, aa = sums.tolist()
        total, size, bb = float(norms.norm()), float(sizes.norm()), self.squares[name]
        return _Errors(
            rows=torch.where(norms > 0, norms / sizes, 0),
            rms=total / size if size else math.inf if total else 0.0,
            max=max(largest),
            cosine=dot / math.sqrt(aa * bb) if aa * bb else float(aa == bb),
        )

    def _place(self, name: str, weight: Tensor) -> str:
        """Where `weight` is largest, in the problem's own axes."""
        at = [int(i) for i in torch.unravel_index(weight.double().argmax(), weight.shape)]
        if name[1:] in self.problem.learned:
            return self._row(name[1:], at)
        batch, head = self.oracle["groups"][at[0]].tolist()
        if name in ("dk", "dv"):
            return f"batch {batch} key/value head {head} key {at[1]}"
        head = head * (self.problem.heads_q // self.problem.heads_kv) + at[1]
        return f"batch {batch} head {head} row {int(self.oracle['rows'][at[2]])}"

    def _row(self, parameter: str, at: list[int]) -> str:
        """A row of a parameter's gradient by its axes: `bias[1, 5]`."""
        if parameter == "bias":
            shared = self.problem.parameters["bias"].shape[0] // self.problem.heads_kv
            heads = sorted(set(self.oracle["groups"][:, 1].tolist()))
            plane = heads[at[0] // shared] * shared + at[0] % shared if shared else 0
            at = [plane, int(self.oracle["rows"][at[1]])]
        return f"{parameter}[{', '.join(map(str, at))}]"


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """How far a tensor is from the right one; infinite where it is not finite."""

    rows: Tensor
    """Norm of the error of each row over the row's size."""
    rms: float
    max: float
    cosine: float
    """Elements that are not finite taken as zero; 1 where both tensors are zero."""


def _norms(tensor: Tensor) -> Tensor:
    return tensor.square().sum(-1).sqrt()  # several times faster than norm(dim=-1)


def _excess(what: str, error: float, factor: float, yardstick: float) -> str:
    times = error / (factor * yardstick)
    return f"{what} error {error:.2g} is {times:.3g} x the budget ({factor:g} x yardstick {yardstick:.2g})"
