"""Axes of a suite: lists, ranges, keys that go together, what is excluded, and models of one's own."""

import json
import re
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from attnbench import suites
from attnbench.cli import BAD_INPUT, main
from attnbench.errors import SuiteError
from attnbench.problem import PATTERNS, Problem
from attnbench.suites import AXIS_KEYS, Suite

HEADS = "heads: 2, head_dim: 4"


def parse(block: str, *overrides: str, more: str = "") -> Suite:
    return suites.parse(f"question: q\n{more}problems:\n  - {{{block}}}\n", "s.yaml", overrides)


def lengths(suite: Suite) -> list[tuple[int, int]]:
    return [problem.sequences[0] for problem in suite.problems]


def refusal(block: str, *overrides: str, more: str = "") -> tuple[str, str | None]:
    with pytest.raises(SuiteError) as caught:
        parse(block, *overrides, more=more)
    return caught.value.message, caught.value.hint


def fits(text: str) -> bool:
    validator = jsonschema.Draft202012Validator(suites.schema())
    return not list(validator.iter_errors(yaml.safe_load(text)))


# ---------------------------------------------------------------- a value or a list


AXES: dict[str, tuple[Any, Any]] = {
    "model": ("gpt2", "bert-base"),
    "batch": (1, 2),
    "seqlen": (8, 16),
    "seqlen_q": (8, 16),
    "seqlen_kv": (8, 16),
    "requests": ("1q8", "2q8"),
    "heads": (2, 4),
    "heads_q": (2, 4),
    "heads_kv": (1, 2),
    "head_dim": (8, 16),
    "head_dim_v": (8, 16),
    "dtype": ("float32", "bfloat16"),
    "kv_dtype": ("float32", "int8"),
    "descale": ("tensor", "head"),
    "mask": ("full", "causal"),
    "modifiers": ("none", "softcap:cap=50"),
    "scale": (0.5, 2),
    "mechanism": ("softmax", "dot"),
    "layout": ("dense", "packed"),
    "direction": ("forward", "backward"),
    "dropout": (0, 0.5),
    "shared_kv": (False, True),
}
BESIDE: dict[str, dict[str, Any]] = {
    "descale": {"kv_dtype": "int8"},
    "model": {"heads": None, "head_dim": None},
    "seqlen_q": {"seqlen": None, "seqlen_kv": 16},
    "seqlen_kv": {"seqlen": None, "seqlen_q": 8},
    "requests": {"seqlen": None},
    "heads_q": {"heads": None, "heads_kv": 1},
    "heads_kv": {"heads": None, "heads_q": 2},
}


FIRST_AND_SECOND = {name: ["forward", "backward"] for name in AXES} | {"direction": ["full", "causal"]}


def test_every_axis_is_tried() -> None:
    assert set(AXES) == set(AXIS_KEYS)


@pytest.mark.parametrize("name", AXES)
def test_every_axis_takes_a_value_a_list_a_zip_and_an_exclusion(name: str) -> None:
    plain = {"seqlen": 8, "heads": 2, "head_dim": 16, **BESIDE.get(name, {})}
    plain = {key: value for key, value in plain.items() if value is not None and key != name}
    one, two = AXES[name]
    blocks = {
        "value": {name: one},
        "list": {name: [one, two]},
        "zip": {
            "zip": {name: [one, two], "direction" if name != "direction" else "mask": FIRST_AND_SECOND[name]}
        },
        "exclude": {name: [one, two], "exclude": {name: one}},
    }
    made = {}
    for how, keys in blocks.items():
        text = json.dumps({"question": "q", "problems": {**plain, **keys}})
        assert fits(text), how
        made[how] = suites.parse(text, "s.yaml").problems
    assert [len(problems) for problems in made.values()] == [1, 2, 2, 1]
    assert made["value"] + made["exclude"] == made["list"]
    assert len({problem.text for problem in made["list"]}) == 2


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("{geometric: [8, 64]}", [8, 16, 32, 64]),
        ("{geometric: [3, 48], factor: 4}", [3, 12, 48]),
        ("{geometric: [7, 7]}", [7]),
        ("{linear: {from: 8, to: 24, step: 8}}", [8, 16, 24]),
        ("{linear: {from: 5, to: 5, step: 100}}", [5]),
    ],
)
def test_a_range_is_the_list_of_its_values(written: str, values: list[int]) -> None:
    block = f"seqlen: {written}, {HEADS}"
    assert lengths(parse(block)) == [(n, n) for n in values]
    assert parse(block).problems == parse(f"seqlen: {values}, {HEADS}").problems
    assert fits(f"question: q\nproblems: {{{block}}}\n")


