"""Element types in torch: how values are stored in them, and changed there."""

import torch
from torch import Tensor

from attnbench.problem import DType

TORCH_DTYPES = {
    DType.FLOAT64: torch.float64,
    DType.FLOAT32: torch.float32,
    DType.TFLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT8_E4M3: torch.float8_e4m3fn,
    DType.INT8: torch.int8,
}

LARGEST = {DType.FLOAT8_E4M3: 224.0, DType.INT8: 127.0}
"""Size of the largest value that is stored; of float8 half of what it can hold, so that values may be doubled."""


def quantise(real: Tensor, stored: Tensor, descale: Tensor, room: Tensor, dtype: DType) -> None:
    """Write `real` [B or T, Hk, ..., D] into `stored`, in multiples of `descale`, which is made here: [1] or [Hk].

    The largest value of a tensor, or of each head, becomes `LARGEST` over `room`, at least 1 and shaped like `descale`.
    """
    size = real.abs().amax([axis for axis in range(real.ndim) if axis != 1])
    size = size.amax(0, keepdim=True) if len(descale) == 1 else size
    descale.copy_(size.clamp(min=torch.finfo(torch.float32).tiny) * room / LARGEST[dtype])
    ratio = real / descale.view(-1, *[1] * (real.ndim - 2))
    stored.copy_(ratio.round_() if dtype is DType.INT8 else ratio)


def multiply(tensor: Tensor, factor: float) -> None:
    """In place, in any type: float8 has no arithmetic of its own, int8 no halves."""
    if tensor.element_size() > 1:
        tensor.mul_(factor)
    else:
        tensor.copy_(tensor.float().mul_(factor))


def bits(tensor: Tensor) -> Tensor:
    """The same memory as a type that can be indexed: on a CPU float8 cannot."""
    return tensor.view(torch.int8) if tensor.dtype == torch.float8_e4m3fn else tensor


def through_float8(weights: Tensor) -> Tensor:
    """Weights [..., n], rounded as a product of float8 takes them: in units of a 256th of their row's largest.

    So FlashAttention-3 does it (Shah et al. 2024, its code: `Max_offset` of 8 in exp2). Unscaled, the weights of more than
    some hundred keys would all be zero.
    """
    unit = weights.amax(-1, keepdim=True).clamp(min=1e-30) / 256
    return (weights / unit).to(torch.float8_e4m3fn).to(weights.dtype) * unit
