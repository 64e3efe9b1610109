"""Known allocations: a scratch of so many bytes, also where freed memory lies about that could be used again."""

from collections.abc import Iterator

from attnbench.selftest.bench import TINY, Bench, NotMeasuredError
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import SCRATCH_BYTES
from attnbench.units import bytes_text

BOUND_BYTES = 0.3 * 2**20


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """A check for each allocation."""
    rows = bench.measure(TINY, tuple(SCRATCH_BYTES), settings=["measure.budget=20ms"])
    for name, known in SCRATCH_BYTES.items():
        row = rows[name]
        if row.memory is None:
            raise NotMeasuredError(f"{name} is {row.status}: {row.reason}")
        found = row.memory.workspace_bytes
        after = " after a trap of freed memory" if "reuse" in name else ""
        yield Check(
            name="memory",
            figure=found - known,
            bound=BOUND_BYTES,
            passed=abs(found - known) <= BOUND_BYTES,
            text=f"a scratch of {bytes_text(known)}{after} is measured {(found - known) / 2**20:+.2f} MiB off, "
            f"at most ±{BOUND_BYTES / 2**20:.1f} MiB",
        )
