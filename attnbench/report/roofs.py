"""Rooflines of devices (Williams, Waterman, Patterson 2009), from the peaks that this machine keeps of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnbench import peaks
from attnbench.peaks import Peaks
from attnbench.problem import Problem
from attnbench.report.rows import Row

Machine = tuple[str, int]
"""A device's model, and its threads where it is a CPU, else 0."""


@dataclass(frozen=True, kw_only=True)
class Roofs:
    """What limits throughput, and on whose word."""

    corners: tuple[Row, ...]
    """Points of the lines: `roof` says of which rows, `limit` is in operations per second."""
    machines: tuple[str, ...]
    """Identities of the peaks."""


def known(rows: Sequence[Row]) -> dict[Machine, Peaks]:
    """Peaks of the devices of some rows, as far as they are kept here."""
    found = {machine: peaks.load(*machine) for machine in dict.fromkeys(map(_machine, rows))}
    return {machine: kept for machine, kept in found.items() if kept is not None}


def roofs(rows: Sequence[Row], of: Mapping[Machine, Peaks]) -> Roofs:
    """The lines over the intensities of their rows, with their bends; none for rows of several devices."""
    corners: list[Row] = []
    machines: dict[str, None] = {}
    for roof in dict.fromkeys(row["roof"] for row in rows):
        below = [row for row in rows if row["roof"] == roof and row["flops_per_s"] and row["intensity"]]
        owners = {_machine(row) for row in below}
        best = of.get(owners.pop()) if len(owners) == 1 else None
        if best is None:
            continue
        most = best.flops_limit(Problem.parse(below[0]["problem"]).dtype)
        rate = max(best.bytes_per_s.values(), default=None)
        if not most or not rate:
            continue
        machines[best.identity] = None
        bend = most / rate
        low, high = (end(bend, *(row["intensity"] for row in below)) for end in (min, max))
        corners += [
            {"roof": roof, "intensity": x, "limit": min(most, rate * x)}
            for x in (low / 1.5, bend, high * 1.5)
        ]
    return Roofs(corners=tuple(corners), machines=tuple(machines))


def _machine(row: Row) -> Machine:
    return row["device_name"] or "", 0 if row["device"].startswith("cuda") else row["threads"]
