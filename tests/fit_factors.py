"""How large sound algorithms' errors are in units of the yardstick's: the source of `verify.FACTORS`.

Run by hand, `python tests/fit_factors.py` (about three minutes on one core): it prints, per tensor and dtype, the
largest ratio of a sound algorithm's error to the yardstick's over shapes, masks, kinds and seeds, of the worst
row and of the whole tensor, the rejections at the factors in force, and the factors that the ratios suggest.
"""

import argparse
import math
from collections import defaultdict
from itertools import product

import torch
from test_formulas import CPU, IMPLEMENTATIONS
from test_verify import SOUND

from attnbench import inputs, reference, verify
from attnbench.implementation import FORMATS
from attnbench.problem import Problem, problem_from

SHAPES = (
    {"batch": 2, "heads": 4, "seqlen": 64, "head_dim": 64},
    {"batch": 1, "heads": 4, "seqlen": 128, "head_dim": 64},
    {"batch": 1, "heads_q": 8, "heads_kv": 2, "seqlen": 256, "head_dim": 128},
    {"batch": 1, "heads_q": 4, "heads_kv": 1, "seqlen": 512, "head_dim": 64},
    {"batch": 1, "heads": 2, "seqlen_q": 128, "seqlen_kv": 640, "head_dim": 64},
    {"batch": 1, "heads": 2, "seqlen_q": 300, "seqlen_kv": 200, "head_dim": 32},
    {"batch": 4, "heads": 4, "seqlen_q": 1, "seqlen_kv": 1024, "head_dim": 64},
    {"batch": 1, "heads": 2, "seqlen": 192, "head_dim": 64, "head_dim_v": 32},
    {"batch": 1, "heads": 2, "seqlen": 256, "head_dim": 64, "scale": 1.0},
    {"batch": 1, "heads": 2, "seqlen": 256, "head_dim": 64, "modifiers": "softcap:cap=20"},
    {"batch": 1, "heads": 1, "seqlen": 1024, "head_dim": 64},
)
LONG = {"batch": 1, "heads": 2, "seqlen_q": 128, "seqlen_kv": 32768, "head_dim": 64}
"""In bfloat16, without a mask: torch's flash kernel adds up dq in it over blocks of keys."""
MASKS = ("full", "causal", "causal-top-left", "window:left=31:right=0", "window:left=15:right=16")
DTYPES = ("float32", "bfloat16", "float16", "float64")
NAMES = ("out", "dq", "dk", "dv")


PARAMETERS = (
    *("modifiers=bias:grad=1", "modifiers=bias:grad=1:heads=1", "modifiers=relative-bias", "modifiers=sinks"),
    *("modifiers=rotary", "mechanism=general", "mechanism=additive:hidden=16", "mechanism=location"),
    *(
        "mechanism=linear",
        "mechanism=local-gaussian:window=32",
        "mechanism=multi-head",
        "mechanism=sparsemax",
    ),
    "mechanism=entmax",
)
PARAMETER_SHAPES = (
    "batch=2 seqlen=64 heads=4 head_dim=64",
    "batch=1 seqlen=256 heads_q=4 heads_kv=2 head_dim=32",
    "batch=1 seqlen_q=128 seqlen_kv=512 heads=2 head_dim=64",
    "batch=1 seqlen_q=100 seqlen_kv=60 heads=1 head_dim=16",
)