def test_a_range_of_decimal_numbers_has_the_numbers_that_one_would_write() -> None:
    found = parse(f"seqlen: 8, {HEADS}, dropout: {{linear: {{from: 0.1, to: 0.9, step: 0.1}}}}").problems
    assert [p.dropout for p in found] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    found = parse(f"seqlen: 8, {HEADS}, scale: {{geometric: [1.0e-3, 10], factor: 10}}").problems
    assert [p.scale for p in found] == [0.001, 0.01, 0.1, 1.0, 10.0]


def test_a_range_may_be_zipped_excluded_and_set() -> None:
    zipped = "zip: {seqlen_q: {geometric: [8, 32]}, seqlen_kv: [10, 20, 40]}, heads: 2, head_dim: 4"
    assert lengths(parse(zipped)) == [(8, 10), (16, 20), (32, 40)]
    excluded = "seqlen: {geometric: [8, 64]}, exclude: {seqlen: {geometric: [16, 32]}}, heads: 2, head_dim: 4"
    assert lengths(parse(excluded)) == [(8, 8), (64, 64)]
    assert len(parse(f"seqlen: 8, {HEADS}", "problems.seqlen={geometric: [1, 8]}").problems) == 4


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        (
            "{geometric: [100, 1000]}",
            "a range of `seqlen` from 100 does not arrive at 1000",
            "end it at 800 or 1600",
        ),
        (
            "{linear: {from: 1, to: 100, step: 10}}",
            "a range of `seqlen` from 1 does not arrive at 100",
            "end it at 91 or 101",
        ),
        ("{geometric: [64, 8]}", "a range of `seqlen` ends below its beginning, 8 < 64", None),
        (
            "{geometric: [8, 64], factor: 1}",
            "`factor` must be at least 2, got 1",
            "`factor` is of a geometric range",
        ),
        ("{linear: {from: 0, to: 8, step: 8}}", "`from` must be at least 1, got 0", None),
        ("{linear: {from: 8, to: 16, step: 0}}", "`step` must be at least 1, got 0", None),
        (
            "{linear: {from: 8, to: 16}}",
            "`linear` needs `step`",
            "`step:` holds what each value has more than the one before",
        ),
        (
            "{geometric: [8, 16, 64]}",
            "`geometric` must be two numbers, got a list of 3",
            "write the first and the last value, such as [128, 65536]",
        ),
        (
            "{geometric: 8}",
            "`geometric` must be two numbers, got `8`, which YAML reads as a number",
            "write the first and the last value, such as [128, 65536]",
        ),
        (
            "{geometric: [8, 64.0]}",
            "`geometric` must be a whole number, got `64.0`, which YAML reads as a number",
            "write 64",
        ),
        (
            "{factor: 2}",
            "a range of `seqlen` is either geometric or linear",
            "{geometric: [128, 65536]}, or {linear: {from: 128, to: 1024, step: 128}}",
        ),
        (
            "{linear: {from: 8, to: 16, step: 8}, factor: 2}",
            "a linear range has no `factor`",
            "its `step` is added",
        ),
        (
            "{geometrical: [8, 64]}",
            "unknown key `geometrical` in a range of `seqlen`",
            "did you mean `geometric`?",
        ),
        (
            "[8, {geometric: [16, 64]}]",
            "`seqlen` must be a whole number, got keys with values",
            "write one value, or one list of values such as [1, 2]",
        ),
    ],
)
def test_a_range_that_is_none_is_refused(written: str, message: str, hint: str | None) -> None:
    assert refusal(f"seqlen: {written}, {HEADS}") == (f"s.yaml:3: {message}", hint)


