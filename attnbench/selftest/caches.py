"""Cache modes: a call that finds its tensors in no cache is not faster than one that does."""

from collections.abc import Iterator

from attnbench.records import Status
from attnbench.selftest.bench import Bench, timing
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import SAMES

PROBLEM = "batch=1 heads=8 head_dim=64 seqlen_q=1 seqlen_kv=1024"
"""It reads 4 MiB and computes little."""
TURNS = 3


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """Cold against warm, in turns; skipped where a cache cannot be emptied."""
    name, ratios = SAMES[0], []
    for _ in range(TURNS):
        cold = bench.measure(PROBLEM, [name], settings=["measure.cache=cold"])[name]
        if cold.status is Status.UNSUPPORTED:
            yield Check(name="caches", passed=None, text=f"skipped: {cold.reason}")
            return
        warm = bench.measure(PROBLEM, [name])[name]
        ratios.append(timing(cold).median_s / timing(warm).median_s)
    ratio = sorted(ratios)[TURNS // 2]
    yield Check(
        name="caches",
        figure=ratio,
        bound=1.0,
        passed=ratio >= 1,
        text=f"a cold call takes {ratio:.2f} times as long as a warm one, at least 1",
    )
