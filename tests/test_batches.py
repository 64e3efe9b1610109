"""The words in which batches are written, and what is said of those that cannot be read."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import ProblemError
from attnbench.problem import PATTERNS, Problem, Sequences, parse_requests, requests_text
from attnbench.problem.batches import LARGEST_BATCH, LONGEST

COUNT, TOKENS = "a count from 1", "a number of tokens"
Q = "a digit or `q`"
AFTER_Q = "a digit, `k`, `s`, `_` or the end"
AFTER_QK = "`s`, `_` or the end"
AFTER_S = "a digit, `k`, `_` or the end"
MALFORMED = {
    "": (1, COUNT),
    " ": (1, COUNT),
    "_": (1, COUNT),
    "q5": (1, COUNT),
    "k": (1, COUNT),
    "s1": (1, COUNT),
    "0q5": (1, COUNT),
    "-1q5": (1, COUNT),
    "+1q5": (1, COUNT),
    " 2q2k": (1, COUNT),
    "٣q5": (1, COUNT),
    "Q5": (1, COUNT),
    "3": (2, Q),
    "3x": (2, Q),
    "2 q5": (2, Q),
    "2.5q1": (2, Q),
    "2k": (2, Q),
    "2s5": (2, Q),
    "2Q2K": (2, Q),
    "1234567890q1": (10, "only `q`"),
    "3q": (3, TOKENS),
    "2qk": (3, TOKENS),
    "2q-1": (3, TOKENS),
    "2q_1q1": (3, TOKENS),
    "2q s5": (3, TOKENS),
    "1q5z": (4, AFTER_Q),
    "1q5 ": (4, AFTER_Q),
    "1q5q5": (4, AFTER_Q),
    "1q5,1q6": (4, AFTER_Q),
    "2q2K": (4, AFTER_Q),
    "2q2m": (4, AFTER_Q),
    "2q2kk": (5, AFTER_QK),
    "2q2k1": (5, AFTER_QK),
    "2q2k q": (5, AFTER_QK),
    "1q5s": (5, TOKENS),
    "1q5sk": (5, TOKENS),
    "1q5s6s7": (6, AFTER_S),
    "1q5s6x": (6, AFTER_S),
    "1q5s1ks": (7, "`_` or the end"),
    "2q2k_": (6, COUNT),
    "_2q2k": (1, COUNT),
    "2q2k__1q1": (6, COUNT),
    "2q2k_32x1": (8, Q),
    "2q2k_32q1s1k_0q1": (14, COUNT),
    f"1q{'9' * 19}": (21, "`k`, `s`, `_` or the end"),
}


@pytest.mark.parametrize(("text", "place", "due"), [(t, *p) for t, p in MALFORMED.items()])
def test_an_unreadable_batch_is_refused_at_its_first_bad_character(text: str, place: int, due: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_requests(text)
    got = repr(text[place - 1]) if place <= len(text) else "the end"
    assert caught.value.message == f"requests: cannot read character {place} ({got}), where {due} may stand"
    assert "such as 2q2k_32q1s1k" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["2q2k_32x1", "1q5s", "_".join(["2q2k"] * 50) + "_x", "1q5\n\t\x1b1q6"])
def test_a_caret_stands_beneath_the_bad_character(text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_requests(text)
    line, caret = str(caught.value.shown).split("\n")
    assert max(len(line), len(caret)) < 80
    assert caret == " " * caret.index("^") + "^"
    assert line.isprintable()
    place = int(caught.value.message.split("character ")[1].split()[0]) - 1
    column = caret.index("^")
    assert line[column : column + 1] == text[place : place + 1].replace("\n", "?")
    assert line[4:column] == text[max(0, place - 40) : place]


@pytest.mark.parametrize("text", ["1q1", "2q2k_32q1s1k", "1q0", "1q0s5", "3q1s1", "65536q1", f"1q{'9' * 18}"])
def test_what_can_be_read_is_read_back_from_its_own_text(text: str) -> None:
    found = parse_requests(text)
    assert parse_requests(requests_text(found)) == found


@given(st.text(alphabet="0123456789qsk_x", max_size=12))
def test_any_text_is_a_batch_or_is_refused_at_a_character(text: str) -> None:
    refusal = ""
    try:
        found = parse_requests(text)
    except ProblemError as error:
        refusal = error.message
    if refusal:
        assert re.search("cannot read character|at most|unknown pattern", refusal)
    else:
        assert parse_requests(requests_text(found)) == found


def test_a_canonical_text_is_the_shortest_run_of_its_members() -> None:
    assert requests_text(parse_requests("1q5_1q5s5_2q5s6_1q1k")) == "2q5_2q5s6_1q1024"


def test_members_and_tokens_are_counted_before_any_is_made() -> None:
    with pytest.raises(ProblemError, match=f"at most {LARGEST_BATCH:,} members, got 13,107,200,000"):
        parse_requests("_".join(["65536q1"] * 200_000))
    with pytest.raises(ProblemError, match=f"at most {LONGEST:,} tokens, got"):
        parse_requests(f"1q{'9' * 18}k")


# ---------------------------------------------------------------- patterns of lengths


def keys(text: str) -> list[int]:
    return [k for _, k in parse_requests(text)]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("count", "longest", "empty"), [(1, 1, 0), (32, 4096, 0), (7, 3, 6), (64, 1, 5)])
def test_a_pattern_has_its_members_its_longest_and_its_empty_ones(
    name: str, count: int, longest: int, empty: int
) -> None:
    found = keys(f"{name}:count={count}:longest={longest}:empty={empty}:seed=3")
    assert len(found) == count
    assert max(found) == longest
    assert found.count(0) == empty


@pytest.mark.parametrize("name", PATTERNS)
def test_a_seed_gives_the_same_batch_and_another_one_another(name: str) -> None:
    text = f"{name}:count=32:longest=4096:empty=3"
    assert parse_requests(f"{text}:seed=1") == parse_requests(f"{text}:seed=1")
    assert parse_requests(f"{text}:seed=1") != parse_requests(f"{text}:seed=2")


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_a_problem_whose_text_has_the_lengths(name: str) -> None:
    problem = Problem.parse(f"requests={name}:count=8:longest=64:empty=1 heads=2 head_dim=8")
    assert name not in problem.text
    assert Problem.parse(problem.text) == problem


def test_queries_stand_at_the_end_of_the_keys_and_are_never_more() -> None:
    found = parse_requests("longtail:count=64:longest=512:queries=16:empty=2:seed=1")
    assert all(q == min(16, k) for q, k in found)
    assert {q for q, _ in found} >= {0, 16}


def test_the_patterns_differ_as_their_names_say() -> None:
    many = ":count=4096:longest=4096:seed=1"
    uniform, longtail, bimodal, skewed, staircase = (sorted(keys(name + many)) for name in PATTERNS)
    # the median of n numbers, uniform over a range, has a standard error of 1 / (2 sqrt n) of it; five of them:
    assert uniform[2048] == pytest.approx(2048, abs=5 * 4096 / 128)
    assert math.log(longtail[2048]) == pytest.approx(math.log(64), abs=5 * math.log(4096) / 128)
    assert bimodal[2047] <= 256 < 3072 <= bimodal[2048]
    assert skewed == [256] * 4095 + [4096]
    assert staircase == list(range(1, 4097))


def test_a_staircase_rises_in_the_order_of_the_batch() -> None:
    found = keys("staircase:count=8:longest=64:empty=3:seed=5")
    rising = [k for k in found if k]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert keys("staircase:count=4:longest=64") == [16, 32, 48, 64]


def test_a_pattern_is_the_same_on_every_machine() -> None:
    found: Sequences = parse_requests("uniform:count=4:longest=1000:seed=1")
    assert requests_text(found) == "1q1000_1q134_1q764_1q255"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("longtial:count=2", "requests: unknown pattern of lengths `longtial`", "did you mean `longtail`?"),
        ("uniform", "pattern of lengths `uniform` needs `count`", "write uniform:count=16"),
        (
            "uniform:count=2:longst=3",
            "pattern of lengths `uniform` has no `longst`",
            "did you mean `longest`?",
        ),
        ("uniform:count=0:longest=3", "count of uniform must be at least 1, got 0", None),
        ("uniform:count=70000:longest=3", "count of uniform must be at most 65536, got 70000", None),
        ("skewed:count=3:longest=3:empty=3", "empty of skewed must be below its count, got 3", None),
        ("skewed:count=3:longest=1.5k", "longest of skewed must be a whole number, got '1.5k'", None),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_requests(text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_k_is_1024_in_a_pattern_too() -> None:
    assert parse_requests("longtail:count=3:longest=8k:queries=1k") == parse_requests(
        "longtail:count=3:longest=8192:queries=1024"
    )


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("longtail:count=3:longest=8q", 25),
        ("longtail:count=x:longest=8k", 15),
        ("longtail:count=3:longest=", 25),
        (f"longtail:count=3:longest={'9' * 18}k", 25),
    ],
)
def test_a_caret_stands_beneath_what_cannot_be_read_of_a_pattern(text: str, column: int) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_requests(text)
    line, caret = str(caught.value.shown).split("\n")
    assert caret == " " * (4 + column) + "^"
    assert text.startswith(line[4:])
