"""Mechanisms: how scores come from q and k, and weights from scores.

Parameters belong to a head: W_h multiplies a row vector from the right, q_h W_h.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, cast

from attnbench.problem.parameters import Parameter
from attnbench.problem.variants import Variant, bounded, leaves, parse_variant

if TYPE_CHECKING:
    from attnbench.problem.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Mechanism(Variant):
    """How scores come from q and k, and weights from scores."""

    scaled: ClassVar[bool] = False
    """Whether its scores are scale q k^T, so that a problem's own scale means something."""

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        """Its tensors by their names in `Inputs.extra`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Softmax(Mechanism):
    """softmax(scale q k^T) v (Vaswani et al. 2017, equation 1)."""

    name = "softmax"
    scaled = True


@dataclass(frozen=True, kw_only=True)
class Dot(Mechanism):
    """softmax(q k^T) v, unscaled (Luong et al. 2015, equation 8, `dot`)."""

    name = "dot"


@dataclass(frozen=True, kw_only=True)
class General(Mechanism):
    """softmax(q W k^T) v (Luong et al. 2015, equation 8, `general`)."""

    name = "general"

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        d = problem.head_dim
        return {"w": Parameter(shape=(problem.heads_q, d, d), identity=d**-0.5, deviation=0.5 / d)}


@dataclass(frozen=True, kw_only=True)
class Additive(Mechanism):
    """softmax(w . tanh(q Wq + k Wk)) v, hidden size `hidden`, D if left out (Bahdanau et al. 2015, A.1.2)."""

    name = "additive"
    hidden: int | None = bounded(default=None)

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        d, hidden = problem.head_dim, self.width(problem)
        half = (2 * d) ** -0.5  # the sum of both is N(0, 1)
        return {
            "w_q": Parameter(shape=(problem.heads_q, d, hidden), deviation=half),
            "w_k": Parameter(shape=(problem.heads_kv, d, hidden), deviation=half),
            "w": Parameter(shape=(problem.heads_q, hidden), deviation=2 * hidden**-0.5),
        }

    def width(self, problem: "Problem") -> int:
        return problem.head_dim if self.hidden is None else self.hidden


@dataclass(frozen=True, kw_only=True)
class Location(Mechanism):
    """Weights from the query alone: softmax(q W) v (Luong et al. 2015, equation 8, `location`)."""

    name = "location"

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        d = problem.head_dim
        return {"w": Parameter(shape=(problem.heads_q, d, problem.longest[1]), deviation=d**-0.5)}


@dataclass(frozen=True, kw_only=True)
class Linear(Mechanism):
    """phi(q) (phi(k)^T v) / phi(q) sum phi(k), phi = elu + 1 (Katharopoulos et al. 2020, equations 5 and 7)."""

    name = "linear"


@dataclass(frozen=True, kw_only=True)
class LocalGaussian(Mechanism):
    """Softmax weights times a Gaussian about a predicted position (Luong et al. 2015, equations 9 and 10).

    a_j = softmax(scale q k^T)_j exp(-(j - c)^2 / 2 sigma^2), c = Sk sigmoid(v_p . tanh(q W_p)), sigma = window / 2.
    As in the equations, weights are not normalised again; unlike there, keys beyond the window are not cut off.
    """

    name = "local-gaussian"
    window: int = bounded()
    scaled = True

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        d, heads = problem.head_dim, problem.heads_q
        return {
            "w_p": Parameter(shape=(heads, d, d), deviation=d**-0.5),
            "v_p": Parameter(shape=(heads, d), deviation=2 * d**-0.5),
        }


@dataclass(frozen=True, kw_only=True)
class MultiHead(Mechanism):
    """Softmax attention with its four projections inside the call (Vaswani et al. 2017, 3.2.2).

    q, k, v and the output are taken for [S, H D], the heads side by side.
    """

    name = "multi-head"
    scaled = True

    def parameters(self, problem: "Problem") -> dict[str, Parameter]:
        def square(width: int) -> Parameter:
            return Parameter(shape=(width, width), identity=1.0, deviation=0.5 * width**-0.5)

        return {
            "w_q": square(problem.heads_q * problem.head_dim),
            "w_k": square(problem.heads_kv * problem.head_dim),
            "w_v": square(problem.heads_kv * problem.head_dim_v),
            "w_o": square(problem.heads_q * problem.head_dim_v),
        }


@dataclass(frozen=True, kw_only=True)
class Sparsemax(Mechanism):
    """The Euclidean projection onto the simplex in place of softmax (Martins and Astudillo 2016, equation 2)."""

    name = "sparsemax"
    scaled = True


@dataclass(frozen=True, kw_only=True)
class Entmax(Mechanism):
    """alpha-entmax in place of softmax (Peters et al. 2019, equation 5)."""

    name = "entmax"
    alpha: float = bounded(1, 2, default=1.5)
    scaled = True


MECHANISMS = leaves(Mechanism)


@lru_cache(maxsize=4096)
def parse_mechanism(text: str) -> Mechanism:
    """`softmax`, `additive:hidden=64` -> a mechanism."""
    return cast(Mechanism, parse_variant(text, MECHANISMS, "mechanism"))