def test_a_geometric_range_cannot_begin_at_nothing() -> None:
    told = refusal(f"seqlen: 8, {HEADS}, dropout: {{geometric: [0, 0.5]}}")
    assert told == ("s.yaml:3: a geometric range begins above 0, got 0", None)


def test_words_have_no_range() -> None:
    told, _ = refusal(f"seqlen: 8, {HEADS}, mask: {{geometric: [1, 2]}}")
    assert told == "s.yaml:3: `mask` must be text, got keys with values"


def test_a_range_is_counted_before_it_is_made() -> None:
    begin = time.process_time()
    told, _ = refusal(f"seqlen: {{linear: {{from: 1, to: {10**17}, step: 1}}}}, {HEADS}")
    assert told == f"s.yaml:3: {10**17:,} combinations of values, more than 1,000,000"
    excluded = f"exclude: {{seqlen: {{linear: {{from: 1, to: {10**17}, step: 1}}}}}}"
    assert "comparisons, more than 1,000,000" in refusal(f"seqlen: [8, 16], {excluded}, {HEADS}")[0]
    assert time.process_time() - begin < 1


# ---------------------------------------------------------------- zip


def test_zipped_keys_go_together_and_are_multiplied_with_the_rest() -> None:
    suite = parse("zip: {seqlen_q: [1, 4], seqlen_kv: [10, 20]}, batch: [1, 2], heads: 2, head_dim: 4")
    assert [(p.batch, *p.sequences[0]) for p in suite.problems] == [
        (1, 1, 10),
        (2, 1, 10),
        (1, 4, 20),
        (2, 4, 20),
    ]


def test_several_zips_are_multiplied() -> None:
    block = "zip: [{seqlen_q: [1, 4], seqlen_kv: [10, 20]}, {heads_q: [2, 4], heads_kv: [1, 2]}], head_dim: 4"
    assert len(parse(block).problems) == 4


@pytest.mark.parametrize(
    ("block", "message", "hint"),
    [
        (
            "zip: {batch: [1, 2, 3],\n seqlen_q: [1, 4, 8],\n seqlen_kv: [10, 20]}, heads: 2, head_dim: 4",
            "5: `seqlen_kv` has 2 values, and `batch`, with which it goes together, 3",
            "the lists of a `zip` are equally long",
        ),
        (
            "zip: {batch: 1, seqlen: [1, 4], dropout: [0, 0.5]}, heads: 2, head_dim: 4",
            "3: `batch` has 1 value, and `seqlen`, with which it goes together, 2",
            "the lists of a `zip` are equally long",
        ),
        (
            "zip: {batch: [1, 2], seqlen: [1, 4]},\n batch: 1, heads: 2, head_dim: 4",
            "4: `batch` is given twice in a block",
            "in `zip` or beside it",
        ),
        (
            "zip: [{batch: [1, 2]}, {batch: [1, 2]}], seqlen: 1, heads: 2, head_dim: 4",
            "3: `batch` is given twice in a block",
            "in `zip` or beside it",
        ),
        (
            "zip: {seqln: [1, 2]}, heads: 2, head_dim: 4",
            "3: unknown key `seqln` in an entry of `zip`",
            "did you mean `seqlen`?",
        ),
        (
            "zip: {}, seqlen: 1, heads: 2, head_dim: 4",
            "3: an entry of `zip` has no keys",
            "write keys of the block, as in `key: value`",
        ),
        (
            "zip: seqlen, heads: 2, head_dim: 4",
            "3: an entry of `zip` must be keys with values, got `seqlen`, which YAML reads as text",
            "write keys, as in `key: value`",
        ),
    ],
)
def test_a_zip_that_does_not_fit_is_refused_at_the_odd_one(block: str, message: str, hint: str) -> None:
    assert refusal(block) == (f"s.yaml:{message}", hint)


def test_an_impossible_problem_of_a_zip_is_refused_at_its_value() -> None:
    block = "zip: {seqlen: [1,\n 2], heads_q: [2,\n 3], heads_kv: [1,\n 2]}, head_dim: 4"
    assert refusal(block)[0] == "s.yaml:5: heads_q must be a multiple of heads_kv, got 3 and 2"


# ---------------------------------------------------------------- exclude


