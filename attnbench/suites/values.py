"""The values behind a key: one, a list, or a range of numbers."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from yaml.nodes import MappingNode, Node, SequenceNode

from attnbench.suites.keys import LINEAR_KEYS, RANGE_KEYS, Key
from attnbench.suites.nodes import error_at, got, items, members_of, scalar


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers as they were written, so that 0.1 and twice 0.1 make 0.3."""

    first: Fraction
    step: Fraction
    """What a value has more than the one before; in a geometric range how many times as much it is."""
    count: int
    geometric: bool

    def values(self, kind: str) -> tuple[float, ...]:
        """In order, whole where the key wants whole numbers."""
        number = int if kind == "integer" else float
        if self.geometric:
            return tuple(number(self.first * self.step**nth) for nth in range(self.count))
        return tuple(number(self.first + self.step * nth) for nth in range(self.count))


def read_range(name: str, key: Key, node: Node) -> Range:
    """The range behind the key `name`, which ends at a value of its own. Raises `SuiteError`."""
    key = replace(key, many=False, meaning="")  # which is not that of `from`, `to` and `step`
    members = members_of(node, f"a range of `{name}`", RANGE_KEYS)
    if ("geometric" in members) == ("linear" in members):
        hint = "{geometric: [128, 65536]}, or {linear: {from: 128, to: 1024, step: 128}}"
        raise error_at(node, f"a range of `{name}` is either geometric or linear", hint)
    if "geometric" in members:
        pair = members["geometric"]
        if not isinstance(pair, SequenceNode) or len(pair.value) != 2:
            told = f"a list of {len(pair.value)}" if isinstance(pair, SequenceNode) else got(pair)
            hint = "write the first and the last value, such as [128, 65536]"
            raise error_at(pair, f"`geometric` must be two numbers, got {told}", hint)
        first, last = (_exact("geometric", key, end) for end in pair.value)
        factor = members.get("factor")
        step = Fraction(scalar("factor", RANGE_KEYS["factor"], factor) if factor else 2)
        if first <= 0:
            raise error_at(pair, f"a geometric range begins above 0, got {_text(first)}")
    else:
        if "factor" in members:
            raise error_at(members["factor"], "a linear range has no `factor`", "its `step` is added")
        ends = members_of(members["linear"], "`linear`", LINEAR_KEYS)
        first, last, step = (_exact(word, key, ends[word]) for word in LINEAR_KEYS)
        if step <= 0:
            raise error_at(ends["step"], f"`step` must be above 0, got {_text(step)}")
    if last < first:
        raise error_at(node, f"a range of `{name}` ends below its beginning, {_text(last)} < {_text(first)}")
    geometric = "geometric" in members
    count, below, above = _steps(first, last, step, geometric)
    if below != last:
        told = f"a range of `{name}` from {_text(first)} does not arrive at {_text(last)}"
        raise error_at(node, told, f"end it at {_text(below)} or {_text(above)}")
    return Range(first=first, step=step, count=count, geometric=geometric)


def _steps(
    first: Fraction, last: Fraction, step: Fraction, geometric: bool
) -> tuple[int, Fraction, Fraction]:
    """How many values there are up to `last`, the largest of them, and the one after it."""
    if not geometric:
        count = int((last - first) / step) + 1
        return count, first + (count - 1) * step, first + count * step
    count, above = 0, first
    while above <= last:
        count, above = count + 1, above * step
    return count, above / step, above


def _exact(name: str, key: Key, node: Node) -> Fraction:
    """The number as it was written, checked as a value of `key`."""
    scalar(name, key, node)
    return Fraction(str(node.value))


def _text(number: Fraction) -> str:
    return str(number) if number.denominator == 1 else f"{float(number):g}"


def count_values(name: str, key: Key, node: Node) -> int:
    """How many values stand behind the key `name`; none of them is made."""
    if key.ranges and isinstance(node, MappingNode):
        return read_range(name, key, node).count
    return len(items(node))


def read_values(name: str, key: Key, node: Node) -> tuple[Any, ...]:
    """The values behind the key `name`: one, those of a list, or those of a range."""
    if key.ranges and isinstance(node, MappingNode):
        return read_range(name, key, node).values(key.kind)
    return tuple(scalar(name, key, item) for item in items(node))
