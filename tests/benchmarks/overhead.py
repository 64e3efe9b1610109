"""What the harness itself costs: seconds of an isolated job beyond the time in which its blocks are measured.

    python tests/benchmarks/overhead.py [SUITE]

Forks, inputs, first calls, verdict, memory and check all count as overhead. The wall time of a problem
less its blocks' time, by the runner's own clock, is divided by its jobs. In the second figure the calls
of the implementation are left out: preparing and two calls as the canary saw them, and in each launch two of the median's length.
Run it with nothing else going on.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attnbench import plan, plugins, runner, suites
from attnbench.environment import available_cores
from attnbench.implementation import Device
from attnbench.plan import Planned
from attnbench.problem import Problem
from attnbench.records import Result


@dataclass(kw_only=True)
class Watched(runner.Runner):
    """A runner that notes, for each problem, its jobs' overhead."""

    overheads: list[tuple[float, float]] = field(default_factory=list)
    """Of each job: all, and all but its calls."""
    measured_s: float = 0.0
    called_s: float = 0.0

    def _problem(self, problem: Problem, device: Device, jobs: Sequence[Planned]) -> Iterator[Result]:
        start, self.measured_s, self.called_s = time.perf_counter(), 0.0, 0.0
        rows = list(super()._problem(problem, device, jobs))
        spent = time.perf_counter() - start - self.measured_s
        self.overheads += [(spent / len(jobs), (spent - self.called_s) / len(jobs))] * len(jobs)
        yield from rows

    def _finished(self, candidate: runner.Candidate) -> Result:
        self.measured_s += candidate.course.elapsed_s
        row, answer = super()._finished(candidate), candidate.answer
        assert row.timing is not None
        self.called_s += sum(answer[name] for name in ("setup_s", "first_call_s", "call_s"))
        self.called_s += 2 * self.plan.launches * row.timing.median_s
        return row


def overheads(name: str, overrides: Sequence[str] = ()) -> list[tuple[float, float]]:
    """Seconds of overhead of each job of a suite, with and without its calls."""
    suite = suites.load(name, overrides)
    registry = plugins.discover()
    devices = plan.resolve(suite.devices)
    threads = suite.measure.threads or available_cores()
    made = plan.make(suite, registry, devices=devices, threads=threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        runner.fork_server(patient=True) as patient,
        runner.fork_server() as server,
    ):
        watched = Watched(
            plan=made,
            suite=suite,
            registry=registry,
            server=server,
            patient=patient,
            folder=Path(folder),
            seed=1,
        )
        watched.run()
    return watched.overheads


if __name__ == "__main__":
    found = overheads(*sys.argv[1:2] or ["quick"])
    for what, values in zip(("all", "without calls"), zip(*found, strict=True), strict=True):
        ordered = sorted(values)
        print(
            f"{what:14} {len(ordered)} jobs: median {statistics.median(ordered):.3f} s, "
            f"p95 {ordered[int(0.95 * len(ordered))]:.3f} s, max {ordered[-1]:.3f} s"
        )
