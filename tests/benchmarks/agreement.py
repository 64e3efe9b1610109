"""How far the times of several tools lie from `timeit`'s on the quiet machine: quiet, and beside four busy processes.

    pip install pyperf
    python tests/benchmarks/agreement.py [--launches 5] [--without pyperf]

The calls are torch's SDPA on a small problem in one thread and on a middle one in all. attnbench, `timeit` (single calls),
torch's `Timer` (one call a block) and its `adaptive_autorange` take their samples in the same rounds, in fresh processes. pyperf and pytest-benchmark run once, with their defaults and
the same threads, started from the shell. Prints a Markdown table. Run it with nothing else going on.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from attnbench.problem import parse_words, problem_from
from attnbench.selftest import Bench
from attnbench.selftest.agreement import RIVALS
from attnbench.selftest.bench import MIDDLE, SMALL, timing
from attnbench.selftest.contention import busy
from attnbench.selftest.specimens import SAMES

BUSY = 4
OURS = "attnbench"
TIMERS = {**RIVALS, "torch adaptive_autorange": "attnbench.selftest.rivals:Autorange"}

CALL = """
import torch

torch.set_num_threads({threads})
q, k, v = (torch.randn({shape}) for _ in range(3))


def call():
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)
"""
PYTEST = "from call import call\n\n\ndef test_call(benchmark):\n    benchmark(call)\n"
PYPERF = "import pyperf\nfrom call import call\n\npyperf.Runner().bench_func('call', call)\n"


def shell(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def pytest_benchmark(folder: Path) -> float:
    shell(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_call.py", "--benchmark-json=out.json")
    return float(json.loads((folder / "out.json").read_text())["benchmarks"][0]["stats"]["median"])


def pyperf(folder: Path) -> float:
    shell(folder, "with_pyperf.py", "--inherit-environ=PYTHONPATH", "-o", "pyperf.json")
    document = json.loads((folder / "pyperf.json").read_text())
    values = [value for run in document["benchmarks"][0]["runs"] for value in run.get("values", ())]
    return float(statistics.median(values))


SHELL: Mapping[str, tuple[str, Callable[[Path], float]]] = {
    "pytest-benchmark": ("pytest_benchmark", pytest_benchmark),
    "pyperf": ("pyperf", pyperf),
}
"""Tool -> the module that must be installed, and its median in seconds."""


def measured(bench: Bench, text: str, threads: int, launches: int, tools: list[str]) -> dict[str, float]:
    """Seconds of a call, by tool."""
    names = dict(zip((OURS, *TIMERS), SAMES, strict=False))
    rows = bench.measure(
        text,
        tuple(names.values()),
        threads=threads,
        settings=(f"measure.launches={launches}", f"measure.budget={launches}s", "measure.width=0"),
        clocks={names[tool]: clock for tool, clock in TIMERS.items()},
    )
    found = {tool: timing(rows[name]).median_s for tool, name in names.items()}
    problem = problem_from(parse_words(text))
    assert problem.uniform
    shape = f"{len(problem.sequences)}, {problem.heads_q}, {problem.uniform[0]}, {problem.head_dim}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            "call.py": CALL.format(threads=threads, shape=shape),
            "test_call.py": PYTEST,
            "with_pyperf.py": PYPERF,
        }
        for file, content in files.items():
            (folder / file).write_text(content)
        for tool in tools:
            found[tool] = SHELL[tool][1](folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Deviations from timeit on the quiet machine, by tool.")
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--without", action="append", default=[], help="pyperf or pytest-benchmark")
    arguments = parser.parse_args()
    tools = [
        tool
        for tool, (module, _) in SHELL.items()
        if tool not in arguments.without and importlib.util.find_spec(module)
    ]
    with Bench() as bench:
        works = [(SMALL, 1), (MIDDLE, bench.cores)]
        quiet = [measured(bench, text, threads, arguments.launches, tools) for text, threads in works]
        with busy(BUSY):
            loaded = [measured(bench, text, threads, arguments.launches, tools) for text, threads in works]
    heads = [
        f"{text.partition(' ')[2]}, {threads} {'thread' if threads == 1 else 'threads'}, {state}"
        for text, threads in works
        for state in ("quiet", f"beside {BUSY} busy processes")
    ]
    print(f"| tool | {' | '.join(heads)} |")
    print("|---|" + "---:|" * len(heads))
    for tool in (OURS, *TIMERS, *tools):
        cells = [
            f"{state[tool] / alone['timeit'] - 1:+.1%}"
            for alone, beside in zip(quiet, loaded, strict=True)
            for state in (alone, beside)
        ]
        print(f"| {tool} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
