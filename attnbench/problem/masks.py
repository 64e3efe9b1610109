"""Masks: which keys each query may attend to."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, cast

from attnbench.errors import ProblemError
from attnbench.problem.variants import Variant, bounded, leaves, parse_variant


@dataclass(frozen=True, kw_only=True)
class Mask(Variant):
    """Which keys each query may attend to: a formula of the indices, and of seeded numbers."""

    gaps: ClassVar[bool] = False
    """Whether keys between the first and the last that a query may attend to may be forbidden."""
    differs: ClassVar[bool] = False
    """Whether it differs between the members of a batch."""

    @property
    def parts(self) -> tuple["Mask", ...]:
        """What it is the product of."""
        return (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that an implementation must list in order to support this mask."""
        return (self.name,)

    @property
    def by_member(self) -> bool:
        """Whether it differs between the members of a batch, so that `allowed` asks for `b`."""
        return self.differs

    @property
    def contiguous(self) -> bool:
        """Whether the keys of every query lie side by side, so that `outline` says all."""
        return not any(part.gaps for part in self.parts)

    def allowed(self, i: Any, j: Any, sq: int, sk: int, b: Any = 0) -> Any:
        """True where query i of member b of the batch may attend to key j.

        `i` [Sq, 1] and `j` [1, Sk] are integers or integer arrays of numpy or torch, and so is `b`, [B, 1, 1, 1].
        The result is boolean [Sq, Sk], and [B, 1, Sq, Sk] where the mask differs by the member.
        """
        seen, p = (i >= 0) & (j >= 0), i + (sk - sq)
        if self.by_member:
            seen = seen & (b >= 0)
        for part in self.parts:
            seen = seen & part._rule(i, j, p, sk, b)
        return seen

    def outline(self, i: Any, sq: int, sk: int, b: int = 0) -> tuple[Any, Any, Any]:
        """First, near and last key of the queries `i` [n], an integer array of numpy or torch.

        First and last are those that the query may attend to; first > last where it may to none. Near is the first key
        of the run that ends at the query's own position, which is first itself where the mask is contiguous. Exact
        for contiguous masks; else first may lie before, last behind and near within the exact ones.
        """
        p = i + (sk - sq)
        first, near, last = 0 * p, 0 * p, 0 * p + (sk - 1)
        for part in self.parts:
            low, high = part._span(i, p, sk, b)
            first, last = _larger(first, low), -_larger(-last, -high)
            if part.gaps:
                near = _larger(near, part._near(p, sk))
        return first, _larger(near, first), last

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return True

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        """First and last key, which may lie outside the keys."""
        return 0, sk - 1

    def _near(self, p: Any, sk: int) -> Any:
        return 0


def _larger(array: Any, other: Any) -> Any:
    return array + (other - array).clip(0)


@dataclass(frozen=True, kw_only=True)
class Full(Mask):
    """Every query sees every key."""

    name = "full"


@dataclass(frozen=True, kw_only=True)
class Causal(Mask):
    """j <= p: the last query sees every key (flash-attention's alignment, bottom right)."""

    name = "causal"

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return j <= p

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return 0, p


@dataclass(frozen=True, kw_only=True)
class CausalTopLeft(Mask):
    """j <= i: the first query sees only the first key (the alignment of torch's `is_causal`)."""

    name = "causal-top-left"

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return j <= i

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return 0, i


@dataclass(frozen=True, kw_only=True)
class Window(Mask):
    """p - left <= j <= p + right; a side left out has no bound."""

    name = "window"
    left: int | None = bounded(0, default=None)
    right: int | None = bounded(0, default=None)

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        rule = True if self.left is None else j >= p - self.left
        return rule if self.right is None else rule & (j <= p + self.right)

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return 0 if self.left is None else p - self.left, sk - 1 if self.right is None else p + self.right


@dataclass(frozen=True, kw_only=True)
class Chunked(Mask):
    """Queries see the keys of their own chunk of `size` positions (Llama 4, times `causal`)."""

    name = "chunked"
    size: int = bounded()

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return j // self.size == p // self.size

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        first = p // self.size * self.size
        return first, first + self.size - 1


@dataclass(frozen=True, kw_only=True)
class Dilated(Mask):
    """Queries see every `step`-th key, counted from their own position."""

    name = "dilated"
    gaps = True
    step: int = bounded()

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return (p - j) % self.step == 0

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return p % self.step, sk - 1 - (sk - 1 - p) % self.step

    def _near(self, p: Any, sk: int) -> Any:
        return p if self.step > 1 else 0


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Mask):
    """The first `prefix` keys are seen by all, the rest is causal (Raffel et al. 2020, figure 4)."""

    name = "prefix-lm"
    prefix: int = bounded(0)

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return (j < self.prefix) | (j <= p)

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return 0, p.clip(self.prefix - 1)


