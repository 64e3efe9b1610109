"""YAML -> `Suite`: the blocks united, the overrides of the command line put in."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from attnbench.errors import ProblemError, SuiteError
from attnbench.models import MODELS, Geometry, expand
from attnbench.problem import Problem, parse_words, problem_from, suggestion
from attnbench.suites import blocks
from attnbench.suites.blocks import LARGEST
from attnbench.suites.files import read
from attnbench.suites.keys import AXIS_KEYS, BLOCK_KEYS, MEASURE_KEYS, MODEL_KEYS, SUITE_KEYS, VERIFY_KEYS
from attnbench.suites.nodes import (
    EXPONENT,
    compose,
    error_at,
    fields_of,
    items,
    members_of,
    place,
    word_node,
    yaml_exponent,
)
from attnbench.suites.suite import Block, Measure, Suite, Verify


def _models(node: Node) -> dict[str, Geometry]:
    """The geometries of `models:`. Raises `SuiteError`, also for one of which no problem could be made."""
    found: dict[str, Geometry] = {}
    members = members_of(node, "`models`", None)
    if not members:
        raise error_at(node, "`models` names none", "give one, or leave the key out")
    names: dict[str, Node] = {name.value: name for name, _ in node.value}
    for name, behind in members.items():
        if name in MODELS:
            raise error_at(names[name], f"attnbench brings a model `{name}`", "give yours another name")
        parts = members_of(behind, f"the model `{name}`", MODEL_KEYS)
        keys = fields_of(parts, MODEL_KEYS)
        if not {"heads", "heads_q"} & keys.keys():
            raise error_at(names[name], f"the model `{name}` needs `heads`", "or `heads_q` and `heads_kv`")
        lengths = {} if {"seqlen", "seqlen_q", "seqlen_kv"} & keys.keys() else {"seqlen": 1}
        try:
            problem_from({**lengths, **keys})
        except ProblemError as error:
            raise _error_in(names[name], parts, error) from None
        source = place(names[name].start_mark)
        found[name] = Geometry(name=name, summary="", keys=MappingProxyType(keys), source=source)
    return found


def _problems(
    node: Node, cells: int, own: Mapping[str, Geometry], lenient: bool
) -> tuple[dict[str, Problem], dict[str, tuple[str, ...]], list[Block]]:
    """The blocks united: problems by their texts, the kinds of device that each is for (none: all), and the blocks.

    Raises `SuiteError` where combinations, of so many `cells` each, are too many.
    """
    drafts = [blocks.draft(block) for block in items(node)]
    count = sum(block.count for block in drafts)
    if count * max(cells, 1) > LARGEST:
        told = f"{count:,} combinations of values"
        told += f" of {cells} cells each, {count * cells:,} in all" if cells > 1 else ""
        raise error_at(node, f"{told}, more than {LARGEST:,}", "give fewer values, or split the suite")
    models = {**MODELS, **own}
    keys = {**AXIS_KEYS, "model": replace(AXIS_KEYS["model"], choices=tuple(models), pattern="")}
    found: dict[str, Problem] = {}
    kinds: dict[str, tuple[str, ...]] = {}
    told_blocks = []
    for draft in drafts:
        block, combinations = blocks.expand(draft, keys, lenient)
        told_blocks.append(block)
        for values in combinations:
            try:
                problem = problem_from(expand(values, models))
            except ProblemError as error:
                places = {n: blocks.value_node(draft, n, keys[n], value) for n, value in values.items()}
                raise _error_in(draft.node, places, error) from None
            found.setdefault(problem.text, problem)
            before = kinds.setdefault(problem.text, block.kinds)
            if before and before != block.kinds:
                kinds[problem.text] = tuple(dict.fromkeys((*before, *block.kinds))) if block.kinds else ()
    if not found:
        raise error_at(node, "`exclude` leaves no problem", "exclude less")
    return found, kinds, told_blocks


def _error_in(block: Node, places: Mapping[str, Node], error: ProblemError) -> SuiteError:
    return error_at(_culprit(block, places, error.message), error.message, error.hint, error.shown)


def _culprit(block: Node, places: Mapping[str, Node], message: str) -> Node:
    """The value that a message speaks of, by its key or by a word of its own; else the block."""
    for word in re.findall(r"[a-z][\w-]*", message):
        for name, node in places.items():
            words = re.findall(r"[a-z][\w-]*", node.value) if isinstance(node, ScalarNode) else ()
            if word == name or word.startswith(f"{name}_") or word in words:
                return node
    return block


Override = str | tuple[str, str]
"""The `key=value` of a `--set`; or an option as it was given, and the `key=value` that it stands for."""


def _override(root: Node, override: Override) -> None:
    """Puts a value of the command line into the place of the file's own."""
    name, text = (f"--set {override}", override) if isinstance(override, str) else override
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise SuiteError(f"{name}: no key=value", hint="write for example measure.preset=quick")
    new = compose(value, name) if value.startswith(("[", "{", '"', "'")) else word_node(value, name)
    section, dot, key = path.partition(".")
    targets: list[Node] = [root]
    if dot:
        sections = [n for n, k in SUITE_KEYS.items() if k.keys and not k.named]
        if section not in sections:
            raise SuiteError(f"{name}: unknown key `{path}`", hint=suggestion(section, sections))
        found = [v for k, v in root.value if k.value == section] if isinstance(root, MappingNode) else []
        if not found and isinstance(root, MappingNode):
            begin = word_node(section, name)
            found = [MappingNode("", [], begin.start_mark, begin.end_mark)]
            root.value.append((begin, found[0]))
        targets = items(found[0]) if found else []
    for target in targets:
        if isinstance(target, MappingNode):
            kept = [(k, v) for k, v in target.value if k.value != (key or path)]
            target.value[:] = [*kept, (word_node(key or path, name), new)]


