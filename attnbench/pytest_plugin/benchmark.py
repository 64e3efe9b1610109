"""A row as a record of pytest-benchmark, for its tables, its files and `pytest-benchmark compare`."""

from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from attnbench import estimates, noise
from attnbench.records import Result


def record(item: pytest.Item, row: Result, columns: Mapping[str, object]) -> None:
    """Hand an ok row over, where pytest-benchmark is there and takes records. Its data are the samples that count.

    `columns` go with it: pytest-benchmark's figures are of all samples alike, the interval is of blocks.
    """
    session = item.config.pluginmanager.get_plugin("pytest-benchmark")
    if session is None or session.disabled:
        return
    from pytest_benchmark.stats import Metadata

    assert row.timing is not None
    fixture = SimpleNamespace(
        name=item.name,
        fullname=item.nodeid,
        group=item.parent.name if item.parent else None,
        param=None,
        params=asdict(row.cell),
        extra_info=dict(columns),
        cprofile_stats=None,
        has_error=False,
    )
    measured = Metadata(fixture, iterations=row.timing.inner, options={"timer": row.cell.clock})
    for block in noise.counted(row.blocks):
        for seconds in estimates.sound(block.seconds, block.flagged):
            measured.stats.update(seconds)
    session.benchmarks.append(measured)
