"""Named values with fields, such as a mask or a layout, and how they are read and written."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from attnbench.errors import ProblemError

DIGITS = 18
"""Of a whole number at the most: it fits into 64 bits."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named value with numeric fields; its text is `name` or `name:field=value:...`, free of commas."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_field(self, field)

    def __str__(self) -> str:
        return _variant_text(self)


def _check_field(variant: Variant, field: "dataclasses.Field[Any]") -> None:
    value = getattr(variant, field.name)
    if value is None:
        if field.default is None:
            return
        raise ProblemError(f"{variant.name} needs a {field.name}")
    low, high = field.metadata.get("range", (1, math.inf))
    whole = field.type in (int, int | None)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = "a whole number" if whole else "a number"
        raise ProblemError(f"{field.name} of {variant.name} must be {kind}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ProblemError(f"{field.name} of {variant.name} must be finite, got {value}")
    if isinstance(value, int):
        high = min(high, 10**DIGITS - 1)
    if not low <= value <= high:
        bound = f"at least {low}" if value < low else f"at most {high}"
        raise ProblemError(f"{field.name} of {variant.name} must be {bound}, got {value}")


@lru_cache(maxsize=4096)
def _variant_text(variant: Variant) -> str:
    parts = [variant.name]
    for field in dataclasses.fields(variant):
        value = getattr(variant, field.name)
        if value != field.default:
            digits = str(value).removesuffix(".0").replace("e+", "e")  # a plus joins modifiers
            parts.append(f"{field.name}={digits}")
    return ":".join(parts)


def bounded(low: float = 1, high: float = math.inf, default: Any = dataclasses.MISSING) -> Any:
    """A field of a variant that holds a number from `low` to `high`."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def leaves(kind: type[Variant]) -> dict[str, type[Variant]]:
    """The variants of a kind that have a name, by it, in the order of the source."""
    found: dict[str, type[Variant]] = {}
    for sub in kind.__subclasses__():
        found |= {sub.name: sub} if "name" in vars(sub) else leaves(sub)
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"one of: {', '.join(names)}"


def read_number(kind: type[Any], text: str, what: str) -> Any:
    """A finite number of the kind `int` or `float`. Raises `ProblemError`, which says `what` it is."""
    noun, got = "a whole number" if kind is int else "a number", repr(text[:60] + "..." * (len(text) > 60))
    if kind is int and re.fullmatch(rf"[-+]?[0-9]{{{DIGITS + 1},}}", text):
        raise ProblemError(f"{what} must be {noun} of at most {DIGITS} digits, got {got}")
    try:
        value = kind(text if text.isascii() and "_" not in text else "")  # Python takes 1_0 for 10
    except ValueError:
        raise ProblemError(f"{what} must be {noun}, got {got}") from None
    if not math.isfinite(value):
        raise ProblemError(f"{what} must be finite, got {got}")
    return value


def pointed(text: str, place: int) -> str:
    """What of `text` stands around a place, with a caret beneath it."""
    start = max(0, place - 40)
    line = "".join(c if " " <= c <= "~" else "?" for c in text[start : place + 20])
    return f"    {line}\n    {' ' * (place - start)}^"


def parse_variant(
    text: str,
    known: Mapping[str, type[Variant]],
    what: str,
    read: Callable[[type[Any], str, str], Any] = read_number,
) -> Variant:
    """`name:field=value:...` -> the variant among `known`, with `read` for its numbers.

    Raises `ProblemError`, which says `what` it is and points at what cannot be read.
    """
    text = text.strip()
    name, *parts = text.split(":")
    if name not in known:
        raise ProblemError(f"unknown {what} `{name}`", hint=suggestion(name, known))
    fields = {field.name: field for field in dataclasses.fields(known[name])}
    values: dict[str, Any] = {}
    at = len(name)
    for place, part in enumerate(parts):
        at += 1  # the colon
        key, equals, number = part.rpartition("=")
        if not equals:  # `window:1023:0` gives the fields in their order
            key = list(fields)[place] if place < len(fields) else part
        if key not in fields:
            hint = suggestion(key, fields) if fields else "it takes no numbers"
            raise ProblemError(f"{what} `{name}` has no `{key}`", hint=hint)
        if key in values:
            raise ProblemError(f"{what} `{name}` is given `{key}` twice")
        at += len(part)
        try:
            values[key] = read(float if fields[key].type is float else int, number, f"{key} of {name}")
        except ProblemError as error:
            error.shown = pointed(text, at - len(number))
            raise
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ProblemError(f"{what} `{name}` needs `{missing[0]}`", hint=f"write {name}:{missing[0]}=16")
    return known[name](**values)
