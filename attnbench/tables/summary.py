"""What a run came to, in a few lines."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from attnbench.noise import GRADES
from attnbench.records import Result, Status
from attnbench.tables.reasons import ANSWERS, Reason, clean, reasons, short, without_absent

MOST = 20
"""Reasons at the most; the files hold all."""


def summary(results: Sequence[Result]) -> str:
    """How many cells ended how, then each reason with the number that it has in the tables and whom it befell."""
    ends = Counter(result.status for result in results)
    told = ", ".join(f"{ends[status]} {status}" for status in Status if ends[status])
    lines = [f"{_cells(len(results))}" + (f": {told}" if told else ""), *_quiet(results)]
    shown, absent = without_absent(results)
    found = [*reasons(shown).values()]
    lines += [f"[{reason.number}] {reason.note}{_where(reason)}" for reason in found[:MOST]]
    if len(found) > MOST:
        lines.append(f"and {len(found) - MOST} more: see the column `reason` of results.csv")
    return "\n".join([*lines, *(f"no column: {clean(line)}" for line in absent)])


def _quiet(results: Sequence[Result]) -> Iterator[str]:
    """How quiet the measurements were, and what to do about the one with the widest interval of the noisiest."""
    timed = [(result.timing, result) for result in results if result.timing and result.timing.grade]
    grades = Counter(timing.grade for timing, _ in timed)
    worst = max(grades, default=GRADES[0])
    if worst != GRADES[0]:
        timing, result = max(
            (pair for pair in timed if pair[0].grade == worst),
            key=lambda pair: (pair[0].ci95_high_s or math.inf) / pair[0].median_s,
        )
        told = ", ".join(f"{grades[grade]} {grade}" for grade in GRADES if grades[grade])
        where = f"{clean(result.cell.implementation)}: {short(result.cell.problem, 200)}"
        yield f"noise: {told}; the worst ({where}): {clean(timing.noise)}"


def _cells(count: int) -> str:
    return f"{count} {'cell' if count == 1 else 'cells'}"


def _where(reason: Reason) -> str:
    """Who and how often; of what deserves a look, the first problem too."""
    if reason.status is Status.NOT_RUN:  # has nothing to do with who would have computed it
        return f" ({_cells(len(reason.cells))})"
    names = [*dict.fromkeys(clean(cell.cell.implementation) for cell in reason.cells)]
    who = ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
    count = len(reason.cells)
    first = f"{', first' if count > 1 else ':'} {short(reason.cells[0].cell.problem, 200)}"
    if reason.status in ANSWERS:
        first = ""
    return f" ({who}{f', {_cells(count)}' if count > 1 else ''}{first})"
