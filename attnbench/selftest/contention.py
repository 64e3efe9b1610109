"""Contention: the same work beside busy processes. Its time is right, or its row is graded noisy."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from attnbench.noise import GRADES
from attnbench.selftest.bench import MIDDLE, SMALL, TINY, Bench, timing
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import SAMES, WAITS_S

BOUND = 0.03
*_, WORST = GRADES
TRIES = 3
"""What is not steady with nothing beside it can show nothing: it is taken again, so many times in all."""

_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    pass"


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes beside, each of which keeps a core busy, and ends with this one."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.extend(subprocess.Popen([sys.executable, "-S", "-c", _BUSY]) for _ in range(count))
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is measured under load."""

    text: str
    problem: str
    implementation: str
    threads: int
    known_s: float | None = None
    """How long it takes, where that is known without measuring."""


def checks(bench: Bench, quick: bool) -> Iterator[Check]:
    """A check for each kind of work."""
    wait = "selftest-wait-1ms"
    works = [
        Work(text="a busy wait", problem=TINY, implementation=wait, threads=1, known_s=WAITS_S[wait]),
        Work(text="attention in one thread", problem=SMALL, implementation=SAMES[0], threads=1),
    ]
    if bench.cores > 1:
        text = f"attention in {bench.cores} threads"
        works.append(Work(text=text, problem=MIDDLE, implementation=SAMES[0], threads=bench.cores))
    loads = list(dict.fromkeys((0, 1, bench.cores)))
    found: dict[Work, list[tuple[float, str]]] = {}
    left = works
    for _ in range(1 if quick else TRIES):
        for work in left:
            found[work] = []
        for load in (*loads, 0):
            with busy(load):
                for work in left:
                    found[work].append(_measured(bench, work))
        left = [work for work in left if _unsteady(work, found[work])]
        if not left or bench.late:
            break
    for work in works:
        yield _judged(work, loads[1:], found[work])


def _measured(bench: Bench, work: Work) -> tuple[float, str]:
    """Median in seconds and grade."""
    rows = bench.measure(work.problem, [work.implementation], threads=work.threads)
    row = timing(rows[work.implementation])
    return row.median_s, row.grade


def _alone(work: Work, taken: list[tuple[float, str]]) -> tuple[float, float]:
    """Between its first and its last time a machine may drift: anything from one to the other is right."""
    if work.known_s:
        return work.known_s, work.known_s
    (first, _), *_, (last, _) = taken
    return min(first, last), max(first, last)


def _unsteady(work: Work, taken: list[tuple[float, str]]) -> str:
    """Why its times alone are no measure of those under load; empty where they are one, or none is needed: all of those
    are graded noisy, and those alone are not."""
    low, high = _alone(work, taken)
    (_, first), *loaded, (_, last) = taken
    moved = high / low - 1 > BOUND and any(grade not in GRADES[1:] for _, grade in loaded)
    drift = f"though it took from 0 to {high / low - 1:+.1%} alone" if moved else ""
    noisy = work.known_s is None and WORST in (first, last)
    grade = f"nothing can be said, because it is graded {WORST} with nothing beside it" if noisy else ""
    return "; ".join(filter(None, (drift, grade)))


def _judged(work: Work, loads: list[int], taken: list[tuple[float, str]]) -> Check:
    low, high = _alone(work, taken)
    loaded = taken[1:-1]
    off = [max(median / high - 1, 0.0) + min(median / low - 1, 0.0) for median, _ in loaded]
    silent = [abs(share) for share, (_, grade) in zip(off, loaded, strict=True) if grade not in GRADES[1:]]
    told = ", ".join(
        f"{share:+.1%} beside {load}{f' (graded {grade})' if grade else ''}"
        for share, load, (_, grade) in zip(off, loads, loaded, strict=True)
    )
    unsteady = _unsteady(work, taken)
    text = f"{work.text} is measured {told} busy processes, at most ±{BOUND:.0%} or graded noisy"
    return Check(
        name="contention",
        figure=max(silent, default=0.0),
        bound=BOUND,
        passed=not unsteady and all(share <= BOUND for share in silent),
        text=", ".join(filter(None, (text, unsteady))),
    )
