"""Agreement with other timers on the same step, which take their samples in the same rounds."""

from collections.abc import Iterator

from attnbench.selftest.bench import MIDDLE, SMALL, Measures, NotMeasuredError, timing
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import SAMES
from attnbench.turns import paired

BOUND = 0.02
RIVALS = {
    "timeit": "attnbench.selftest.rivals:Timeit",
    "torch Timer": "attnbench.selftest.rivals:TorchTimer",
}
SETTINGS = ("measure.launches=10", "measure.budget=10s")
QUICK_SETTINGS = ("measure.launches=3", "measure.budget=1500ms")


def checks(bench: Measures, quick: bool) -> Iterator[Check]:
    """A check for each problem and rival."""
    ours, *names = SAMES[: 1 + len(RIVALS)]
    for problem, threads in [(SMALL, 1), (MIDDLE, bench.cores)][: 1 if quick else 2]:
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
            ratio = paired(rows[ours], rows[name])
            if ratio is None or ratio.low is None or ratio.high is None:
                raise NotMeasuredError(f"attnbench and {rival} have too few rounds in common")
            yield Check(
                name="agreement",
                figure=ratio.location - 1,
                bound=BOUND,
                passed=abs(ratio.location - 1) <= BOUND,
                text=f"attention of {problem}, {threads} {'thread' if threads == 1 else 'threads'}: "
                f"{ratio.location - 1:+.2%} from {rival} ({ratio.low - 1:+.2%} to {ratio.high - 1:+.2%}), "
                f"at most ±{BOUND:.0%}",
            )