Cells = Callable[[Suite], int]
"""How many cells a problem of the suite makes; the suite is whole but for its problems."""


def parse(text: str, path: str, overrides: Sequence[Override] = (), cells: Cells = lambda _: 1) -> Suite:
    """The suite in `text`, where messages say `path`; `overrides` come from the command line.

    Raises `SuiteError`, also for more than `LARGEST` combinations or `cells`, and what `cells` raises.
    """
    root = compose(text, path)
    if root is None:
        raise SuiteError(f"{path}:1: there is no suite in it", hint="a suite begins with `question:`")
    for override in overrides:
        _override(root, override)
    members = members_of(root, "a suite", SUITE_KEYS)
    records: dict[str, Any] = {
        name: kind(**fields_of(members_of(members[name], f"`{name}`", keys), keys))
        for name, kind, keys in (("measure", Measure, MEASURE_KEYS), ("verify", Verify, VERIFY_KEYS))
        if name in members
    }
    records |= fields_of(members, SUITE_KEYS)
    records["places"] = {
        name: tuple(place(node.start_mark) for node in items(members[name]))
        for name in ("implementations", "baseline")
        if name in members
    }
    suite = Suite(name=Path(path).stem.lstrip("-"), problems=(), text=text, path=path, **records)
    own = _models(members["models"]) if "models" in members else {}
    lenient = any((o if isinstance(o, str) else o[1]).startswith("problems.") for o in overrides)
    found, kinds, told = _problems(members["problems"], cells(suite), own, lenient)
    some = {text: of for text, of in kinds.items() if of}
    return replace(suite, problems=tuple(found.values()), kinds=some, blocks=tuple(told))


def suite_of_problem(text: str, overrides: Sequence[Override] = (), cells: Cells = lambda _: 1) -> Suite:
    """The suite `problem` of one problem: words `key=value` with the keys of a block. Raises `UserError`.

    Its text is a suite too, which `parse` takes back.
    """
    if not text.strip():
        raise ProblemError("--problem is empty", hint="write words such as 'model=gpt2 seqlen=512'")
    if several := re.search(r"(\w+)=([^\s,[]*(?:,[^\s,=]+)+(?=\s|$)|\[[^]]*\])", text):
        key, values = several[1], several[2].strip("[]").replace(" ", "").replace(",", ", ")
        raise ProblemError(
            f"--problem: `{key}` has a list of values, and a problem has one for each key",
            hint=f"`run` and `plan` take lists from a suite, or by --set 'problems.{key}=[{values}]'",
        )
    lines = ["question: How do the implementations compare on this problem?", "problems:"]
    for name, value in parse_words(text).items():
        plain = name in BLOCK_KEYS and BLOCK_KEYS[name].kind != "text" and re.fullmatch(r"[-+.\w]+", value)
        word = EXPONENT.sub(yaml_exponent, value) if plain else json.dumps(value)  # 1e-05 is text in YAML
        lines.append(f"  {json.dumps(name)}: {word}")
    return parse("\n".join([*lines, ""]), "--problem", overrides, cells)


def load(
    name_or_path: str, overrides: Sequence[Override] = (), text: str | None = None, cells: Cells = lambda _: 1
) -> Suite:
    """The suite of a file, or a shipped one by its name; `text` stands in for the file. Raises as `parse`."""
    return parse(read(name_or_path) if text is None else text, name_or_path, overrides, cells)
