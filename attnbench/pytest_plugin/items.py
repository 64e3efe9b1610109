"""What pytest collects: a suite, its problems, and a test for each cell."""

from collections.abc import Iterator
from typing import Any

import pytest

from attnbench.errors import UserError
from attnbench.plan import Planned
from attnbench.pytest_plugin import benchmark
from attnbench.pytest_plugin.bench import Bench
from attnbench.records import Status

ANSWERS = (Status.UNSUPPORTED, Status.UNAVAILABLE)


class Suite(pytest.Collector):
    """All cells of a plan."""

    def __init__(self, *, bench: Bench, **node: Any) -> None:
        super().__init__(**node)
        self.bench = bench

    def collect(self) -> Iterator["Problem"]:
        groups: dict[tuple[str, str], list[Planned]] = {}
        for planned in self.bench.plan.cells:
            groups.setdefault((planned.cell.problem, planned.cell.device), []).append(planned)
        several = len(self.bench.plan.devices) > 1
        for (problem, device), cells in groups.items():
            name = f"{problem} on {device}" if several else problem
            yield Problem.from_parent(self, name=name, cells=cells, bench=self.bench)


class Problem(pytest.Collector):
    """The cells that are measured side by side."""

    def __init__(self, *, bench: Bench, cells: list[Planned], **node: Any) -> None:
        super().__init__(**node)
        self.bench, self.cells = bench, cells

    def collect(self) -> Iterator["Cell"]:
        several = len({planned.cell.cache for planned in self.cells}) > 1
        for planned in self.cells:
            name = planned.cell.implementation + (f"[{planned.cell.cache}]" if several else "")
            yield Cell.from_parent(self, name=name, planned=planned, bench=self.bench)


class Cell(pytest.Item):
    """Passes where the cell is `ok`; skips where the answer is that it cannot be computed here."""

    fixturenames = ("benchmark",)
    """By this, pytest-benchmark knows its own for `--benchmark-only` and `--benchmark-skip`."""

    def __init__(self, *, bench: Bench, planned: Planned, **node: Any) -> None:
        super().__init__(**node)
        self.bench, self.planned, self.cell = bench, planned, planned.cell
        words = (word.partition("=") for word in self.cell.problem.split())
        axes = {key: int(value) if value.isdecimal() else value for key, _, value in words}
        self.add_marker(pytest.mark.attnbench(implementation=self.cell.implementation, **axes))
        if planned.status is not None:
            self.add_marker(pytest.mark.skip(reason=self._told(planned.status, planned.reason)))
        if self.config.pluginmanager.hasplugin("timeout"):
            # the first test of a problem waits for all of it, and each of its jobs has a time-out of its own
            self.add_marker(pytest.mark.timeout(0))

    def _told(self, status: Status, reason: str) -> str:
        return f"{self.cell.implementation}: {status}: {reason}"

    def reportinfo(self) -> tuple[Any, int, str]:
        return self.path, 0, f"{self.cell.implementation} on {self.cell.problem}"

    def runtest(self) -> None:
        beside = [
            item.cell.key
            for item in self.session.items
            if isinstance(item, Cell) and item.parent is self.parent and item.planned.status is None
        ]
        try:
            row = self.bench.row(self.cell.key, beside)
        except UserError as error:
            hint = f"\nhint: {error.hint}" if error.hint else ""
            pytest.fail(f"{error.message}{hint}", pytrace=False)
        if row.output:
            self.add_report_section("the job", "output of", row.output)
        if row.status in ANSWERS:
            pytest.skip(self._told(row.status, row.reason))
        columns = self.bench.columns(row)
        if row.status is not Status.OK:
            pytest.fail(_failure(columns), pytrace=False)
        if row.timing:
            benchmark.record(self, row, columns)


SHOWN = (
    *("implementation", "versions", "problem", "device", "device_name", "threads", "cache", "kernel"),
    *("err_row", "yardstick_row", "err_rms", "yardstick_rms", "err_max", "err_lse", "checked_share"),
    *("seed", "repro"),
)
"""Columns of `results.csv` below the reason of a failure."""


def _failure(columns: dict[str, object]) -> str:
    shown = [(name, columns[name]) for name in SHOWN if name in columns]
    lines = [
        f"{name:15}{value:.3g}" if isinstance(value, float) else f"{name:15}{value}" for name, value in shown
    ]
    return "\n".join([f"{columns['status']}: {columns['reason']}", "", *lines])