@dataclass(frozen=True, kw_only=True)
class BlockCausal(Mask):
    """Causal between blocks of `size` positions, full within one."""

    name = "block-causal"
    size: int = bounded()

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return j // self.size <= p // self.size

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return 0, p // self.size * self.size + self.size - 1


@dataclass(frozen=True, kw_only=True)
class GlobalWindow(Mask):
    """The first `tokens` positions see and are seen by all; the others see a window (Longformer, 2020)."""

    name = "global-window"
    gaps = True
    tokens: int = bounded(0)
    left: int = bounded(0)
    right: int = bounded(0)

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        near = (j >= p - self.left) & (j <= p + self.right)
        return (j < self.tokens) | ((p >= 0) & (p < self.tokens)) | near

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        last = (p + self.right).clip(self.tokens - 1)
        whole = (p >= 0) & (p < self.tokens)
        return 0 if self.tokens else p - self.left, last + whole * (sk - 1 - last)

    def _near(self, p: Any, sk: int) -> Any:
        first = p - self.left
        return (p >= self.tokens) * (first > self.tokens) * first if self.tokens else first


LARGEST_TREE = 2**20
"""Nodes."""


@dataclass(frozen=True, kw_only=True)
class Tree(Mask):
    """Causal, but the last tokens are a tree of guesses: each sees its ancestors among them, and all before the tree.

    The tree is complete: a root, `width` children of each node, `depth` levels below the root; its nodes stand in
    depth-first order, each before its children (tree attention of SpecInfer: Miao et al. 2023).
    """

    name = "tree"
    gaps = True
    width: int = bounded()
    depth: int = bounded()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.width > 1 and self.depth > 20) or self._size(0) > LARGEST_TREE:
            raise ProblemError(
                f"a tree of width {self.width} and depth {self.depth} has more than {LARGEST_TREE:,} nodes"
            )

    def _size(self, level: int) -> int:
        """Nodes of a subtree whose root is on `level`."""
        rest = self.depth - level
        return rest + 1 if self.width == 1 else (self.width ** (rest + 1) - 1) // (self.width - 1)

    def until(self, j: Any, sk: int) -> Any:
        """Keys j [n] are seen by the queries of the positions j to `until` - 1: those of their subtrees.

        `sk` or more for the keys before the tree.
        """
        node = left = j - (sk - self._size(0))
        size = self._size(0)
        for level in range(1, self.depth + 1):  # descend to the node; `left` counts the nodes still before it
            below = left > 0
            size = size + below * (self._size(level) - size)
            left = below * ((left - 1) % self._size(level))
        return j + size + (node < 0) * sk

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        return (j <= p) & (p < self.until(j, sk))

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return 0, p

    def _near(self, p: Any, sk: int) -> Any:
        """The last of a node's ancestors, itself among them, that has an elder sibling: that one's subtree lies before."""
        node, near = 0 * p + (sk - self._size(0)), 0 * p
        left = p - node
        for level in range(1, self.depth + 1):
            size, below = self._size(level), left > 0
            elder = below * ((left - 1) // size)
            node = node + below * (1 + elder * size)
            near = near + (elder > 0) * (node - near)
            left = below * ((left - 1) % size)
        return near


@dataclass(frozen=True, kw_only=True)
class BlockSparse(Mask):
    """A seeded choice of `block` x `block` tiles, each with the chance `density`, and the tile of the query itself."""

    name = "block-sparse"
    gaps = True
    density: float = bounded(0, 1)
    block: int = bounded(default=128)
    seed: int = bounded(0, default=0)

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        row, column = p // self.block, j // self.block
        return (row == column) | self._chosen(row, column)

    def _chosen(self, row: Any, column: Any) -> Any:
        """Arithmetic instead of a table, so that it is the same in every array library and takes no memory."""
        chance = (_draw(self.seed, 0, row) + _draw(self.seed, 1, column)) % _PRIME
        return chance < self.density * _PRIME

    def _near(self, p: Any, sk: int) -> Any:
        row = run = p // self.block
        for back in range(1, 9):
            run = run - ((run == row - back + 1) & self._chosen(row, row - back)) * 1
        return run * self.block


_PRIME = 2**31 - 1  # squares of what is below it fit into 64 bits


def _draw(seed: int, side: int, number: Any) -> Any:
    """A number below `_PRIME` that looks random, from integers or integer arrays."""
    x: Any = seed % _PRIME
    for word in (side, number, 2, 3, 4):
        x = (x * x + 1_318_699 * (word + 1)) % _PRIME
    return x


@dataclass(frozen=True, kw_only=True)
class MemberMask(Mask):
    """A mask that differs between the members of a batch."""

    differs = True


def _of(b: Any, numbers: Callable[[int], tuple[int, ...]]) -> Sequence[Any]:
    """`numbers` of member b; of an array b, an array in its place for each of the numbers."""
    if not hasattr(b, "shape"):
        return numbers(b)
    columns = zip(*map(numbers, range(int(b.max()) + 1)), strict=True)
    if hasattr(b, "new_tensor"):  # torch, which is not imported here
        return [b.new_tensor(column)[b] for column in columns]
    import numpy as np

    return [np.asarray(column)[b] for column in columns]


@dataclass(frozen=True, kw_only=True)
class Document(MemberMask):
    """Each member of the batch holds `count` documents with seeded lengths, which see only themselves.

    The lengths are those of a stick that is broken at random, at least one token each. A member that has fewer
    keys holds as many documents as it has keys.
    """

    name = "document"
    count: int = bounded()
    seed: int = bounded(0, default=0)

    def cuts(self, sk: int, b: int = 0) -> tuple[int, ...]:
        """Where the second and further documents of member b begin, ascending; fewer where there are fewer keys."""
        return _cuts(self.count, self.seed, sk, b)

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        cuts = _of(b, lambda member: self.cuts(sk, member))
        return (p >= 0) & (sum(p >= cut for cut in cuts) == sum(j >= cut for cut in cuts))

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        edges = (0, *self.cuts(sk, b), sk)
        first, last = 0 * p, 0 * p + edges[1] - 1 - (p < 0) * sk
        for before, cut, behind in zip(edges, edges[1:-1], edges[2:], strict=False):
            first, last = first + (p >= cut) * (cut - before), last + (p >= cut) * (behind - cut)
        return first, last


@lru_cache(maxsize=4096)
def _cuts(count: int, seed: int, sk: int, b: int) -> tuple[int, ...]:
    chance, cuts = random.Random(f"{seed} {b}"), max(0, min(count, sk) - 1)
    draws = sorted(int(chance.random() * (sk - cuts)) for _ in range(cuts))
    return tuple(draw + place for place, draw in enumerate(draws, start=1))  # no two alike


_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class _Padding(MemberMask):
    share: float = bounded(0, 1)
    seed: int = bounded(0, default=0)

    def keys(self, sk: int, b: int = 0) -> int:
        """Keys of member b that are no padding, at least one.

        Shares of padding are spread evenly (multiples of the golden ratio, modulo 1) about `share`, as far to both
        sides as fits between 0 and 1: the first member of seed 0 has `share` itself.
        """
        far, place = min(self.share, 1 - self.share), (0.5 + _GOLDEN * (b + 1009 * (self.seed % 2**20))) % 1
        return max(min(sk, 1), sk - round(sk * (self.share + far * (2 * place - 1))))


@dataclass(frozen=True, kw_only=True)
class KeyPadding(_Padding):
    """Members of the batch whose last keys are padding, with seeded lengths; `share` is the padded part."""

    name = "key-padding"

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        (keys,) = _of(b, lambda member: (self.keys(sk, member),))
        return j < keys

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return 0, self.keys(sk, b) - 1


@dataclass(frozen=True, kw_only=True)
class LeftPadding(_Padding):
    """As key-padding, but the first keys are the padding."""

    name = "left-padding"

    def _rule(self, i: Any, j: Any, p: Any, sk: int, b: Any) -> Any:
        (keys,) = _of(b, lambda member: (self.keys(sk, member),))
        return j >= sk - keys

    def _span(self, i: Any, p: Any, sk: int, b: int) -> tuple[Any, Any]:
        return sk - self.keys(sk, b), sk - 1


@dataclass(frozen=True)
class Product(Mask):
    """Allowed where every factor allows: `document:count=4*causal`. Kept in the order of the text."""

    name = "product"
    factors: tuple[Mask, ...] = ()

    def __post_init__(self) -> None:
        if len(self.factors) < 2:
            raise ProblemError("a product of masks needs at least two factors")

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.factors

    @property
    def by_member(self) -> bool:
        return any(factor.by_member for factor in self.factors)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *(name for factor in self.factors for name in factor.names))

    def __str__(self) -> str:
        return "*".join(map(str, self.factors))


MASKS = {name: kind for name, kind in leaves(Mask).items() if kind is not Product}
ALL_MASKS = frozenset(MASKS) | {Product.name}
"""Names of all masks and of their products: what an implementation lists that asks `allowed` with `b`."""
INDEX_MASKS = frozenset(name for name in ALL_MASKS if not issubclass(MASKS.get(name, Product), MemberMask))
"""Names of the masks that are the same for all members of a batch: what one lists that asks `allowed` without `b`."""


@lru_cache(maxsize=4096)
def parse_mask(text: str) -> Mask:
    """`causal`, `window:left=1023:right=0`, `document:count=4*causal` -> a mask. Raises `ProblemError`."""
    factors = tuple(cast(Mask, parse_variant(part, MASKS, "mask")) for part in text.split("*"))
    return factors[0] if len(factors) == 1 else Product(factors)
