"""Suites: what they mean, and how each mistake in one is refused."""

import dataclasses
import gc
import re
import time
import tracemalloc
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attnbench import suites
from attnbench.errors import SuiteError, UserError
from attnbench.models import MODELS
from attnbench.problem import Problem
from attnbench.suites import Measure, Suite, Verify

ROOT = Path(__file__).parents[1]
BAD = Path(__file__).parent / "bad_suites"
DOCS = (ROOT / "docs/suites.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
SMALL = "question: q\nproblems:\n  - {seqlen: 8, heads: 2, head_dim: 4}\n"


def parse(text: str, *overrides: str) -> Suite:
    return suites.parse(text, "s.yaml", overrides)


def texts(suite: Suite) -> list[str]:
    return [problem.text for problem in suite.problems]


# ---------------------------------------------------------------- what a suite means


def test_a_block_is_the_product_of_its_lists() -> None:
    block = "{seqlen: [8, 16], heads: 2, head_dim: 4, mask: [full, causal]}"
    assert texts(parse(f"question: q\nproblems: {block}\n")) == [
        f"batch=1 seqlen={n} heads=2 head_dim=4 dtype=float32 mask={mask}"
        for n in (8, 16)
        for mask in ("full", "causal")
    ]


def test_blocks_are_united_and_a_problem_of_two_blocks_is_there_once() -> None:
    suite = parse(
        "question: q\nproblems:\n"
        "  - {seqlen: [8, 16], heads: 2, head_dim: 4}\n"
        "  - {seqlen_q: [32, 16], seqlen_kv: 16, heads_q: 2, head_dim: 4, head_dim_v: 4}\n"
    )
    assert [p.sequences for p in suite.problems] == [((8, 8),), ((16, 16),), ((32, 16),)]


def test_what_is_left_out_has_a_default() -> None:
    suite = parse(SMALL)
    assert (suite.devices, suite.implementations, suite.baseline) == (("cpu",), ("*",), None)
    assert (suite.measure, suite.verify) == (Measure(), Verify())
    assert (suite.name, suite.path, suite.text) == ("s", "s.yaml", SMALL)


def test_settings_are_stored_in_si_units() -> None:
    suite = parse(
        SMALL
        + "measure: {preset: gate, launches: 2, budget: 500ms, width: 0.5%, timeout: 5m, memory: 2GiB, threads: 3, "
        "cache: [cold, warm], clock: events, seed: 7}\nverify: {gflop: 1.5}\n"
    )
    assert suite.measure == Measure(
        preset="gate",
        launches=2,
        budget_s=0.5,
        width=0.005,
        timeout_s=300.0,
        memory_bytes=2**31,
        threads=3,
        caches=("cold", "warm"),
        clock="events",
        seed=7,
    )
    assert suite.verify.work == 1.5e9


@pytest.mark.parametrize(
    ("keys", "record"), [(suites.MEASURE_KEYS, Measure()), (suites.VERIFY_KEYS, Verify())]
)
def test_defaults_in_the_table_of_keys_are_those_of_the_records(
    keys: dict[str, suites.Key], record: Measure | Verify
) -> None:
    assert {key.field or name for name, key in keys.items()} == {f.name for f in dataclasses.fields(record)}
    section = "measure" if isinstance(record, Measure) else "verify"
    in_words = {n for n, key in keys.items() if getattr(record, key.field or n) is None}
    given = [f"{section}.{n}={key.default}" for n, key in keys.items() if n not in in_words]
    assert len(given) >= len(keys) - 6
    assert getattr(parse(SMALL, *given), section) == record


def test_a_model_brings_its_heads() -> None:
    suite = parse("question: q\nproblems: {model: [gpt2, llama-3-8b], seqlen: 8}\n")
    assert [(p.heads_q, p.heads_kv, p.head_dim) for p in suite.problems] == [(12, 12, 64), (32, 8, 128)]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_stand_in_a_suite(model: str) -> None:
    assert len(parse(f"question: q\nproblems: {{model: {model}, seqlen: 8}}\n").problems) == 1


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert suites.load(str(file)).problems == parse(SMALL).problems


# ---------------------------------------------------------------- --set and --problem


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("measure.preset=quick", {"measure": Measure(preset="quick")}),
        ("measure.width=0", {"measure": Measure(width=0.0)}),
        ("measure.timeout=2s", {"measure": Measure(timeout_s=2.0)}),
        ("device=[cpu, cuda:1]", {"devices": ("cpu", "cuda:1")}),
        ("implementations=torch-*", {"implementations": ("torch-*",)}),
        ("implementations=*", {"implementations": ("*",)}),
        ('implementations=["*", numpy]', {"implementations": ("*", "numpy")}),
        ("baseline=numpy", {"baseline": "numpy"}),
    ],
)
def test_an_override_sets_just_its_own_key(override: str, expected: dict[str, object]) -> None:
    assert parse(SMALL, override) == dataclasses.replace(parse(SMALL), **expected)


