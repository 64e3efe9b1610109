"""What finds a small slow-down: `attnbench run --against`, and `attnbench compare` of two stored runs.

    python tests/benchmarks/slowdown.py [--per-cent 2] [--preset gate]

The base is torch's SDPA; the new version waits for so many per cent of each call's own time before it returns. Both
sides go through the same wrapper. Prints the verdicts of both ways and how long each took. Run it with nothing else
going on.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = """
question: Has it become slower?
implementations: kernel
problems: {seqlen: [256, 512], heads: 8, head_dim: 64, mask: [full, causal]}
"""
PLUGIN = """
from time import perf_counter

from attnbench import INDEX_MASKS, Capabilities, Implementation, hookimpl


def prepare(problem, inputs):
    import torch

    causal = problem.mask.name == "causal"

    def step():
        start = perf_counter()
        out = torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, is_causal=causal)
        end = start + FACTOR * (perf_counter() - start)
        while perf_counter() < end:
            pass
        return out

    return step


@hookimpl
def attnbench_implementations():
    yield Implementation(
        name="kernel",
        summary="SDPA, stretched",
        capabilities=Capabilities(dtypes=frozenset({"float32"}), masks=frozenset({"full", "causal"})),
        prepare=prepare,
        qkv_format="bhsd",
    )
"""


def attnbench(*words: str) -> None:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "attnbench", *words], capture_output=True, text=True)
    print(
        f"$ attnbench {' '.join(words)}  # {time.perf_counter() - start:.0f} s, exit code {done.returncode}"
    )
    if words[0] == "compare" or "--against" in words:
        print(done.stdout[done.stdout.find("base  ") :])
    if done.returncode == 2:
        print(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per-cent", type=float, default=2.0)
    parser.add_argument("--preset", default="gate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "suite.yaml").write_text(SUITE)
        for name, factor in (("base", 1.0), ("new", 1 + options.per_cent / 100)):
            (here / f"{name}.py").write_text(f"FACTOR = {factor}\n{PLUGIN}")
        run = ["run", str(here / "suite.yaml"), "-q", "--preset", options.preset]
        base, new = str(here / "base.py"), str(here / "new.py")
        attnbench(*run, "--plugin", new, "--against", f"plugin={base}", "-o", str(here / "turns"))
        for name in ("base", "new"):
            attnbench(*run, "--plugin", str(here / f"{name}.py"), "-o", str(here / name))
        for words in ([], ["--margin", "1%"]):
            attnbench("compare", str(here / "base"), str(here / "new"), *words)


if __name__ == "__main__":
    main()
