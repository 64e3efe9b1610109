"""`attnbench plan`: what a run would do."""

import argparse
from collections import Counter

from attnbench import environment, plan
from attnbench.cli import choose
from attnbench.environment import available_cores
from attnbench.units import seconds_text


def _threads(count: int) -> str:
    """The plan may be for another machine, so too many threads for this one are only said."""
    cores = available_cores()
    return f"{count:,} threads" + f", too many for a run here: {cores:,} cores" * (count > cores)


def main(arguments: argparse.Namespace) -> int:
    """Print counts, the estimated duration, and the reasons of cells that are no jobs."""
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
    print(f"problems         {problems}")
    print(f"implementations  {len(names)}: {', '.join(names)}")
    print(f"devices          {', '.join(map(str, made.devices))}; {_threads(choose.threads(suite))}")
    if no_cuda and any(device.kind == "cuda" for device in made.devices):
        print(f"not here         no CUDA device ({no_cuda}), so this plan is for another machine")
    print(f"caches           {', '.join(dict.fromkeys(suite.measure.caches))}")
    print(f"cells            {len(made.cells)}, of which {len(made.jobs)} are jobs")
    print(f"baseline         {made.baseline or 'the first that is ok'}")
    print(f"preset           {suite.measure.preset}: {seconds_text(made.budget_s)} a cell")
    print(
        f"estimated        about {seconds_text(made.seconds)}"
        if made.jobs
        else "estimated        nothing to run"
    )
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
