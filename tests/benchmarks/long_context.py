"""What verifying costs at 65,536 keys: seconds and peak memory of a judge and of what it is handed.

    python tests/benchmarks/long_context.py [--dtype bfloat16] [--threads 1] [--seqlen-q 128] [--gflop 0.5]

Prints, for each kind of inputs, the seconds (in brackets those of its threads on a processor) for its inputs, oracle,
yardstick and a verdict, and at the end the peak of
the process's memory less what it had once torch was imported. `--gflop inf` checks every row of every head; the
problem has one block of 128 queries, 8 heads of dimension 128. Run it with nothing else going on.
"""

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time

import torch

from attnbench import inputs, judge, suites

GFLOP = suites.Verify().work / 1e9


def resident_bytes(key: str) -> int:
    """`VmRSS` or `VmHWM` of this process."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def verify(dtype: str, gflop: float, seqlen_q: int = 128) -> Iterator[tuple[str, float, float, float]]:
    """Each kind, its seconds up to a verdict, those on a processor, and the checked share."""
    text = f"batch=1 seqlen_q={seqlen_q} seqlen_kv=65536 heads=8 head_dim=128 dtype={dtype} mask=causal"
    judging = judge.Judge({"problem": text, "seed": 1, "device": "cpu", "work": gflop * 1e9})
    shape = (len(judging.sample.groups), 1, len(judging.sample.rows), 128)
    for kind in inputs.KINDS:
        start, worked = perf_counter(), process_time()
        standard = judging.standard(kind)
        nothing = torch.zeros(shape, dtype=inputs.TORCH_DTYPES[judging.problem.dtype])
        assert standard.compare({"out": nothing})[1] is not None
        yield kind, perf_counter() - start, process_time() - worked, judging.sample.share


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seqlen-q", type=int, default=128)
    parser.add_argument("--gflop", type=float, default=GFLOP)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before, total = resident_bytes("VmRSS"), 0.0
    for kind, seconds, worked, share in verify(options.dtype, options.gflop, options.seqlen_q):
        total += seconds
        print(f"{kind:8} {seconds:6.2f} s ({worked:.2f} s)  {100 * share:.3g} % of the rows checked")
    whole = "everything" if math.isinf(options.gflop) else f"at most {options.gflop:g} Gflop a kind"
    print(f"{options.dtype}, {options.threads} threads, {whole}: {total:.2f} s")
    print(
        f"peak {(resident_bytes('VmHWM') - before) / 2**20:.0f} MiB beyond the {before / 2**20:.0f} MiB of torch"
    )


if __name__ == "__main__":
    main()
