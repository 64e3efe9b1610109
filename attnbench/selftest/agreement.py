"""Agreement with other timers on the same step, in fresh processes that take turns."""

import contextlib
import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from attnbench import environment, estimates
from attnbench.estimates import Interval
from attnbench.forkserver import ForkServer, running
from attnbench.problem import parse_words, problem_from
from attnbench.selftest.bench import MIDDLE, PLUGIN, SMALL, Measures, timing
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import SAMES

ROUNDS, QUICK_ROUNDS = 10, 5
MOST_ROUNDS = 60
"""Rounds go on until the intervals are as narrow as the bound asks for, but not longer than this."""
BOUND = 0.02
OURS = "attnbench"
RIVALS = ("timeit", "torch Timer")
SERVE = "attnbench.selftest.rivals:serve"
SECONDS = 0.2
"""About as long as attnbench takes samples of one cell."""
TIMEOUT_S = 120.0


class Forks(Measures, Protocol):
    """A bench that can start other processes like those of a launch."""

    server: ForkServer


def checks(bench: Forks, quick: bool) -> Iterator[Check]:
    """A check for each problem and rival."""
    for problem, threads in [(SMALL, 1), (MIDDLE, bench.cores)][: 1 if quick else 2]:
        taken: dict[str, list[float]] = {name: [] for name in (OURS, *RIVALS)}
        ratios: dict[str, Interval] = {}
        while not ratios or (
            not (quick or bench.late) and len(taken[OURS]) < MOST_ROUNDS and _wide(ratios.values())
        ):
            more = turns(bench, problem, threads, RIVALS, QUICK_ROUNDS if quick else ROUNDS)
            taken = {name: taken[name] + more[name] for name in taken}
            ratios = {name: estimates.ratio([_logs(taken[OURS])], [_logs(taken[name])]) for name in RIVALS}
        for rival, ratio in ratios.items():
            assert ratio.low is not None
            assert ratio.high is not None
            yield Check(
                name="agreement",
                figure=ratio.location - 1,
                bound=BOUND,
                passed=abs(ratio.location - 1) <= BOUND,
                text=f"attention of {problem}, {threads} {'thread' if threads == 1 else 'threads'}: "
                f"{ratio.location - 1:+.2%} from {rival} ({ratio.low - 1:+.2%} to {ratio.high - 1:+.2%}), "
                f"at most ±{BOUND:.0%}",
            )


def _wide(ratios: Iterable[Interval]) -> bool:
    return any((estimates.half_width(ratio) or 0.0) > BOUND / 2 for ratio in ratios)


def turns(
    bench: Forks, problem: str, threads: int, rivals: Sequence[str], rounds: int
) -> Mapping[str, list[float]]:
    """Seconds of a call by each timer in each round, in which each has a fresh process, in random order."""
    taken: dict[str, list[float]] = {name: [] for name in (OURS, *rivals)}
    for _ in range(rounds):
        with _staying(environment.place(threads, random.Random())) as cores:
            for name in random.sample(list(taken), len(taken)):
                taken[name].append(_one(bench, name, problem, threads, cores))
    return taken


@contextlib.contextmanager
def _staying(cores: list[int]) -> Iterator[list[int]]:
    """This process on the cores on which all timers of a round are to work: ours takes those of its parent."""
    if not cores:
        yield cores
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def _one(bench: Forks, timer: str, problem: str, threads: int, cores: list[int]) -> float:
    if timer == OURS:
        return timing(bench.measure(problem, SAMES[:1], threads=threads)[SAMES[0]]).median_s
    message = {
        "problem": problem_from(parse_words(problem)).text,
        "implementation": SAMES[0],
        "target": PLUGIN,
        "threads": threads,
        "cores": cores,
        "timer": timer,
        "seconds": SECONDS,
        "seed": random.randrange(2**31),
    }
    with running(bench.server, SERVE) as child:
        return float(child.ask(message, TIMEOUT_S)["seconds"])


def _logs(values: Sequence[float]) -> list[float]:
    return [math.log(value) for value in values]
