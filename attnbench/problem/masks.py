"""Masks: which keys each query may attend to."""

import operator
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, cast

from attnbench.errors import ProblemError
from attnbench.problem.variants import Variant, bounded, leaves, parse_variant


@dataclass(frozen=True, kw_only=True)
class Mask(Variant):
    """Which keys each query may attend to."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that an implementation must list in order to support this mask."""
        return (self.name,)

    @property
    def by_index(self) -> bool:
        """Whether the mask is a formula of the two indices, so that `allowed` works."""
        return False

    def allowed(self, i: Any, j: Any, sq: int, sk: int) -> Any:
        """True where query i may attend to key j.

        `i` [Sq, 1] and `j` [1, Sk] are integer arrays of numpy or torch; the result is boolean [Sq, Sk].
        Raises `ProblemError` where the mask is no formula of the indices.
        """
        raise ProblemError(f"the {self.name} mask is not a formula of the two indices")


@dataclass(frozen=True, kw_only=True)
class IndexMask(Mask):
    """A mask that is a formula of the two indices."""

    @property
    def by_index(self) -> bool:
        return True

    def allowed(self, i: Any, j: Any, sq: int, sk: int) -> Any:
        return (i >= 0) & (j >= 0) & self._rule(i, j, i + (sk - sq))

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return True


@dataclass(frozen=True, kw_only=True)
class Full(IndexMask):
    """Every query sees every key."""

    name = "full"


@dataclass(frozen=True, kw_only=True)
class Causal(IndexMask):
    """j <= p: the last query sees every key (flash-attention's alignment, bottom right)."""

    name = "causal"

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j <= p


@dataclass(frozen=True, kw_only=True)
class CausalTopLeft(IndexMask):
    """j <= i: the first query sees only the first key (the alignment of torch's `is_causal`)."""

    name = "causal-top-left"

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j <= i


@dataclass(frozen=True, kw_only=True)
class Window(IndexMask):
    """p - left <= j <= p + right; a side left out has no bound."""

    name = "window"
    left: int | None = bounded(0, default=None)
    right: int | None = bounded(0, default=None)

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        rule = True if self.left is None else j >= p - self.left
        return rule if self.right is None else rule & (j <= p + self.right)


@dataclass(frozen=True, kw_only=True)
class Chunked(IndexMask):
    """Queries see the keys of their own chunk of `size` positions (Llama 4, times `causal`)."""

    name = "chunked"
    size: int = bounded()

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j // self.size == p // self.size


@dataclass(frozen=True, kw_only=True)
class Dilated(IndexMask):
    """Queries see every `step`-th key, counted from their own position."""

    name = "dilated"
    step: int = bounded()

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return (p - j) % self.step == 0


@dataclass(frozen=True, kw_only=True)
class PrefixLM(IndexMask):
    """The first `prefix` keys are seen by all, the rest is causal (Raffel et al. 2020, figure 4)."""

    name = "prefix-lm"
    prefix: int = bounded(0)

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return (j < self.prefix) | (j <= p)


@dataclass(frozen=True, kw_only=True)
class BlockCausal(IndexMask):
    """Causal between blocks of `size` positions, full within one."""

    name = "block-causal"
    size: int = bounded()

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        return j // self.size <= p // self.size


@dataclass(frozen=True, kw_only=True)
class GlobalWindow(IndexMask):
    """`tokens` global positions see and are seen by all; the others see a window (Longformer, 2020)."""

    name = "global-window"
    tokens: int = bounded(0)
    left: int = bounded(0)
    right: int = bounded(0)

    def _rule(self, i: Any, j: Any, p: Any) -> Any:
        near = (j >= p - self.left) & (j <= p + self.right)
        return (j < self.tokens) | (p < self.tokens) | near


@dataclass(frozen=True, kw_only=True)
class Document(Mask):
    """Each row of the batch holds `count` documents with seeded lengths that see only themselves."""

    name = "document"
    count: int = bounded()
    seed: int = bounded(0, default=0)


@dataclass(frozen=True, kw_only=True)
class Tree(Mask):
    """The last queries form a tree of `width` children down to `depth`; each sees its ancestors."""

    name = "tree"
    width: int = bounded()
    depth: int = bounded()


@dataclass(frozen=True, kw_only=True)
class BlockSparse(Mask):
    """A seeded choice of `block` x `block` tiles, the share `density` of them."""

    name = "block-sparse"
    density: float = bounded(0, 1)
    block: int = bounded(default=128)
    seed: int = bounded(0, default=0)


@dataclass(frozen=True, kw_only=True)
class KeyPadding(Mask):
    """Rows of the batch whose last keys are padding, with seeded lengths; `share` is the padded part."""

    name = "key-padding"
    share: float = bounded(0, 1)
    seed: int = bounded(0, default=0)


@dataclass(frozen=True, kw_only=True)
class LeftPadding(Mask):
    """As key-padding, but the first keys are the padding."""

    name = "left-padding"
    share: float = bounded(0, 1)
    seed: int = bounded(0, default=0)


@dataclass(frozen=True)
class Product(Mask):
    """Allowed where every factor allows: `document:count=4*causal`. Kept in the order of the text."""

    name = "product"
    factors: tuple[Mask, ...] = ()

    def __post_init__(self) -> None:
        if len(self.factors) < 2:
            raise ProblemError("a product of masks needs at least two factors")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *(name for factor in self.factors for name in factor.names))

    @property
    def by_index(self) -> bool:
        return all(factor.by_index for factor in self.factors)

    def allowed(self, i: Any, j: Any, sq: int, sk: int) -> Any:
        return reduce(operator.and_, (factor.allowed(i, j, sq, sk) for factor in self.factors))

    def __str__(self) -> str:
        return "*".join(map(str, self.factors))


MASKS = {name: kind for name, kind in leaves(Mask).items() if kind is not Product}
INDEX_MASKS = frozenset(name for name, kind in MASKS.items() if issubclass(kind, IndexMask)) | {Product.name}
"""Names of the masks whose `allowed` works, and of their products: what an implementation lists that asks it."""


@lru_cache(maxsize=4096)
def parse_mask(text: str) -> Mask:
    """`causal`, `window:left=1023:right=0`, `document:count=4*causal` -> a mask. Raises `ProblemError`."""
    factors = tuple(cast(Mask, parse_variant(part, MASKS, "mask")) for part in text.split("*"))
    return factors[0] if len(factors) == 1 else Product(factors)
