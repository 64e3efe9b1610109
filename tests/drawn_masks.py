"""Masks drawn cell by cell in plain Python, by other formulations than those of `attnbench.problem.masks`.

Only what is drawn by lot (lengths of documents and paddings, tiles) is asked of the masks themselves.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from hypothesis import strategies as st

from attnbench.problem import Mask, Problem

EXAMPLES = {
    "full": "full",
    "causal": "causal",
    "causal-top-left": "causal-top-left",
    "window": "window:left=3:right=1",
    "chunked": "chunked:size=4",
    "dilated": "dilated:step=3",
    "prefix-lm": "prefix-lm:prefix=4",
    "block-causal": "block-causal:size=3",
    "global-window": "global-window:tokens=2:left=2:right=1",
    "tree": "tree:width=2:depth=2",
    "block-sparse": "block-sparse:density=0.4:block=3",
    "document": "document:count=3",
    "key-padding": "key-padding:share=0.3",
    "left-padding": "left-padding:share=0.4",
    "product": "document:count=3*causal",
}
"""One of each."""
PRODUCTS = (
    "chunked:size=4*causal",
    "dilated:step=3*window:left=7:right=0",
    "global-window:tokens=2:left=3:right=0*causal",
    "document:count=3*window:left=3:right=0",
    "document:count=2:seed=1*key-padding:share=0.5*causal",
    "left-padding:share=0.4*causal",
    "tree:width=2:depth=2*left-padding:share=0.3",
    "block-sparse:density=0.4:block=3*causal",
)

_few, _some = st.integers(0, 7), st.integers(1, 7)
_shares = st.sampled_from([0, 0.2, 0.5, 0.9, 1])
_leaves = st.one_of(
    st.sampled_from(["full", "causal", "causal-top-left"]),
    st.builds("window:left={}:right={}".format, _few, _few),
    st.builds("window:left={}".format, _few),
    st.builds("window:right={}".format, _few),
    st.builds("chunked:size={}".format, _some),
    st.builds("dilated:step={}".format, _some),
    st.builds("prefix-lm:prefix={}".format, _few),
    st.builds("block-causal:size={}".format, _some),
    st.builds("global-window:tokens={}:left={}:right={}".format, _few, _few, _few),
    st.builds("tree:width={}:depth={}".format, st.integers(1, 3), st.integers(1, 3)),
    st.builds("block-sparse:density={}:block={}:seed={}".format, _shares, _some, _few),
    st.builds("document:count={}:seed={}".format, _some, _few),
    st.builds("key-padding:share={}:seed={}".format, _shares, _few),
    st.builds("left-padding:share={}:seed={}".format, _shares, _few),
)
TEXTS = st.lists(_leaves, min_size=1, max_size=3).map("*".join)
"""Any mask, and any product of up to three."""


def draw(mask: Mask, sq: int, sk: int, b: int = 0) -> list[list[bool]]:
    """[Sq][Sk]"""
    rules = [_rule(part, sk, b) for part in mask.parts]
    return [
        [all(rule(i, i + sk - sq, j) for rule in rules) for j in range(sk)]
        for i in range(sq)
    ]  # fmt: skip


def drawn(problem: Problem) -> torch.Tensor:
    """[B, Sq, Sk]"""
    sq, sk = problem.sequences[0]
    every = [draw(problem.mask, sq, sk, b) for b in range(problem.batch)]
    return torch.tensor(every, dtype=torch.bool).view(problem.batch, sq, sk)


def _rule(mask: Mask, sk: int, b: int) -> Callable[[int, int, int], bool]:
    """(i, p, j) -> whether query i, at position p, may attend to key j."""
    match mask.name:
        case "full":
            return lambda i, p, j: True
        case "causal":
            return lambda i, p, j: j in range(p + 1)
        case "causal-top-left":
            return lambda i, p, j: j in range(i + 1)
        case "window":
            left, right = (sk**2 + 99 if side is None else side for side in (mask.left, mask.right))
            return lambda i, p, j: -left <= j - p <= right
        case "chunked":
            return lambda i, p, j: any(
                {p, j} <= set(range(at, at + mask.size)) for at in range(0, sk, mask.size)
            )
        case "dilated":
            return lambda i, p, j: abs(p - j) in range(0, 999, mask.step)
        case "prefix-lm":
            return lambda i, p, j: j in range(max(mask.prefix, p + 1))
        case "block-causal":
            return lambda i, p, j: p >= 0 and j < next(n for n in range(mask.size, 999, mask.size) if n > p)
        case "global-window":
            heads = range(mask.tokens)
            return lambda i, p, j: j in heads or p in heads or -mask.left <= j - p <= mask.right
        case "tree":
            return _tree(mask.width, mask.depth, sk)
        case "block-sparse":
            return lambda i, p, j: (
                p // mask.block == j // mask.block or bool(mask._chosen(p // mask.block, j // mask.block))
            )
        case "document":
            edges = pairwise((0, *mask.cuts(sk, b), sk))
            of = [number for number, (begin, end) in enumerate(edges) for _ in range(begin, end)]
            return lambda i, p, j: p >= 0 and of[p] == of[j]
        case "key-padding":
            return lambda i, p, j: j in range(mask.keys(sk, b))
        case "left-padding":
            return lambda i, p, j: j in range(sk)[sk - mask.keys(sk, b) :]
    raise AssertionError(mask.name)


def _tree(width: int, depth: int, sk: int) -> Callable[[int, int, int], bool]:
    parents: list[int] = []

    def grow(parent: int, levels: int) -> None:
        parents.append(parent)
        me = len(parents) - 1
        for _ in range(width if levels else 0):
            grow(me, levels - 1)

    grow(-1, depth)
    before = sk - len(parents)

    def seen(i: int, p: int, j: int) -> bool:
        if j < before:
            return j <= p
        node = p - before
        while node >= 0 and node != j - before:
            node = parents[node]
        return node >= 0

    return seen
