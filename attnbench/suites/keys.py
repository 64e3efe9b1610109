"""The one table of keys that makes loader, JSON Schema and docs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from attnbench.models import GEOMETRY_KEYS, MODELS
from attnbench.problem import PROBLEM_KEYS, Descale, Direction, DType
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
    named: bool = False
    """Whether `keys` stand behind names of one's own, which match `NAME`."""
    choices: tuple[str, ...] = ()
    pattern: str = ""
    """Regular expression of the values, where `choices` only gives examples."""
    least: float | None = None
    field: str = ""
    """Of the record, where it is not called like the key."""
    unit: float = 1.0
    """Of the value, in that of the field."""

    @property
    def ranges(self) -> bool:
        """Whether a range may take the place of the list."""
        return self.many and self.kind in ("integer", "number")


NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {"type": "string", "minLength": 1}),
    "integer": ("a whole number", {"type": "integer"}),
    "number": ("a number", {"type": "number"}),
    "pair": ("two numbers", {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
    "boolean": ("true or false", {"type": "boolean"}),
    "duration": ("a duration such as 60s", {"type": ["string", "number"]}),
    "memory": ("an amount of memory such as 8GiB", {"type": ["string", "number"]}),
    "share": ("a share such as 1%", {"type": ["string", "number"]}),
    "keys": ("keys with values", {}),
}
_PROBLEM_KINDS = {int: "integer", float: "number", bool: "boolean", str: "text"}
_CHOICES = {
    "dtype": tuple(DType),
    "kv_dtype": tuple(DType),
    "descale": tuple(Descale),
    "direction": tuple(Direction),
}

# fmt: off
LINEAR_KEYS: Mapping[str, Key] = {
    "from": Key("number", "required", "the first value"),
    "to": Key("number", "required", "the last value"),
    "step": Key("number", "required", "what each value has more than the one before"),
}
RANGE_KEYS: Mapping[str, Key] = {
    "geometric": Key("pair", "", "the first and the last value; each is `factor` times the one before"),
    "factor": Key("integer", "2", "of a geometric range", least=2),
    "linear": Key("keys", "", "`from` and `to`, the first and the last value, and `step`, what each has more than the "
        "one before", keys=LINEAR_KEYS),
}
AXIS_KEYS: Mapping[str, Key] = {
    "model": Key("text", "", f"brings the heads of a model: one of `models:`, or of {', '.join(MODELS)}",
        True, choices=tuple(MODELS), pattern=NAME),
    **{
        name: Key(_PROBLEM_KINDS[kind], default, meaning, True, choices=_CHOICES.get(name, ()),
            least=1 if kind is int else None)
        for name, (kind, default, meaning) in PROBLEM_KEYS.items()
    },
}
BLOCK_KEYS: Mapping[str, Key] = {
    **AXIS_KEYS,
    "zip": Key("keys", "", "keys whose lists go together, value by value, instead of being multiplied", True,
        keys=AXIS_KEYS),
    "exclude": Key("keys", "", "values of some of the block's keys; combinations that have them all are left out",
        True, keys=AXIS_KEYS),
    "device": Key("text", "all of the suite's", "kinds of device that the block is for", True,
        choices=("cpu", "cuda")),
}
MODEL_KEYS: Mapping[str, Key] = {
    name: replace(AXIS_KEYS[name], many=False, default="required" if name == "head_dim" else AXIS_KEYS[name].default)
    for name in GEOMETRY_KEYS
}
MEASURE_KEYS: Mapping[str, Key] = {
    "preset": Key("text", "default", "launches and budget, without any of which cells are only verified: " + ", ".join(
        f"{name} {p.launches} and {p.budget_s:g}s" for name, p in PRESETS.items()), choices=tuple(PRESETS)),
    "launches": Key("integer", "the preset's", "fresh processes that a cell is measured in", least=1),
    "budget": Key("duration", "the preset's", "measuring of one cell, over all launches",
        least=1e-3, field="budget_s"),
    "width": Key("share", "1%; 0 with `--against`", "half-width of the 95 % interval at which a launch ends before its budget; 0 never does"),
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
    "models": Key("keys", "", "geometries of one's own: behind each name the keys of a model", keys=MODEL_KEYS,
        named=True),
    "problems": Key("keys", "required", "blocks; each key of one has a value or a list of values, "
        "and the block is the product of its lists, less what it excludes", True, keys=BLOCK_KEYS),
    "measure": Key("keys", "", "how to measure", keys=MEASURE_KEYS),
    "verify": Key("keys", "", "how to verify", keys=VERIFY_KEYS),
}
# fmt: on


_SHARED = {"block": BLOCK_KEYS, "axes": AXIS_KEYS, "range": RANGE_KEYS}
"""Tables of keys that stand in several places of the schema."""


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a suite file."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    shared = {name: _object(keys) for name, keys in _SHARED.items()}
    shared["range"]["oneOf"] = [{"required": ["geometric"]}, {"required": ["linear"]}]
    shared["range"]["dependentRequired"] = {"factor": ["geometric"]}
    return {"$schema": dialect, "title": "attnbench suite", **_object(SUITE_KEYS), "$defs": shared}


def _object(keys: Mapping[str, Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, key in keys.items() if key.default == "required"],
        "properties": {name: _property(key) for name, key in keys.items()},
    }


def _one(key: Key) -> dict[str, Any]:
    """The schema of one value."""
    if key.keys is None:
        one = dict(KINDS[key.kind][1])
        if key.choices:
            examples = {"pattern": key.pattern, "examples": list(key.choices)}
            one |= examples if key.pattern else {"enum": list(key.choices)}
        return one if key.least is None else {**one, "minimum": key.least}
    name = next((name for name, keys in _SHARED.items() if keys is key.keys), None)
    behind = {"$ref": f"#/$defs/{name}"} if name else _object(key.keys)
    if not key.named:
        return behind
    return {
        "type": "object",
        "propertyNames": {"pattern": NAME},
        "additionalProperties": behind,
        "minProperties": 1,
    }


def _property(key: Key) -> dict[str, Any]:
    one = _one(key)
    several = [one]
    if key.many:
        several.append({"type": "array", "items": one, "minItems": 1})
    if key.ranges:
        several.append({"$ref": "#/$defs/range"})
    told = key.meaning + (f" (default: {key.default})" if key.default else "")
    return {"description": told, **({"anyOf": several} if key.many else one)}


def keys_markdown() -> str:
    """The tables of keys in `docs/suites.md`."""
    titles = {"A suite": SUITE_KEYS, "A block of `problems:`": BLOCK_KEYS, "A range": RANGE_KEYS}
    titles |= {"`measure:`": MEASURE_KEYS, "`verify:`": VERIFY_KEYS}
    lines = []
    for title, keys in titles.items():
        lines += [f"### {title}", "", "| key | value | default | meaning |", "|---|---|---|---|"]
        for name, key in keys.items():
            noun = KINDS[key.kind][0] + ", or a list" * key.many + " or a range" * key.ranges
            lines.append(f"| `{name}` | {noun} | {key.default} | {key.meaning} |")
        lines.append("")
    return "\n".join(lines)
