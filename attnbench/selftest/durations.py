"""Known durations: busy waits, measured like anything else."""

from collections.abc import Iterator

from attnbench.selftest.bench import TINY, Bench, timing
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import WAITS_S
from attnbench.units import seconds_text

SHARE = 0.01
LEAST_S = 300e-9
"""The call itself, reading the clock twice, and half a turn of the waiting loop."""


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """A check for each wait."""
    rows = bench.measure(TINY, tuple(WAITS_S))
    for name, known in WAITS_S.items():
        found = timing(rows[name]).median_s
        bound = max(SHARE * known, LEAST_S)
        yield Check(
            name="durations",
            figure=found - known,
            bound=bound,
            passed=abs(found - known) <= bound,
            text=f"a busy wait of {seconds_text(known)} is measured {1e9 * (found - known):+.0f} ns off "
            f"({found / known - 1:+.2%}), at most ±{1e9 * bound:.0f} ns",
        )
