"""A run's header: suite, command, plugins, devices and environment, and the fingerprint that rows share."""

import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attnbench
from attnbench import environment
from attnbench.against import OF_THE_BASE, Base
from attnbench.plan import Plan
from attnbench.plugins import Registry, requirements
from attnbench.records import PROTOCOL_VERSION, Owner, Run
from attnbench.suites import Suite

_OPTION = re.compile(r"(-q*o|[^=/]+=)?(.*)", re.DOTALL)
"""An option joined to its value, and the value."""
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"()]+/)+")
"""An absolute path but for its last part."""


def make(
    *,
    schema: int,
    run_id: str,
    suite: Suite,
    words: Sequence[str],
    plan: Plan,
    registry: Registry,
    seed: int,
    probed: Mapping[str, Any],
    base: Base | None = None,
) -> Run:
    """The header of a run that is about to begin. It names no host, no user and no absolute path."""
    facts = environment.describe()
    facts["openmp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY", "not set: waiting threads spin")
    facts |= probed
    facts["plugins"] = {p.owner.plugin: told for p in registry.plugins if (told := dict(p.environment()))}
    names = {str(d): d.name or str(facts["cpu"]["model"] if d.kind == "cpu" else "") for d in plan.devices}
    named = dict.fromkeys(p.cell.implementation for p in plan.cells)
    used = [name for name in named if name in registry.implementations]  # the others are the base's
    versions = {name: requirements(registry.implementations[name])[0] for name in used}
    owners = {name: registry.owners[name].owner for name in used}
    return Run(
        schema=schema,
        run_id=run_id,
        suite=suite.name,
        suite_text=suite.text,
        command=tuple(portable(words)),
        settings={"measure": dataclasses.asdict(suite.measure), "verify": dataclasses.asdict(suite.verify)},
        seed=seed,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=_fingerprint(
            suite, plan, names, versions, {o.plugin: o.source_hash for o in owners.values()}
        )
        | ({f"{name}{OF_THE_BASE}": text for name, text in base.facts.items()} if base else {}),
        environment=facts,
        plugins=tuple(_portable_owner(p.owner) for p in registry.plugins),
        versions={**versions, **(base.versions if base else {})},
        owners={**{name: owner.plugin for name, owner in owners.items()}, **(base.owners if base else {})},
        device_names=names,
        approximations={n: text for n in used if (text := registry.implementations[n].approximation)}
        | dict(base.approximations if base else {}),
    )


def _fingerprint(
    suite: Suite,
    plan: Plan,
    devices: Mapping[str, str],
    versions: Mapping[str, str],
    plugins: Mapping[str, str],
) -> dict[str, str]:
    """What must be equal for rows to stand in one table: sources, versions, device, protocol; never load."""
    cells = hashlib.sha256("\n".join("|".join(map(str, p.cell.key)) for p in plan.cells).encode())
    return {
        "protocol": str(PROTOCOL_VERSION),
        "attnbench source": environment.source_hash(Path(attnbench.__file__).parent),
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "numpy")},
        **{f"device {text}": name for text, name in devices.items()},
        **{f"requirements of {name}": text for name, text in versions.items()},
        **{f"source of plugin {name}": digest for name, digest in plugins.items()},
        "threads": str(plan.cells[0].cell.threads),
        "settings": hashlib.sha256(repr((suite.measure, suite.verify)).encode()).hexdigest()[:16],
        "cells": cells.hexdigest()[:16],
    }


def _short(text: str) -> str:
    """A path relative to here where it lies below, else its last part; anything else unchanged."""
    path = Path(text)
    if not path.is_absolute():
        return text
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


def portable(words: Sequence[str]) -> list[str]:
    """A command line without absolute paths."""
    parts = (_OPTION.fullmatch(word) for word in words)
    return [f"{part[1] or ''}{_short(part[2])}" for part in parts if part]


def _portable_owner(owner: Owner) -> Owner:
    error = environment.scrub(_FOLDERS.sub("", owner.error))
    return dataclasses.replace(owner, source=_short(owner.source), error=error)
