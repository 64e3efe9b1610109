"""Every geometry is a problem that can be built, and says what its model's papers say."""

from typing import Any

import pytest

from attnbench.errors import ProblemError
from attnbench.models import MODELS, expand
from attnbench.problem import PROBLEM_KEYS, Problem, problem_from

LENGTHS = {"seqlen", "seqlen_q", "seqlen_kv", "requests"}


def problem_of(model: str, **given: Any) -> Problem:
    return problem_from(expand({"model": model, **given}))


def with_a_length(model: str) -> Problem:
    return problem_of(model) if LENGTHS & MODELS[model].keys.keys() else problem_of(model, seqlen=128)


@pytest.mark.parametrize("name", MODELS)
def test_every_geometry_builds_a_problem_that_its_own_text_gives_back(name: str) -> None:
    problem = with_a_length(name)

    assert Problem.parse(problem.text) == problem


@pytest.mark.parametrize("geometry", MODELS.values(), ids=lambda geometry: geometry.name)
def test_every_geometry_has_a_mask_a_summary_and_a_source(geometry: Any) -> None:
    assert MODELS[geometry.name] is geometry
    assert set(geometry.keys) <= set(PROBLEM_KEYS)
    assert "mask" in geometry.keys
    assert geometry.summary
    assert any(year in geometry.source for year in ("2018", "2019", "202"))


