"""How long attnbench takes for twelve cells beside what pytest-benchmark and pyperf take, in one session.

    pip install pyperf
    python tests/benchmarks/peers.py [--without pyperf]

The cells are torch's SDPA at sequence lengths 128, 512 and 1024, with a full and a causal mask, in float32 and
bfloat16, for batch 1, eight heads and a head dimension of 64. attnbench isolates, verifies and measures memory;
pyperf isolates (20 processes a benchmark); pytest-benchmark does neither. Each has its own defaults. Run it with
nothing else going on: pyperf alone takes several minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = """
question: What does the harness cost?
implementations: torch-sdpa
problems:
  - seqlen: [128, 512, 1024]
    heads: 8
    head_dim: 64
    mask: [full, causal]
    dtype: [float32, bfloat16]
"""

CALLS = """
import itertools

import torch
import torch.nn.functional as F

CASES = list(itertools.product((128, 512, 1024), (False, True), (torch.float32, torch.bfloat16)))


def call(seqlen, causal, dtype):
    q, k, v = (torch.randn(1, 8, seqlen, 64, dtype=dtype) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
"""

PYTEST = """
import pytest
from calls import CASES, call


@pytest.mark.parametrize(("seqlen", "causal", "dtype"), CASES)
def test_sdpa(benchmark, seqlen, causal, dtype):
    benchmark(call(seqlen, causal, dtype))
"""

PYPERF = """
import pyperf
from calls import CASES, call

runner = pyperf.Runner()
for seqlen, causal, dtype in CASES:
    runner.bench_func(f"{seqlen} {causal} {dtype}", call(seqlen, causal, dtype))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Wall time of twelve SDPA cells, by tool.")
    parser.add_argument("--without", action="append", default=[], help="a tool's name to leave out")
    without = parser.parse_args().without
    python = sys.executable
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {"suite.yaml": SUITE, "calls.py": CALLS, "test_calls.py": PYTEST, "with_pyperf.py": PYPERF}
        for file, text in files.items():
            (folder / file).write_text(text)
        attnbench = [python, "-m", "attnbench", "run", "suite.yaml", "--quiet", "-o"]
        tools = {
            "attnbench quick": [*attnbench, "quick", "--preset", "quick"],
            "attnbench default": [*attnbench, "default", "--preset", "default"],
            "pytest-benchmark": [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_calls.py"],
            "pyperf": [python, "with_pyperf.py", "-o", "pyperf.json"],
        }
        first = 0.0
        for tool, command in tools.items():
            if tool in without:
                continue
            start = time.perf_counter()
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": name},
                capture_output=True,
                text=True,
            )
            seconds = time.perf_counter() - start
            if done.returncode:
                sys.exit(f"{tool} failed:\n{done.stdout}{done.stderr}")
            first = first or seconds
            print(f"{tool:18} {seconds:7.1f} s  {seconds / first:6.2f} x attnbench quick", flush=True)


if __name__ == "__main__":
    main()
