"""Modifiers: changes of the scores between q k^T and the softmax."""

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from attnbench.problem.variants import Variant, bounded, leaves, parse_variant


@dataclass(frozen=True, kw_only=True)
class Modifier(Variant):
    """A change of the scores between q k^T and the softmax."""


@dataclass(frozen=True, kw_only=True)
class Softcap(Modifier):
    """s <- cap * tanh(s / cap), after the scale and before the mask (Gemma 2, 2024, section 2)."""

    name = "softcap"
    cap: float = bounded(1e-6)


@dataclass(frozen=True, kw_only=True)
class Alibi(Modifier):
    """s <- s - m_h |p - j|, m_h a power of two per head (Press et al. 2022)."""

    name = "alibi"


@dataclass(frozen=True, kw_only=True)
class Bias(Modifier):
    """s <- s + bias, a tensor [Hq, Sq, Sk]; `heads=1` is one plane for all heads; `grad=1` wants its gradient."""

    name = "bias"
    heads: int | None = bounded(1, 1, default=None)
    grad: int = bounded(0, 1, default=0)


@dataclass(frozen=True, kw_only=True)
class RelativeBias(Modifier):
    """s <- s + a learned number per head and bucketed distance (T5: Raffel et al. 2020, section 2.1)."""

    name = "relative-bias"
    buckets: int = bounded(default=32)
    distance: int = bounded(default=128)


@dataclass(frozen=True, kw_only=True)
class Sinks(Modifier):
    """A learned logit per head joins the softmax's denominator and brings no value (gpt-oss, 2025)."""

    name = "sinks"


@dataclass(frozen=True, kw_only=True)
class Rotary(Modifier):
    """q and k are rotated inside the timed call (Su et al. 2021)."""

    name = "rotary"
    base: float = bounded(1, default=10000.0)


MODIFIERS = leaves(Modifier)


@lru_cache(maxsize=4096)
def parse_modifiers(text: str) -> tuple[Modifier, ...]:
    """`softcap:cap=50+sinks` or `none` -> modifiers in the order of their names."""
    if text == "none":
        return ()
    found = [cast(Modifier, parse_variant(part, MODIFIERS, "modifier")) for part in text.split("+")]
    return tuple(sorted(found, key=str))