def test_combinations_that_have_all_values_of_an_entry_are_left_out_and_counted() -> None:
    suite = parse(f"batch: [1, 2], seqlen: [8, 16, 32], exclude: [{{batch: 2, seqlen: [16, 32]}}], {HEADS}")
    assert [(p.batch, p.sequences[0][0]) for p in suite.problems] == [(1, 8), (1, 16), (1, 32), (2, 8)]
    assert [(block.combinations, block.excluded) for block in suite.blocks] == [(6, 2)]


def test_a_combination_of_two_entries_is_excluded_once() -> None:
    suite = parse(f"batch: [1, 2], seqlen: [8, 16], exclude: [{{batch: 2}}, {{seqlen: 16}}], {HEADS}")
    assert [(p.batch, p.sequences[0][0]) for p in suite.problems] == [(1, 8)]
    assert suite.blocks[0].excluded == 3


def test_keys_of_a_zip_can_be_excluded_one_by_one() -> None:
    zipped = "zip: {seqlen_q: [1, 4, 1], seqlen_kv: [10, 10, 20]}"
    assert lengths(parse(f"{zipped}, exclude: {{seqlen_q: 1}}, {HEADS}")) == [(4, 10)]
    assert lengths(parse(f"{zipped}, exclude: {{seqlen_q: 1, seqlen_kv: 10}}, {HEADS}")) == [(4, 10), (1, 20)]


def test_what_could_not_be_a_problem_may_be_excluded() -> None:
    heads = "heads_q: [4, 6], heads_kv: [2, 4], head_dim: 4"
    assert "multiple" in refusal(f"seqlen: 8, {heads}")[0]
    suite = parse(f"seqlen: 8, {heads}, exclude: {{heads_q: 6, heads_kv: 4}}")
    assert [(p.heads_q, p.heads_kv) for p in suite.problems] == [(4, 2), (4, 4), (6, 2)]


@pytest.mark.parametrize(
    ("block", "message", "hint"),
    [
        (
            "seqlen: [8, 16], exclude: [{seqlen: 8},\n {seqlen: 32}]",
            "4: an entry of `exclude` excludes nothing",
            "its values must be those of one combination of the block",
        ),
        (
            "zip: {batch: [1, 2], seqlen: [8, 16]}, exclude:\n {batch: 1, seqlen: 16}",
            "4: an entry of `exclude` excludes nothing",
            "its values must be those of one combination of the block",
        ),
        (
            "seqlen: [8, 16],\n exclude: {dtype: bfloat16}",
            "4: `exclude` names `dtype`, which its block does not",
            "one of: head_dim, heads, seqlen",
        ),
        (
            "seqlen: [8, 16], exclude: {seqlen: [8,\n sixteen]}",
            "4: `seqlen` must be a whole number, got `sixteen`, which YAML reads as text",
            "write decimal digits, without quotes",
        ),
        (
            "seqlen: 8, exclude: {seqlen: 8}",
            "3: `exclude` leaves no problem",
            "exclude less",
        ),
        (
            "seqlen: 8, exclude: {}",
            "3: an entry of `exclude` has no keys",
            "write keys of the block, as in `key: value`",
        ),
    ],
)
def test_an_exclusion_of_nothing_is_refused_with_its_line(block: str, message: str, hint: str) -> None:
    assert refusal(f"{block}, {HEADS}") == (f"s.yaml:{message}", hint)


def test_an_override_may_take_away_what_was_excluded() -> None:
    block = f"batch: [1, 2], seqlen: [8, 16], exclude: {{batch: 2, seqlen: 16}}, {HEADS}"
    assert len(parse(block, "problems.batch=1").problems) == 2
    assert refusal(block, "measure.preset=quick", "problems.exclude={batch: 3, sqlen: 8}")[0] == (
        "--set problems.exclude={batch: 3, sqlen: 8}: unknown key `sqlen` in an entry of `exclude`"
    )
    told = "--set problems.batch=1: `batch` is given twice in a block"
    assert refusal(f"zip: {{batch: [1, 2], seqlen: [8, 16]}}, {HEADS}", "problems.batch=1")[0] == told


