"""Does attnbench measure right on this machine? Checks with a figure and a bound each; nothing here prints."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from attnbench import lock
from attnbench.selftest import (
    agreement,
    alarms,
    caches,
    contention,
    durations,
    faults,
    memory,
    resume,
    slowdowns,
)
from attnbench.selftest.bench import Bench, NotMeasuredError
from attnbench.selftest.check import Check
from attnbench.selftest.runs import calibrate

__all__ = ["CHECKS", "Bench", "Check", "NotMeasuredError", "calibrate", "checks"]

CHECKS: Mapping[str, Callable[[Bench, bool], Iterator[Check]]] = {
    "durations": durations.checks,
    "memory": memory.checks,
    "faults": faults.checks,
    "resume": resume.checks,
    "caches": caches.checks,
    "contention": contention.checks,
    "agreement": agreement.checks,
    "slowdowns": slowdowns.checks,
    "alarms": alarms.checks,
}
"""Each takes a bench, and whether there is little time."""


def checks(names: Sequence[str], quick: bool, waiting: lock.Waiting) -> Iterator[Check]:
    """The checks of these names as they come in. What cannot be measured fails; the others go on.

    `waiting` is told where another run has to end first.
    """
    with lock.held(["cpu"], waiting), Bench() as bench:
        for name in names:
            try:
                yield from CHECKS[name](bench, quick)
            except NotMeasuredError as error:
                yield Check(name=name, passed=False, text=str(error))
