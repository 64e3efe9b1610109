"""`attnbench list`: implementations and plugins, and whether they can compute a problem here. Imports no torch."""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from attnbench import __version__, environment, plugins, scope, suites, tables
from attnbench.cli import choose, display
from attnbench.errors import UserError
from attnbench.implementation import Device, Implementation
from attnbench.plugins import Registry, requirements
from attnbench.problem import MASKS, Direction, DType, Problem
from attnbench.records import Status

KINDS = ("cpu", "cuda")
SHORT = {
    **{
        dtype.value: dtype.value.replace("bfloat", "bf").replace("float", "f").partition("_")[0]
        for dtype in DType
    },
    **{direction.value: "".join(w[0] for w in direction.value.split("_")) for direction in Direction},
}
"""What a dtype or a direction is called in the table, explained below it."""
_ORDER = [*KINDS, *DType, *Direction, *MASKS]


def main(arguments: argparse.Namespace) -> int:
    """Print what there is, or with --problem what can compute it, for people or as JSON."""
    if arguments.why and arguments.problem is None:
        raise UserError("--why needs a problem", hint="add --problem 'seqlen=512 heads=8 head_dim=64'")
    registry = plugins.discover(arguments.plugin, choose.importing)
    names = registry.select(arguments.why or ["*"])
    asked = arguments.problem is not None
    problems = suites.suite_of_problem(arguments.problem).problems if asked else ()
    missing = _missing()
    answers = [
        (name, problem, kind, tuple(_reasons(registry.implementations[name], problem, kind, missing)))
        for problem in problems
        for name in names
        for kind in KINDS
    ]
    if arguments.json:
        print(json.dumps(_document(registry, names, answers, missing), indent=1))
    else:
        width, _ = display.size()
        lines = _told(answers, width, bool(arguments.why)) if answers else _table(registry, missing, width)
        print("\n".join(lines))
    return 0


# ---------------------------------------------------------------- what is true

Answer = tuple[str, Problem, str, tuple[tuple[str, str], ...]]
"""Implementation, problem, kind of device, and the reasons against, each with its kind; none means yes."""


def _missing() -> dict[str, str]:
    """Kinds of device that are not here, with the reason."""
    reason = environment.no_cuda()
    return {"cuda": f"no CUDA device ({reason})"} if reason else {}


def _why_not_here(implementation: Implementation, missing: Mapping[str, str]) -> str | None:
    """None where the implementation could run on this machine, else the reason."""
    devices = _ordered(implementation.capabilities.devices)
    absent = [missing.get(kind) or implementation.unavailable(Device(kind=kind)) for kind in devices]
    return requirements(implementation)[1] or (None if None in absent else "; ".join(map(str, absent)))