def test_many_entries_are_compared_with_many_combinations_in_seconds() -> None:
    values = list(range(1, 101))
    entries = [{"batch": b, "seqlen": s} for b in range(1, 51) for s in range(1, 51)]
    block = {"batch": values, "seqlen": values, "heads": 2, "head_dim": 4, "exclude": entries}
    begin = time.process_time()
    suite = suites.parse(json.dumps({"question": "q", "problems": block}), "s.yaml")
    assert len(suite.problems) == 100 * 100 - 50 * 50
    assert time.process_time() - begin < 5


# ---------------------------------------------------------------- models of one's own

OWN = "models:\n  mine: {heads_q: 4, heads_kv: 2, head_dim: 8, mask: causal}\n"


def test_a_model_of_ones_own_stands_beside_ours() -> None:
    suite = parse("model: [mine, gpt2], seqlen: [8, 16]", more=OWN)
    assert [(p.heads_q, p.heads_kv, p.head_dim, str(p.mask)) for p in suite.problems][1:3] == [
        (4, 2, 8, "causal"),
        (12, 12, 64, "causal"),
    ]
    assert fits(suite.text)


def test_what_is_given_beside_a_model_of_ones_own_wins_but_for_its_heads() -> None:
    own = "models: {mine: {heads: 2, head_dim: 8, seqlen: 8, mask: causal, scale: 0.5}}\n"
    assert parse("model: mine", more=own).problems == (
        Problem.parse("seqlen=8 heads=2 head_dim=8 mask=causal scale=0.5"),
    )
    (problem,) = parse("model: mine, seqlen_q: 1, seqlen_kv: 32, mask: full", more=own).problems
    assert problem.text == (
        "batch=1 seqlen_q=1 seqlen_kv=32 heads=2 head_dim=8 dtype=float32 mask=full scale=0.5"
    )
    message, hint = refusal("model: mine, heads: 4", more=own)
    assert message == (
        "s.yaml:4: `model: mine` already sets the heads and what they compute, so `heads` cannot be given too"
    )
    assert hint == "leave out `model` and write its keys instead: heads=2 head_dim=8 scale=0.5"


