"""The base of `run --against`: the suite's implementations as another interpreter or other plugin files bring them.

Their cells stand in the same run under `NAME@base` and are measured in the same rounds, so that what drifts falls on
both alike.
"""

import dataclasses
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import attnbench
from attnbench import environment, plan, plugins
from attnbench.errors import UserError
from attnbench.forkserver import Channel, ForkServer, running
from attnbench.implementation import Device
from attnbench.plan import Plan, Planned
from attnbench.plugins import requirements
from attnbench.problem import Problem
from attnbench.records import Cell, Status
from attnbench.suites import Measure, Suite, Verify

SUFFIX = "@base"
"""Of an implementation's name. No plugin can bring such a name."""
OF_THE_BASE = " of the base"
"""Of what the fingerprint knows of it."""
SERVE = "attnbench.against:serve"
TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Against:
    """What differs on the base's side."""

    python: str = sys.executable
    plugins: tuple[str, ...] = ()
    """Files or modules that take the place of those of `--plugin`."""

    @classmethod
    def parse(cls, words: Sequence[str], given: Sequence[str]) -> "Against":
        """`python=PATH` or `plugin=FILE.py`, each at most once. Raises `UserError`."""
        found: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if key not in ("python", "plugin") or not equals or not value or key in found:
                raise UserError(
                    f"--against {word}: neither `python=` nor `plugin=`, or given twice",
                    hint="python=/path/to/venv/bin/python, or plugin=old_kernel.py beside --plugin new_kernel.py",
                )
            found[key] = value
        if "python" in found and not Path(found["python"]).is_file():
            raise UserError(
                f"--against python={found['python']}: no such file", hint="the interpreter of another venv"
            )
        if "plugin" in found and not given:
            raise UserError("--against plugin= takes the place of --plugin, which is not given")
        base = (found["plugin"],) if "plugin" in found else tuple(given)
        return cls(python=found.get("python", sys.executable), plugins=base)


@dataclass(frozen=True, kw_only=True)
class Side:
    """Where the processes of some cells come from, and what a worker is asked for."""

    server: ForkServer
    """Of the processes that are timed."""
    patient: ForkServer
    """Of the others."""
    targets: Mapping[str, str]
    """Implementation -> its plugin, as `plugins.load` takes it."""
    approximate: frozenset[str] = frozenset()
    """Implementations that may do less work than an exact one."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the base's side has said of itself."""

    cells: tuple[Planned, ...]
    """Under their names in this run."""
    targets: Mapping[str, str]
    approximations: Mapping[str, str]
    """Implementation -> what it approximates; exact ones are not named."""
    versions: Mapping[str, str]
    """Implementation -> `distribution version` of what it requires."""
    owners: Mapping[str, str]
    """Implementation -> plugin."""
    facts: Mapping[str, str]
    """For the fingerprint: Python, torch, and the sources of the plugins."""

    def side(self, patient: ForkServer, server: ForkServer) -> Side:
        return Side(
            server=server,
            patient=patient,
            targets=self.targets,
            approximate=frozenset(self.approximations),
        )


def ask(
    server: ForkServer,
    base: Against,
    suite: Suite,
    *,
    devices: Sequence[Device],
    missing: Mapping[str, str],
    choice: Mapping[str, Any],
) -> Base:
    """The plan as the base's interpreter makes it. Raises `UserError` where it cannot."""
    names = ("name", "question", "devices", "implementations", "kinds")
    settings = {name: getattr(suite, name) for name in names}
    message = {
        "suite": settings,
        "measure": dataclasses.asdict(suite.measure),
        "verify": dataclasses.asdict(suite.verify),
        "problems": [problem.text for problem in suite.problems],
        "devices": [dataclasses.asdict(device) for device in devices],
        "missing": dict(missing),
        "choice": dict(choice),
        "plugins": base.plugins,
    }
    try:
        server.wait()
    except UserError:
        raise UserError(
            f"--against: {base.python} cannot run attnbench",
            hint=f"install this attnbench there too: {base.python} -m pip install ...",
        ) from None
    with running(server, SERVE) as child:
        answer = child.ask(message, TIMEOUT_S)
    if "error" in answer:
        raise UserError(f"--against: {answer['error']}", hint=answer["hint"])
    if answer["source"] != _source():
        raise UserError(
            "--against: the base has another attnbench than this one, and would measure differently",
            hint=f"install this attnbench there too: {base.python} -m pip install ...",
        )
    problems = {problem.text: problem for problem in suite.problems}
    cells = []
    for cell, status, reason in answer["cells"]:
        name = cell["implementation"] + SUFFIX
        cells.append(
            Planned(
                cell=Cell(**{**cell, "implementation": name}),
                problem=problems[cell["problem"]],
                status=Status(status) if status else None,
                reason=reason,
            )
        )
    return Base(
        cells=tuple(cells),
        **{
            field: {name + SUFFIX: value for name, value in answer[field].items()}
            for field in ("targets", "versions", "owners", "approximations")
        },
        facts=answer["facts"],
    )


def _source() -> str:
    return environment.source_hash(Path(attnbench.__file__).parent)


def serve(channel: Channel) -> None:
    """Answer one message of `ask`, in the base's interpreter."""
    message = channel.receive()
    assert message is not None
    try:
        channel.send(_described(message))
    except UserError as error:
        channel.send({"error": error.message, "hint": error.hint})


def _described(message: Mapping[str, Any]) -> dict[str, Any]:
    registry = plugins.discover(message["plugins"])
    for owner in registry.broken:
        if owner.source in message["plugins"]:
            raise UserError(f"{owner.source} cannot be loaded: {owner.error}")
    lists: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in message["suite"].items()
    }
    measure: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in message["measure"].items()
    }
    suite = Suite(
        **lists,
        problems=tuple(map(Problem.parse, message["problems"])),
        measure=Measure(**measure),
        verify=Verify(**message["verify"]),
        text="",
        path="",
    )
    devices = [
        Device(**{**facts, "compute_capability": tuple(facts["compute_capability"] or ()) or None})
        for facts in message["devices"]
    ]
    made = plan.make(suite, registry, devices=devices, missing=message["missing"], **message["choice"])
    names = list(dict.fromkeys(planned.cell.implementation for planned in made.cells))
    found = {name: registry.implementations[name] for name in names}
    owners = {name: registry.owners[name] for name in names}
    sources = {f"source of plugin {o.owner.plugin}": o.owner.source_hash for o in owners.values()}
    return {
        "source": _source(),
        "cells": [(dataclasses.asdict(p.cell), p.status, p.reason) for p in made.cells],
        "targets": {name: plugin.target for name, plugin in owners.items()},
        "owners": {name: plugin.owner.plugin for name, plugin in owners.items()},
        "versions": {name: requirements(one)[0] for name, one in found.items()},
        "approximations": {name: text for name, one in found.items() if (text := one.approximation)},
        "facts": {"python": platform.python_version(), "torch": version("torch"), **sources},
    }


def merged(ours: Plan, base: Base, width: float | None) -> Plan:
    """Both sides' cells, so that those of one problem and device stand together.

    Without a `width` each spends its budget: where one ended before the other, few rounds would be in common.
    """
    theirs: dict[tuple[str, str], list[Planned]] = {}
    for planned in base.cells:
        theirs.setdefault((planned.cell.problem, planned.cell.device), []).append(planned)
    cells: list[Planned] = []
    for key, same in groupby(ours.cells, key=lambda p: (p.cell.problem, p.cell.device)):
        cells += [*same, *theirs.get(key, ())]
    return replace(ours, cells=tuple(cells), width=width or 0.0)
