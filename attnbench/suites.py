"""YAML -> `Suite`. The only module that knows YAML; one table of keys makes loader, JSON Schema and docs."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from attnbench.errors import ProblemError, SuiteError, UserError
from attnbench.models import MODELS, expand
from attnbench.problem import PROBLEM_KEYS, Direction, DType, Problem, parse_words, problem_from, suggestion
from attnbench.units import parse_bytes, parse_seconds

LARGEST = 1_000_000
"""Combinations of values in one suite at the most; they are counted before any is made."""
_LARGEST_FILE = 2**20


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much measuring a cell gets."""

    launches: int
    """Fresh processes."""
    budget_s: float
    """Over all launches."""


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(launches=1, budget_s=0.5),
    "default": Preset(launches=3, budget_s=3.0),
    "gate": Preset(launches=5, budget_s=15.0),
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How each cell is measured. None: all threads, no limit of memory, the preset's launches and budget."""

    preset: str = "default"
    launches: int | None = None
    budget_s: float | None = None
    timeout_s: float = 60.0
    memory_bytes: int | None = None
    threads: int | None = None
    cache: str = "warm"
    clock: str = "wall"
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verify:
    """How thoroughly each cell is verified."""

    work: float = 2e9
    """Floating-point operations of the float64 oracle, per problem and kind of inputs."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to measure, on what and how; every value has been checked, no implementation has been looked up."""

    name: str
    question: str
    devices: tuple[str, ...] = ("cpu",)
    implementations: tuple[str, ...] = ("*",)
    """Names and globs."""
    baseline: str | None = None
    problems: tuple[Problem, ...]
    """All blocks united, in the order of the file, each problem once."""
    measure: Measure = Measure()
    verify: Verify = Verify()
    text: str
    """The suite as read."""
    path: str
    """The file or the shipped suite's name, as given."""


# ---------------------------------------------------------------- the keys


@dataclass(frozen=True)
class Key:
    """What may stand behind a key: a value of a kind of `_KINDS`, and where `many`, a list of them too."""

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


_KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
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
    "cache": Key("text", "warm", "state of the caches at each call: warm or cold", choices=("warm", "cold")),
    "clock": Key("text", "wall", "wall or events; on a CUDA device it is events in any case", choices=("wall", "events")),
    "seed": Key("integer", "another in every run", "of the inputs and of the order of measuring", least=0),
}
VERIFY_KEYS: Mapping[str, Key] = {
    "gflop": Key("number", "2", "work of the float64 oracle per problem and kind of inputs, in 1e9 "
        "floating-point operations; of a larger problem a seeded sample of rows is checked",
        least=1e-3, field="work", unit=1e9),
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
    one = _object(key.keys) if key.keys else dict(_KINDS[key.kind][1])
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
            noun = _KINDS[key.kind][0] + (", or a list" if key.many else "")
            lines.append(f"| `{name}` | {noun} | {key.default} | {key.meaning} |")
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------- YAML -> nodes -> values


def _compose(text: str, name: str) -> Node | None:
    """Nodes, which know their lines. They are walked no deeper than a suite goes, so no alias can explode."""
    try:
        loader = yaml.SafeLoader(text)
        loader.name = name
        return loader.get_single_node()
    except RecursionError:
        raise SuiteError(f"{name}: nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SuiteError(f"{name}:{line}: not text: it holds the character {error.character:#x}") from None
    except yaml.MarkedYAMLError as error:
        what, hint = error.problem or "this is not YAML", None
        if r"'\t'" in what:
            what, hint = "a tab where YAML wants spaces", "indent with spaces"
        elif error.context == "while scanning an alias" or "undefined alias" in what:
            what, hint = "there is no alias of that name", 'a glob that begins with `*` needs quotes: "*"'
        elif "another document" in what:
            what, hint = "there is a second document", "write one suite a file, without `---`"
        raise SuiteError(f"{_place(error.problem_mark)}: {what}", hint=hint) from None


def _place(mark: Any) -> str:
    return str(mark.name) if mark.name.startswith("--") else f"{mark.name}:{mark.line + 1}"


def _error(node: Node, message: str, hint: str | None = None) -> SuiteError:
    return SuiteError(f"{_place(node.start_mark)}: {' '.join(message.split())}", hint=hint)


_INTEGER = re.compile(r"[-+]?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[-+]?\d{1,30}(\.\d{0,30})?([eE][-+]\d{1,3})?")
_EXPONENT = re.compile(r"([-+]?\d+)(?:\.(\d*))?[eE]([-+]?)(\d{1,3})")
_READINGS = {
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "nothing",
    "timestamp": "a date",
}


def _yaml_exponent(match: re.Match[str]) -> str:
    whole, digits, sign, power = match.groups()
    return f"{whole}.{digits or 0}e{sign or '+'}{power}"


def _got(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return (
            "keys with values"
            if isinstance(node, MappingNode)
            else "a list" + " that contains itself" * (node in node.value)
        )
    text = " ".join(node.value.split())[:60]
    if node.style is not None:
        return f"the text {text!r}"
    reading = _READINGS.get(node.tag.rpartition(":")[2], "text")
    sixty = " in base 60" if reading == "a number" and ":" in text else ""
    return f"`{text}`, which YAML reads as {reading}{sixty}" if text else "nothing"


def _wrong(name: str, key: Key, node: Node) -> SuiteError:
    noun, text = _KINDS[key.kind][0], str(node.value) if isinstance(node, ScalarNode) else ""
    exponent = _EXPONENT.fullmatch(text)
    hint = {"text": f'write "{text}"', "boolean": "write true or false"}.get(
        key.kind, "write decimal digits, without quotes"
    )
    if key.kind == "integer" and (exponent or _NUMBER.fullmatch(text)) and float(text) % 1 == 0:
        hint = f"write {float(text):.0f}"
    elif exponent and key.kind == "number":
        hint = f"write {_yaml_exponent(exponent)}"
    got = _got(node).removesuffix(f", which YAML reads as {noun}")
    return _error(node, f"`{name}` must be {noun}, got {got}", hint if text.strip() else None)


def _scalar(name: str, key: Key, node: Node) -> Any:
    if not isinstance(node, ScalarNode):
        raise _wrong(name, key, node)
    tag, text = node.tag.rpartition(":")[2], node.value
    value: Any = None
    number = tag in ("int", "float") and _NUMBER.fullmatch(text)
    if key.kind == "integer" and tag == "int" and _INTEGER.fullmatch(text):
        value = int(text)
    elif key.kind == "number" and number and math.isfinite(float(text)):
        value = float(text) * key.unit
    elif key.kind == "boolean" and tag == "bool" and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif key.kind == "text" and tag not in _READINGS and text.strip():
        value = text
    elif key.kind in ("duration", "memory") and (number or (tag == "str" and len(text) < 40)):
        try:
            value = parse_seconds(text) if key.kind == "duration" else parse_bytes(text)
        except UserError as error:
            raise _error(node, f"`{name}`: {error.message}", error.hint) from None
    if value is None:
        raise _wrong(name, key, node)
    if key.choices and not (re.search(key.pattern, value) if key.pattern else value in key.choices):
        hint = f"one of: {', '.join(key.choices)}" if key.pattern else suggestion(value, key.choices)
        raise _error(node, f"unknown {name} `{value}`", hint)
    if key.least is not None and value < key.least * key.unit:
        raise _error(node, f"`{name}` must be at least {key.least:g}, got {text}")
    return value


def _items(node: Node) -> list[Node]:
    return node.value if isinstance(node, SequenceNode) else [node]


def _members(node: Node, what: str, keys: Mapping[str, Key]) -> dict[str, Node]:
    """The node behind each key of a mapping, whose keys are known and unique and none is missing."""
    if not isinstance(node, MappingNode):
        raise _error(node, f"{what} must be keys with values, got {_got(node)}")
    members: dict[str, Node] = {}
    for name, value in node.value:
        if not isinstance(name, ScalarNode):
            raise _error(name, f"a key must be a word, got {_got(name)}")
        if name.value not in keys:
            raise _error(name, f"unknown key `{name.value}` in {what}", suggestion(name.value, keys))
        if name.value in members:
            raise _error(name, f"`{name.value}` is given twice")
        if isinstance(value, SequenceNode) and not value.value:
            raise _error(value, f"`{name.value}` is an empty list", "give a value, or leave the key out")
        members[name.value] = value
    for name, key in keys.items():
        if key.default == "required" and name not in members:
            raise _error(node, f"{what} needs `{name}`", f"`{name}:` holds {key.meaning}")
    return members


def _fields(members: Mapping[str, Node], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The value behind each key that is there; a tuple where the key takes a list."""
    fields: dict[str, Any] = {}
    for name, node in members.items():
        key = keys[name]
        if key.many and not key.keys:
            fields[key.field or name] = tuple(_scalar(name, key, item) for item in _items(node))
        elif not key.keys:
            fields[key.field or name] = _scalar(name, key, node)
    return fields


def _problems(node: Node) -> tuple[Problem, ...]:
    blocks = [(block, _members(block, "a block of `problems`", BLOCK_KEYS)) for block in _items(node)]
    count = sum(math.prod(len(_items(n)) for n in members.values()) for _, members in blocks)
    if count > LARGEST:
        raise _error(node, f"{count:,} combinations of values, more than {LARGEST:,}", "split the suite")
    found: dict[Problem, None] = {}
    for block, members in blocks:
        lists = _fields(members, BLOCK_KEYS)
        for combination in product(*lists.values()):
            values = dict(zip(lists, combination, strict=True))
            try:
                found[problem_from(expand(values))] = None
            except ProblemError as error:
                places = {n: _items(node)[lists[n].index(values[n])] for n, node in members.items()}
                raise _error(_culprit(block, places, error.message), error.message, error.hint) from None
    return tuple(found)


def _culprit(block: Node, places: Mapping[str, Node], message: str) -> Node:
    """The value that a message speaks of, by its key or by a word of its own; else the block."""
    for word in re.findall(r"[a-z][\w-]*", message):
        for name, node in places.items():
            if word == name or word.startswith(f"{name}_") or word in re.findall(r"[a-z][\w-]*", node.value):
                return node
    return block


# ---------------------------------------------------------------- suites


def _word(text: str, name: str) -> ScalarNode:
    """The node that YAML makes of a plain word, placed in `name`."""
    mark = yaml.Mark(name, 0, 0, 0, None, 0)
    tag = yaml.SafeLoader("").resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return ScalarNode(tag, text, mark, mark)


def _override(root: Node, text: str) -> None:
    """Puts the value of a `--set key=value` into the place of the file's own."""
    path, equals, value = text.partition("=")
    name = f"--set {text}"
    if not equals or not path:
        raise SuiteError(f"{name}: no key=value", hint="write for example measure.preset=quick")
    new = _compose(value, name) if value.startswith(("[", '"', "'")) else _word(value, name)
    section, dot, key = path.partition(".")
    targets: list[Node] = [root]
    if dot:
        sections = [n for n, k in SUITE_KEYS.items() if k.keys]
        if section not in sections:
            raise SuiteError(f"{name}: unknown key `{path}`", hint=suggestion(section, sections))
        found = [v for k, v in root.value if k.value == section] if isinstance(root, MappingNode) else []
        if not found and isinstance(root, MappingNode):
            begin = _word(section, name)
            found = [MappingNode("", [], begin.start_mark, begin.end_mark)]
            root.value.append((begin, found[0]))
        targets = _items(found[0]) if found else []
    for target in targets:
        if isinstance(target, MappingNode):
            kept = [(k, v) for k, v in target.value if k.value != (key or path)]
            target.value[:] = [*kept, (_word(key or path, name), new)]


def parse(text: str, path: str, overrides: Sequence[str] = ()) -> Suite:
    """The suite in `text`, where messages say `path`; `overrides` are texts of `--set`. Raises `SuiteError`."""
    root = _compose(text, path)
    if root is None:
        raise SuiteError(f"{path}:1: there is no suite in it", hint="a suite begins with `question:`")
    for override in overrides:
        _override(root, override)
    members = _members(root, "a suite", SUITE_KEYS)
    records: dict[str, Any] = {
        name: kind(**_fields(_members(members[name], f"`{name}`", keys), keys))
        for name, kind, keys in (("measure", Measure, MEASURE_KEYS), ("verify", Verify, VERIFY_KEYS))
        if name in members
    }
    records |= _fields(members, SUITE_KEYS) | {"problems": _problems(members["problems"])}
    return Suite(name=Path(path).stem.lstrip("-"), text=text, path=path, **records)


def suite_of_problem(text: str, overrides: Sequence[str] = ()) -> Suite:
    """The suite `problem` of one problem: words `key=value` with the keys of a block. Raises `UserError`.

    Its text is a suite too, which `parse` takes back.
    """
    lines = ["question: How do the implementations compare on this problem?", "problems:"]
    for name, value in parse_words(text).items():
        plain = name in BLOCK_KEYS and BLOCK_KEYS[name].kind != "text" and re.fullmatch(r"[-+.\w]+", value)
        word = _EXPONENT.sub(_yaml_exponent, value) if plain else json.dumps(value)  # 1e-05 is text in YAML
        lines.append(f"  {json.dumps(name)}: {word}")
    return parse("\n".join([*lines, ""]), "--problem", overrides)


def _shipped() -> dict[str, Path]:
    package = Path(__file__).parent
    inside = package / "shipped_suites"  # of a wheel; in a checkout they lie beside the package
    folder = inside if inside.is_dir() else package.parent / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped() -> list[str]:
    """The names of the suites that come with attnbench."""
    return list(_shipped())


def find(name_or_path: str) -> Path:
    """The file of that path, or else the shipped suite of that name. Raises `SuiteError`."""
    if os.path.exists(name_or_path) and not os.path.isdir(name_or_path):
        return Path(name_or_path)
    if path := _shipped().get(name_or_path.removesuffix(".yaml")):
        return path
    if os.path.isdir(name_or_path):
        raise SuiteError(f"{name_or_path}: a directory is no suite", hint="give a file in it")
    raise SuiteError(
        f"{name_or_path}: no such file", hint=f"give a file, or one of ours: {', '.join(_shipped())}"
    )


def load(name_or_path: str, overrides: Sequence[str] = (), text: str | None = None) -> Suite:
    """The suite of a file, or a shipped one by its name; `text` stands in for the file. Raises `SuiteError`."""
    if text is not None:
        return parse(text, name_or_path, overrides)
    try:
        with find(name_or_path).open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise SuiteError(f"{name_or_path}: {error.strerror}") from None
    if len(data) > _LARGEST_FILE:
        raise SuiteError(f"{name_or_path}: no suite is larger than {_LARGEST_FILE:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SuiteError(f"{name_or_path}:{line}: not a text file in UTF-8") from None
    return parse(text, name_or_path, overrides)
