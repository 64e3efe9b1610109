"""Runs that nobody measured, for what reads them."""

from collections.abc import Sequence

from attnbench.problem import Problem
from attnbench.records import Accuracy, Block, Cell, Memory, Result, Run, Status, Timing
from attnbench.results import SCHEMA


def problem(seqlen: int = 512, rest: str = "heads=8 head_dim=64") -> str:
    return Problem.parse(f"seqlen={seqlen} {rest}").text


def ok(
    seconds: float = 1e-3,
    text: str = "",
    implementation: str = "a",
    *,
    half: float | None = 0.01,
    error: float = 1e-7,
    yardstick: float = 1e-7,
    workspace: int | None = 2**20,
    blocks: tuple[Block, ...] = (),
    **cell: str | int,
) -> Result:
    """A right result; its interval is `half` of the median wide to each side, its errors are all `error`."""
    return Result(
        cell=_cell(text, implementation, **cell),
        status=Status.OK,
        timing=Timing(
            median_s=seconds,
            ci95_low_s=None if half is None else seconds * (1 - half),
            ci95_high_s=None if half is None else seconds * (1 + half),
            p20_s=seconds,
            p80_s=seconds,
            min_s=seconds,
            mad_s=0.0,
            n=100,
            n_flagged=0,
            rounds=8,
            launches=1,
            inner=1,
            stop_reason="interval within 1%",
            setup_s=0.0,
            first_call_s=0.0,
            grade="A",
        ),
        blocks=blocks,
        memory=None
        if workspace is None
        else Memory(input_bytes=3 * 2**20, output_bytes=2**20, workspace_bytes=workspace, method="rss"),
        accuracy=Accuracy(
            row=error,
            rms=error,
            max=error,
            cosine=1.0,
            yardstick_row=yardstick,
            yardstick_rms=yardstick,
            checked_share=1.0,
        ),
    )


def bad(
    text: str = "",
    implementation: str = "b",
    status: Status = Status.UNSUPPORTED,
    reason: str = "no grouped heads",
    **cell: str | int,
) -> Result:
    return Result(cell=_cell(text, implementation, **cell), status=status, reason=reason)


def _cell(text: str, implementation: str, device: str = "cpu", threads: int = 2) -> Cell:
    return Cell(problem=text or problem(), implementation=implementation, device=device, threads=threads)


def run(name: str = "made", results: Sequence[Result] = (), suite_text: str = "", **environment: str) -> Run:
    return Run(
        schema=SCHEMA,
        run_id=name,
        suite="made",
        suite_text=suite_text,
        command=("run", "made"),
        settings={"measure": {"preset": "quick"}},
        seed=1,
        started="2026-01-01T00:00:00+00:00",
        fingerprint={"threads": "2"},
        environment={"kernel": "6.1", **environment},
        owners={result.cell.implementation: "plugin" for result in results},
        device_names={"cpu": "A processor"},
    )


def sweep(implementations: int = 3, lengths: Sequence[int] = (128, 512, 2048)) -> list[Result]:
    """Implementations over lengths, two masks and two dtypes; the first is the fastest."""
    return [
        ok(
            1e-9 * n**2 * (1 + k),
            problem(n, f"heads=8 head_dim=64 dtype={dtype} mask={mask}"),
            f"kernel-{k}",
            workspace=2**12 * n,
        )
        for mask in ("full", "causal")
        for dtype in ("float32", "bfloat16")
        for n in lengths
        for k in range(implementations)
    ]