@pytest.mark.parametrize(
    ("own", "message", "hint"),
    [
        (
            "  gpt2: {heads: 2, head_dim: 4}\n",
            "3: attnbench brings a model `gpt2`",
            "give yours another name",
        ),
        (
            "  mine: {heads: 2, head_dim: 4, dtype: float32}\n",
            "3: unknown key `dtype` in the model `mine`",
            None,
        ),
        (
            "  mine: {heads: 2}\n",
            "3: the model `mine` needs `head_dim`",
            "`head_dim:` holds D, head dimension of q and k",
        ),
        ("  mine: {head_dim: 4}\n", "3: the model `mine` needs `heads`", "or `heads_q` and `heads_kv`"),
        (
            "  mine:\n    heads_q: 3\n    heads_kv: 2\n    head_dim: 4\n",
            "4: heads_q must be a multiple of heads_kv, got 3 and 2",
            None,
        ),
        (
            "  mine: {heads: 2, head_dim: 4, mask: cusal}\n",
            "3: unknown mask `cusal`",
            "did you mean `causal`?",
        ),
        (
            "  mine: {heads: [2, 4], head_dim: 4}\n",
            "3: `heads` must be a whole number, got a list",
            "write one value",
        ),
        ("  my model: {heads: 2, head_dim: 4}\n", "3: `my model` is no name", None),
        (
            "  mine: {heads: 2, head_dim: 4}\n  mine: {heads: 4, head_dim: 4}\n",
            "4: `mine` is given twice",
            None,
        ),
        ("  [mine]\n", "3: `models` must be keys with values, got a list", None),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_its_line(own: str, message: str, hint: str | None) -> None:
    told = refusal("model: gpt2, seqlen: 8", more=f"models:\n{own}")
    assert told[0] == f"s.yaml:{message}"
    assert hint is None or told[1] == hint


def test_a_misspelt_model_of_ones_own_is_answered_with_it() -> None:
    own = "models: {my-model: {heads: 2, head_dim: 4}}\n"
    told = refusal("model: [gpt2,\n my-modl], seqlen: 8", more=own)
    assert told == ("s.yaml:5: unknown model `my-modl`", "did you mean `my-model`?")


def test_there_is_no_empty_table_of_models() -> None:
    assert refusal("model: gpt2, seqlen: 8", more="models: {}\n")[0] == "s.yaml:2: `models` names none"


# ---------------------------------------------------------------- blocks for a kind of device


def test_a_block_may_be_for_a_kind_of_device() -> None:
    suite = suites.parse(
        "question: q\nproblems:\n"
        f"  - {{seqlen: [8, 16], {HEADS}, device: cuda}}\n"
        f"  - {{seqlen: [16, 32], {HEADS}, device: cpu}}\n"
        f"  - {{seqlen: [32, 64], {HEADS}}}\n",
        "s.yaml",
    )
    assert [(p.sequences[0][0], suite.kinds.get(p.text, ())) for p in suite.problems] == [
        (8, ("cuda",)),
        (16, ("cuda", "cpu")),
        (32, ()),
        (64, ()),
    ]


def test_an_unknown_kind_of_device_is_refused() -> None:
    assert refusal(f"seqlen: 8, {HEADS}, device: cuda:1") == (
        "s.yaml:3: unknown device `cuda:1`",
        "did you mean `cuda`?",
    )


# ---------------------------------------------------------------- requests


def test_a_bad_batch_is_shown_with_a_caret_beneath_the_character() -> None:
    with pytest.raises(SuiteError) as caught:
        parse(f"requests: [2q2k,\n 2q2k_32x1], {HEADS}")
    message = "requests: cannot read character 8 ('x'), where a digit or `q` may stand"
    assert caught.value.message == f"s.yaml:4: {message}"
    assert caught.value.shown == "    2q2k_32x1\n           ^"


def test_patterns_of_lengths_are_an_axis() -> None:
    suite = parse(f"requests: ['longtail:count=4:longest=64', 'skewed:count=4:longest=64:empty=1'], {HEADS}")
    assert [max(k for _, k in p.sequences) for p in suite.problems] == [64, 64]
    assert 0 in [k for _, k in suite.problems[1].sequences]


# ---------------------------------------------------------------- the schema


@pytest.mark.parametrize(
    "block",
    [
        "seqlen: {geometric: [8]}",
        "seqlen: {geometric: [8, 16, 32]}",
        "seqlen: {geometric: [8, 16], factor: 1}",
        "seqlen: {linear: {from: 1, to: 2}}",
        "seqlen: {linear: {from: 1, to: 2, step: 1}, factor: 2}",
        "seqlen: {geometric: [8, 16], linear: {from: 1, to: 2, step: 1}}",
        "seqlen: {factor: 2}",
        "mask: {geometric: [8, 16]}",
        "seqlen: 8, zip: {seqln: 8}",
        "seqlen: 8, zip: 8",
        "seqlen: 8, exclude: {zip: {seqlen: 8}}",
        "seqlen: 8, device: cuda:1",
    ],
)
def test_the_schema_refuses_axes_that_the_loader_refuses(block: str) -> None:
    assert refusal(f"{block}, {HEADS}")
    assert not fits(f"question: q\nproblems: [{{{block}, {HEADS}}}]\n")


@pytest.mark.parametrize(
    "own", ["{}", "{mine: {heads: 2}}", "{mine: {head_dim: 2, dtype: x}}", "{'my model': {head_dim: 2}}"]
)
def test_the_schema_refuses_models_that_the_loader_refuses(own: str) -> None:
    assert refusal("model: gpt2, seqlen: 8", more=f"models: {own}\n")
    assert not fits(f"question: q\nmodels: {own}\nproblems: {{model: gpt2, seqlen: 8}}\n")


# ---------------------------------------------------------------- the docs

DOCS = (Path(__file__).parents[1] / "docs/suites.md").read_text()


def test_the_docs_show_what_a_bad_batch_is_answered_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "question: q\nproblems:\n  - model: gpt2\n    requests: 2q2k_32x1\n"
    (tmp_path / "my-suite.yaml").write_text(text)
    assert main(["plan", "my-suite.yaml"]) == BAD_INPUT
    assert f"```text\n{capsys.readouterr().err}```\n" in DOCS


def test_the_docs_list_the_patterns_of_lengths() -> None:
    (table,) = re.findall(r"^\| pattern \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", DOCS, re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(PATTERNS)
