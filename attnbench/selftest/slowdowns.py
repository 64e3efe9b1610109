"""Slowdowns of known size: each call waits for so much of its own time before it returns."""

from collections.abc import Iterator

from attnbench.selftest.bench import SMALL, Bench, timing
from attnbench.selftest.check import Check
from attnbench.selftest.contrast import contrast, least_held
from attnbench.selftest.specimens import STRETCHES

CONTRASTS, QUICK_CONTRASTS = 8, 4
SETTINGS = ("measure.launches=8", "measure.budget=2400ms")
QUICK_SETTINGS = ("measure.launches=5", "measure.budget=1500ms")
"""What differs between processes is most of the noise: more launches make the interval narrower, longer ones do not."""
MARGIN = 1.01


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """2 % is found and measured, 0.2 % is not called slower than 1 %."""
    base, little, much = STRETCHES
    wanted, settings = (QUICK_CONTRASTS, QUICK_SETTINGS) if quick else (CONTRASTS, SETTINGS)
    found = held = called = 0
    for _ in range(wanted):
        rows = bench.measure(SMALL, tuple(STRETCHES), settings=settings)
        for row in rows.values():
            timing(row)
        if more := contrast(rows[much], rows[base]):
            found += more.low > 1
            held += more.holds(STRETCHES[much])
        if less := contrast(rows[little], rows[base]):
            called += less.low > MARGIN
    bound = least_held(wanted)
    for count, what in ((found, "find a slowdown of 2 %"), (held, "hold its size")):
        yield Check(
            name="slowdowns",
            figure=count,
            bound=bound,
            passed=count >= bound,
            text=f"{count} of {wanted} intervals {what}, at least {bound}",
        )
    yield Check(
        name="slowdowns",
        figure=called,
        bound=0,
        passed=called == 0,
        text=f"{called} of {wanted} intervals say that a slowdown of 0.2 % is more than 1 %, at most 0",
    )
