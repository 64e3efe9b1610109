"""Mechanisms: how scores come from q and k, and weights from scores."""

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from attnbench.problem.variants import Variant, bounded, leaves, parse_variant


@dataclass(frozen=True, kw_only=True)
class Mechanism(Variant):
    """How scores come from q and k, and weights from scores."""


@dataclass(frozen=True, kw_only=True)
class Softmax(Mechanism):
    """softmax(scale q k^T) v (Vaswani et al. 2017, equation 1)."""

    name = "softmax"


@dataclass(frozen=True, kw_only=True)
class Dot(Mechanism):
    """softmax(q k^T) v, unscaled (Luong et al. 2015, equation 8, `dot`)."""

    name = "dot"


@dataclass(frozen=True, kw_only=True)
class General(Mechanism):
    """softmax(q W k^T) v (Luong et al. 2015, equation 8, `general`)."""

    name = "general"


@dataclass(frozen=True, kw_only=True)
class Additive(Mechanism):
    """softmax(w . tanh(Wq q + Wk k)) v, hidden size `hidden` (Bahdanau et al. 2015, A.1.2)."""

    name = "additive"
    hidden: int | None = bounded(default=None)


@dataclass(frozen=True, kw_only=True)
class Location(Mechanism):
    """Weights from the query alone: softmax(W q) v (Luong et al. 2015, equation 8, `location`)."""

    name = "location"


@dataclass(frozen=True, kw_only=True)
class Linear(Mechanism):
    """phi(q) (phi(k)^T v) / phi(q) sum phi(k), phi = elu + 1 (Katharopoulos et al. 2020, equation 7)."""

    name = "linear"


@dataclass(frozen=True, kw_only=True)
class LocalGaussian(Mechanism):
    """Softmax weights times a Gaussian around a predicted position (Luong et al. 2015, equation 10)."""

    name = "local-gaussian"
    window: int = bounded()


@dataclass(frozen=True, kw_only=True)
class MultiHead(Mechanism):
    """Softmax attention with its four projections inside the call (Vaswani et al. 2017, 3.2.2)."""

    name = "multi-head"


@dataclass(frozen=True, kw_only=True)
class Sparsemax(Mechanism):
    """The Euclidean projection onto the simplex in place of softmax (Martins and Astudillo 2016)."""

    name = "sparsemax"


@dataclass(frozen=True, kw_only=True)
class Entmax(Mechanism):
    """alpha-entmax in place of softmax (Peters et al. 2019)."""

    name = "entmax"
    alpha: float = bounded(1, 2, default=1.5)


MECHANISMS = leaves(Mechanism)


@lru_cache(maxsize=4096)
def parse_mechanism(text: str) -> Mechanism:
    """`softmax`, `additive:hidden=64` -> a mechanism."""
    return cast(Mechanism, parse_variant(text, MECHANISMS, "mechanism"))
