"""What differs between the circumstances of both sides: machine, versions, settings, sources."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.records import Run
from attnbench.units import bytes_text

PROTOCOL, MACHINE, VERSIONS, SETTINGS, SOURCES = "protocol", "machine", "versions", "settings", "sources"
UNGATED = (MACHINE, VERSIONS, SETTINGS)
"""Where these differ, a change of time need not be the code's; it is no regression unless one asks."""
_IGNORED = ("load", "memory.available_bytes", "torch_build.cxx_flags", "torch_build.libraries")
_VERSIONS = ("torch_build.version", "torch_build.git_version", "torch_build.cuda", "torch_build.hip")
_DIGITS = 12
"""Of a hash."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A fact that is not the same on both sides."""

    kind: str
    what: str
    base: tuple[str, ...]
    """One value, or several where the runs of the side differ."""
    new: tuple[str, ...]


def differences(base: Sequence[Run], new: Sequence[Run]) -> list[Difference]:
    """Facts that both sides know and that differ, by kind."""
    sides = [_known(runs) for runs in (base, new)]
    kinds = (PROTOCOL, MACHINE, VERSIONS, SETTINGS, SOURCES)
    return [
        Difference(kind=kind, what=what, base=tuple(sorted(ours)), new=tuple(sorted(theirs)))
        for wanted in kinds
        for (kind, what), ours in sides[0].items()
        if kind == wanted and (theirs := sides[1].get((kind, what))) is not None and ours != theirs
    ]


def _known(runs: Sequence[Run]) -> Mapping[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        for kind, what, value in _facts(run):
            found[kind, what].add(value)
    return found


def _facts(run: Run) -> Iterator[tuple[str, str, str]]:
    for device, name in run.device_names.items():
        yield MACHINE, f"device {device}", name
    for text in run.versions.values():
        words = text.split()
        for name, version in zip(words[::2], words[1::2], strict=False):
            yield VERSIONS, name, version
    for what, value in _flat(run.environment):
        if what.startswith(_IGNORED):
            continue
        if what.startswith("versions."):
            yield VERSIONS, what.removeprefix("versions."), value
        elif what.startswith(("python.", "plugins.", *_VERSIONS)):
            yield VERSIONS, what, value
        else:
            yield MACHINE, what, value
    for what, value in _flat(run.settings):
        if what != "measure.seed":
            yield SETTINGS, what, value
    for what, value in run.fingerprint.items():
        if what == "protocol":
            yield PROTOCOL, "version", value
        elif what == "attnbench source" or what.startswith("source of plugin "):
            yield SOURCES, what.removesuffix(" source").removeprefix("source of "), value[:_DIGITS]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    )
    if items is not None:
        for key, item in items:
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif value not in (None, ""):
        yield name, bytes_text(value) if name.endswith("bytes") else str(value)
