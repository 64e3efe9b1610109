"""Whether an output keeps the contract, and whether its error lies within a multiple of the yardstick's.

The measure is the relative L2 norm of the error against the float64 oracle, per row and per tensor. A fixed
tolerance would mean nothing: the output's spread falls with Sk, and so does the error of a sound algorithm.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from attnbench.implementation import Inputs
from attnbench.inputs import OUTPUTS, TORCH_DTYPES
from attnbench.problem import DType, Problem
from attnbench.records import Accuracy

FACTORS = {"out": (3.0, 2.0), "dq": (5.0, 2.0), "dk": (8.0, 3.0), "dv": (4.0, 5.0)}
"""Budget in units of the yardstick's error: of the worst row, and of the whole tensor.

Those of the gradients are 1.5 x the largest ratio that a sound algorithm reached in `tests/fit_factors.py`
(7,680 comparisons each: six algorithms, four dtypes, eleven shapes, five masks, both kinds, three seeds), rounded
up, and not below those of `out`. The largest ratios are float32's and float64's, where the yardstick has no
narrower step than a sound algorithm; in half types none exceeded 2.
"""

FLOORS = {
    DType.FLOAT64: 16 * 2.0**-52,
    DType.FLOAT32: 2.0**-24,
    DType.TFLOAT32: 2.0**-11,
    DType.FLOAT16: 2.0**-11,
    DType.BFLOAT16: 2.0**-8,
}
"""Half an epsilon: the rounding of the result itself. More for float64, where every chain is this good."""


def _floor(problem: Problem, top_score: float) -> float:
    """Least error that the yardstick is credited with.

    Half types keep scores and sums in float32, so only the rounding of the result remains. In a wide type the
    scores, sums of D products, are themselves about eps / 2 * max(sqrt(D), |score|) off, the weights
    relatively as much, and dP likewise with Dv: a yardstick that rounds better than that was lucky.
    """
    floor = FLOORS[problem.dtype]
    if problem.dtype in (DType.FLOAT32, DType.FLOAT64):
        half = torch.finfo(TORCH_DTYPES[problem.dtype]).eps / 2
        return max(floor, half * max(math.sqrt(max(problem.head_dim, problem.head_dim_v)), top_score))
    return floor


def inspect(
    outputs: object, problem: Problem, inputs: Inputs, device: str, qkv_format: str
) -> tuple[Tensor, ...] | str:
    """The tensors that a call returned, without their graph, or what is wrong with them in words."""
    names = OUTPUTS[problem.direction]
    found = tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
    if len(found) != len(names):
        return f"{len(found)} outputs, expected {len(names)}: {', '.join(names)}"
    out = (*inputs.q.shape[:-1], problem.head_dim_v)
    shapes = dict(
        zip(("out", "dq", "dk", "dv"), (out, inputs.q.shape, inputs.k.shape, inputs.v.shape), strict=True)
    )
    for name, tensor in zip(names, found, strict=True):
        wrong = _inspect(tensor, shapes[name], problem, inputs, torch.device(device))
        if wrong:
            return f"{name}: {wrong}" if len(names) > 1 else wrong
    return tuple(tensor.detach() for tensor in found)


def _inspect(
    tensor: object, shape: tuple[int, ...], problem: Problem, inputs: Inputs, device: torch.device
) -> str | None:
    if type(tensor) is not Tensor:
        return f"the output is a {type(tensor).__name__}, expected a plain torch.Tensor"
    if tensor.layout is not torch.strided or tensor.is_meta:
        return f"the output has no storage of its own: on {tensor.device}, {tensor.layout}"
    if tuple(tensor.shape) != tuple(shape):
        return f"shape {list(tensor.shape)}, expected {list(shape)}"
    expected = TORCH_DTYPES[problem.dtype]
    if tensor.dtype != expected:
        return f"dtype {str(tensor.dtype)[6:]}, expected {str(expected)[6:]}"
    if (tensor.device.type, tensor.device.index or 0) != (device.type, device.index or 0):
        return f"the output is on {tensor.device}, expected {device}"
    low, high = _extent(tensor)
    for given in (inputs.q, inputs.k, inputs.v, inputs.dout):
        if given is not None and low < _extent(given)[1] and _extent(given)[0] < high:
            return "the output is a view of an input"
    return None


def _extent(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def compare(
    actual: dict[str, Tensor],
    oracle: dict[str, Tensor],
    yard: dict[str, Tensor],
    problem: Problem,
    share: float,
) -> tuple[Accuracy, str | None]:
    """The worst errors over the outputs in `actual`, and None or the first reason why they are wrong.

    The three hold what `inputs.pick`, `reference.oracle` and `reference.yardstick` return; `share` is the
    sample's. Errors are infinite where the output is not finite and the oracle is.
    """
    accuracies, reasons = [], []
    for name, tensor in actual.items():
        accuracy, reason = _compare(name, tensor, oracle, yard[name], problem, share)
        accuracies.append(accuracy)
        reasons += [f"{name}: {reason}"] if reason else []
    return worst(accuracies), next(iter(reasons), None)


def _compare(
    name: str, tensor: Tensor, oracle: dict[str, Tensor], yard: Tensor, problem: Problem, share: float
) -> tuple[Accuracy, str | None]:
    right, floor = oracle[name], _floor(problem, float(oracle["top_score"]))
    tensor = tensor.to(right.device)
    norms = torch.stack([_norms(group) for group in right])
    sizes = torch.maximum(norms, oracle[f"{name}_size"])  # 0 where nothing contributes
    yard = torch.where(
        yard.isfinite(), yard, right.to(yard)
    )  # a chain that overflowed must not allow anything
    found, allowed = _errors(tensor, right, sizes), _errors(yard, right, sizes)
    accuracy = Accuracy(
        row=float(found.rows.max()),
        rms=found.rms,
        max=found.max,
        cosine=found.cosine,
        yardstick_row=max(float(allowed.rows.max()), floor),
        yardstick_rms=max(allowed.rms, floor),
        checked_share=share,
    )
    lost = ~tensor.isfinite()
    if bool(lost.any()):
        return accuracy, f"{100 * float(lost.double().mean()):.3g} % of it is not finite"
    stray = (sizes == 0) & (tensor != 0).any(-1)
    if bool(stray.any()):
        return accuracy, f"not zero at {_place(name, stray, oracle, problem)}, where nothing contributes"
    row_factor, rms_factor = FACTORS[name]
    if accuracy.row > row_factor * accuracy.yardstick_row:
        place = _place(name, found.rows, oracle, problem)
        return accuracy, _excess(
            "row", accuracy.row, row_factor, accuracy.yardstick_row
        ) + f", worst at {place}"
    if accuracy.rms > rms_factor * accuracy.yardstick_rms:
        return accuracy, _excess("RMS", accuracy.rms, rms_factor, accuracy.yardstick_rms)
    return accuracy, None


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """How far a tensor is from the right one; infinite where it is not finite."""

    rows: Tensor
    """Norm of the error of each row over the row's size."""
    rms: float
    max: float
    cosine: float
    """Elements that are not finite taken as zero; 1 where both tensors are zero."""


