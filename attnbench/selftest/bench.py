"""`Bench`: specimens measured by the path that every run takes: plan, fork servers, verdict, blocks, rows."""

import contextlib
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from attnbench import plan, plugins, runner, suites
from attnbench.environment import available_cores, last_level_cache
from attnbench.forkserver import ForkServer
from attnbench.implementation import Device
from attnbench.records import Result, Timing

PLUGIN = "attnbench.selftest.specimens"
TINY = "batch=1 heads=2 head_dim=16 seqlen=16"
"""Where the answer is to cost nothing."""
SMALL = "batch=1 heads=4 head_dim=64 seqlen=128"
MIDDLE = "batch=1 heads=8 head_dim=64 seqlen=384"

NONE: Mapping[str, str] = MappingProxyType({})
LATE_S = 270.0
"""What comes after takes up to half of the ten minutes that all checks may take."""


class Bench(contextlib.AbstractContextManager["Bench"]):
    """Two fork servers that live as long as the block."""

    def __init__(self) -> None:
        self.cores = available_cores()
        self.server: ForkServer
        self._patient: ForkServer
        self._stack = contextlib.ExitStack()
        self._started_s = time.monotonic()
        self._registry = plugins.discover([PLUGIN])

    def __enter__(self) -> "Bench":
        self._patient = self._stack.enter_context(runner.fork_server(patient=True))
        self.server = self._stack.enter_context(runner.fork_server())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def late(self) -> bool:
        """Whether there is no time left to take anything again."""
        return time.monotonic() - self._started_s > LATE_S

    def measure(
        self,
        problem: str,
        names: Sequence[str],
        *,
        threads: int = 1,
        settings: Sequence[str] = (),
        clocks: Mapping[str, str] = NONE,
    ) -> dict[str, Result]:
        """A row for each implementation; `settings` are those of `--set`, the preset is `quick`. Those of which `clocks` has the
        name are timed by that clock, `module:Class`. Raises `UserError`."""
        suite = suites.suite_of_problem(problem, ["measure.preset=quick", *settings])
        cpu = Device(kind="cpu", cache_bytes=last_level_cache(threads) or 0)
        devices = plan.resolve(suite.devices, [cpu])
        made = plan.make(suite, self._registry, devices=devices, threads=threads, only=names)
        cells = [
            replace(planned, cell=replace(cell, clock=clocks.get(cell.implementation, cell.clock)))
            for planned in made.cells
            for cell in [planned.cell]
        ]
        with tempfile.TemporaryDirectory(prefix="attnbench-selftest-") as folder:
            rows = runner.Runner(
                plan=replace(made, cells=tuple(cells)),
                suite=suite,
                registry=self._registry,
                server=self.server,
                patient=self._patient,
                folder=Path(folder),
                seed=secrets.randbelow(2**31),
            ).run()
        if any(row.reason == "interrupted" for row in rows):
            raise KeyboardInterrupt
        return {row.cell.implementation: row for row in rows}


def timing(row: Result) -> Timing:
    """The timing of a row that must have one. Raises `NotMeasuredError`."""
    if row.timing is None:
        raise NotMeasuredError(f"{row.cell.implementation} is {row.status}: {row.reason}")
    return row.timing


class NotMeasuredError(Exception):
    """A specimen that is right was not measured; the message says how its row ended."""