def parameters(seeds: int, kinds: list[str]) -> None:
    """As `main`, of the implementations that come with attnbench, on problems with parameters: `parameters` in
    `verify.FACTORS` are those of their gradients."""
    ratios: dict[tuple[str, str, str], list[tuple[float, float, str]]] = defaultdict(list)
    for words, shape, mask, dtype in product(PARAMETERS, PARAMETER_SHAPES, ("full", "causal"), DTYPES):
        problem = Problem.parse(f"{shape} dtype={dtype} mask={mask} {words} direction=forward_backward")
        sample = inputs.sample(problem, work=math.inf, seed=0)
        able = [one for one in IMPLEMENTATIONS.values() if one.why_not(problem, CPU) is None]
        for seed, kind in product(range(seeds), kinds):
            made = {
                form: inputs.make(problem, kind=kind, seed=seed, device="cpu", qkv_format=form)
                for form in FORMATS
            }
            oracle, yard = (f(problem, made["bhsd"], sample) for f in (reference.oracle, reference.yardstick))
            standard = verify.Standard(problem, oracle, yard, 1.0)
            for one in able:
                prepared = one.prepare(problem, made[one.qkv_format])
                found = tuple(prepared.read(prepared.step()))
                for name, tensor in inputs.pick(found, problem, sample, one.qkv_format).items():
                    got, reason = standard.compare({name: tensor})
                    where = f"{one.name} {kind} {seed} {problem.text}"
                    kept = name if name in NAMES else "parameters"
                    row, rms = got.row / got.yardstick_row, got.rms / got.yardstick_rms
                    ratios[words.partition("=")[2].partition(":")[0], kept, dtype].append(
                        (row, rms, f"{name} {where}")
                    )
                    if reason:
                        print(f"rejected: {where}: {reason}")
    print("problem         tensor     dtype       cases  row max  rms max   worst row")
    for (what, name, dtype), found in sorted(ratios.items()):
        row, rms = (max(entry[column] for entry in found) for column in (0, 1))
        print(f"{what:15} {name:10} {dtype:9} {len(found):7}  {row:7.2f}  {rms:7.2f}   {max(found)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=inputs.KINDS, default=inputs.KINDS)
    parser.add_argument("--parameters", action="store_true", help="of problems with parameters instead")
    arguments = parser.parse_args()
    seeds, kinds = arguments.seeds, arguments.kinds
    if arguments.parameters:
        parameters(seeds, kinds)
        return
    ratios: dict[tuple[str, str], list[tuple[float, float, str]]] = defaultdict(list)
    rejected = 0
    for dtype in DTYPES:
        for shape in (*SHAPES, *([LONG] if dtype == "bfloat16" else [])):
            for mask in MASKS if shape is not LONG else ("full",):
                values = {**shape, "mask": mask, "dtype": dtype, "direction": "forward_backward"}
                problem = problem_from(values)
                sample = inputs.sample(problem, work=math.inf, seed=0)
                for seed in range(seeds):
                    for kind in kinds:
                        made = inputs.make(problem, kind=kind, seed=seed, device="cpu", qkv_format="bhsd")
                        oracle = reference.oracle(problem, made, sample)
                        yard = reference.yardstick(problem, made, sample)
                        standard = verify.Standard(problem, oracle, yard, 1.0)
                        for algorithm, compute in SOUND.items():
                            if problem.modifiers and algorithm.startswith("sdpa"):
                                continue
                            found = compute(problem, made)
                            picked = inputs.pick(tuple(found[n] for n in NAMES), problem, sample, "bhsd")
                            for name, tensor in picked.items():
                                got, reason = standard.compare({name: tensor})
                                where = f"{algorithm} {kind} {seed} {problem.text}"
                                ratios[name, dtype].append(
                                    (got.row / got.yardstick_row, got.rms / got.yardstick_rms, where)
                                )
                                if reason:
                                    rejected += 1
                                    print(f"rejected: {where}: {reason}")
    print("tensor dtype       cases  row p99  row max  rms p99  rms max   worst row")
    for (name, dtype), found in sorted(ratios.items()):
        parts = []
        for column in (0, 1):
            values = torch.tensor([entry[column] for entry in found], dtype=torch.float64)
            parts.append(f"{float(values.quantile(0.99)):7.2f}  {float(values.max()):7.2f}")
        worst = max(found)[2]
        print(f"{name:6} {dtype:9} {len(found):7}  {'  '.join(parts)}   {worst}")
    print(f"{rejected} of {sum(map(len, ratios.values()))} rejected at the factors in force")
    for name in NAMES:
        entries = [entry for dtype in DTYPES for entry in ratios[name, dtype]]
        row, rms = (1.5 * max(entry[column] for entry in entries) for column in (0, 1))
        print(
            f"{name}: 1.5 x the largest ratio: row {row:.2f}, rms {rms:.2f}; in force {verify.FACTORS[name]}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)  # small tensors
    main()
