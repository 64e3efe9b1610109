"""`Pair`: one cell on both sides, and what follows from its statuses, memory and errors."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from attnbench.compare.verdicts import Effect, Verdict
from attnbench.records import Status
from attnbench.results import CellKey, Outcome

MEMORY_BYTES = 2.0**20
MEMORY_SHARE = 0.01
"""By more than both, a workspace has changed."""
ERROR_FACTOR = 2.0
"""By more than this, an error has changed: inputs differ from run to run, and errors with them."""
_WRONG = (Status.WRONG, Status.IMPOSSIBLE)
_WORST_FIRST = (
    *_WRONG,
    *(Status.CRASHED, Status.FAILED, Status.OUT_OF_MEMORY, Status.TIMED_OUT),
    *(Status.OK, Status.UNSUPPORTED, Status.UNAVAILABLE, Status.NOT_RUN),
)
"""A run that was cut short says nothing where another one did not."""
_QUIET = (Verdict.SAME, Verdict.UNCLEAR, Verdict.NOT_TIMED)


ABSENT = Outcome(status=None)


@dataclass(slots=True)
class Pair:
    """One cell on both sides."""

    key: CellKey
    base: Outcome
    """Over the runs of that side, the worst status and geometric mean of the medians."""
    new: Outcome
    verdict: Verdict
    effect: Effect | None = None
    memory: str = ""
    """`bigger`, `smaller` or empty."""
    accuracy: str = ""
    """`less accurate`, `more accurate` or empty."""
    regressions: tuple[str, ...] = field(default=())
    """Kinds that `--fail-on` knows."""

    @property
    def shift(self) -> float:
        """Size of the change of time on the log scale."""
        return abs(math.log(self.effect.ratio.location)) if self.effect else 0.0

    @property
    def changed(self) -> bool:
        return self.verdict not in _QUIET or bool(self.memory or self.accuracy)


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of a side's runs as one."""
    if len(outcomes) == 1:
        return outcomes[0]
    if not outcomes:
        return ABSENT
    worst = min(outcomes, key=lambda outcome: _WORST_FIRST.index(outcome.status))
    if worst.status is not Status.OK:
        return worst._replace(runs=len(outcomes))
    right = [outcome for outcome in outcomes if outcome.status is Status.OK]
    medians = [outcome.median_s for outcome in right if outcome.median_s is not None]
    return Outcome(
        status=Status.OK,
        median_s=statistics.geometric_mean(medians) if len(medians) == len(right) else None,
        workspace_bytes=_middle([outcome.workspace_bytes for outcome in right]),
        memory_method=right[0].memory_method,
        err_row=_middle([outcome.err_row for outcome in right]),
        err_rms=_middle([outcome.err_rms for outcome in right]),
        runs=len(right),
    )


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def by_status(base: Outcome, new: Outcome) -> Verdict | None:
    """The verdict of a cell whose times cannot be compared; None where both sides have one."""
    if new.status is None:
        return Verdict.ONLY_IN_BASE
    if base.status is None:
        return Verdict.ONLY_IN_NEW
    if Status.NOT_RUN in (base.status, new.status) and Status.OK in (base.status, new.status):
        return Verdict.ONLY_IN_BASE if base.status is Status.OK else Verdict.ONLY_IN_NEW
    if base.status is Status.OK:
        if new.status is Status.OK:
            return _by_times(base.median_s, new.median_s)
        return Verdict.NEWLY_WRONG if new.status in _WRONG else Verdict.NEWLY_FAILING
    if new.status is Status.OK:
        return Verdict.FIXED
    return Verdict.NEWLY_WRONG if new.status in _WRONG and base.status not in _WRONG else Verdict.NOT_TIMED


def _by_times(base: float | None, new: float | None) -> Verdict | None:
    """A time that one side alone has is gone or new."""
    if new is None:
        return Verdict.NOT_TIMED if base is None else Verdict.ONLY_IN_BASE
    return Verdict.ONLY_IN_NEW if base is None else None


def memory_change(base: Outcome, new: Outcome) -> str:
    """`bigger` or `smaller`, where both were measured in the same way."""
    before, now = base.workspace_bytes, new.workspace_bytes
    if before is None or now is None or base.memory_method != new.memory_method:
        return ""
    if abs(now - before) <= max(MEMORY_BYTES, MEMORY_SHARE * before):
        return ""
    return "bigger" if now > before else "smaller"


def accuracy_change(base: Outcome, new: Outcome) -> str:
    """`less accurate` where either error has grown, else `more accurate` where either has shrunk."""
    found = ""
    for before, now in ((base.err_row, new.err_row), (base.err_rms, new.err_rms)):
        if before is not None and now is not None:
            if now > ERROR_FACTOR * before:
                return "less accurate"
            if before > ERROR_FACTOR * now:
                found = "more accurate"
    return found
