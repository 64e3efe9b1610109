"""Attention geometries of real models, each with where it is written down."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from attnbench.errors import ProblemError

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One kind of attention layer of one model."""

    name: str
    summary: str
    keys: Mapping[str, Scalar]
    """Keys of a suite's `problems:`, with a mask and lengths where the model sets them."""
    source: str
    """The paper with its section, or the configuration file with its fields."""


_LENGTHS = frozenset({"seqlen", "seqlen_q", "seqlen_kv", "requests"})
_FIXED = frozenset(
    {"heads", "heads_q", "heads_kv", "head_dim", "head_dim_v", "scale", "modifiers", "shared_kv"}
)
GEOMETRY_KEYS = (
    "heads",
    "heads_q",
    "heads_kv",
    "head_dim",
    "head_dim_v",
    "scale",
    "modifiers",
    "shared_kv",
    "mask",
    "seqlen",
    "seqlen_q",
    "seqlen_kv",
)
"""Keys of a problem that a geometry may have."""


def expand(values: Mapping[str, Any], models: Mapping[str, Geometry] | None = None) -> dict[str, Any]:
    """`values` with `model` replaced by the keys of its geometry, which is one of `models`, by default of `MODELS`.

    What is given beside the model wins; a length, whichever, replaces all lengths of the model. Raises
    `ProblemError` for an unknown model, and for a key that is the model's own, such as `head_dim`.
    """
    expanded = dict(values)
    if "model" not in expanded:
        return expanded
    models = MODELS if models is None else models
    name = str(expanded.pop("model"))
    geometry = models.get(name)
    if geometry is None:
        close = difflib.get_close_matches(name, models, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"one of: {', '.join(models)}"
        raise ProblemError(f"unknown model `{name}`", hint=hint)
    if not _FIXED.isdisjoint(expanded):
        clash = min(_FIXED.intersection(expanded))
        words = " ".join(f"{key}={value}" for key, value in geometry.keys.items() if key in _FIXED)
        raise ProblemError(
            f"`model: {name}` already sets the heads and what they compute, so `{clash}` cannot be given too",
            hint=f"leave out `model` and write its keys instead: {words}",
        )
    keys = geometry.keys
    if not _LENGTHS.isdisjoint(expanded):
        keys = {key: value for key, value in keys.items() if key not in _LENGTHS}
    return {**keys, **expanded}


def _geometry(name: str, summary: str, source: str, **keys: Scalar) -> Geometry:
    return Geometry(name=name, summary=summary, keys=MappingProxyType(keys), source=source)


_WHISPER = "Radford et al. 2022, table 1 (Large); openai/whisper-large-v3 config.json: "
_LLAMA = "The Llama 3 Herd of Models, 2024, table 3; config.json: "
_DEEPSEEK = (
    "DeepSeek-V3 technical report, 2024, section 2.1.1 and 4.2; config.json: num_attention_heads 128, "
    "qk_nope_head_dim 128, qk_rope_head_dim 64, v_head_dim 128, kv_lora_rank 512"
)
_YARN = "scale 1/sqrt(128 + 64) as pre-trained, before YaRN's factor for contexts beyond 4096"
_GEMMA_3 = (
    "Gemma 3 technical report, 2025; google/gemma_pytorch, gemma/config.py, get_config_for_12b: "
    "num_attention_heads 16, num_key_value_heads 8, head_dim 256, sliding_window_size 1024, five local layers to a "
    "global one; gemma/model.py: the score is scaled by head_dim^-0.5 where query_pre_attn_scalar is not given"
)
_GPT_OSS = (
    "gpt-oss model card, 2025; openai/gpt-oss, gpt_oss/torch/model.py: num_attention_heads 64, "
    "num_key_value_heads 8, head_dim 64, sliding_window 128 in every other layer, sinks"
)

MODELS: Mapping[str, Geometry] = MappingProxyType(
    {
        geometry.name: geometry
        for geometry in (
            _geometry(
                "gpt2",
                "GPT-2 small, decoder; trained with up to 1024 tokens",
                "Radford et al. 2019, table 2 (117M); gpt2 config.json: n_head 12, n_embd 768, n_ctx 1024",
                heads=12,
                head_dim=64,
                mask="causal",
            ),
            _geometry(
                "bert-base",
                "BERT-base, encoder; up to 512 tokens",
                "Devlin et al. 2019, section 3; bert-base-uncased config.json: num_attention_heads 12, "
                "hidden_size 768",
                heads=12,
                head_dim=64,
                mask="full",
            ),
            _geometry(
                "vit-l-16",
                "ViT-L/16 at 224 x 224 pixels: 196 patches and a class token",
                "Dosovitskiy et al. 2021, table 1 and section 3.1; google/vit-large-patch16-224 config.json: "
                "num_attention_heads 16, hidden_size 1024",
                heads=16,
                head_dim=64,
                mask="full",
                seqlen=197,
            ),
            _geometry(
                "whisper-large-v3-encoder",
                "Whisper large-v3, self-attention over 30 s of sound",
                _WHISPER + "encoder_attention_heads 20, d_model 1280, max_source_positions 1500",
                heads=20,
                head_dim=64,
                mask="full",
                seqlen=1500,
            ),
            _geometry(
                "whisper-large-v3-decoder",
                "Whisper large-v3, self-attention over the longest text",
                _WHISPER + "decoder_attention_heads 20, d_model 1280, max_target_positions 448",
                heads=20,
                head_dim=64,
                mask="causal",
                seqlen=448,
            ),
            _geometry(
                "whisper-large-v3-cross",
                "Whisper large-v3, the longest text attends to 30 s of sound",
                _WHISPER + "max_target_positions 448, max_source_positions 1500",
                heads=20,
                head_dim=64,
                mask="full",
                seqlen_q=448,
                seqlen_kv=1500,
            ),
            _geometry(
                "t5-base",
                "T5-base, encoder self-attention: unscaled, with a learned bias by distance",
                "Raffel et al. 2020, section 2.1 (32 buckets up to a distance of 128); t5-base config.json: "
                "num_heads 12, d_kv 64; T5Attention in transformers scales nothing",
                heads=12,
                head_dim=64,
                mask="full",
                scale=1.0,
                modifiers="relative-bias",
            ),
            _geometry(
                "llama-3-8b",
                "Llama 3 8B, decoder with grouped heads",
                _LLAMA + "num_attention_heads 32, num_key_value_heads 8, hidden_size 4096",
                heads_q=32,
                heads_kv=8,
                head_dim=128,
                mask="causal",
            ),
            _geometry(
                "llama-3-70b",
                "Llama 3 70B, decoder with grouped heads",
                _LLAMA + "num_attention_heads 64, num_key_value_heads 8, hidden_size 8192",
                heads_q=64,
                heads_kv=8,
                head_dim=128,
                mask="causal",
            ),
            _geometry(
                "mistral-7b",
                "Mistral 7B v0.1: a window of 4096 keys, the query's own among them; v0.2 has no window",
                "Jiang et al. 2023, table 1; mistralai/Mistral-7B-v0.1 config.json: num_attention_heads 32, "
                "num_key_value_heads 8, sliding_window 4096",
                heads_q=32,
                heads_kv=8,
                head_dim=128,
                mask="window:left=4095:right=0",
            ),
            _geometry(
                "gemma-2-9b",
                "Gemma 2 9B, a global layer with soft-capped scores; every other layer has a window of 4096",
                "Gemma 2, 2024, table 1 and section 2; google/gemma-2-9b config.json: num_attention_heads 16, "
                "num_key_value_heads 8, head_dim 256, attn_logit_softcapping 50, query_pre_attn_scalar 256",
                heads_q=16,
                heads_kv=8,
                head_dim=256,
                mask="causal",
                scale=256**-0.5,
                modifiers="softcap:cap=50",
            ),
            _geometry(
                "qwen3-8b",
                "Qwen3 8B, decoder with grouped heads",
                "Qwen3 technical report, 2025, table 1; Qwen/Qwen3-8B config.json: num_attention_heads 32, "
                "num_key_value_heads 8, head_dim 128",
                heads_q=32,
                heads_kv=8,
                head_dim=128,
                mask="causal",
            ),
            _geometry(
                "qwen3-next-80b",
                "Qwen3-Next 80B-A3B, one of the softmax layers, every fourth; the others are linear",
                "Qwen, 2025; transformers, configuration_qwen3_next.py, whose defaults are this model's: "
                "num_attention_heads 16, num_key_value_heads 2, head_dim 256, full_attention_interval 4",
                heads_q=16,
                heads_kv=2,
                head_dim=256,
                mask="causal",
            ),
            _geometry(
                "gemma-3-12b",
                "Gemma 3 12B, a global layer, every sixth",
                _GEMMA_3,
                heads_q=16,
                heads_kv=8,
                head_dim=256,
                mask="causal",
            ),
            _geometry(
                "gemma-3-12b-local",
                "Gemma 3 12B, a local layer: a window of 1024 keys, the query's own among them",
                _GEMMA_3,
                heads_q=16,
                heads_kv=8,
                head_dim=256,
                mask="window:left=1023:right=0",
            ),
            _geometry(
                "gpt-oss-120b",
                "gpt-oss 120B, a layer without window; a learned sink per head",
                _GPT_OSS,
                heads_q=64,
                heads_kv=8,
                head_dim=64,
                mask="causal",
                modifiers="sinks",
            ),
            _geometry(
                "gpt-oss-120b-local",
                "gpt-oss 120B, every other layer: a window of 128 keys, the query's own among them, and a sink",
                _GPT_OSS,
                heads_q=64,
                heads_kv=8,
                head_dim=64,
                mask="window:left=127:right=0",
                modifiers="sinks",
            ),
            _geometry(
                "deepseek-v3-mla-expanded",
                f"DeepSeek-V3's latent attention with keys and values unpacked per head; {_YARN}",
                _DEEPSEEK,
                heads=128,
                head_dim=192,
                head_dim_v=128,
                mask="causal",
                scale=192**-0.5,
            ),
            _geometry(
                "deepseek-v3-mla-absorbed",
                "DeepSeek-V3's latent attention on the latent itself: all heads share one key of "
                f"512 + 64, whose first 512 are the value; {_YARN}",
                _DEEPSEEK + "; DeepSeek-V2, 2024, section 2.1.2 (absorption)",
                heads_q=128,
                heads_kv=1,
                head_dim=576,
                head_dim_v=512,
                mask="causal",
                scale=192**-0.5,
                shared_kv=True,
            ),
        )
    }
)
"""Every geometry by its name, in the order in which they are shown."""
