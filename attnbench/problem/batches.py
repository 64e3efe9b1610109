"""Batches: the lengths of their sequences, and the words in which they are written."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, cast

from attnbench.errors import ProblemError
from attnbench.problem.variants import (
    Variant,
    bounded,
    leaves,
    parse_variant,
    pointed,
    read_number,
    suggestion,
)

Sequences = tuple[tuple[int, int], ...]
LARGEST_BATCH = 2**16
LONGEST = 10**18 - 1
"""Tokens of a sequence at the most."""
_LENGTH = r"([0-9]{1,18})(k?)"
_REQUEST = re.compile(rf"([1-9][0-9]{{0,8}})q{_LENGTH}(?:s{_LENGTH})?")
_SOUND = re.compile(r"(?:[1-9][0-9]{0,8}(?:q(?:[0-9]{1,18}k?(?:s(?:[0-9]{1,18}k?)?)?)?)?)?")
"""How far a broken request can be read."""
HINT = (
    "write <count>q<len>[s<len>] joined by `_`, such as 2q2k_32q1s1k, or a pattern such as "
    "longtail:count=32:longest=4096"
)


def parse_requests(text: str) -> Sequences:
    """`2q2k_32q1s1k` -> two sequences (2048, 2048) and 32 of (1, 1024).

    Each part is `<count>q<query tokens>[s<key/value tokens>]`; `k` multiplies by 1024. In place of them stands the
    name of a pattern with its numbers, `longtail:count=32:longest=4k:seed=1`.
    Raises `ProblemError` that points at the first character that does not fit.
    """
    name = text.strip().partition(":")[0]
    if name in PATTERNS:
        return cast(Lengths, parse_variant(text, PATTERNS, "pattern of lengths", _tokens)).sequences
    if re.fullmatch("[a-z][a-z-]+", name):
        raise ProblemError(f"requests: unknown pattern of lengths `{name}`", hint=suggestion(name, PATTERNS))
    runs: list[tuple[int, tuple[int, int]]] = []
    at = 0
    for part in text.split("_"):
        match = _REQUEST.fullmatch(part)
        if match is None:
            sound = cast("re.Match[str]", _SOUND.match(part))[0]
            raise _unreadable(text, at + len(sound), sound)
        q = int(match[2]) * (1024 if match[3] else 1)
        s = int(match[4]) * (1024 if match[5] else 1) if match[4] else q
        if max(q, s) > LONGEST:
            raise ProblemError(f"requests: a sequence has at most {LONGEST:,} tokens, got {max(q, s):,}")
        runs.append((int(match[1]), (q, s)))
        at += len(part) + 1
    count = sum(n for n, _ in runs)
    if count > LARGEST_BATCH:
        raise ProblemError(f"requests: a batch has at most {LARGEST_BATCH:,} members, got {count:,}")
    return tuple(pair for n, pair in runs for _ in range(n))


def _tokens(kind: type[int], text: str, what: str) -> int:
    """`8k` is 8192, as in all batches."""
    if re.fullmatch("[0-9]{1,15}k", text):
        text = str(int(text[:-1]) * 1024)
    return cast(int, read_number(kind, text, what))


def _unreadable(text: str, place: int, sound: str) -> ProblemError:
    """The error for the character at `place`, before which `sound` of its part could be read."""
    got = repr(text[place]) if place < len(text) else "the end"
    return ProblemError(
        f"requests: cannot read character {place + 1} ({got}), where {_due(sound)} may stand",
        hint=HINT,
        shown=pointed(text, place),
    )


def _due(sound: str) -> str:
    if not sound:
        return "a count from 1"
    if "q" not in sound:
        return "only `q`" if len(sound) == 9 else "a digit or `q`"
    if sound[-1] in "qs":
        return "a number of tokens"
    digits = cast("re.Match[str]", re.search("[0-9]*$", sound))[0]
    more = ["a digit"] * (0 < len(digits) < 18) + ["`k`"] * bool(digits) + ["`s`"] * ("s" not in sound)
    return f"{', '.join([*more, '`_`'])} or the end"


def requests_text(sequences: Sequences) -> str:
    """The inverse of `parse_requests`, without `k`."""
    runs = ((pair, len(list(same))) for pair, same in groupby(sequences))
    return "_".join(f"{n}q{q}" if q == s else f"{n}q{q}s{s}" for (q, s), n in runs)


@dataclass(frozen=True, kw_only=True)
class Lengths(Variant):
    """`count` members; the longest has exactly `longest` tokens, `empty` of them have none.

    Queries are as many as keys, or `queries` of them at the end of the keys. The seed places the members, and draws
    the lengths of the patterns that are random.
    """

    count: int = bounded(1, LARGEST_BATCH)
    longest: int = bounded(1, LONGEST)
    queries: int | None = bounded(1, default=None)
    empty: int = bounded(0, default=0)
    seed: int = bounded(0, default=0)
    rising: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.empty >= self.count:
            raise ProblemError(f"empty of {self.name} must be below its count, got {self.empty}")

    def shares(self, count: int, draw: Callable[[], float]) -> list[float]:
        """Lengths as parts of the longest, for so many members; `draw` gives numbers from 0 to below 1."""
        raise NotImplementedError

    @property
    def sequences(self) -> Sequences:
        draw = random.Random(self.seed).random  # of which the same seed gives the same numbers everywhere
        filled = self.count - self.empty
        lengths = [max(1, round(share * self.longest)) for share in self.shares(filled, draw)]
        lengths[lengths.index(max(lengths))] = self.longest
        places = sorted(range(self.count), key=lambda _: draw())[:filled]
        keys = [0] * self.count
        for place, length in zip(sorted(places) if self.rising else places, lengths, strict=True):
            keys[place] = length
        return tuple((min(k, self.queries or k), k) for k in keys)


@dataclass(frozen=True, kw_only=True)
class Uniform(Lengths):
    """Every length up to the longest is equally likely."""

    name = "uniform"

    def shares(self, count: int, draw: Callable[[], float]) -> list[float]:
        return [draw() for _ in range(count)]


@dataclass(frozen=True, kw_only=True)
class Longtail(Lengths):
    """longest^u with u uniform in [0, 1): half of the members are shorter than the root of the longest."""

    name = "longtail"

    def shares(self, count: int, draw: Callable[[], float]) -> list[float]:
        return [self.longest ** (draw() - 1) for _ in range(count)]


@dataclass(frozen=True, kw_only=True)
class Bimodal(Lengths):
    """Every other member is up to a quarter shorter than the longest, the rest a sixteenth of that."""

    name = "bimodal"

    def shares(self, count: int, draw: Callable[[], float]) -> list[float]:
        return [(1 - draw() / 4) / (16 if nth % 2 else 1) for nth in range(count)]


@dataclass(frozen=True, kw_only=True)
class Skewed(Lengths):
    """One member is the longest, all others are a sixteenth of it."""

    name = "skewed"

    def shares(self, count: int, draw: Callable[[], float]) -> list[float]:
        return [1.0] + [1 / 16] * (count - 1)


@dataclass(frozen=True, kw_only=True)
class Staircase(Lengths):
    """Lengths rise in equal steps, in the order of the batch."""

    name = "staircase"
    rising = True

    def shares(self, count: int, draw: Callable[[], float]) -> list[float]:
        return [(nth + 1) / count for nth in range(count)]


PATTERNS = leaves(Lengths)
