"""Parameters: what a modifier or a mechanism reads beside q, k and v."""

from dataclasses import dataclass

from attnbench.problem.dtypes import DType


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A tensor that no batch member has of its own: its shape, and how its values are drawn."""

    shape: tuple[int, ...]
    deviation: float = 1.0
    """Of the normal distribution, chosen so that scores of inputs from N(0, 1) are of order 1."""
    mean: float = 0.0
    identity: float = 0.0
    """Square matrices are drawn about so many times the identity, so that queries which point at keys still do. It
    alone is drawn where scores must keep the size that q and k give them."""
    dtype: DType | None = None
    """None for that of the output."""
    learned: bool = True
    """Whether a backward pass gives its gradient too."""
