"""The fault drill: what goes wrong has a status each, and what stands beside it is measured."""

from collections.abc import Iterator

from attnbench.records import Status
from attnbench.selftest.bench import TINY, Bench
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import FAULTS, SAMES

EXPECTED = {
    "selftest-segfaults": Status.CRASHED,
    "selftest-aborts": Status.CRASHED,
    "selftest-hangs-in-c": Status.TIMED_OUT,
    "selftest-hangs-in-python": Status.TIMED_OUT,
    "selftest-exhausts-memory": Status.OUT_OF_MEMORY,
    "selftest-exits": Status.FAILED,
    "selftest-prints-100MB": Status.OK,
}
KEPT_CHARACTERS = 2**18
"""Of what a job prints, both ends are kept, each of 64 KiB."""


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """One check over all faults, and one over the rows beside them."""
    good = SAMES[:2]
    rows = bench.measure(
        TINY,
        [*good, *FAULTS],
        settings=[f"measure.timeout={2 if quick else 5}s", "measure.memory=1GiB", "measure.budget=50ms"],
    )
    ends = {name: rows[name].status if name in rows else Status.NOT_RUN for name in (*EXPECTED, *good)}
    for names, what in (
        (tuple(EXPECTED), "faults have their status"),
        (good, "rows beside them are measured"),
    ):
        wrong = [
            f"{name} is {ends[name]}"
            for name in names
            if ends[name] is not EXPECTED.get(name, Status.OK)
            or (name in rows and len(rows[name].output) > KEPT_CHARACTERS)
        ]
        count = len(names) - len(wrong)
        yield Check(
            name="faults",
            figure=count,
            bound=len(names),
            passed=not wrong,
            text=f"{count} of {len(names)} {what}, at least {len(names)}" + "".join(f"; {w}" for w in wrong),
        )
