"""The one table of keys that makes loader, JSON Schema and docs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.models import MODELS
from attnbench.problem import PROBLEM_KEYS, Direction, DType
from attnbench.suites.suite import PRESETS


@dataclass(frozen=True)
class Key:
    """What may stand behind a key: a value of a kind of `KINDS`, and where `many`, a list of them too."""

    kind: str
    default: str
    """As text; `required`, or empty where leaving the key out means nothing of its own."""
    meaning: str
    many: bool = False
    keys: "Mapping[str, Key] | None" = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    """Regular expression of the values, where `choices` only gives examples."""
    least: float | None = None
    field: str = ""
    """Of the record, where it is not called like the key."""
    unit: float = 1.0
    """Of the value, in that of the field."""


KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {"type": "string", "minLength": 1}),
    "integer": ("a whole number", {"type": "integer"}),
    "number": ("a number", {"type": "number"}),
    "boolean": ("true or false", {"type": "boolean"}),
    "duration": ("a duration such as 60s", {"type": ["string", "number"]}),
    "memory": ("an amount of memory such as 8GiB", {"type": ["string", "number"]}),
    "keys": ("keys with values", {}),
}
_PROBLEM_KINDS = {int: "integer", float: "number", bool: "boolean", str: "text"}
_CHOICES = {"dtype": tuple(DType), "kv_dtype": tuple(DType), "direction": tuple(Direction)}

# fmt: off
BLOCK_KEYS: Mapping[str, Key] = {
    "model": Key("text", "", f"brings the heads of a real model: one of {', '.join(MODELS)}", True,
        choices=tuple(MODELS)),
    **{
        name: Key(_PROBLEM_KINDS[kind], default, meaning, True, choices=_CHOICES.get(name, ()),
            least=1 if kind is int else None)
        for name, (kind, default, meaning) in PROBLEM_KEYS.items()
    },
}
MEASURE_KEYS: Mapping[str, Key] = {
    "preset": Key("text", "default", "launches and budget: " + ", ".join(
        f"{name} {p.launches} and {p.budget_s:g}s" for name, p in PRESETS.items()), choices=tuple(PRESETS)),
    "launches": Key("integer", "the preset's", "fresh processes that a cell is measured in", least=1),
    "budget": Key("duration", "the preset's", "measuring of one cell, over all launches",
        least=1e-3, field="budget_s"),
    "timeout": Key("duration", "60s", "end of a job; waiting for its turn does not count",
        least=1e-3, field="timeout_s"),
    "memory": Key("memory", "most of the machine's", "limit of one job", least=1, field="memory_bytes"),
    "threads": Key("integer", "all available", "CPU threads that an implementation may use", least=1),
    "cache": Key("text", "warm", "state of the caches at each call: warm, as the call before left them, or cold, "
        "inputs not in the last-level cache", True, choices=("warm", "cold"), field="caches"),
    "clock": Key("text", "wall", "wall; on a CUDA device events, or graph: a CUDA graph of several calls", choices=("wall", "events", "graph")),
    "seed": Key("integer", "another in every run", "of the inputs and of the order of measuring", least=0),
}
VERIFY_KEYS: Mapping[str, Key] = {
    "gflop": Key("number", "0.5", "work of the float64 oracle per problem and kind of inputs, in 1e9 "
        "floating-point operations; of a larger problem a seeded sample of rows is checked",
        least=1e-3, field="work", unit=1e9),
    "batch_invariance": Key("boolean", "false", "whether the first member of a batch is computed alone too, for the "
        "column `batch_invariant`"),
}
SUITE_KEYS: Mapping[str, Key] = {
    "question": Key("text", "required", "what the suite answers, in words"),
    "device": Key("text", "cpu", "where to run: cpu, cuda, cuda:1 ...", True, field="devices",
        choices=("cpu", "cuda", "cuda:1"), pattern=r"^(cpu|cuda(:(0|[1-9][0-9]?))?)$"),
    "implementations": Key("text", '"*"', "names or globs of what is compared", True),
    "baseline": Key("text", "the first that is ok", "name of what the others are compared with"),
    "problems": Key("keys", "required", "blocks; each key of one has a value or a list of values, "
        "and the block is the product of its lists", True, keys=BLOCK_KEYS),
    "measure": Key("keys", "", "how to measure", keys=MEASURE_KEYS),
    "verify": Key("keys", "", "how to verify", keys=VERIFY_KEYS),
}
# fmt: on


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a suite file."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "title": "attnbench suite", **_object(SUITE_KEYS)}


def _object(keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, key in keys.items() if key.default == "required"],
        "properties": {name: _property(key) for name, key in keys.items()},
    }


def _property(key: Key) -> dict[str, Any]:
    one = _object(key.keys) if key.keys else dict(KINDS[key.kind][1])
    if key.choices:
        one |= {"pattern": key.pattern} if key.pattern else {"enum": list(key.choices)}
    if key.least is not None:
        one["minimum"] = key.least
    several = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]} if key.many else one
    return {"description": key.meaning + (f" (default: {key.default})" if key.default else ""), **several}


def keys_markdown() -> str:
    """The tables of keys in `docs/suites.md`."""
    titles = {"A suite": SUITE_KEYS, "A block of `problems:`": BLOCK_KEYS}
    titles |= {"`measure:`": MEASURE_KEYS, "`verify:`": VERIFY_KEYS}
    lines = []
    for title, keys in titles.items():
        lines += [f"### {title}", "", "| key | value | default | meaning |", "|---|---|---|---|"]
        for name, key in keys.items():
            noun = KINDS[key.kind][0] + (", or a list" if key.many else "")
            lines.append(f"| `{name}` | {noun} | {key.default} | {key.meaning} |")
        lines.append("")
    return "\n".join(lines)
