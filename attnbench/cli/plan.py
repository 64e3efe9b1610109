"""`attnbench plan`: what a run would do."""

import argparse
from collections import Counter
from collections.abc import Collection, Iterator

from attnbench import environment, plan
from attnbench.cli import choose, collector
from attnbench.environment import available_cores
from attnbench.suites import Axis, Block
from attnbench.units import seconds_text


def _threads(count: int) -> str:
    """The plan may be for another machine, so too many threads for this one are only said."""
    cores = available_cores()
    return f"{count:,} threads" + f", too many for a run here: {cores:,} cores" * (count > cores)


SHOWN = 8
"""Values of an axis at the most; of more, the first and the last."""


def _planned(block: Block, kinds: Collection[str]) -> bool:
    """Whether a block is for one of these kinds of device."""
    return not block.kinds or any(kind in kinds for kind in block.kinds)


def _block(block: Block, kinds: Collection[str]) -> Iterator[str]:
    """What a block means: how many combinations, and which keys vary in them."""
    count, line = block.combinations, block.place.rpartition(":")[2]
    at = f"line {line}" if line.isdigit() else block.place
    told = f"{count:,} combination" + "s" * (count > 1)
    told += f", {block.excluded:,} excluded" * (block.excluded > 0)
    told += f", for {' and '.join(block.kinds)} only" * bool(block.kinds)
    if not _planned(block, kinds):
        yield f"  {at}: {told}, which is not in this plan"
        return
    yield f"  {at}: {told}"
    varying = [axis for axis in block.axes if len(axis.rows) > 1]
    width = max((len(_names(axis)) for axis in varying), default=0)
    for axis in varying:
        yield f"    {_names(axis):{width}}  {_values(axis)}"


def _names(axis: Axis) -> str:
    return " with ".join(axis.names)


def _values(axis: Axis) -> str:
    texts = [" with ".join(map(str, row)) for row in axis.rows]
    if len(texts) > SHOWN:
        texts = [*texts[: SHOWN // 2], f"... {len(texts):,} in all ...", *texts[-2:]]
    return ", ".join(texts)


def main(arguments: argparse.Namespace) -> int:
    """Print counts, the estimated duration, and the reasons of cells that are no jobs."""
    with collector.paused():
        return _main(arguments)


def _main(arguments: argparse.Namespace) -> int:
    registry = choose.registry(arguments)
    suite = choose.suite(arguments, registry)
    no_cuda = environment.no_cuda()
    made = plan.make(
        suite,
        registry,
        devices=plan.resolve(suite.devices, [choose.cpu(suite)]),
        threads=choose.threads(suite),
        only=arguments.only,
        without=arguments.without,
        elsewhere=("cuda",) if no_cuda else (),
    )
    print(f"{suite.name}: {suite.question}\n")
    problems = len({p.cell.problem for p in made.cells})
    names = list(dict.fromkeys(p.cell.implementation for p in made.cells))
    kinds = {device.kind for device in made.devices}
    left_out = sum(block.excluded for block in suite.blocks if _planned(block, kinds))
    told = f"; combinations excluded: {left_out:,}" * (left_out > 0)
    print(f"problems         {problems}{told}")
    print(f"implementations  {len(names)}: {', '.join(names)}")
    print(f"devices          {', '.join(map(str, made.devices))}; {_threads(choose.threads(suite))}")
    if no_cuda and any(device.kind == "cuda" for device in made.devices):
        print(f"not here         no CUDA device ({no_cuda}), so this plan is for another machine")
    print(f"caches           {', '.join(dict.fromkeys(suite.measure.caches))}")
    print(f"cells            {len(made.cells)}, of which {len(made.jobs)} are jobs")
    print(f"baseline         {made.baseline or 'the first that is ok'}")
    spread = f", over {made.launches} fresh processes" if made.launches > 1 else ""
    print(f"preset           {suite.measure.preset}: {seconds_text(made.budget_s)} a cell{spread}")
    print(
        f"estimated        about {seconds_text(made.seconds)}"
        if made.jobs
        else "estimated        nothing to run"
    )
    if any(block.combinations > 1 for block in suite.blocks):
        print("\nblocks:")
        print("\n".join(line for block in suite.blocks for line in _block(block, kinds)))
    if arguments.all:
        print()
        for p in made.cells:
            state = f"{p.status}: {p.reason}" if p.status else "job"
            print(f"{p.cell.problem}  {p.cell.device}  {p.cell.cache}  {p.cell.implementation}  {state}")
        return 0
    reasons = Counter((p.cell.implementation, str(p.status), p.reason) for p in made.cells if p.status)
    if reasons:
        print("\nnot jobs:")
        for (name, status, reason), count in reasons.most_common():
            print(f"  {count:6d}  {name}: {status}: {reason}")
    return 0