def test_an_override_replaces_what_the_file_says_and_the_last_one_wins() -> None:
    text = SMALL + "measure: {seed: 1, threads: 2}\n"
    assert parse(text, "measure.seed=5", "measure.seed=6").measure == Measure(seed=6, threads=2)


def test_an_override_of_a_problem_key_goes_into_every_block() -> None:
    text = SMALL + "  - {seqlen: 16, heads: 2, head_dim: 4, dtype: float64}\n"
    found = parse(text, "problems.dtype=[bfloat16, float16]").problems
    assert [(p.sequences[0][0], p.dtype.value) for p in found] == [
        (8, "bfloat16"),
        (8, "float16"),
        (16, "bfloat16"),
        (16, "float16"),
    ]


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("measure.presett=quick", "unknown key `presett` in `measure`", "did you mean `preset`?"),
        ("mesure.preset=quick", "unknown key `mesure.preset`", "did you mean `measure`?"),
        ("devise=cpu", "unknown key `devise` in a suite", "did you mean `device`?"),
        ("problems.dtype=float23", "unknown dtype `float23`", "did you mean `float32`?"),
        ("problems.heads=[]", "`heads` is an empty list", "give a value, or leave the key out"),
        ("question=", "`question` must be text, got nothing", "give a value"),
        (
            "measure=3",
            "`measure` must be keys with values, got `3`, which YAML reads as a number",
            "write keys, as in `key: value`",
        ),
        (
            "measure.seed=[1",
            "a `[` is not closed",
            "close it with `]`, with a comma between two values",
        ),
        ("quick", "no key=value", "write for example measure.preset=quick"),
    ],
)
def test_a_bad_override_is_named_in_the_message(override: str, message: str, hint: str | None) -> None:
    with pytest.raises(SuiteError) as caught:
        parse(SMALL, override)
    assert (caught.value.message, caught.value.hint) == (f"--set {override}: {message}", hint)


def test_a_problem_alone_is_a_suite() -> None:
    suite = suites.suite_of_problem("model=llama-3-8b seqlen=64 dtype=bfloat16", ["measure.preset=quick"])
    assert texts(suite) == ["batch=1 seqlen=64 heads_q=32 heads_kv=8 head_dim=128 dtype=bfloat16 mask=causal"]
    assert (suite.name, suite.measure.preset) == ("problem", "quick")


@pytest.mark.parametrize(
    "text",
    [
        "batch=2 seqlen=64 heads=8 head_dim=64 dtype=float32 mask=causal scale=1e-05 dropout=0.1",
        "requests=2q2048_1q1s7 heads_q=8 heads_kv=2 head_dim=64 head_dim_v=32 dtype=bfloat16 "
        "mask=document:count=4*causal modifiers=sinks+softcap:cap=50 direction=backward shared_kv=true",
    ],
)
def test_a_canonical_text_comes_back_through_a_suite_and_through_its_text(text: str) -> None:
    suite = suites.suite_of_problem(text)
    assert suite.problems == (Problem.parse(text),)
    assert texts(suite) == [text]
    assert suites.load(suite.path, text=suite.text) == suite


@pytest.mark.parametrize(
    "text",
    [
        "seqln=8",
        "seqlen=-1 heads=1 head_dim=1",
        "seqlen",
        "dtype=x model=gpt2",
        "model=gpt2 seqlen=8 seqlen=9",
        "model=gpt2 seqlen=8 shared_kv=yes",
    ],
)
def test_a_bad_problem_text_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        suites.suite_of_problem(text)


