"""`Suite`, what to measure, on what and how, and the records in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from attnbench.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much measuring a cell gets."""

    launches: int
    """Fresh processes."""
    budget_s: float
    """Over all launches."""


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(launches=1, budget_s=0.5),
    "default": Preset(launches=3, budget_s=3.0),
    "gate": Preset(launches=5, budget_s=15.0),
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How each cell is measured. None: all threads, no limit of memory, the preset's launches and budget."""

    preset: str = "default"
    launches: int | None = None
    budget_s: float | None = None
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
    measure: Measure = Measure()
    verify: Verify = Verify()
    text: str
    """The suite as read."""
    path: str
    """The file or the shipped suite's name, as given."""
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """Where each value of `implementations` and `baseline` stands: `file:line`, or its `--set`."""
