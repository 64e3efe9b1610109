"""The harness's own costs. `pytest tests/benchmarks --benchmark-enable` reports them.

One has a bound: 100,000 rows a side are compared in five seconds of CPU time, which on an idle machine is all the time.
"""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnbench import inputs, plan, plugins, reference, results, suites, verify
from attnbench.forkserver import ForkServer, running
from attnbench.problem import Problem

Benchmark = Any

LONG = "batch=1 seqlen=16384 heads_q=32 heads_kv=8 head_dim=128 dtype=bfloat16 mask=causal"
STORED = Path(__file__).parents[2] / "results/quick"
WIDE = """
question: how long does a plan of 100,000 cells take
problems:
  - heads: 8
    head_dim: [32, 64, 128]
    seqlen: {lengths}
    mask: [full, causal]
    dtype: [float32, bfloat16]
"""


def test_start_up(benchmark: Benchmark) -> None:
    done = benchmark(
        subprocess.run, [sys.executable, "-m", "attnbench", "--help"], check=True, capture_output=True
    )
    assert b"usage: attnbench" in done.stdout


def test_plan_of_100_000_cells(benchmark: Benchmark, tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text(WIDE.format(lengths=list(range(1, 1390))))
    registry = plugins.discover()

    def make() -> plan.Plan:
        suite = suites.load(str(path))
        return plan.make(suite, registry, devices=plan.resolve(suite.devices), threads=1)

    assert len(benchmark(make).cells) == 1389 * 12 * len(registry.implementations)


def test_a_process(benchmark: Benchmark) -> None:
    with ForkServer(["attnbench.worker"]) as server:

        def life() -> dict[str, Any]:
            with running(server, "attnbench.worker:probe") as child:
                return child.ask({}, 60)

        assert "devices" in benchmark(life)


@pytest.mark.parametrize("kind", inputs.KINDS)
def test_verification_at_16k(benchmark: Benchmark, kind: str) -> None:
    problem = Problem.parse(LONG)
    sample = inputs.sample(problem, work=suites.Verify().work, seed=1)
    made = inputs.make(problem, kind=kind, seed=1, device="cpu", qkv_format="bhsd")

    def once() -> str | None:
        oracle, yard = reference.oracle(problem, made, sample), reference.yardstick(problem, made, sample)
        actual = {name: yard[name] for name in ("out",)}
        return verify.Standard(problem, oracle, yard, sample.share).compare(actual)[1]

    assert benchmark(once) is None


def test_comparison_of_100_000_rows_a_side(benchmark: Benchmark, tmp_path: Path) -> None:
    """As a user starts it; each row has all columns, and 50 of them are twice as slow on one side."""
    run, rows = results.load(STORED)
    results.write_csv(tmp_path, [row for row in rows if row.timing and row.timing.grade != "C"], run)
    header, *lines = (tmp_path / results.CSV).read_text().splitlines()
    many = [lines[at % len(lines)].replace("batch=1 ", f"batch={at} ", 1) for at in range(100_000)]
    median = header.split(",").index("median_s")
    slower = [
        ",".join([*(c := line.split(","))[:median], "9", "", "", *c[median + 3 :]]) for line in many[:50]
    ]
    for name, body in (("base.csv", many), ("new.csv", [*slower, *many[50:]])):
        (tmp_path / name).write_text("\n".join([header, *body]))
    words = [sys.executable, "-m", "attnbench", "compare", "base.csv", "new.csv"]

    seconds = []

    def once() -> subprocess.CompletedProcess[bytes]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(words, cwd=tmp_path, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return done

    done = benchmark.pedantic(once, rounds=3)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count(b"likely slower") == 51  # a line each, and their number
    while min(seconds) >= 5 and len(seconds) < 8:  # what shares the cores can only add to it
        once()
    assert min(seconds) < 5
