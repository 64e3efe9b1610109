"""`Session`: the suite of one run of pytest, from its options to its items."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest

from attnbench.cli import display
from attnbench.errors import UserError
from attnbench.pytest_plugin import OPTIONS
from attnbench.pytest_plugin.bench import Bench
from attnbench.pytest_plugin.items import Cell, Suite
from attnbench.suites import find
from attnbench.units import seconds_text


class Session:
    """Hooks that are registered only where `--attnbench` is given."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._bench: Bench
        self._path: Path
        self._name = ""
        """Of the suite: what the ids of its tests begin with."""
        self._ids: list[str] = []
        """Of the suite's tests, as far as they were given as arguments; none: all of them."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        config = self._config
        if config.getoption("dist", "no") != "no":
            raise pytest.UsageError(
                "--attnbench measures, so nothing may run beside it\nhint: leave out -n, or give -n 0"
            )
        given = {name: config.getoption(f"attnbench_{name}") for name in (*OPTIONS, "preset")}
        arguments = argparse.Namespace(suite=config.getoption("attnbench"), problem=None, **given)
        try:
            self._bench = Bench(arguments, self._waiting)
            self._path = find(arguments.suite).resolve()
        except UserError as error:
            raise pytest.UsageError(_told(error)) from None
        config.add_cleanup(self._bench.close)
        inside = Path(arguments.suite).exists() and self._path.is_relative_to(config.rootpath)
        self._name = (
            self._path.relative_to(config.rootpath).as_posix() if inside else Path(arguments.suite).name
        )
        ids = {argument: self._id(argument) for argument in config.args}
        self._ids = [found for found in ids.values() if found]
        config.args[:] = [argument for argument in config.args if not ids[argument]]

    def _id(self, argument: str) -> str | None:
        """What an argument names of the suite, as the beginning of ids; None where it names something else."""
        path, colons, rest = argument.partition("::")
        there = (self._config.invocation_params.dir / path).resolve()
        return self._name + colons + rest if path == self._name or there == self._path else None

    def _waiting(self, device: str, holder: str, seconds: float) -> None:
        find = self._config.pluginmanager.get_plugin
        if (terminal := find("terminalreporter")) and (capture := find("capturemanager")):
            with capture.global_and_fixture_disabled():
                terminal.write_line(display.waiting_text(device, holder, seconds))

    @pytest.hookimpl(tryfirst=True)  # before items are deselected
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        root = Suite.from_parent(
            session, name=self._name, nodeid=self._name, path=self._path, bench=self._bench
        )
        mine = list(session.genitems(root))
        for wanted in self._ids:
            if not any(_below(item.nodeid, wanted) for item in mine):
                raise pytest.UsageError(f"not found: {wanted}\nhint: --collect-only lists all tests")
        items += [i for i in mine if not self._ids or any(_below(i.nodeid, wanted) for wanted in self._ids)]

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> str:
        cells = tuple(item.planned for item in items if isinstance(item, Cell))
        chosen = replace(self._bench.plan, cells=cells)
        return (
            f"attnbench: {len(cells)} cells of {self._name}, of which {len(chosen.jobs)} are measured "
            f"in about {seconds_text(chosen.seconds)}; seed {self._bench.seed}"
        )


def _below(nodeid: str, wanted: str) -> bool:
    return nodeid == wanted or nodeid.startswith(f"{wanted}::")


def _told(error: UserError) -> str:
    """Message and hint, with the names that the options have here."""
    text = f"{error.message}\nhint: {error.hint}" if error.hint else error.message
    return re.sub(rf"--(?={'|'.join(OPTIONS)}|preset)", "--attnbench-", text)
