"""What a run will do: every cell of a suite, as a job or with the reason why it is none."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product

from attnbench.costs import flops
from attnbench.errors import PluginError, SuiteError, UserError
from attnbench.implementation import Device
from attnbench.plugins import ENTRY_POINT, Registry, requirements
from attnbench.problem import Problem, suggestion
from attnbench.records import Cell, Status
from attnbench.scope import computable
from attnbench.suites import PRESETS, Suite

LARGEST = 1_000_000
"""Cells of one plan at the most."""
WIDTH = 0.01
"""Half-width of an interval at which a launch ends, unless the suite says otherwise."""

NO_CACHE = "the size of the last-level cache is not known, so no call can be called cold"

PROCESS_S = {"cpu": 0.1, "cuda": 1.5}
"""Start and end of a process with its inputs and verdict; on CUDA a context is made."""
ASSUMED_FLOPS_PER_S = {"cpu": 2e10, "cuda": 5e13}
COLD_S = 0.1
"""To copy and prepare the inputs of a rotation. All three only for the estimate of a plan's duration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """One cell: a job where `status` is None, otherwise a row that is decided already."""

    cell: Cell
    problem: Problem
    status: Status | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every cell in order: problems outermost, so that one problem's implementations stand together."""

    cells: tuple[Planned, ...]
    devices: tuple[Device, ...]
    baseline: str | None
    launches: int
    """Fresh processes that a cell is timed in."""
    budget_s: float
    """Of a cell, over all launches."""
    width: float
    """Half-width of the interval of a time at which a launch ends before its budget."""

    @cached_property
    def jobs(self) -> tuple[Planned, ...]:
        return tuple(cell for cell in self.cells if cell.status is None)

    def groups(self) -> Iterator[tuple[Problem, Device, tuple[Planned, ...]]]:
        """The jobs that are measured side by side: those of one problem on one device."""
        devices = {str(device): device for device in self.devices}
        for _, same in groupby(self.jobs, key=lambda p: (p.cell.problem, p.cell.device)):
            jobs = tuple(same)
            yield jobs[0].problem, devices[jobs[0].cell.device], jobs

    @cached_property
    def seconds(self) -> float:
        """A rough guess of the duration, from budgets and counted work."""
        total = 0.0
        for problem, device, jobs in self.groups():
            call = flops(problem) / ASSUMED_FLOPS_PER_S[device.kind]
            each = PROCESS_S[device.kind] * (1 + self.launches) + max(self.budget_s, 3 * self.launches * call)
            each += (3 + 2 * self.launches) * call  # the canary's calls, and those beside the blocks
            total += each * len(jobs)
            total += COLD_S * self.launches * sum(job.cell.cache == "cold" for job in jobs)
        return total


def resolve(names: Sequence[str], found: Sequence[Device] | None = None) -> tuple[Device, ...]:
    """`cpu`, `cuda`, `cuda:1` -> devices; those of `found` are taken where they have been probed."""
    known = {str(device): device for device in found or ()}
    resolved = []
    for name in names:
        kind, _, index = name.partition(":")
        device = Device(kind=kind, index=int(index or 0))
        resolved.append(known.get(str(device), device))
    return tuple(dict.fromkeys(resolved))


def width(suite: Suite, registry: Registry, only: Sequence[str] = (), without: Sequence[str] = ()) -> int:
    """Cells that each problem of the suite makes. Raises `UserError` where a glob matches nothing."""
    return len(resolve(suite.devices)) * len(_caches(suite)) * len(_chosen(suite, registry, only, without))


