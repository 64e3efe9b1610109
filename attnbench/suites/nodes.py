"""YAML -> nodes, which know their lines -> the values behind the keys."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from attnbench.errors import SuiteError, UserError
from attnbench.problem import suggestion
from attnbench.suites.keys import KINDS, NAME, Key
from attnbench.units import parse_bytes, parse_seconds, parse_share

DEEPEST = 20
"""Nodes within nodes at the most; a suite has eight: suite, blocks, block, zips, zip, range, its `linear`, value."""
_STANDARD_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses tags and what is nested deeper than `DEEPEST` where it meets them."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            told = f"!!{tag.removeprefix(_STANDARD_TAG)}" if tag.startswith(_STANDARD_TAG) else tag
            raise SuiteError(f"{place(event.start_mark)}: a suite has no tags, `{told}`", hint="leave it out")
        if self.depth == DEEPEST:
            hint = "a suite has blocks of keys, and behind a key one value or one list of values"
            raise SuiteError(f"{place(event.start_mark)}: nested too deeply", hint=hint)
        self.depth += 1
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def compose(text: str, name: str) -> Node | None:
    """Nodes, which know their lines. They are walked no deeper than a suite goes, so no alias can explode."""
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        told = f"{name}:{line}: not text: it holds the character {error.character:#x}"
        raise SuiteError(told, hint="save it as plain text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        told = f"{error.context or ''}: {error.problem or 'this is not YAML'}"
        what, hint = next((s[1:] for s in _SYNTAX if s[0] in told), (error.problem, UNREADABLE))
        raise SuiteError(f"{place(error.problem_mark)}: {what}", hint=hint) from None


UNREADABLE = "look at the indentation, quotes and brackets there and in the line above"
_SYNTAX = (
    ("find expected ':'", "a key without a colon", "write keys, as in `key: value`"),
    (r"'\t'", "a tab where YAML wants spaces", "indent with spaces"),
    ("scanning an alias", "there is no alias of that name", 'a glob that begins with `*` needs quotes: "*"'),
    ("undefined alias", "there is no alias of that name", 'a glob that begins with `*` needs quotes: "*"'),
    ("another document", "there is a second document", "write one suite a file, without `---`"),
    ("flow mapping", "a `{` is not closed", "close it with `}`, with a comma between two keys"),
    ("flow sequence", "a `[` is not closed", "close it with `]`, with a comma between two values"),
    ("quoted scalar", "a quote is not closed", "close it on the same line"),
    ("expected <block end>", "indented unlike the lines above", "keys of one block begin in the same column"),
    ("mapping values", "a second `: ` in a line", "a text that holds `: ` needs quotes"),
    ("cannot start any token", "a character that begins no plain text", "put the text in quotes"),
)
"""What YAML says, what we say, and a hint."""


def place(mark: Any) -> str:
    """`file:line` of a mark, or the argument of the command line that it stands in."""
    return str(mark.name) if mark.name.startswith("--") else f"{mark.name}:{mark.line + 1}"


def error_at(node: Node, message: str, hint: str | None = None, shown: str | None = None) -> SuiteError:
    """The error that begins with the file and line of a node."""
    return SuiteError(f"{place(node.start_mark)}: {' '.join(message.split())}", hint=hint, shown=shown)


EMPTY_MEMBERS = "members of a batch without tokens are written in `requests`, such as 3q128_1q0"
DIGITS = 18
"""Of a whole number at the most: it fits in 64 bits."""
_INTEGER = re.compile(rf"[-+]?(0|[1-9]\d{{0,{DIGITS - 1}}})")
_LONG = re.compile(rf"[-+]?[1-9]\d{{{DIGITS},}}")
_NUMBER = re.compile(r"[-+]?\d{1,30}(\.\d{0,30})?([eE][-+]\d{1,3})?")
EXPONENT = re.compile(r"([-+]?\d+)(?:\.(\d*))?[eE]([-+]?)(\d{1,3})")
_PARSED: Mapping[str, Callable[[str], float]] = {
    "duration": parse_seconds,
    "memory": parse_bytes,
    "share": parse_share,
}
_READINGS = {
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "nothing",
    "timestamp": "a date",
}


def yaml_exponent(match: re.Match[str]) -> str:
    """A match of `EXPONENT` as YAML wants it: `1e-05` -> `1.0e-05`."""
    whole, digits, sign, power = match.groups()
    return f"{whole}.{digits or 0}e{sign or '+'}{power}"


def got(node: Node) -> str:
    """What a node is, as a message says it."""
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
    noun, text = KINDS[key.kind][0], str(node.value) if isinstance(node, ScalarNode) else ""
    exponent = EXPONENT.fullmatch(text)
    decimal = exponent or _NUMBER.fullmatch(text)
    hint: str | None = {"text": f'write "{text}"', "boolean": "write true or false"}.get(
        key.kind, "write decimal digits, without quotes"
    )
    if not isinstance(node, ScalarNode):
        hint = "write one value" + ", or one list of values such as [1, 2]" * key.many
    elif not text.strip():
        hint = "give a value" + ", or leave the key out" * (key.default != "required")
        if key.kind == "text" and node.style is not None:
            return error_at(node, f"`{name}` is empty", hint)
    elif key.kind not in ("text", "boolean") and _not_finite(node):
        return error_at(node, f"`{name}` must be finite, got `{text[:60]}`", hint)
    elif key.kind == "integer" and (_LONG.fullmatch(text) or (decimal and abs(float(text)) >= 10**DIGITS)):
        noun, hint = f"{noun} of at most {DIGITS} digits", None
    elif key.kind == "integer" and decimal and float(text) % 1 == 0:
        hint = f"write {text if _INTEGER.fullmatch(text) else int(float(text))}"
    elif exponent and key.kind == "number":
        hint = f"write {yaml_exponent(exponent)}"
    read = got(node).removesuffix(f", which YAML reads as {KINDS[key.kind][0]}")
    return error_at(node, f"`{name}` must be {noun}, got {read}", hint)


def _not_finite(node: ScalarNode) -> bool:
    """Of a number that YAML reads: `.nan`, `.inf`, `1.0e+999`."""
    return (
        node.tag.endswith(":float")
        and ":" not in node.value
        and not math.isfinite(
            float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan").replace("_", ""))
        )
    )


def scalar(name: str, key: Key, node: Node) -> Any:
    """The value of one node behind the key `name`, in the unit of its field."""
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
    elif key.kind in _PARSED and (number or (tag == "str" and len(text) < 40)):
        try:
            value = _PARSED[key.kind](text)
        except UserError as error:
            raise error_at(node, f"`{name}`: {error.message}", error.hint) from None
    if value is None:
        raise _wrong(name, key, node)
    if key.choices and not (re.search(key.pattern, value) if key.pattern else value in key.choices):
        hint = f"one of: {', '.join(key.choices)}" if key.pattern else suggestion(value, key.choices)
        raise error_at(node, f"unknown {name} `{value}`", hint)
    if key.least is not None and value < key.least * key.unit:
        meant = f"`{name}` is {key.meaning}" if key.meaning else None
        least = EMPTY_MEMBERS if name.startswith("seqlen") else meant
        raise error_at(node, f"`{name}` must be at least {key.least:g}, got {text}", least)
    return value


def items(node: Node) -> list[Node]:
    """The members of a list; a single value stands for a list of one."""
    return node.value if isinstance(node, SequenceNode) else [node]


def members_of(node: Node, what: str, keys: Mapping[str, Key] | None) -> dict[str, Node]:
    """The node behind each key of a mapping, whose keys are known and unique and none is missing.

    Without `keys` they are names of the user's own.
    """
    if not isinstance(node, MappingNode):
        hint = (
            "leave out the dash or the brackets"
            if isinstance(node, SequenceNode)
            else "write keys, as in `key: value`"
        )
        raise error_at(node, f"{what} must be keys with values, got {got(node)}", hint)
    members: dict[str, Node] = {}
    for name, value in node.value:
        if not isinstance(name, ScalarNode):
            raise error_at(name, f"a key must be a word, got {got(name)}", "write it without brackets")
        if name.tag.endswith(":merge"):
            raise error_at(
                name, "a suite has no merge keys, `<<`", "write the keys out; an alias may stand behind one"
            )
        if keys is None and not re.fullmatch(NAME, name.value):
            raise error_at(
                name, f"`{name.value}` is no name", "write letters, digits and any of `.`, `_`, `+`, `-`"
            )
        if keys is not None and name.value not in keys:
            raise error_at(name, f"unknown key `{name.value}` in {what}", suggestion(name.value, keys))
        if name.value in members:
            raise error_at(name, f"`{name.value}` is given twice", "keep one of them")
        if isinstance(value, SequenceNode) and not value.value:
            raise error_at(value, f"`{name.value}` is an empty list", "give a value, or leave the key out")
        members[name.value] = value
    for name, key in (keys or {}).items():
        if key.default == "required" and name not in members:
            raise error_at(node, f"{what} needs `{name}`", f"`{name}:` holds {key.meaning}")
    return members


def fields_of(members: Mapping[str, Node], keys: Mapping[str, Key]) -> dict[str, Any]:
    """The value behind each key that is there; a tuple where the key takes a list."""
    fields: dict[str, Any] = {}
    for name, node in members.items():
        key = keys[name]
        if key.many and not key.keys:
            fields[key.field or name] = tuple(scalar(name, key, item) for item in items(node))
        elif not key.keys:
            fields[key.field or name] = scalar(name, key, node)
    return fields


def word_node(text: str, name: str) -> ScalarNode:
    """The node that YAML makes of a plain word, placed in `name`."""
    mark = yaml.Mark(name, 0, 0, 0, None, 0)
    tag = yaml.SafeLoader("").resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return ScalarNode(tag, text, mark, mark)