@pytest.mark.parametrize("values", ["8,9", "[8,9]", "[8, 9]"])
def test_a_list_in_a_problem_text_is_told_where_lists_belong(values: str) -> None:
    with pytest.raises(UserError) as caught:
        suites.suite_of_problem(f"seqlen={values} heads=1 head_dim=1")
    assert (
        caught.value.message == "--problem: `seqlen` has a list of values, and a problem has one for each key"
    )
    option = re.search(r"--set '(.*)'", str(caught.value.hint))
    assert option
    assert len(suites.suite_of_problem("seqlen=1 heads=1 head_dim=1", [option[1]]).problems) == 2


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_problem_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--problem is empty"):
        suites.suite_of_problem(text)


def test_a_suite_knows_where_its_globs_and_its_baseline_stand() -> None:
    text = (
        "question: q\nimplementations:\n  - numpy\n  - torch-*\nbaseline: numpy\n" + SMALL.split("\n", 1)[1]
    )
    assert parse(text).places == {"implementations": ("s.yaml:3", "s.yaml:4"), "baseline": ("s.yaml:5",)}
    assert parse(SMALL).places == {}
    assert parse(SMALL, "baseline=numpy").places == {"baseline": ("--set baseline=numpy",)}


# ---------------------------------------------------------------- finding one


def test_the_shipped_suites_go_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "quick" in suites.shipped()
    assert suites.load("quick").problems == suites.load("quick.yaml").problems
    assert suites.load("quick").name == "quick"
    with pytest.raises(SuiteError):
        suites.load("suites/quick.yaml")  # a path means a file


def test_a_file_goes_before_a_shipped_suite_but_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()
    assert len(suites.load("quick").problems) > 1
    (tmp_path / "quick").rmdir()
    (tmp_path / "quick").write_text(SMALL)
    assert suites.load("quick").problems == parse(SMALL).problems


@pytest.mark.parametrize("name", ["missing.yaml", "", "\0", "x" * 5000])
def test_a_missing_file_is_answered_with_the_shipped_names(name: str) -> None:
    with pytest.raises(SuiteError, match="no such file") as caught:
        suites.load(name)
    assert "quick" in str(caught.value.hint)


def test_a_folder_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="a directory is no suite"):
        suites.load(str(tmp_path))


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(SuiteError, match="no suite is larger than"):
        suites.load("/dev/zero")


def test_quick_is_small_and_on_the_cpu() -> None:
    quick = suites.load("quick")
    assert quick.devices == ("cpu",)
    assert len(quick.problems) * 6 <= 150
    assert {p.mask.name for p in quick.problems} == {"full", "causal"}
    assert {p.dtype.value for p in quick.problems} == {"float32", "bfloat16"}
    assert len({p.sequences for p in quick.problems}) >= 3
    assert quick.measure.preset == "quick"


# ---------------------------------------------------------------- what is refused

