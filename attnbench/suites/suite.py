"""`Suite`, what to measure, on what and how, and the records in it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attnbench.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much measuring a cell gets."""

    launches: int
    """Fresh processes. Without any, a cell is only verified."""
    budget_s: float
    """Over all launches."""


UNTIMED = "none"
"""Preset of a run that only verifies: its `ok` rows have errors and no times."""
PRESETS: Mapping[str, Preset] = {
    UNTIMED: Preset(launches=0, budget_s=0.0),
    "quick": Preset(launches=3, budget_s=0.5),
    "default": Preset(launches=3, budget_s=3.0),
    "gate": Preset(launches=5, budget_s=15.0),
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How each cell is measured. None: all threads, no limit of memory, the preset's launches and budget, `plan.WIDTH`."""

    preset: str = "default"
    launches: int | None = None
    budget_s: float | None = None
    width: float | None = None
    timeout_s: float = 60.0
    memory_bytes: int | None = None
    threads: int | None = None
    caches: tuple[str, ...] = ("warm",)
    clock: str = "wall"
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verify:
    """How thoroughly each cell is verified."""

    work: float = 5e8
    """Floating-point operations of the float64 oracle, per problem and kind of inputs."""
    batch_invariance: bool = False
    """Whether the first member of each batch is computed alone too, and the bits compared."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A key of a block and its values; or keys that go together, value by value."""

    names: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """In each a value of every key."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """What a block of `problems:` says: the product of its axes, less what it excludes."""

    place: str
    """`file:line`."""
    axes: tuple[Axis, ...]
    excluded: int = 0
    """Combinations."""
    kinds: tuple[str, ...] = ()
    """Of devices that it is for; none are all."""

    @property
    def combinations(self) -> int:
        """Before any is excluded."""
        return math.prod(len(axis.rows) for axis in self.axes)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to measure, on what and how; every value has been checked, no implementation has been looked up."""

    name: str
    question: str
    devices: tuple[str, ...] = ("cpu",)
    implementations: tuple[str, ...] = ("*",)
    """Names and globs."""
    baseline: str | None = None
    problems: tuple[Problem, ...]
    """All blocks united, in the order of the file, each problem once."""
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    """Text of a problem that is not for every kind of device -> the kinds that it is for."""
    blocks: tuple[Block, ...] = field(default=(), compare=False)
    """What the problems were made from."""
    measure: Measure = Measure()
    verify: Verify = Verify()
    text: str
    """The suite as read."""
    path: str
    """The file or the shipped suite's name, as given."""
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """Where each value of `implementations` and `baseline` stands: `file:line`, or its `--set`."""
