"""The element types of the tensors."""

from enum import StrEnum


class DType(StrEnum):
    """Element type of q, k, v and the output; `tfloat32` is float32 data whose products may be TF32."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    TFLOAT32 = "tfloat32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3 = "float8_e4m3"
    INT8 = "int8"

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return _DTYPE_BYTES[self]

    @property
    def largest(self) -> float:
        """Largest finite value of a type that is not quantised."""
        bits, exponent = _FRACTION_AND_EXPONENT[self]
        return (2 - 2.0**-bits) * 2.0**exponent

    @property
    def quantised(self) -> bool:
        """Whether what is stored must be multiplied by a factor, its descale, to be what is meant."""
        return self is DType.FLOAT8_E4M3 or self is DType.INT8


_DTYPE_BYTES = dict(zip(DType, (8, 4, 4, 2, 2, 1, 1), strict=True))
_FRACTION_AND_EXPONENT = {
    DType.FLOAT64: (52, 1023),
    DType.FLOAT32: (23, 127),
    DType.TFLOAT32: (23, 127),
    DType.FLOAT16: (10, 15),
    DType.BFLOAT16: (7, 127),
}
"""Bits of the fraction, and the largest exponent of two."""


class Descale(StrEnum):
    """What has a descale of its own: each of q, k and v, or each key/value head of them."""

    TENSOR = "tensor"
    HEAD = "head"
