"""What is stored: a cell and its key, the parts of a result, and a run's header. SI units throughout."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from attnbench.problem import Direction

PROTOCOL_VERSION = 3
"""Raised whenever a number of one version may not be compared with one of another."""


class Status(StrEnum):
    """How a cell ended. Every status but `ok` comes with a reason in words."""

    OK = "ok"
    WRONG = "wrong"
    IMPOSSIBLE = "impossible"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    OUT_OF_MEMORY = "out of memory"
    TIMED_OUT = "timed out"
    CRASHED = "crashed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of the results before it is measured. All fields together are the cell key."""

    problem: str
    """The problem's canonical text."""
    implementation: str
    device: str
    """`cpu`, `cuda:0`."""
    threads: int
    """Threads of the CPU that the implementation may use."""
    cache: str = "warm"
    clock: str = "wall"

    @property
    def key(self) -> tuple[str, str, str, int, str, str]:
        return (self.problem, self.implementation, self.device, self.threads, self.cache, self.clock)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Errors against the float64 oracle, the worst over the kinds of inputs that count and over all outputs."""

    row: float
    """Largest relative L2 error of a row (one query token of one head)."""
    rms: float
    """Relative L2 error of the whole tensor."""
    max: float
    """Largest absolute error of an element."""
    cosine: float
    """Cosine of the whole tensor with the oracle's."""
    yardstick_row: float
    """`row` of the plain chain in the problem's own dtype, floored."""
    yardstick_rms: float
    checked_share: float
    """Share of the output's rows that were compared: 1 unless the context is long."""
    lse: float | None = None
    """Largest absolute error of the log-sum-exp of a row's scores, where the implementation offers it."""
    deterministic: str = ""
    """`yes` where repeated calls on the same inputs gave the same bits, `no` where not, empty where not tried."""
    batch_invariant: str = ""
    """`yes` where a member of the batch has the same bits when it is computed alone, likewise."""


FACTORS = {"out": (3.0, 2.0), "dq": (5.0, 3.0), "dk": (8.0, 3.0), "dv": (4.0, 5.0), "parameters": (8.0, 5.0)}
"""Budget in units of the yardstick's error: of the worst row, and of the whole tensor. `parameters` are the gradients
of all parameters: not fitted, but the largest of those of dq, dk and dv (`tests/fit_factors.py --parameters` prints ratios).

Those of the gradients are 1.5 x the largest ratio that a sound algorithm reached in `tests/fit_factors.py`
(7,680 comparisons each: six algorithms, four dtypes, eleven shapes, five masks, both kinds, three seeds), rounded
up, and not below those of `out`. The largest ratios are float32's and float64's, where the yardstick has no
narrower step than a sound algorithm; in half types none exceeded 2, but for dq of torch's flash kernel on CPUs, which
adds up blocks of keys in bfloat16: 2.0 at 32,768 keys, 2.8 at 65,536.
"""


def budget_share(accuracy: Accuracy, direction: Direction) -> float | None:
    """The error over what is allowed: the larger of worst row and whole tensor; above 1 is wrong.

    None where nothing is allowed, which only a file says that was not written by attnbench.
    With gradients a row holds the largest errors of several tensors, each with factors of its own: then it is the
    share of the loosest, and the true one may be larger.
    """
    plain = direction in (Direction.FORWARD, Direction.INFERENCE)
    row, rms = (max(f[i] for n, f in FACTORS.items() if not plain or n == "out") for i in (0, 1))
    allowed = row * accuracy.yardstick_row, rms * accuracy.yardstick_rms
    return max(accuracy.row / allowed[0], accuracy.rms / allowed[1]) if all(allowed) else None