def make(
    suite: Suite,
    registry: Registry,
    *,
    devices: Sequence[Device],
    threads: int,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    missing: Mapping[str, str] | None = None,
    elsewhere: Container[str] = (),
) -> Plan:
    """The plan of a suite. `missing` maps a device's text to the reason why it is unavailable; what a machine
    lacks for a kind of device in `elsewhere` says nothing, because the plan is for another machine.

    The suite's globs choose the implementations, and those of plugins given on the command line join them;
    `only` chooses among all instead.
    Raises `UserError` where globs match nothing, nothing is selected, the baseline is unknown, or the plan
    has more than `LARGEST` cells.
    """
    chosen = _chosen(suite, registry, only, without)
    if not chosen:
        raise UserError("no implementation is left to run", hint="loosen --only or --without")
    if suite.baseline is not None and suite.baseline not in registry.implementations:
        raise SuiteError(
            f"{_place(suite, 'baseline')}the baseline `{suite.baseline}` is no implementation",
            hint=suggestion(suite.baseline, registry.implementations),
        )
    count = len(suite.problems) * len(devices) * len(_caches(suite)) * len(chosen)
    if count > LARGEST:
        raise UserError(
            f"the plan has {count:,} cells, more than {LARGEST:,}",
            hint="give fewer values, or split the suite",
        )
    measure = suite.measure
    found = {name: registry.implementations[name] for name in chosen}
    unavailable = {
        (name, str(device)): reason
        for device in devices
        for name, one in found.items()
        if (reason := requirements(one)[1] or (device.kind not in elsewhere and one.unavailable(device)))
    }
    places = []
    for device in devices:
        clock = "events" if device.kind == "cuda" and measure.clock == "wall" else measure.clock
        settings = [(cache, _not_measured(cache, clock, device)) for cache in _caches(suite)]
        places.append((device, str(device), clock, [*product(settings, found.items())]))
    cells = []
    for problem in suite.problems:
        unverified = computable(problem)
        kinds = suite.kinds.get(problem.text)
        for device, text, clock, several in places:
            if kinds and device.kind not in kinds:
                continue
            for (cache, unmeasured), (name, one) in several:
                cell = Cell(
                    problem=problem.text,
                    implementation=name,
                    device=text,
                    threads=threads,
                    cache=cache,
                    clock=clock,
                )
                status, reason = None, ""
                if why := (missing or {}).get(text):  # which says all about this machine
                    status, reason = Status.UNAVAILABLE, why
                elif why := one.why_not(problem, device) or unverified or unmeasured:
                    status, reason = Status.UNSUPPORTED, why
                elif why := unavailable.get((name, text)):
                    status, reason = Status.UNAVAILABLE, why
                cells.append(Planned(cell=cell, problem=problem, status=status, reason=reason))
    if not cells:
        told = ", ".join(map(str, devices))
        first, *_ = next(iter(suite.kinds.values()))
        raise UserError(f"no block of the suite is for {told}", hint=f"one is for {first}: --device {first}")
    preset = PRESETS[measure.preset]
    return Plan(
        cells=tuple(cells),
        devices=tuple(devices),
        baseline=suite.baseline if suite.baseline in chosen else None,
        launches=(measure.launches or preset.launches) if preset.launches else 0,
        budget_s=(measure.budget_s or preset.budget_s) if preset.launches else 0.0,
        width=WIDTH if measure.width is None else measure.width,
    )


def _chosen(suite: Suite, registry: Registry, only: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    if only:
        return registry.select(only, without)
    for nth, glob in enumerate(suite.implementations):
        try:
            registry.select([glob])
        except PluginError as error:
            message = f"{_place(suite, 'implementations', nth)}{error.message}"
            raise SuiteError(message, hint=error.hint) from None
    given = [name for name, plugin in registry.owners.items() if plugin.owner.source != ENTRY_POINT]
    return registry.select([*suite.implementations, *given], without)


def _place(suite: Suite, key: str, nth: int = 0) -> str:
    """What a message about the n-th value of a key begins with; empty where the suite comes from no text."""
    places = suite.places.get(key, ())
    return f"{places[nth]}: " if places else ""


def _caches(suite: Suite) -> tuple[str, ...]:
    return tuple(dict.fromkeys(suite.measure.caches))


def _not_measured(cache: str, clock: str, device: Device) -> str | None:
    """A reason where no clock can measure a cell of these settings yet."""
    if cache == "cold" and device.cache_bytes == 0:
        return NO_CACHE
    if clock != "wall" and device.kind == "cpu":
        return f"no {clock} clock on a cpu"
    return None