def _reasons(
    implementation: Implementation, problem: Problem, kind: str, missing: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """All reasons against a problem on a kind of device; the first is that of a plan for a machine that has one."""
    device = Device(kind=kind)
    if lacks := [*implementation.capabilities.reasons(problem, device)]:
        yield from (("capability", reason) for reason in lacks)
    elif objection := implementation.objection(problem, device):  # asked only of what it claims to compute
        yield "objection", objection
    if unverified := scope.computable(problem):
        yield "reference", unverified
    if kind in missing:
        yield "device", missing[kind]
    if wanting := requirements(implementation)[1]:
        yield "requirement", wanting
    elif absent := implementation.unavailable(device):
        yield "requirement", absent


def _status(reasons: Sequence[tuple[str, str]]) -> Status | None:
    """What the cell would be in a run; None for a job."""
    if not reasons:
        return None
    return Status.UNAVAILABLE if reasons[0][0] in ("device", "requirement") else Status.UNSUPPORTED


def _ordered(values: Iterable[str]) -> list[str]:
    """Values of an axis in its own order, others behind."""
    return sorted(values, key=lambda v: (_ORDER.index(v) if v in _ORDER else len(_ORDER), v))


# ---------------------------------------------------------------- for people


def _table(registry: Registry, missing: Mapping[str, str], width: int) -> Iterator[str]:
    """Two lines an implementation under its plugin, then what the short words mean, and what is broken."""
    masks: dict[tuple[str, ...], str] = {}
    notes: dict[str, int] = {}
    cells: dict[str, list[str]] = {}
    for name, implementation in registry.implementations.items():
        can, reason = implementation.capabilities, _why_not_here(implementation, missing)
        group = masks.setdefault(tuple(_ordered(can.masks)), chr(ord("A") + len(masks) % 26))
        cells[name] = [
            name,
            f"no [{notes.setdefault(reason, len(notes) + 1)}]" if reason else "ok",
            " ".join(_ordered(can.devices)),
            *(" ".join(SHORT.get(v, v) for v in _ordered(vs)) for vs in (can.dtypes, can.directions)),
            group,
        ]
    head = ["", "here", "devices", "dtypes", "directions", "masks"]
    widths = [max(map(len, column)) for column in zip(head, *cells.values(), strict=True)]
    long = sum(widths) + 2 * len(widths) > width  # names get a line of their own then
    widths[0] = 4 if long else widths[0]

    def line(values: Sequence[str]) -> str:
        return "  ".join(["", *(f"{v:{w}}" for v, w in zip(values, widths, strict=True))]).rstrip()

    yield line(head)
    for plugin, names in groupby(cells, key=lambda name: registry.owners[name]):
        versions = dict.fromkeys(requirements(i)[0] for i in plugin.implementations)
        told = ", ".join([plugin.owner.source, *filter(None, versions)])
        yield from tables.wrapped(
            f"{plugin.owner.plugin} {plugin.owner.version}".rstrip() + f" ({told})", width, 4
        )
        for name in names:
            implementation = registry.implementations[name]
            yield from [f"  {name}"] * long
            yield line(["" if long else name, *cells[name][1:]])
            summary = [implementation.summary]
            summary += [f"approximation: {implementation.approximation}"] * bool(implementation.approximation)
            for text in summary:
                yield from tables.wrapped(" " * 6 + tables.clean(text), width, 6)
    yield ""
    able = [i.capabilities for i in registry.implementations.values()]
    used = {value for can in able for value in (*can.dtypes, *can.directions)}
    words = (f"{short}\xa0{value}" for value, short in SHORT.items() if value in used)
    yield from (text.replace("\xa0", " ") for text in tables.wrapped(", ".join(words), width))
    for several, letter in masks.items():
        yield from tables.wrapped(f"masks {letter}: {' '.join(several)}", width, 4)
    for reason, number in notes.items():
        yield from tables.wrapped(f"[{number}] {reason}", width, 4)
    for kind, reason in missing.items():
        yield from tables.wrapped(f"{kind}: {reason}", width, 4)
    for owner in registry.broken:
        told = f"plugin {owner.plugin} ({owner.source}) could not be loaded: {tables.clean(owner.error)}"
        yield from tables.wrapped(told, width, 4)


def _told(answers: Sequence[Answer], width: int, every: bool) -> Iterator[str]:
    """A line for each answer under its problem, with the reason of the plan or with every one."""
    indent = max(len(name) for name, *_ in answers) + 10
    for problem, some in groupby(answers, key=lambda answer: answer[1]):
        yield from tables.wrapped(problem.text, width, 4)
        for name, _, kind, reasons in some:
            status = _status(reasons) or "yes"
            first = f": {tables.clean(reasons[0][1])}" if reasons and not every else ""
            yield from tables.wrapped(f"  {name:{indent - 10}}  {kind:4}  {status}{first}", width, indent)
            for what, reason in reasons if every else ():
                yield from tables.wrapped(f"{'':{indent}}{what}: {tables.clean(reason)}", width, indent + 4)


# ---------------------------------------------------------------- for programs


def _document(
    registry: Registry, names: Sequence[str], answers: Sequence[Answer], missing: Mapping[str, str]
) -> dict[str, Any]:
    """Everything, with the keys that `docs/plugins.md` lists."""
    document: dict[str, Any] = {
        "attnbench": __version__,
        "missing_devices": dict(missing),
        "implementations": [_record(registry, name, missing) for name in names],
        "plugins": [
            {name: getattr(plugin.owner, name) for name in ("plugin", "source", "version", "error")}
            for plugin in registry.plugins
        ],
    }
    if answers:
        document["answers"] = [
            {
                "problem": problem.text,
                "implementation": name,
                "device": kind,
                "status": _status(reasons),
                "reasons": [{"kind": what, "reason": reason} for what, reason in reasons],
            }
            for name, problem, kind, reasons in answers
        ]
    return document


def _record(registry: Registry, name: str, missing: Mapping[str, str]) -> dict[str, Any]:
    implementation = registry.implementations[name]
    can = implementation.capabilities
    values = {field.name: getattr(can, field.name) for field in dataclasses.fields(can)}
    reason = _why_not_here(implementation, missing)
    return {
        "name": name,
        "summary": implementation.summary,
        "plugin": registry.owners[name].owner.plugin,
        "available": reason is None,
        "reason": reason,
        "approximation": implementation.approximation,
        "requires": [*implementation.requires],
        "versions": requirements(implementation)[0],
        "qkv_format": implementation.qkv_format,
        "capabilities": {k: _ordered(v) if isinstance(v, frozenset) else v for k, v in values.items()},
    }