DECIMAL = "write decimal digits, without quotes"
EMPTY = "give a value, or leave the key out"
FEWER = "give fewer values, or split the suite"
ONE = "write one value"
ONE_OR_LIST = "write one value, or one list of values such as [1, 2]"
WITHOUT_TOKENS = "members of a batch without tokens are written in `requests`, such as 3q128_1q0"
NO_SUITE = ("1: there is no suite in it", "a suite begins with `question:`")
REFUSALS: dict[str, tuple[str, str | None]] = {
    "bare-star": ("2: there is no alias of that name", 'a glob that begins with `*` needs quotes: "*"'),
    "base-60": (
        "6: `batch` must be a whole number, got `12:30`, which YAML reads as a number in base 60",
        DECIMAL,
    ),
    "base-60-duration": (
        "3: `timeout` must be a duration such as 60s, got `1:30`, which YAML reads as a number in base 60",
        DECIMAL,
    ),
    "binary": ("2: not a text file in UTF-8", "save it as plain text in UTF-8"),
    "boolean-for-integer": (
        "6: `batch` must be a whole number, got `true`, which YAML reads as a boolean",
        DECIMAL,
    ),
    "comment": NO_SUITE,
    "control-character": ("6: not text: it holds the character 0x1", "save it as plain text in UTF-8"),
    "dropout-out-of-range": ("6: dropout must be at least 0 and below 1, got 1.5", None),
    "deep": (
        "7: nested too deeply",
        "a suite has blocks of keys, and behind a key one value or one list of values",
    ),
    "duplicate-key": ("6: `head_dim` is given twice", "keep one of them"),
    "empty": NO_SUITE,
    "empty-section": (
        "4: `measure` must be keys with values, got nothing",
        "write keys, as in `key: value`",
    ),
    "empty-list": ("6: `batch` is an empty list", EMPTY),
    "exploding-aliases": (
        f"3: {1000**7:,} combinations of values, more than 1,000,000",
        FEWER,
    ),
    "exponent-without-point": (
        "6: `dropout` must be a number, got `1e-3`, which YAML reads as text",
        "write 1.0e-3",
    ),
    "heads-not-divisible": ("5: heads_q must be a multiple of heads_kv, got 12 and 8", None),
    "huge-float": (
        "6: `batch` must be a whole number of at most 18 digits, got `1.0e+30`, which YAML reads as a number",
        None,
    ),
    "huge-integer": (
        f"6: `batch` must be a whole number of at most 18 digits, got `{'9' * 26}`, which YAML reads as a number",
        None,
    ),
    "infinite": ("3: `timeout` must be finite, got `.inf`", DECIMAL),
    "list": ("1: a suite must be keys with values, got a list", "leave out the dash or the brackets"),
    "list-for-one": ("3: `threads` must be a whole number, got a list", ONE),
    "memory-without-number": (
        "3: `memory`: 'lots' is not an amount of memory",
        "write 8GiB or 512MiB",
    ),
    "merge-key": (
        "4: a suite has no merge keys, `<<`",
        "write the keys out; an alias may stand behind one",
    ),
    "missing-head-dim": ("3: a problem needs `head_dim`", "or a `model:` that brings it"),
    "nan": ("6: `scale` must be finite, got `.nan`", DECIMAL),
    "negative": ("6: `batch` must be at least 1, got -4", "`batch` is B, members of the batch"),
    "negative-length": ("5: `seqlen` must be at least 1, got -128", WITHOUT_TOKENS),
    "nested-aliases": (
        "3: a block of `problems` must be keys with values, got a list",
        "leave out the dash or the brackets",
    ),
    "nested-list": ("6: `batch` must be a whole number, got a list", ONE_OR_LIST),
    "no-colon": ("3: a key without a colon", "write keys, as in `key: value`"),
    "no-budget": (
        "3: `budget` must be at least 0.001, got 0",
        "`budget` is measuring of one cell, over all launches",
    ),
    "no-for-number": ("6: `batch` must be a whole number, got `no`, which YAML reads as a boolean", DECIMAL),
    "no-for-word": ("6: `mask` must be text, got `no`, which YAML reads as a boolean", 'write "no"'),
    "no-problems": ("2: `problems` is an empty list", EMPTY),
    "no-question": ("1: a suite needs `question`", "`question:` holds what the suite answers, in words"),
    "at-sign": ("1: a character that begins no plain text", "put the text in quotes"),
    "indentation": ("4: indented unlike the lines above", "keys of one block begin in the same column"),
    "odd-block": (
        "1: expected chomping or indentation indicators, but found 'x'",
        "look at the indentation, quotes and brackets there and in the line above",
    ),
    "open-brace": ("4: a `{` is not closed", "close it with `}`, with a comma between two keys"),
    "open-quote": ("4: a quote is not closed", "close it on the same line"),
    "second-colon": ("1: a second `: ` in a line", "a text that holds `: ` needs quotes"),
    "nothing": ("6: `batch` must be a whole number, got nothing", EMPTY),
    "quoted-number": ("6: `batch` must be a whole number, got the text '4'", "write 4"),
    "recursive-alias": ("6: `batch` must be a whole number, got a list that contains itself", ONE_OR_LIST),
    "tag-of-its-own": ("6: a suite has no tags, `!mine`", "leave it out"),
    "tag-of-python": ("6: a suite has no tags, `!!python/object/apply:os.getcwd`", "leave it out"),
    "tab": ("6: a tab where YAML wants spaces", "indent with spaces"),
    "too-many": ("3: 1,002,001 combinations of values, more than 1,000,000", FEWER),
    "two-documents": ("4: there is a second document", "write one suite a file, without `---`"),
    "unclosed-list": ("7: a `[` is not closed", "close it with `]`, with a comma between two values"),
    "unknown-device": ("2: unknown device `gpu`", "one of: cpu, cuda, cuda:1"),
    "unknown-dtype": ("6: unknown dtype `flaot16`", "did you mean `float16`?"),
    "unknown-key": ("6: unknown key `head_dims` in a block of `problems`", "did you mean `head_dim`?"),
    "unknown-mask": ("6: unknown mask `cusal`", "did you mean `causal`?"),
    "unknown-model": ("3: unknown model `lama-3-8b`", "did you mean `llama-3-8b`?"),
    "unknown-preset": ("3: unknown preset `quik`", "did you mean `quick`?"),
    "unknown-variant-field": ("6: mask `window` has no `lefft`", "did you mean `left`?"),
    "whole-float": (
        "6: `batch` must be a whole number, got `512.0`, which YAML reads as a number",
        "write 512",
    ),
    "wrong-type": ("6: unknown key `size` in a range of `batch`", "one of: factor, geometric, linear"),
    "yes-for-truth": (
        "6: `shared_kv` must be true or false, got `yes`, which YAML reads as a boolean",
        "write true or false",
    ),
    "zero-length": ("5: `seqlen` must be at least 1, got 0", WITHOUT_TOKENS),
    "width-beyond-one": ("3: `width`: '200%' is not a share below 100 %", "write 3% or 0.03"),
}


