"""Batches: the lengths of their sequences, and the words in which they are written."""

import re
from itertools import groupby

from attnbench.errors import ProblemError

Sequences = tuple[tuple[int, int], ...]
LARGEST_BATCH = 2**16
_LENGTH = r"(\d+)(k?)"
_REQUEST = re.compile(rf"([1-9]\d*)q{_LENGTH}(?:s{_LENGTH})?")
_SOUND = re.compile(r"[1-9]\d*(?:q(?:\d+k?(?:s(?:\d+k?)?)?)?)?")  # how far a broken one can be read


def parse_requests(text: str) -> Sequences:
    """`2q2k_32q1s1k` -> two sequences (2048, 2048) and 32 of (1, 1024).

    Each part is `<count>q<query tokens>[s<key/value tokens>]`; `k` multiplies by 1024.
    Raises `ProblemError` that points at the first character that does not fit.
    """
    sequences: list[tuple[int, int]] = []
    at = 0
    for part in text.split("_"):
        match = _REQUEST.fullmatch(part)
        if match is None:
            sound = _SOUND.match(part)
            place = at + (sound.end() if sound else 0)
            raise ProblemError(
                f"requests {text!r}: cannot read character {place + 1} ({text[place : place + 1] or 'the end'!r})",
                hint="write <count>q<len>[s<len>] joined by `_`, such as 2q2k_32q1s1k",
            )
        if int(match[1]) > LARGEST_BATCH:
            raise ProblemError(f"a batch has at most {LARGEST_BATCH:,} members, got {int(match[1]):,}")
        q = int(match[2]) * (1024 if match[3] else 1)
        s = int(match[4]) * (1024 if match[5] else 1) if match[4] else q
        sequences += [(q, s)] * int(match[1])
        at += len(part) + 1
    return tuple(sequences)


def requests_text(sequences: Sequences) -> str:
    """The inverse of `parse_requests`, without `k`."""
    runs = ((pair, len(list(same))) for pair, same in groupby(sequences))
    return "_".join(f"{n}q{q}" if q == s else f"{n}q{q}s{s}" for (q, s), n in runs)
