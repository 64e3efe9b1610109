"""Layouts: how the tokens of a batch lie in memory."""

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from attnbench.problem.variants import Variant, bounded, leaves, parse_variant


@dataclass(frozen=True, kw_only=True)
class Layout(Variant):
    """How the tokens of a batch lie in memory."""


@dataclass(frozen=True, kw_only=True)
class Dense(Layout):
    """[B, S, H, D] or a permutation of it, padded to the longest where the batch is ragged."""

    name = "dense"


@dataclass(frozen=True, kw_only=True)
class Packed(Layout):
    """[total tokens, H, D] with cumulative lengths."""

    name = "packed"


@dataclass(frozen=True, kw_only=True)
class Paged(Layout):
    """K and V in pages of `page` tokens, found through a shuffled block table (Kwon et al. 2023).

    With `append=1` the last Sq keys of each member are not there yet: the call writes them into their places.
    """

    name = "paged"
    page: int = bounded(1, 65536, default=16)
    append: int = bounded(0, 1, default=0)


LAYOUTS = leaves(Layout)


@lru_cache(maxsize=4096)
def parse_layout(text: str) -> Layout:
    """`dense`, `packed`, `paged:page=32:append=1` -> a layout."""
    return cast(Layout, parse_variant(text, LAYOUTS, "layout"))
