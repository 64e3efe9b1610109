"""docs/problems.md: who computes what. Every value of every axis, by every implementation of ours, on a CPU.

A value that nobody computes stands in `GAPS`. The table is written by `pytest -m full tests/test_coverage.py`.
"""

import re
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from attnbench import plugins, testing
from attnbench.plugins import Registry
from attnbench.problem import (
    LAYOUTS,
    MASKS,
    MECHANISMS,
    MODIFIERS,
    Direction,
    DType,
    parse_words,
)
from attnbench.records import Status

PAGE = Path(__file__).parents[1] / "docs" / "problems.md"

WRITTEN = {
    "causal-top-left": "causal-top-left seqlen_q=33 seqlen_kv=80",  # of equal lengths it is `causal`
    "window": "window:left=16:right=2",
    "chunked": "chunked:size=20",
    "dilated": "dilated:step=3",
    "prefix-lm": "prefix-lm:prefix=20",
    "block-causal": "block-causal:size=20",
    "global-window": "global-window:tokens=2:left=16:right=2",
    "tree": "tree:width=2:depth=4",
    "block-sparse": "block-sparse:density=0.4:block=20",
    "document": "document:count=3",
    "key-padding": "key-padding:share=0.4",
    "left-padding": "left-padding:share=0.4",
    "softcap": "softcap:cap=5",
    "local-gaussian": "local-gaussian:window=16",
}
"""Names that need a number, with one."""


def named(key: str, names: Iterable[str]) -> list[str]:
    return [f"{key}={WRITTEN.get(name, name)}" for name in names]


AXES = {
    "Masks": [*named("mask", MASKS), "mask=document:count=3*causal"],
    "Score modifiers": [*named("modifiers", MODIFIERS), "modifiers=bias:heads=1", "modifiers=alibi+sinks"],
    "Heads": [
        "heads=4",
        "heads_q=4 heads_kv=2",
        "heads_q=4 heads_kv=1",
        "head_dim=13",
        "head_dim=24 head_dim_v=40",
        "head_dim=192 head_dim_v=128",
        "heads_q=4 heads_kv=1 head_dim=576 head_dim_v=512 shared_kv=true",
    ],
    "Lengths": [
        "seqlen=96",
        "seqlen_q=33 seqlen_kv=80",
        "seqlen_q=80 seqlen_kv=33 mask=causal",
        "requests=2q33s80_1q1s96",
        "requests=1q33_1q0",
    ],
    "Layouts": [
        *named("layout", LAYOUTS),
        "seqlen_q=1 seqlen_kv=96 layout=paged:append=1",
        "requests=2q33s80_1q1s96 modifiers=rotary",
        "layout=packed modifiers=rotary direction=backward",
        "layout=paged modifiers=rotary",
        "layout=paged direction=forward_backward",
    ],
    "Directions": [
        *named("direction", Direction),
        "direction=backward modifiers=bias:grad=1",
        "direction=backward modifiers=relative-bias",
        "direction=backward modifiers=sinks",
    ],
    "Element types": [
        *named("dtype", (dtype for dtype in DType if dtype is not DType.INT8)),  # of k and v only
        "dtype=float8_e4m3 descale=head",
        "dtype=bfloat16 kv_dtype=float8_e4m3",
        "dtype=bfloat16 kv_dtype=int8",
        "dtype=float32 kv_dtype=int8 descale=head",
        "dtype=float32 kv_dtype=float16",
        "dtype=float32 kv_dtype=int8 descale=head layout=packed",
        "dtype=float32 kv_dtype=float8_e4m3 layout=paged",
        "dtype=float8_e4m3 descale=head requests=2q33s80_1q1s96",
    ],
    "Dropout": ["dropout=0", "dropout=0.1"],
    "Mechanisms": [
        *named("mechanism", MECHANISMS),
        "mechanism=entmax:alpha=1.25 direction=backward",
        "mechanism=entmax:alpha=1.75",
    ],
}
"""Words of a problem for each value; the rest is that of `testing.problem`: two members of 4 heads of 32, 96 tokens."""
VALUES = [words for values in AXES.values() for words in values]

GAPS: tuple[str, ...] = ()
"""What nobody computes yet. Who closes one takes its line away and writes the table anew."""

SLOW = ("torch-flex", "torch-compile-naive")
"""They compile for every problem."""


@cache
def registry() -> Registry:
    return plugins.discover()


@cache
def ours() -> tuple[str, ...]:
    """Names of the built-in implementations that are for CPUs."""
    found = registry()
    return tuple(
        name
        for name, one in found.implementations.items()
        if found.owners[name].target.startswith("attnbench.builtin.") and "cpu" in one.capabilities.devices
    )


def checked(name: str, words: str) -> tuple[Status, str]:
    """How an implementation ends with a value, as `attnbench check` says it."""
    text = testing.problem(**parse_words(words)).text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are the libraries' own
        ((_, status, reason),) = testing.check(registry(), name, text, "cpu")
    return status, reason


@pytest.mark.parametrize("words", VALUES)
def test_every_value_is_computed_rightly_by_somebody_or_is_a_known_gap(words: str) -> None:
    ends = ((name, *checked(name, words)) for name in ours() if name not in SLOW)
    first = next((end for end in ends if end[1] is not Status.UNSUPPORTED), None)
    if words in GAPS:
        assert first is None, "no gap any more: take it out of GAPS, and write the table anew"
    else:
        assert first is not None, "nobody computes it"
        assert first[1] is Status.OK, first


# ---------------------------------------------------------------- the table


def section(page: str) -> str:
    return page.partition("<!-- coverage -->\n")[2].partition("<!-- /coverage -->")[0]


def test_the_table_in_the_docs_has_every_value_and_says_where_the_gaps_are() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", section(PAGE.read_text()), re.MULTILINE)
    assert [words for words, _ in rows] == VALUES
    assert {words for words, who in rows if who == "nobody"} == {*GAPS}
    assert {name for _, who in rows for name in re.findall(r"`([^`]+)`", who)} <= {*ours()}


def row(words: str, ends: Iterable[tuple[str, Status, str]]) -> str:
    able: list[str] = []
    against: dict[str, list[str]] = {}
    for name, status, reason in ends:
        if status is Status.OK:
            able.append(f"`{name}`")
        else:
            told = reason if status is Status.UNSUPPORTED else f"{status}: {reason}"
            against.setdefault(told, []).append(f"`{name}`")
    why_not = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in against.items())
    return f"| `{words}` | {', '.join(able) or 'nobody'} | {why_not} |"


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_whole_table() -> None:
    """Writes it, even where something is wrong."""
    lines, bad = [], []
    for axis, values in AXES.items():
        lines += [f"**{axis}**", "", "| value | ok | why not |", "|---|---|---|"]
        for words in values:
            ends = [(name, *checked(name, words)) for name in ours()]
            bad += [(words, *end) for end in ends if end[1] in (Status.WRONG, Status.FAILED)]
            lines.append(row(words, ends))
        lines.append("")
    page, text = PAGE.read_text(), "\n".join(lines)
    PAGE.write_text(page.replace(f"<!-- coverage -->\n{section(page)}", f"<!-- coverage -->\n{text}"))
    assert not bad
