"""A block of `problems:`: the product of its axes, less what it excludes."""

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, compress, product
from math import prod
from typing import Any

from yaml.nodes import MappingNode, Node

from attnbench.problem import suggestion
from attnbench.suites.keys import AXIS_KEYS, BLOCK_KEYS, Key
from attnbench.suites.nodes import error_at, items, members_of, place
from attnbench.suites.suite import Axis, Block
from attnbench.suites.values import count_values, read_values

LARGEST = 1_000_000
"""Combinations of values in one suite at the most, and cells; they are counted before any is made."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A block whose keys have been checked and whose combinations have been counted, but not made."""

    node: Node
    groups: tuple[Mapping[str, Node], ...]
    """Keys that go together, mostly one, and what stands behind them."""
    excluded: tuple[tuple[Node, Mapping[str, Node]], ...]
    """Entries of `exclude`, and what stands behind their keys."""
    kinds: tuple[str, ...]
    count: int
    """Of combinations, before any is excluded."""

    @property
    def nodes(self) -> dict[str, Node]:
        """What stands behind each axis."""
        return {name: node for group in self.groups for name, node in group.items()}


def draft(node: Node) -> Draft:
    """A block, counted. Raises `SuiteError`."""
    members = members_of(node, "a block of `problems`", BLOCK_KEYS)
    groups: list[Mapping[str, Node]] = []
    for name, behind in members.items():
        if name in AXIS_KEYS:
            groups.append({name: behind})
        elif name == "zip":
            groups += [_entry(zipped, "`zip`") for zipped in items(behind)]
    names: set[str] = set()
    for name, behind in chain.from_iterable(group.items() for group in groups):
        if name in names:
            raise error_at(behind, f"`{name}` is given twice in a block", "in `zip` or beside it")
        names.add(name)
    sizes = [_size(group) for group in groups]
    excluded = items(members["exclude"]) if "exclude" in members else []
    entries = [(entry, _entry(entry, "`exclude`")) for entry in excluded]
    for _, entry in entries:
        for name, behind in entry.items():
            if name not in names:
                told = f"`exclude` names `{name}`, which its block does not"
                raise error_at(behind, told, suggestion(name, names))
    compared = len(entries) * sum(sizes) + sum(_values(entry) for _, entry in entries)
    if compared > LARGEST:
        told = f"`exclude` takes {compared:,} comparisons, more than {LARGEST:,}"
        raise error_at(members["exclude"], told, "give fewer entries, or fewer values")
    kinds = read_values("device", BLOCK_KEYS["device"], members["device"]) if "device" in members else ()
    return Draft(
        node=node,
        groups=tuple(groups),
        excluded=tuple(entries),
        kinds=tuple(dict.fromkeys(kinds)),
        count=prod(sizes),
    )


def _entry(node: Node, what: str) -> dict[str, Node]:
    members = members_of(node, f"an entry of {what}", AXIS_KEYS)
    if not members:
        raise error_at(node, f"an entry of {what} has no keys", "write keys of the block, as in `key: value`")
    return members


def _values(entry: Mapping[str, Node]) -> int:
    return sum(count_values(name, AXIS_KEYS[name], node) for name, node in entry.items())


def _size(group: Mapping[str, Node]) -> int:
    """How many values the keys of a group have, which go together. Raises `SuiteError` at the odd one."""
    sizes = {name: count_values(name, AXIS_KEYS[name], node) for name, node in group.items()}
    (usual, _), *_ = Counter(sizes.values()).most_common(1)
    for name, size in sizes.items():
        if size != usual:
            other = next(n for n, s in sizes.items() if s == usual)
            told = f"`{name}` has {_values_text(size)}, and `{other}`, with which it goes together, {usual:,}"
            raise error_at(group[name], told, "the lists of a `zip` are equally long")
    return usual


def _values_text(count: int) -> str:
    return f"{count:,} value" + "s" * (count != 1)


def expand(
    block: Draft, keys: Mapping[str, Key], lenient: bool = False
) -> tuple[Block, Iterator[dict[str, Any]]]:
    """What a block says, and the values of each combination that is left. Raises `SuiteError`.

    `keys` is the table of axes with the models of the suite; `lenient` lets an entry of `exclude` exclude nothing.
    """
    axes = tuple(
        Axis(
            names=tuple(group),
            rows=tuple(
                zip(*(read_values(name, keys[name], node) for name, node in group.items()), strict=True)
            ),
        )
        for group in block.groups
    )
    entries = [
        {name: frozenset(read_values(name, keys[name], node)) for name, node in entry.items()}
        for _, entry in block.excluded
    ]
    rows: Iterator[tuple[tuple[Any, ...], ...]] = product(*(axis.rows for axis in axes))
    excluded = 0
    if entries:
        hits = [reduce(operator.and_, marks) for marks in product(*(_marks(axis, entries) for axis in axes))]
        used = reduce(operator.or_, hits)
        for nth, (node, _) in enumerate(block.excluded):
            if not lenient and not used >> nth & 1:
                hint = "its values must be those of one combination of the block"
                raise error_at(node, "an entry of `exclude` excludes nothing", hint)
        excluded = sum(map(bool, hits))
        rows = compress(rows, [not hit for hit in hits])
    names = [name for axis in axes for name in axis.names]
    told = Block(place=place(block.node.start_mark), axes=axes, excluded=excluded, kinds=block.kinds)
    return told, (dict(zip(names, chain.from_iterable(row), strict=True)) for row in rows)


def _marks(axis: Axis, entries: Sequence[Mapping[str, frozenset[Any]]]) -> list[int]:
    """Of each row of an axis the entries, one a bit, that match it as far as they name its keys."""
    return [
        sum(
            1 << nth
            for nth, entry in enumerate(entries)
            if all(value in entry.get(name, (value,)) for name, value in zip(axis.names, row, strict=True))
        )
        for row in axis.rows
    ]


def value_node(block: Draft, name: str, key: Key, value: Any) -> Node:
    """Where a value of an axis stands: itself in a list, else what stands behind the key."""
    node = block.nodes[name]
    if isinstance(node, MappingNode):
        return node
    return items(node)[read_values(name, key, node).index(value)]
