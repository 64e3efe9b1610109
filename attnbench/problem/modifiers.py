"""Modifiers: changes of the scores between q k^T and the softmax.

Those that a problem has are applied in this order: rotary, to q and k; softcap; the terms that are added (alibi, bias,
relative-bias); the mask; sinks. Query i stands at position p = i + Sk - Sq.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from attnbench.errors import ProblemError
from attnbench.problem.parameters import Parameter
from attnbench.problem.variants import Variant, bounded, leaves, parse_variant

if TYPE_CHECKING:
    from attnbench.problem.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Modifier(Variant):
    """A change of the scores between q k^T and the softmax."""

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        """Its tensors by their names in `Inputs.extra`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Softcap(Modifier):
    """s <- cap * tanh(s / cap), after the scale and before the mask (Gemma 2, 2024, section 2)."""

    name = "softcap"
    cap: float = bounded(1e-6)


@dataclass(frozen=True, kw_only=True)
class Alibi(Modifier):
    """s <- s - m_h |p - j|, with a slope m_h per head (Press et al. 2022, section 3)."""

    name = "alibi"

    @staticmethod
    def slopes(heads: int) -> tuple[float, ...]:
        """Of n heads, n a power of two: 2^(-8 / n), 2^(-16 / n), ..., 2^-8.

        Of another number: those of the next smaller power of two, then every other one of twice as many heads (the
        authors' code).
        """
        whole = 2 ** (heads.bit_length() - 1)
        first = [2.0 ** (-8 * (head + 1) / whole) for head in range(whole)]
        return (*first, *(2.0 ** (-4 * (2 * head + 1) / whole) for head in range(heads - whole)))


@dataclass(frozen=True, kw_only=True)
class Bias(Modifier):
    """s <- s + bias, a tensor [Hq, Sq, Sk]; `heads=1` is one plane for all heads; `grad=1` wants its gradient."""

    name = "bias"
    heads: int | None = bounded(1, 1, default=None)
    grad: int = bounded(0, 1, default=0)

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        shape = self.heads or problem.heads_q, *problem.longest
        return {"bias": Parameter(shape=shape, learned=bool(self.grad))}


@dataclass(frozen=True, kw_only=True)
class RelativeBias(Modifier):
    """s <- s + a learned number per head and bucketed distance (T5: Raffel et al. 2020, section 2.1).

    Half of the buckets are for keys before the query and half for those behind it; with `past=1` all are for those
    before it, as in T5's decoder, and keys behind are in the bucket of distance 0.
    """

    name = "relative-bias"
    buckets: int = bounded(2, default=32)
    distance: int = bounded(default=128)
    past: int = bounded(0, 1, default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets % 2 or self.buckets < 4:
            raise ProblemError(f"buckets of relative-bias must be even and at least 4, got {self.buckets}")
        if self.distance <= self.exact:
            raise ProblemError(f"distance of relative-bias must be above {self.exact}, got {self.distance}")

    @property
    def side(self) -> int:
        """Buckets of one side."""
        return self.buckets if self.past else self.buckets // 2

    @property
    def exact(self) -> int:
        """Distances that have a bucket each; the others share buckets whose widths grow up to `distance`."""
        return self.side // 2

    @property
    def edges(self) -> tuple[int, ...]:
        """Least distances of the second and further buckets of a side.

        T5's code takes floor(log(n / exact) / log(distance / exact) (side - exact)) in float32, which may err at the
        edges; these are exact: the least n with (n / exact)^steps >= (distance / exact)^step.
        """
        steps, found = self.side - self.exact, [*range(1, self.exact + 1)]
        for step in range(1, steps):
            most = self.distance**step * self.exact ** (steps - step)
            n = max(1, math.floor(self.exact * (self.distance / self.exact) ** (step / steps)) - 1)
            while n**steps < most:
                n += 1
            found.append(n)
        return tuple(found)

    def bucket(self, ahead: Any) -> Any:
        """The bucket of each element of `ahead` = j - p, an integer array of numpy or torch."""
        back = (-ahead) * (ahead < 0)
        distance = back if self.past else back + ahead * (ahead > 0)
        place = (ahead > 0) * (0 if self.past else self.side) + distance * 0
        for edge in self.edges:
            place = place + (distance >= edge)
        return place

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        return {"relative_bias": Parameter(shape=(self.buckets, problem.heads_q))}


@dataclass(frozen=True, kw_only=True)
class Sinks(Modifier):
    """A learned logit per head joins the softmax's denominator and brings no value (gpt-oss, 2025)."""

    name = "sinks"

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        # about the log of the number of keys, so that it takes a good part of the weight at every length
        mean = math.log(max(1, problem.longest[1]))
        return {"sinks": Parameter(shape=(problem.heads_q,), mean=mean)}


@dataclass(frozen=True, kw_only=True)
class Rotary(Modifier):
    """q and k are turned by their positions inside the timed call (Su et al. 2021, section 3.2.2).

    Coordinates m and m + D/2 are a pair, as in GPT-NeoX and Llama: at position p they become
    x_m cos a - x_m' sin a and x_m' cos a + x_m sin a, with a = p base^(-2m/D). v is not turned.
    """

    name = "rotary"
    base: float = bounded(1, default=10000.0)

    def frequencies(self, head_dim: int) -> tuple[float, ...]:
        """base^(-2m/D) for m = 0, ..., D/2 - 1: how much each pair turns from one position to the next."""
        return tuple(self.base ** (-2 * m / head_dim) for m in range(head_dim // 2))


MODIFIERS = leaves(Modifier)


@lru_cache(maxsize=4096)
def parse_modifiers(text: str) -> tuple[Modifier, ...]:
    """`softcap:cap=50+sinks` or `none` -> modifiers in the order of their names."""
    if text == "none":
        return ()
    found = [cast(Modifier, parse_variant(part, MODIFIERS, "modifier")) for part in text.split("+")]
    return tuple(sorted(found, key=str))
