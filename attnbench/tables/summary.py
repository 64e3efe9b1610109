"""What a run came to, in a few lines."""

from collections import Counter
from collections.abc import Sequence

from attnbench.records import Result, Status
from attnbench.tables.table import clean, short

WORTH_A_LOOK = (
    *(Status.WRONG, Status.IMPOSSIBLE, Status.CRASHED, Status.FAILED),
    *(Status.OUT_OF_MEMORY, Status.TIMED_OUT, Status.NOT_RUN),
)
"""In the order in which they deserve it; what is unsupported or unavailable is an answer."""
MOST = 12
"""Lines about single findings at the most."""


def summary(results: Sequence[Result]) -> str:
    """How many cells ended how, then a line for each finding with its reason, the wrong answers first."""
    ends = Counter(result.status for result in results)
    told = ", ".join(f"{ends[status]} {status}" for status in Status if ends[status])
    lines = [f"{len(results)} {'cell' if len(results) == 1 else 'cells'}" + (f": {told}" if told else "")]
    found: dict[tuple[Status, str, str], list[Result]] = {}
    for result in results:
        # cells that were not reached have nothing to do with who would have computed them
        name = "" if result.status is Status.NOT_RUN else result.cell.implementation
        found.setdefault((result.status, name, result.reason), []).append(result)
    findings = sorted(
        (end for end in found.items() if end[0][0] in WORTH_A_LOOK),
        key=lambda end: WORTH_A_LOOK.index(end[0][0]),
    )
    for (status, name, reason), same in findings[:MOST]:
        who = f"{clean(name)}: " if name else ""
        where = same[0].cell.problem if len(same) == 1 else f"{len(same)} cells, first {same[0].cell.problem}"
        lines.append(f"  {status}: {who}{short(reason, 200)}")
        if name:
            lines.append(f"    {short(where, 200)}")
    if len(findings) > MOST:
        lines.append(f"  and {len(findings) - MOST} more: see the column `reason` of results.csv")
    return "\n".join(lines)