@pytest.mark.parametrize(
    ("name", "heads_q", "heads_kv", "head_dim", "head_dim_v", "width"),
    [
        ("gpt2", 12, 12, 64, 64, 768),
        ("bert-base", 12, 12, 64, 64, 768),
        ("vit-l-16", 16, 16, 64, 64, 1024),
        ("whisper-large-v3-encoder", 20, 20, 64, 64, 1280),
        ("whisper-large-v3-decoder", 20, 20, 64, 64, 1280),
        ("whisper-large-v3-cross", 20, 20, 64, 64, 1280),
        ("t5-base", 12, 12, 64, 64, 768),
        ("llama-3-8b", 32, 8, 128, 128, 4096),
        ("llama-3-70b", 64, 8, 128, 128, 8192),
        ("mistral-7b", 32, 8, 128, 128, 4096),
        ("gemma-2-9b", 16, 8, 256, 256, 4096),
        ("qwen3-8b", 32, 8, 128, 128, 4096),
        ("qwen3-next-80b", 16, 2, 256, 256, 4096),
        ("gemma-3-12b", 16, 8, 256, 256, 4096),
        ("gemma-3-12b-local", 16, 8, 256, 256, 4096),
        ("gpt-oss-120b", 64, 8, 64, 64, 4096),
        ("gpt-oss-120b-local", 64, 8, 64, 64, 4096),
        ("deepseek-v3-mla-expanded", 128, 128, 192, 128, 16384),
        ("deepseek-v3-mla-absorbed", 128, 1, 576, 512, 65536),
    ],
)
def test_heads_and_dimensions_are_the_papers(
    name: str, heads_q: int, heads_kv: int, head_dim: int, head_dim_v: int, width: int
) -> None:
    problem = with_a_length(name)

    assert (problem.heads_q, problem.heads_kv) == (heads_q, heads_kv)
    assert (problem.head_dim, problem.head_dim_v) == (head_dim, head_dim_v)
    assert problem.heads_q * problem.head_dim_v == width  # of the output projection's input


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("vit-l-16", ((224 // 16) ** 2 + 1, (224 // 16) ** 2 + 1)),
        ("whisper-large-v3-encoder", (1500, 1500)),
        ("whisper-large-v3-decoder", (448, 448)),
        ("whisper-large-v3-cross", (448, 1500)),
    ],
)
def test_models_with_a_fixed_input_bring_its_length(name: str, lengths: tuple[int, int]) -> None:
    assert problem_of(name).uniform == lengths


def test_other_models_need_a_length() -> None:
    with pytest.raises(ProblemError, match="seqlen"):
        problem_of("llama-3-8b")


def test_t5_scales_nothing_and_adds_a_bias_by_distance() -> None:
    problem = with_a_length("t5-base")

    assert problem.softmax_scale == 1.0
    assert problem.modifiers_text == "relative-bias"


def test_gemma_2_caps_its_scores_at_fifty() -> None:
    problem = with_a_length("gemma-2-9b")

    assert problem.modifiers_text == "softcap:cap=50"
    assert problem.softmax_scale == 1 / 16


@pytest.mark.parametrize(
    ("name", "keys"), [("mistral-7b", 4096), ("gemma-3-12b-local", 1024), ("gpt-oss-120b-local", 128)]
)
def test_a_query_of_a_local_layer_sees_the_keys_of_its_window(name: str, keys: int) -> None:
    mask = with_a_length(name).mask

    assert sum(bool(mask.allowed(9000, j, 10000, 10000)) for j in range(10000)) == keys


def test_both_forms_of_latent_attention_scale_by_the_unpacked_dimension() -> None:
    expanded, absorbed = map(with_a_length, ("deepseek-v3-mla-expanded", "deepseek-v3-mla-absorbed"))

    assert expanded.softmax_scale == absorbed.softmax_scale == (128 + 64) ** -0.5
    assert absorbed.shared_kv
    assert not expanded.shared_kv


def test_decoders_are_causal_and_encoders_are_not() -> None:
    masks = {name: str(with_a_length(name).mask) for name in MODELS}

    assert {name for name, mask in masks.items() if mask == "full"} == {
        "bert-base",
        "vit-l-16",
        "whisper-large-v3-encoder",
        "whisper-large-v3-cross",
        "t5-base",
    }
    assert {name for name, mask in masks.items() if mask not in ("full", "causal")} == {
        "mistral-7b",
        "gemma-3-12b-local",
        "gpt-oss-120b-local",
    }


def test_what_is_given_beside_a_model_wins() -> None:
    problem = problem_of("gpt2", seqlen=64, mask="full", batch=3, dtype="bfloat16")

    assert problem == problem_of("bert-base", seqlen=64, batch=3, dtype="bfloat16")


@pytest.mark.parametrize("given", [{"seqlen": 64}, {"seqlen_q": 1, "seqlen_kv": 64}, {"requests": "2q1s64"}])
def test_a_given_length_replaces_all_lengths_of_the_model(given: dict[str, Any]) -> None:
    expanded = expand({"model": "whisper-large-v3-cross", **given})

    assert {key: value for key, value in expanded.items() if key in LENGTHS} == given
    assert problem_from(expanded).sequences[0][1] == 64


def test_half_a_pair_of_lengths_is_not_completed_from_the_model() -> None:
    with pytest.raises(ProblemError, match="seqlen_kv"):
        problem_of("whisper-large-v3-cross", seqlen_q=1)


def test_values_without_a_model_pass_unchanged() -> None:
    values = {"heads": 2, "head_dim": 8, "seqlen": 4}

    assert expand(values) == values
    assert expand(values) is not values


@pytest.mark.parametrize(
    "key", ["heads", "heads_kv", "head_dim", "head_dim_v", "scale", "modifiers", "shared_kv"]
)
def test_a_models_own_keys_cannot_be_given_beside_it(key: str) -> None:
    with pytest.raises(ProblemError, match=f"`{key}` cannot be given") as caught:
        expand({"model": "llama-3-8b", "seqlen": 4, key: 1})

    assert caught.value.hint == (
        "leave out `model` and write its keys instead: heads_q=32 heads_kv=8 head_dim=128"
    )


@pytest.mark.parametrize(
    ("name", "hint"), [("llama3-8b", "did you mean `llama-3-8b`?"), (7, f"one of: {', '.join(MODELS)}")]
)
def test_an_unknown_model_is_answered_with_the_nearest(name: Any, hint: str) -> None:
    with pytest.raises(ProblemError, match=f"unknown model `{name}`") as caught:
        expand({"model": name})

    assert caught.value.hint == hint


def test_a_geometry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        MODELS["gpt2"].keys["heads"] = 1  # type: ignore[index]
