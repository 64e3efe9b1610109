import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import ProblemError
from attnbench.problem import (
    LAYOUTS,
    MASKS,
    MECHANISMS,
    MODIFIERS,
    PATTERNS,
    Causal,
    CausalTopLeft,
    Direction,
    DType,
    Problem,
    Softcap,
    parse_mask,
    parse_requests,
    problem_from,
    requests_text,
)
from attnbench.testing import problem

LLAMA = "batch=1 seqlen=512 heads_q=32 heads_kv=8 head_dim=128 dtype=bfloat16 mask=causal"


def test_the_canonical_text_is_read_back_as_the_same_problem() -> None:
    found = Problem.parse(LLAMA)
    assert found.text == LLAMA
    assert Problem.parse(found.text) == found


def _variants(kinds: dict[str, type]) -> list[str]:
    texts = []
    for name, kind in kinds.items():
        values = {f.name: 1 for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        texts.append(":".join([name, *(f"{k}={v}" for k, v in values.items())]))
    return texts


@pytest.mark.parametrize("mask", [*_variants(MASKS), "document:count=4*causal", "causal*window:left=5"])
def test_every_mask_has_a_text_that_is_read_back(mask: str) -> None:
    found = problem(mask=mask, seqlen_q=3, seqlen_kv=8)
    assert Problem.parse(found.text) == found
    assert "," not in found.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("modifiers", text) for text in _variants(MODIFIERS)),
        *(("mechanism", text) for text in _variants(MECHANISMS)),
        *(("layout", text) for text in _variants(LAYOUTS)),
        *(("dtype", text) for text in DType),
        *(("kv_dtype", text) for text in DType),
        *(("direction", text) for text in Direction),
        ("scale", 0.123456789012345),
        ("dropout", 0.1),
        ("shared_kv", True),
        ("head_dim_v", 16),
        ("requests", "2q2k_32q1s1k_1q0s5"),
    ],
)
def test_every_axis_is_part_of_the_text(key: str, value: object) -> None:
    found = problem(**{key: value})
    assert Problem.parse(found.text) == found
    default = {"modifiers": "none", "mechanism": "softmax", "layout": "dense", "direction": "forward"}
    if value not in (default.get(key), "float32"):
        assert found != problem()
        assert found.text != problem().text


def test_defaults_stay_out_of_the_text_so_that_new_axes_do_not_change_old_keys() -> None:
    assert problem(scale=32**-0.5, modifiers="none", layout="dense", dropout=0.0).text == problem().text


def test_top_left_and_bottom_right_are_one_problem_only_where_the_lengths_are_equal() -> None:
    assert isinstance(problem(mask="causal-top-left").mask, Causal)
    assert isinstance(problem(mask="causal-top-left", seqlen_q=3, seqlen_kv=8).mask, CausalTopLeft)


def _drawn(mask: str, sq: int, sk: int) -> list[str]:
    import numpy as np

    i, j = np.arange(sq)[:, None], np.arange(sk)[None, :]
    return ["".join("1" if x else "0" for x in row) for row in parse_mask(mask).allowed(i, j, sq, sk)]


@pytest.mark.parametrize(
    ("mask", "drawn"),
    [
        ("full", ["11111", "11111", "11111"]),
        ("causal", ["11100", "11110", "11111"]),
        ("causal-top-left", ["10000", "11000", "11100"]),
        ("window:left=1:right=0", ["01100", "00110", "00011"]),
        ("window:left=0:right=1", ["00110", "00011", "00001"]),
        ("chunked:size=2", ["00110", "00110", "00001"]),
        ("dilated:step=2", ["10101", "01010", "10101"]),
        ("prefix-lm:prefix=4", ["11110", "11110", "11111"]),
        ("block-causal:size=2", ["11110", "11110", "11111"]),
        ("global-window:tokens=1:left=1:right=0", ["11100", "10110", "10011"]),
        ("causal*chunked:size=2", ["00100", "00110", "00001"]),
    ],
)
def test_masks_as_small_matrices(mask: str, drawn: list[str]) -> None:
    assert _drawn(mask, 3, 5) == drawn


def test_a_causal_row_before_the_first_key_is_fully_masked() -> None:
    assert _drawn("causal", 4, 2) == ["00", "00", "10", "11"]


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=20))
def test_batch_grammar_is_its_own_inverse(sequences: list[tuple[int, int]]) -> None:
    assert parse_requests(requests_text(tuple(sequences))) == tuple(sequences)


def test_batch_grammar_multiplies_k_by_1024() -> None:
    assert parse_requests("2q2k_1q1s1k") == ((2048, 2048), (2048, 2048), (1, 1024))