@pytest.mark.parametrize("file", sorted(BAD.iterdir()), ids=lambda file: file.stem)
def test_a_mistake_is_refused_with_its_line_and_a_hint(file: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        suites.load(str(file))
    message, hint = REFUSALS[file.stem]
    assert (caught.value.message, caught.value.hint) == (f"{file}:{message}", hint)


def test_every_refusal_has_its_file() -> None:
    assert set(REFUSALS) == {file.stem for file in BAD.iterdir()}


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "{a: " * 2000 + "}" * 2000])
def test_deep_nesting_is_refused(value: str) -> None:
    with pytest.raises(SuiteError, match=r"^s\.yaml:1: nested too deeply$"):
        parse(f"question: {value}\n")


@pytest.mark.parametrize("tag", ["!", "!mine", "!!str", "!!binary", "!!python/name:os.getcwd", "!<x>"])
@pytest.mark.parametrize(
    "text", ["{} question: q\nproblems: 1", "question: {} q", "{} {{}}", "question: {} [q]"]
)
def test_a_tag_is_refused_wherever_it_stands(tag: str, text: str) -> None:
    with pytest.raises(SuiteError, match=r"^s\.yaml:1: a suite has no tags, `"):
        parse(text.format(tag))


@pytest.mark.parametrize("value", ["010", "0x10", "1_000", "1e3", "9" * 5000, "~", "+", "1.5", "[[1]]"])
def test_an_unusual_number_is_refused_where_a_whole_one_is_due(value: str) -> None:
    with pytest.raises(SuiteError, match="`batch` must be a whole number"):
        parse(SMALL.replace("seqlen: 8", f"seqlen: 8, batch: {value}"))


@pytest.mark.parametrize("key", ["scale", "batch"])
@pytest.mark.parametrize("value", [".nan", ".NaN", ".inf", "-.INF", "1.0e+999", "1_0.0e+999"])
def test_a_number_that_is_not_finite_is_refused(key: str, value: str) -> None:
    with pytest.raises(SuiteError, match=f"`{key}` must be finite, got `{re.escape(value)}`"):
        parse(SMALL.replace("seqlen: 8", f"seqlen: 8, {key}: {value}"))


@pytest.mark.parametrize("key", ["requests", "mask"])
def test_an_empty_text_is_said_to_be_empty(key: str) -> None:
    with pytest.raises(SuiteError, match=rf"^s\.yaml:\d: `{key}` is empty$") as caught:
        parse(SMALL.replace("seqlen: 8", f"seqlen: 8, {key}: ''"))
    assert caught.value.hint == "give a value, or leave the key out"


