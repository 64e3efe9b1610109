"""`Bench`: the rows of a suite, measured problem by problem as tests ask for them, in processes of their own."""

import argparse
import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from attnbench import header, lock, plan, results, runner
from attnbench.cli import choose
from attnbench.errors import UserError
from attnbench.implementation import Device
from attnbench.plan import Plan
from attnbench.records import Result, Run
from attnbench.runner import Key, Runner


class Bench:
    """The plan of a suite at once; processes from the first row that is asked for until it is closed.

    `arguments` are those of `attnbench run`. Raises `UserError` where they are no plan.
    """

    def __init__(self, arguments: argparse.Namespace, waiting: lock.Waiting) -> None:
        if sys.platform != "linux":
            raise UserError(f"attnbench measures on Linux only, not on {sys.platform}")
        self._arguments, self._waiting = arguments, waiting
        self._registry = choose.registry(arguments)
        self.suite = choose.suite(arguments, self._registry)
        self._threads = choose.threads(self.suite)
        choose.check_threads(self._threads)
        self.seed = secrets.randbelow(2**31) if self.suite.measure.seed is None else self.suite.measure.seed
        self.plan = self._plan(plan.resolve(self.suite.devices, [choose.cpu(self.suite)]))
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """End its processes."""
        self._stack.close()

    def _plan(self, devices: Sequence[Device], missing: Mapping[str, str] | None = None) -> Plan:
        return plan.make(
            self.suite,
            self._registry,
            devices=devices,
            threads=self._threads,
            only=self._arguments.only,
            without=self._arguments.without,
            missing=missing,
        )

    def row(self, key: Key, beside: Collection[Key]) -> Result:
        """The row of a cell. What is not known yet is measured together with the cells `beside` it.

        Raises `UserError`, and `KeyboardInterrupt` as any other code does.
        """
        job, _ = self._job
        if key not in job.done:
            cells = tuple(planned for planned in self.plan.cells if planned.cell.key in {key, *beside})
            job.plan = replace(self.plan, cells=cells)
            with lock.held([cells[0].cell.device], self._waiting):
                job.run()
            if job.stopped:
                raise KeyboardInterrupt
        return job.done[key]

    def columns(self, row: Result) -> dict[str, object]:
        """The row as one of `results.csv`, without what is empty."""
        return {name: value for name, value in results.row(row, self._job[1]).items() if value != ""}

    @cached_property
    def _job(self) -> tuple[Runner, Run]:
        """A runner of one problem after the other, and the header of its rows."""
        with _untraced():
            patient = self._stack.enter_context(runner.fork_server(patient=True))
            server = self._stack.enter_context(runner.fork_server())
        devices, why, probed = runner.probe(patient)
        found = plan.resolve(self.suite.devices, (choose.cpu(self.suite), *devices))
        missing = {str(d): f"no CUDA device ({why})" for d in found if d.kind == "cuda" and not d.name}
        self.plan = self._plan(found, missing)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-pytest-"))
        head = header.make(
            schema=results.SCHEMA,
            run_id="",
            suite=self.suite,
            words=[word for target in self._arguments.plugin for word in ("--plugin", target)],
            plan=self.plan,
            registry=self._registry,
            seed=self.seed,
            probed=probed,
        )
        job = Runner(
            plan=self.plan,
            suite=self.suite,
            registry=self._registry,
            server=server,
            patient=patient,
            folder=Path(folder),
            seed=self.seed,
            limits=True,
        )
        return job, head


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Without the variables by which coverage follows into other processes: it would slow what is timed."""
    names = [name for name in os.environ if name.startswith("COVERAGE_PROCESS_")]
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)
