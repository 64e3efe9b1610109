"""docs/problems.md: each mask as its formula and as small matrices, held against the code."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from drawn_masks import draw

from attnbench.problem import MASKS, Mask, parse_mask

PAGE = (Path(__file__).parents[1] / "docs/problems.md").read_text()
BLOCKS = re.findall(r"^```mask\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def formulas() -> dict[str, str]:
    """By the name of the mask."""
    heads = (block.split("\n\n")[0].splitlines() for block in BLOCKS)
    return {parse_mask(head[0]).name: head[1] for head in heads if len(head) == 2}


def shapes(block: str) -> Iterator[tuple[int, int, int, list[str]]]:
    """(Sq, Sk, member, lines of 0 and 1), of shapes that stand side by side, the tallest first."""
    head, *lines = (line.split() for line in block.split("\n\n")[1].splitlines())
    for place, shape in enumerate(head):
        sq, sk, _, b = re.fullmatch(r"(\d+)x(\d+)(,b=(\d+))?", shape).groups()
        yield int(sq), int(sk), int(b or 0), [line[place] for line in lines if len(line) > place]


def evaluated(mask: Mask, sq: int, sk: int, b: int) -> list[list[bool]]:
    """By the formulas of the page."""
    seen = [[True] * sk for _ in range(sq)]
    for part in mask.parts:
        names: dict[str, Any] = {**asdict(part), "sq": sq, "sk": sk}
        match part.name:
            case "document":
                names["cuts"] = part.cuts(sk, b)
            case "key-padding" | "left-padding":
                names["keys"] = part.keys(sk, b)
            case "tree":
                names["until"] = lambda j, part=part: part.until(j, sk)
            case "block-sparse":
                names["chosen"] = part._chosen
        formula = compile(formulas()[part.name], part.name, "eval")
        for i in range(sq):
            for j in range(sk):
                seen[i][j] &= bool(eval(formula, {**names, "i": i, "p": i + sk - sq, "j": j}))
    return seen


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[0])
def test_the_matrices_of_the_page_are_its_formulas_and_the_code(block: str) -> None:
    mask, found = parse_mask(block.split()[0]), list(shapes(block))
    assert found
    for sq, sk, b, lines in found:
        told = [[cell == "1" for cell in line] for line in lines]
        assert set("".join(lines)) <= {"0", "1"}
        assert told == evaluated(mask, sq, sk, b)
        assert told == draw(mask, sq, sk, b)
        assert told == [[bool(mask.allowed(i, j, sq, sk, b)) for j in range(sk)] for i in range(sq)]


def test_every_mask_has_its_section_and_its_formula_in_the_order_of_the_code() -> None:
    masks = PAGE.split("\n## Masks\n")[1].split("\n## ")[0]
    assert re.findall(r"^### `([\w-]+)`$", masks, re.MULTILINE) == [*MASKS] == [*formulas()]


@pytest.mark.parametrize("name", [name for name in MASKS if name not in ("block-sparse", "document")])
def test_masks_are_shown_with_fewer_as_many_and_more_keys_than_queries(name: str) -> None:
    (block, *_) = (block for block in BLOCKS if parse_mask(block.split()[0]).name == name)
    sizes = {(sq > sk) - (sq < sk) for sq, sk, _, _ in shapes(block)}
    assert sizes == {-1, 0, 1} or "padding" in name
