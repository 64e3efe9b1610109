"""Agreement with other timers on the same step, which take their samples in the same rounds."""

import math
import statistics
from collections.abc import Iterator, Sequence

from attnbench import estimates
from attnbench.estimates import Interval
from attnbench.selftest.bench import MIDDLE, SMALL, Bench, NotMeasuredError, timing
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import SAMES
from attnbench.turns import paired

BOUND = 0.02
RIVALS = {
    "timeit": "attnbench.selftest.rivals:Timeit",
    "torch Timer": "attnbench.selftest.rivals:TorchTimer",
}
SETTINGS = ("measure.launches=10", "measure.budget=10s", "measure.width=0")
QUICK_SETTINGS = ("measure.launches=3", "measure.budget=1500ms", "measure.width=0")
"""Without a width to reach: a timer that is done early would have too few rounds in common with one that goes on."""
MOST = 3
"""So often all is measured, until the intervals are as narrow as the bound asks for, and nothing again once it is late."""


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """A check for each problem and rival."""
    ours, *names = SAMES[: 1 + len(RIVALS)]
    for problem, threads in [(SMALL, 1), (MIDDLE, bench.cores)][: 1 if quick else 2]:
        found: dict[str, list[Interval]] = {rival: [] for rival in RIVALS}
        for _ in range(MOST):
            rows = bench.measure(
                problem,
                (ours, *names),
                threads=threads,
                settings=QUICK_SETTINGS if quick else SETTINGS,
                clocks=dict(zip(names, RIVALS.values(), strict=True)),
            )
            for row in rows.values():
                timing(row)
            for name, rival in zip(names, RIVALS, strict=True):
                if (ratio := paired(rows[ours], rows[name])) is None:
                    raise NotMeasuredError(f"attnbench and {rival} have too few rounds in common")
                found[rival].append(ratio)
            ratios = {rival: _together(several) for rival, several in found.items()}
            widths = [estimates.half_width(ratio) or 0.0 for ratio in ratios.values()]
            if quick or bench.late or max(widths) <= BOUND / 2:
                break
        for rival, ratio in ratios.items():
            off, low, high = (end - 1 for end in (ratio.location, ratio.low or 0.0, ratio.high or math.inf))
            yield Check(
                name="agreement",
                figure=off,
                bound=BOUND,
                passed=abs(off) <= BOUND,
                text=f"attention of {problem}, {threads} {'thread' if threads == 1 else 'threads'}: "
                f"{off:+.2%} from {rival} ({low:+.2%} to {high:+.2%}), at most ±{BOUND:.0%}",
            )


def _together(ratios: Sequence[Interval]) -> Interval:
    """The geometric mean of independent ratios with its interval."""
    halves = [(estimates.half_width(ratio) or 0.0) / len(ratios) for ratio in ratios]
    degrees = min(ratio.degrees or 1.0 for ratio in ratios)
    return estimates.widened(statistics.fmean(math.log(ratio.location) for ratio in ratios), halves, degrees)