@pytest.mark.parametrize("value", ["1:30.5", "true", '"0.1"'])
def test_an_unusual_number_is_refused_where_a_number_is_due(value: str) -> None:
    with pytest.raises(SuiteError, match="`scale` must be a number"):
        parse(SMALL.replace("seqlen: 8", f"seqlen: 8, scale: {value}"))


def test_a_duration_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(SuiteError, match="timeout"):
        parse(SMALL, f"measure.timeout={'9' * 400}")


PIECES = st.sampled_from(
    [
        *"\n -[]{}:,*&!\"'#|>%@?~\t\0\ud800",
        "\n  ",
        "<<",
        "12:30",
        "1e-3",
        "no",
        "---",
        "&a",
        "*a",
        "=",
        "question",
        "problems",
        "measure:",
    ]
)


@given(data=st.data())
def test_no_damage_to_a_suite_ends_in_anything_but_a_refusal(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([SMALL, *EXAMPLES]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 6)))
        text = text[:start] + data.draw(PIECES) + text[end:]
    refusal = ""
    try:
        suite = parse(text)
    except SuiteError as error:
        refusal = error.message
    assert re.fullmatch(r"s\.yaml:\d+: .+", refusal) if refusal else suite.problems


# ---------------------------------------------------------------- size


def many(lengths: int) -> str:
    return (
        f"question: q\nproblems: {{model: [gpt2, llama-3-8b], batch: [1, 2], seqlen: {[*range(1, lengths + 1)]}, "
        "mask: [full, causal, 'window:left=7', 'chunked:size=4', 'dilated:step=2'], dtype: [float32, bfloat16]}\n"
    )


def test_a_hundred_thousand_problems_load_in_three_seconds() -> None:
    text = many(2500)
    gc.collect()
    gc.freeze()  # what other tests have left is not searched for garbage meanwhile
    start = time.process_time()
    assert len(parse(text).problems) == 100_000
    assert time.process_time() - start < 3
    gc.unfreeze()


def test_a_problem_takes_less_than_five_kilobytes() -> None:
    text = many(250)
    tracemalloc.start()
    suite = parse(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5000 * len(suite.problems)


def test_combinations_are_counted_before_any_is_made() -> None:
    values = ", ".join(map(str, range(1, 1002)))
    keys = ("batch", "seqlen_q", "seqlen_kv", "heads_q", "head_dim")
    start = time.process_time()
    with pytest.raises(SuiteError, match=f"{1001**5:,} combinations"):
        parse("question: q\nproblems:\n" + "".join(f"  {key}: [{values}]\n" for key in keys))
    assert time.process_time() - start < 10  # making a million a second would take decades


def test_cells_are_counted_before_any_problem_is_made() -> None:
    lengths = ", ".join(map(str, range(1, 1001)))
    text = f"question: q\nproblems:\n  seqlen: [{lengths}]\n  heads: [{lengths}]\n  head_dim: 4\n"
    start = time.process_time()
    with pytest.raises(SuiteError) as caught:
        suites.parse(text, "s.yaml", cells=lambda suite: 3 * len(suite.devices))
    told = "1,000,000 combinations of values of 3 cells each, 3,000,000 in all, more than 1,000,000"
    assert caught.value.message == f"s.yaml:3: {told}"
    assert time.process_time() - start < 1  # making a million takes many


# ---------------------------------------------------------------- schema and docs


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_of_the_docs_load_and_fit_the_schema(text: str) -> None:
    assert parse(text).problems
    jsonschema.validate(yaml.safe_load(text), suites.schema())


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(suites.schema())


STRUCTURAL = (
    "unknown-key wrong-type quoted-number boolean-for-integer exponent-without-point no-for-number no-for-word empty-list "
    "nothing negative unknown-dtype unknown-device unknown-preset no-question no-problems list "
    "nested-list list-for-one empty-section"
)


@pytest.mark.parametrize("name", STRUCTURAL.split())
def test_the_schema_refuses_what_the_loader_refuses(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load((BAD / f"{name}.yaml").read_text()), suites.schema())


def test_the_docs_have_the_table_of_keys() -> None:
    begin, end = "keys_markdown() -->\n", "<!-- end of keys -->"
    assert DOCS.split(begin)[1].split(end)[0] == suites.keys_markdown()
