"""What the harness itself costs: seconds of an isolated job beyond the time in which its blocks are measured.

    python tests/benchmarks/overhead.py [SUITE]

Forks, inputs, first calls, verdict, memory and check all count as overhead. The wall time of a problem
less its blocks' time, by the runner's own clock, is divided by its jobs. Run it with nothing else going on.
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

    overheads: list[float] = field(default_factory=list)
    measured_s: float = 0.0

    def _problem(self, problem: Problem, device: Device, jobs: Sequence[Planned]) -> Iterator[Result]:
        start, self.measured_s = time.perf_counter(), 0.0
        rows = list(super()._problem(problem, device, jobs))
        spent = time.perf_counter() - start - self.measured_s
        self.overheads += [spent / len(jobs)] * len(jobs)
        yield from rows

    def _finished(self, candidate: runner.Candidate) -> Result:
        self.measured_s += candidate.course.elapsed_s
        return super()._finished(candidate)


def overheads(name: str, overrides: Sequence[str] = ()) -> list[float]:
    """Seconds of overhead of each job of a suite."""
    suite = suites.load(name, overrides)
    registry = plugins.discover()
    devices = plan.resolve(suite.devices)
    made = plan.make(suite, registry, devices=devices, threads=available_cores())
    with tempfile.TemporaryDirectory() as folder, runner.fork_server() as server:
        watched = Watched(
            plan=made, suite=suite, registry=registry, server=server, folder=Path(folder), seed=1
        )
        watched.run()
    return watched.overheads


if __name__ == "__main__":
    found = sorted(overheads(*sys.argv[1:2] or ["quick"]))
    p95 = found[int(0.95 * len(found))]
    print(
        f"{len(found)} jobs: median {statistics.median(found):.3f} s, p95 {p95:.3f} s, max {found[-1]:.3f} s"
    )
