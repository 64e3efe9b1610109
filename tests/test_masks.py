"""Masks against drawings, cell by cell; their outlines; and what is drawn by lot."""

import numpy as np
import pytest
import torch
from drawn_masks import EXAMPLES, TEXTS, draw
from hypothesis import given
from hypothesis import strategies as st

from attnbench.problem import ALL_MASKS, INDEX_MASKS, MASKS, parse_mask

LENGTHS = st.integers(0, 20)


def test_there_is_an_example_of_every_mask() -> None:
    assert {parse_mask(text).name for text in EXAMPLES.values()} == {*MASKS, "product"} == ALL_MASKS
    assert all(parse_mask(text).name == name for name, text in EXAMPLES.items())


@given(text=TEXTS, sq=LENGTHS, sk=LENGTHS, members=st.integers(1, 3))
def test_every_mask_and_product_is_as_drawn_in_every_array_library(
    text: str, sq: int, sk: int, members: int
) -> None:
    mask = parse_mask(text)
    right = [draw(mask, sq, sk, b) for b in range(members)]
    i, j, b = (np.arange(n) for n in (sq, sk, members))
    for of in (np.asarray, torch.tensor):
        seen = mask.allowed(of(i)[:, None], of(j)[None], sq, sk, of(b)[:, None, None, None])
        assert tuple(seen.shape) == ((members, 1, sq, sk) if mask.by_member else (sq, sk))
        assert np.array_equal(
            np.broadcast_to(np.asarray(seen), (members, 1, sq, sk))[:, 0],
            np.reshape(right, (members, sq, sk)),
        )
    if sq and sk:
        for place in {(0, 0), (sq // 2, sk // 2), (sq - 1, sk - 1)}:
            assert bool(mask.allowed(*place, sq, sk, members - 1)) == right[-1][place[0]][place[1]]


@given(text=TEXTS, sq=LENGTHS, sk=LENGTHS, b=st.integers(0, 2))
def test_the_outline_holds_what_a_query_may_see(text: str, sq: int, sk: int, b: int) -> None:
    mask, i = parse_mask(text), np.arange(sq)
    outlines = [
        [np.asarray(line) for line in mask.outline(of(i), sq, sk, b)] for of in (np.asarray, torch.tensor)
    ]
    assert all(np.array_equal(one, other) for one, other in zip(*outlines, strict=True))
    for row, first, near, last in zip(draw(mask, sq, sk, b), *outlines[0], strict=True):
        keys = [j for j, seen in enumerate(row) if seen]
        assert 0 <= first <= near
        assert last < sk
        if mask.contiguous:
            assert keys == [*range(first, last + 1)]
            assert near == first
        else:
            assert set(keys) <= {*range(first, last + 1)}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "dilated:step=3",
            "global-window:tokens=2:left=3:right=1",
        ),
        *("tree:width=3:depth=2", "tree:width=1:depth=4", "block-sparse:density=0.3:block=3"),
    ],
)
@pytest.mark.parametrize(("sq", "sk"), [(40, 40), (12, 40), (40, 12)])
def test_the_run_of_keys_that_ends_at_a_query_begins_at_near(text: str, sq: int, sk: int) -> None:
    mask = parse_mask(text)
    first, near, _ = mask.outline(np.arange(sq), sq, sk)
    gaps = 0
    for i, row in enumerate(draw(mask, sq, sk)):
        p = i + sk - sq
        if p >= 0:
            assert all(row[near[i] : p + 1])
            assert near[i] == first[i] or not row[near[i] - 1]
            gaps += near[i] > first[i]
    assert gaps or "width=1" in text


def test_masks_are_named_by_whether_they_ask_for_the_member() -> None:
    asking = {name for name, text in EXAMPLES.items() if parse_mask(text).by_member}
    assert asking == {"document", "key-padding", "left-padding", "product"}
    assert ALL_MASKS - asking | {"product"} == INDEX_MASKS
    assert parse_mask("causal*chunked:size=2").by_member is False


# ---------------------------------------------------------------- what is drawn by lot


@given(count=st.integers(1, 40), seed=st.integers(0, 10**18 - 1), sk=st.integers(1, 60), b=st.integers(0, 99))
def test_documents_are_as_many_as_fit_and_none_is_empty(count: int, seed: int, sk: int, b: int) -> None:
    edges = (0, *parse_mask(f"document:count={count}:seed={seed}").cuts(sk, b), sk)
    assert len(edges) == min(count, sk) + 1
    assert list(edges) == sorted(set(edges))


def test_documents_differ_between_members_and_seeds_and_stay_the_same() -> None:
    one, other = parse_mask("document:count=4"), parse_mask("document:count=4:seed=1")
    found = [mask.cuts(1000, b) for mask in (one, other) for b in range(3)]
    assert len(set(found)) == 6
    assert found[:2] == [
        (350, 813, 906),
        (140, 194, 868),
    ]  # for ever: they are part of what a stored row means


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_padding_is_spread_evenly_about_its_share(share: float, seed: int) -> None:
    mask = parse_mask(f"key-padding:share={share}:seed={seed}")
    keys = [mask.keys(1000, b) for b in range(64)]
    far = min(share, 1 - share)
    assert abs(sum(keys) / 64_000 - (1 - share)) < far / 16
    assert min(keys) >= 1000 * (1 - share - far) - 1
    assert max(keys) - min(keys) > 1000 * 1.8 * far
    assert mask.keys(1000, 3) != parse_mask(f"key-padding:share={share}:seed={seed + 1}").keys(1000, 3)


def test_the_first_member_is_padded_by_the_share_and_one_key_is_always_left() -> None:
    assert parse_mask("key-padding:share=0.25").keys(1000) == 750
    assert [parse_mask("left-padding:share=1").keys(sk) for sk in (0, 1, 50)] == [0, 1, 1]


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_tiles_are_chosen_whole_and_as_often_as_the_density_says(density: float) -> None:
    n, block = 2048, 16
    mask = parse_mask(f"block-sparse:density={density}:block={block}")
    seen = mask.allowed(np.arange(n)[:, None], np.arange(n), n, n)
    tiles = seen.reshape(n // block, block, n // block, block)
    assert (tiles.any((1, 3)) == tiles.all((1, 3))).all()
    tiles = tiles.all((1, 3))
    assert tiles.diagonal().all()
    share = tiles[~np.eye(n // block, dtype=bool)].mean()
    assert abs(share - density) <= 5 * (density * (1 - density)) ** 0.5 / (n // block)
    if 0 < density < 1:
        assert len({row.tobytes() for row in tiles}) > n // block / 2
        other = parse_mask(f"block-sparse:density={density}:block={block}:seed=1")
        assert not np.array_equal(seen, other.allowed(np.arange(n)[:, None], np.arange(n), n, n))


def test_a_tree_of_single_children_is_causal() -> None:
    assert draw(parse_mask("tree:width=1:depth=5"), 9, 12) == draw(parse_mask("causal"), 9, 12)