def worst(several: Iterable[Accuracy]) -> Accuracy:
    """Every error at its largest, cosine and share at their smallest; the yardstick's likewise."""
    found, least = list(several), ("cosine", "checked_share", "deterministic", "batch_invariant")
    merged = {}
    for name in Accuracy.__dataclass_fields__:
        known = [value for accuracy in found if (value := getattr(accuracy, name)) not in (None, "")]
        if known:
            merged[name] = (min if name in least else max)(known)  # `no` comes before `yes`
    return Accuracy(**merged)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one call in seconds, over all launches; samples flagged by the system do not count."""

    median_s: float
    """exp of the location on the log scale that the interval is built on."""
    ci95_low_s: float | None
    ci95_high_s: float | None
    p20_s: float
    p80_s: float
    min_s: float
    mad_s: float
    """Median absolute deviation of the samples."""
    n: int
    """Samples taken, flagged ones included."""
    n_flagged: int
    """Samples that do not count, because the system took a processor away meanwhile."""
    rounds: int
    launches: int
    inner: int
    """Calls in one sample."""
    stop_reason: str
    setup_s: float
    """Time of `prepare` in the first process."""
    first_call_s: float
    """Time of the first call in the first process."""
    host_enqueue_s: float | None = None
    """Host's time to launch one call, median of the blocks; None where calls do not go through a queue."""
    end_to_end_s: float | None = None
    """One call on an idle device, from before it to its end by the host's clock; likewise."""
    grade: str = ""
    """How quiet the measurement was: `A`, `B` or `C`; see `noise.grade`."""
    noise: str = ""
    """Why the grade is not `A`, with advice, in words."""
    drift: float | None = None
    """Relative change from the first third of the rounds to the last."""
    cache_method: str = ""
    """How the cache was emptied: `rotation`, `flush`; `exceeds cache` where one call's tensors do not fit into it."""
    floor_s: float | None = None
    """Least time that the device's measured peaks allow, where they are known."""
    sm_clock_hz: float | None = None
    """On CUDA, as NVML reports it, median of the blocks; so the three below."""
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: str = ""
    """Reasons for which the device lowered its clock during a block, joined by `+`."""
    energy_j: float | None = None
    """Joules of one call, where NVML counts them."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one call in the steady state."""

    input_bytes: int
    output_bytes: int
    workspace_bytes: int
    """Peak during the call less inputs and output."""
    method: str
    """How it was measured: `rss` (peak resident memory), `cuda` (allocator), `own` (the library's counter)."""
    device_delta_bytes: int | None = None
    """On CUDA: by how much the device's free memory fell over the call, whoever took it."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """The samples that one process took without a break; what the statistics are computed from."""

    round: int
    """Counted over all of the problem: blocks with the same number were taken one after the other."""
    launch: int
    seconds: tuple[float, ...]
    """Time of one call, per sample."""
    flagged: tuple[int, ...] = ()
    """Indices of samples during which the system took the processor away (or the clock was unsound)."""
    host_enqueue_s: float | None = None
    end_to_end_s: float | None = None
    sm_clock_hz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: str = ""
    energy_j: float | None = None
    """Of one call."""
    waited_s: float | None = None
    """What the process's threads waited for a processor, over all of them, warm-up included."""
    busy_s: float | None = None
    """How long the block was, warm-up included."""
    running: int | None = None
    """Other processes that were running just before."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A cell with its end. `timing` is there only where the status is `ok`, and not where a run only verifies."""

    cell: Cell
    status: Status
    reason: str = ""
    accuracy: Accuracy | None = None
    timing: Timing | None = None
    memory: Memory | None = None
    blocks: tuple[Block, ...] = ()
    kernel: str = ""
    """Which kernel ran, where it can be known."""
    output: str = ""
    """First and last 64 KiB of what the job printed, kept when it did not end well."""

    def __post_init__(self) -> None:
        if self.status is not Status.OK and self.timing is not None:
            raise ValueError(f"a result has a timing only where it is ok, got {self.status}")
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"a result that is {self.status} needs a reason")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who brought an implementation: a plugin and where it came from."""

    plugin: str
    """The entry point's or the module's name."""
    source: str
    """`entry point`, or the argument of `--plugin`."""
    version: str = ""
    source_hash: str = ""
    """SHA-256 of the plugin's module files."""
    error: str = ""
    """Why the plugin could not be loaded; empty where it was."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's header: everything that its rows share. Written to `run.json` before the first row."""

    schema: int
    run_id: str
    suite: str
    """Name of the suite, or `problem` for one given on the command line."""
    suite_text: str
    """The suite as it was read."""
    command: tuple[str, ...]
    """The command line, without the program."""
    settings: Mapping[str, Any]
    """The suite's `measure:` and `verify:` with everything that the command line changed."""
    seed: int
    started: str
    """UTC, ISO 8601."""
    fingerprint: Mapping[str, str]
    """What must be equal for rows to stand in one table; never load."""
    environment: Mapping[str, Any]
    plugins: tuple[Owner, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Implementation -> `distribution version` of what it requires, joined by spaces."""
    owners: Mapping[str, str] = field(default_factory=dict)
    """Implementation -> plugin."""
    device_names: Mapping[str, str] = field(default_factory=dict)
    """Device -> the model's name."""
    approximations: Mapping[str, str] = field(default_factory=dict)
    """Implementation -> what it approximates, in words; exact ones are not named."""


def result_to_json(result: Result) -> dict[str, Any]:
    """A dict for the journal; empty parts are left out."""

    def known(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if value not in (None, (), "")}

    return dataclasses.asdict(result, dict_factory=known)


def result_from_json(data: Mapping[str, Any]) -> Result:
    """The inverse of `result_to_json`. Raises KeyError, TypeError or ValueError where it is no result."""
    accuracy, timing, memory = data.get("accuracy"), data.get("timing"), data.get("memory")
    return Result(
        cell=Cell(**data["cell"]),
        status=Status(data["status"]),
        reason=data.get("reason", ""),
        accuracy=Accuracy(**accuracy) if accuracy else None,
        timing=Timing(**{"ci95_low_s": None, "ci95_high_s": None, "stop_reason": "", **timing})
        if timing
        else None,
        memory=Memory(**memory) if memory else None,
        blocks=tuple(
            Block(**{**b, "seconds": tuple(b["seconds"]), "flagged": tuple(b.get("flagged", ()))})
            for b in data.get("blocks", ())
        ),
        kernel=data.get("kernel", ""),
        output=data.get("output", ""),
    )