def _errors(tensor: Tensor, right: Tensor, sizes: Tensor) -> _Errors:
    """Group by group, so that the differences stay in the cache."""
    wrong, largest, sums = [], [0.0], torch.zeros(3, dtype=torch.float64)
    for group, want in zip(tensor, right, strict=True):
        got = group.to(want)
        difference = (got - want).nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)
        wrong.append(_norms(difference))
        largest.append(float(difference.abs_().max()))
        a, b = got.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).flatten(), want.flatten()
        sums += torch.stack([a @ b, a @ a, b @ b]).cpu()
    norms = torch.stack(wrong)
    dot, aa, bb = sums.tolist()
    total, size = float(norms.norm()), float(sizes.norm())
    return _Errors(
        rows=torch.where(norms > 0, norms / sizes, 0),
        rms=total / size if size else math.inf if total else 0.0,
        max=max(largest),
        cosine=dot / math.sqrt(aa * bb) if aa * bb else float(aa == bb),
    )


def _norms(tensor: Tensor) -> Tensor:
    return tensor.square().sum(-1).sqrt()  # several times faster than norm(dim=-1)


def _place(name: str, weight: Tensor, oracle: dict[str, Tensor], problem: Problem) -> str:
    """Where `weight` is largest, in the problem's own axes."""
    at = [int(i) for i in torch.unravel_index(weight.double().argmax(), weight.shape)]
    batch, head = oracle["groups"][at[0]].tolist()
    if name in ("dk", "dv"):
        return f"batch {batch} key/value head {head} key {at[1]}"
    head = head * (problem.heads_q // problem.heads_kv) + at[1]
    return f"batch {batch} head {head} row {int(oracle['rows'][at[2]])}"


def _excess(what: str, error: float, factor: float, yardstick: float) -> str:
    times = error / (factor * yardstick)
    return f"{what} error {error:.2g} is {times:.3g} x the budget ({factor:g} x yardstick {yardstick:.2g})"


def worst(accuracies: Iterable[Accuracy]) -> Accuracy:
    """The worst of each error; the yardstick's likewise."""
    found = list(accuracies)
    return Accuracy(
        **{
            field.name: (min if field.name in ("cosine", "checked_share") else max)(
                getattr(accuracy, field.name) for accuracy in found
            )
            for field in fields(Accuracy)
        }
    )