@pytest.mark.parametrize(
    ("text", "place"),
    [("2q2k_32x1", 8), ("q5", 1), ("3q", 3), ("2q2k_", 6), ("1q5s", 5), ("0q5", 1), ("1q5z", 4)],
)
def test_batch_grammar_points_at_the_character(text: str, place: int) -> None:
    with pytest.raises(ProblemError, match=rf"character {place} "):
        parse_requests(text)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"heads_q": 3, "heads_kv": 2}, "heads_q must be a multiple of heads_kv, got 3 and 2", None),
        ({"seqlen": -4}, "seqlen_q must be at least 1, got -4", None),
        ({"batch": 0}, "batch must be from 1 to 65,536, got 0", None),
        ({"batch": 10**9}, "batch must be from 1 to 65,536, got 1,000,000,000", None),
        ({"requests": "999999999q1"}, "requests: a batch has at most 65,536 members, got 999,999,999", None),
        ({"mask": "casual"}, "unknown mask `casual`", "did you mean `causal`?"),
        ({"mask": "window:lefft=3"}, "mask `window` has no `lefft`", "did you mean `left`?"),
        ({"mask": "full:3"}, "mask `full` has no `3`", "it takes no numbers"),
        ({"mask": "window:left=x"}, "left of window must be a whole number, got 'x'", None),
        ({"mask": "chunked"}, "mask `chunked` needs `size`", "write chunked:size=16"),
        ({"mask": "block-sparse:density=1.5"}, "density of block-sparse must be at most 1, got 1.5", None),
        (
            {"mask": "tree:width=4:depth=30"},
            "a tree of width 4 and depth 30 has more than 1,048,576 nodes",
            None,
        ),
        ({"dtype": "bf16"}, "unknown dtype `bf16`", "bfloat16"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0", None),
        ({"scale": 0.0}, "scale must be a finite number other than 0, got 0.0", None),
        ({"scale": float("nan")}, "scale must be a finite number other than 0, got nan", None),
        ({"scale": -1e39}, "scale must be finite in float32, got -1e+39", None),
        ({"modifiers": "softcap:cap=1e39"}, "cap of softcap must be finite in float32, got 1e+39", None),
        (
            {"modifiers": "softcap:cap=65505", "dtype": "float16"},
            "cap of softcap must be finite in float16, got 65505.0",
            None,
        ),
        ({"modifiers": "softcap:cap=5+softcap:cap=9"}, "modifiers name `softcap` twice", None),
        ({"head_dimm": 4}, "unknown key `head_dimm`", "did you mean `head_dim`?"),
        (
            {"shared_kv": True, "head_dim_v": 64},
            "shared k and v need head_dim_v <= head_dim, got 64 > 32",
            None,
        ),
    ],
)
def test_impossible_problems_cannot_be_built(
    changes: dict[str, object], message: str, hint: str | None
) -> None:
    with pytest.raises(ProblemError) as caught:
        problem(**changes)
    assert caught.value.message == message
    if hint:
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        *("mask=block-sparse:density=0.12345678:block=16", "modifiers=softcap:cap=30.000004"),
        *(
            "mechanism=entmax:alpha=1.0000001",
            "modifiers=sinks+softcap:cap=1e16",
            "modifiers=rotary:base=1000000",
        ),
    ],
)
def test_numbers_keep_all_their_digits_in_a_text(text: str) -> None:
    one = Problem.parse(f"seqlen=4 heads=2 head_dim=16 {text}")
    assert text.partition("=")[2] in one.text
    assert Problem.parse(one.text) == one


KINDS = {
    "mask": MASKS,
    "modifiers": MODIFIERS,
    "mechanism": MECHANISMS,
    "layout": LAYOUTS,
    "requests": PATTERNS,
}
PARAMETERS = [
    (key, name, field.name, "finite" if field.type is float else "a whole number")
    for key, kinds in KINDS.items()
    for name, kind in kinds.items()
    for field in dataclasses.fields(kind)
    if name != "product"
]


@pytest.mark.parametrize(("key", "name", "field", "due"), PARAMETERS)
def test_every_number_in_a_text_is_finite_and_fits_into_64_bits(
    key: str, name: str, field: str, due: str
) -> None:
    for number in ("inf", "-inf", "nan", "1e999"):
        with pytest.raises(ProblemError) as caught:
            problem(**{key: f"{name}:{field}={number}"})
        assert caught.value.message == f"{field} of {name} must be {due}, got '{number}'"
        assert str(caught.value.shown).endswith("^")
    if due != "finite":
        with pytest.raises(
            ProblemError, match=f"{field} of {name} must be a whole number of at most 18 digits"
        ):
            problem(**{key: f"{name}:{field}={'9' * 5000}"})


@pytest.mark.parametrize("cap", [math.inf, math.nan])
def test_a_modifier_that_is_built_by_hand_is_finite_too(cap: float) -> None:
    with pytest.raises(ProblemError, match=f"cap of softcap must be finite, got {cap}"):
        Softcap(cap=cap)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scale=inf", "scale must be finite, got 'inf'"),
        ("dropout=nan", "dropout must be finite, got 'nan'"),
        (f"batch={'9' * 400}", "batch must be a whole number of at most 18 digits, got '999"),
        ("batch=1_0", "batch must be a whole number, got '1_0'"),
        ("mask=window:left=1_0", "left of window must be a whole number, got '1_0'"),
    ],
)
def test_an_unusual_number_is_refused_in_words_too(text: str, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        Problem.parse(f"seqlen=4 heads=2 head_dim=16 {text}")
    assert caught.value.message.startswith(words)
    assert len(caught.value.message) < 200


def test_a_short_member_holds_as_many_documents_as_it_has_keys() -> None:
    found = Problem.parse("requests=1q9_1q2_1q0 heads=2 head_dim=16 mask=document:count=9")
    assert [len(found.mask.cuts(sk)) + 1 for _, sk in found.sequences] == [9, 2, 1]


def test_two_keys_that_say_the_same_thing_are_refused() -> None:
    with pytest.raises(ProblemError, match="give it or them, not both"):
        problem_from({"seqlen": 4, "seqlen_q": 4, "heads": 1, "head_dim": 8})
    with pytest.raises(ProblemError, match="give one"):
        problem_from({"requests": "1q4", "batch": 2, "heads": 1, "head_dim": 8})


def test_problem_does_not_import_torch() -> None:
    files = list((Path(__file__).parents[1] / "attnbench/problem").glob("*.py"))
    assert files
    for file in files:
        assert not re.search(r"^\s*(import|from) torch", file.read_text(), re.MULTILINE), file
