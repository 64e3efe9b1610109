"""Why cells have no number: each reason once, numbered, the worst first."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.records import Result, Status

LONGEST = 300
"""Characters of a reason below a table; the CSV holds more."""
ANSWERS = (Status.UNSUPPORTED, Status.UNAVAILABLE)
"""Ends that tell of the implementation or the machine, not of this run."""
WORST_FIRST = (
    *(Status.WRONG, Status.IMPOSSIBLE, Status.CRASHED, Status.FAILED),
    *(Status.OUT_OF_MEMORY, Status.TIMED_OUT, Status.NOT_RUN),
    *ANSWERS,
)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Cells that ended alike."""

    number: int
    cells: tuple[Result, ...]

    @property
    def status(self) -> Status:
        return self.cells[0].status

    @property
    def note(self) -> str:
        """The status and the reason of the first cell; where the others' have other figures, it says so."""
        others = len({cell.reason for cell in self.cells}) - 1
        more = f" (and {others} like it, with other figures)" if others else ""
        return f"{self.status}: {short(self.cells[0].reason, LONGEST)}{more}"


def kind(result: Result) -> tuple[Status, str]:
    """What cells with the same reason share. Where a run went ill, reasons may differ in their figures."""
    if result.status in ANSWERS:
        return result.status, result.reason
    return result.status, re.sub(r"(?<!\w)\d[\d.,]*(e[+-]?\d+)?", "#", result.reason)


def reasons(results: Sequence[Result]) -> dict[tuple[Status, str], Reason]:
    """The reasons of all cells that are not ok, by their kind and in the order of their numbers."""
    found: dict[tuple[Status, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.status is not Status.OK:
            found[kind(result)].append(result)
    ordered = sorted(found, key=lambda key: WORST_FIRST.index(key[0]))
    return {key: Reason(number=place, cells=tuple(found[key])) for place, key in enumerate(ordered, 1)}


def without_absent(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The results that get a place in a table, and a line for each implementation that gets none.

    It gets none where it can nothing here, unless nobody can.
    """
    if not any(result.status is Status.OK for result in results):
        return [*results], []
    ends: dict[str, Counter[tuple[Status, str]]] = defaultdict(Counter)
    for result in results:
        ends[result.cell.implementation][result.status, result.reason] += 1
    absent = {
        name: f"{name}: {'; '.join(_counted(found))}"
        for name, found in ends.items()
        if all(status in ANSWERS for status, _ in found)
    }
    return [r for r in results if r.cell.implementation not in absent], [*absent.values()]


def _counted(ends: Counter[tuple[Status, str]]) -> list[str]:
    alone = len(ends) == 1
    return [
        f"{status}: {short(reason, LONGEST)}" + ("" if alone else f" ({count})")
        for (status, reason), count in ends.most_common()
    ]


def short(text: str, width: int) -> str:
    """`clean` text of at most `width` characters."""
    line = clean(text)
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def clean(text: str) -> str:
    """One line without control characters: they could move a terminal's cursor, or end a Markdown table."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
