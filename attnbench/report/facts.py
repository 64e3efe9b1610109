"""What the runs say about themselves: the question, the machine, the versions."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from attnbench import suites
from attnbench.errors import UserError
from attnbench.noise import GRADES
from attnbench.records import Run, Status
from attnbench.report.rows import Source
from attnbench.tables.contests import BEST, by_time
from attnbench.units import bytes_text


def question(run: Run) -> str:
    """What the suite asks; empty where its text is not stored, or this version does not understand it."""
    try:
        return suites.parse(run.suite_text, run.suite).question if run.suite_text else ""
    except UserError:
        return ""


def facts(run: Run) -> dict[str, str]:
    """Name -> value, of what is known."""
    return {name: str(value) for name, value in _facts(run) if value not in (None, "")}


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    found, measure = run.environment, run.settings.get("measure", {})
    cpu, memory, load = (found.get(name) or {} for name in ("cpu", "memory", "load"))
    yield "run", run.run_id
    yield "suite", run.suite
    yield "started", run.started.replace("T", " ").replace("+00:00", " UTC")
    yield "command", " ".join(["attnbench", *run.command]) if run.command else ""
    yield "preset", measure.get("preset")
    yield "seed", run.seed
    yield from run.device_names.items()
    if "logical_cores" in cpu:
        yield "cores", f"{cpu.get('physical_cores')} physical, {cpu['logical_cores']} logical"
    yield "threads", run.fingerprint.get("threads")
    if cpu.get("hypervisor") is not None:
        yield "virtual machine", "yes" if cpu["hypervisor"] else "no"
    if "total_bytes" in memory:
        yield "memory", bytes_text(memory["total_bytes"])
    if average := load.get("average"):
        yield "load before", ", ".join(f"{value:g}" for value in average)
    yield "kernel", found.get("kernel")
    yield "Python", (found.get("python") or {}).get("version")
    yield from sorted((found.get("versions") or {}).items())
    yield from sorted((found.get("variables") or {}).items())
    yield "CPU capability of torch", (found.get("torch_build") or {}).get("cpu_capability")
    yield "CUDA of torch", (found.get("torch_build") or {}).get("cuda")
    for owner in run.plugins:
        yield f"plugin {owner.plugin}", owner.error or f"{owner.version} ({owner.source})".strip()


def figures(sources: Sequence[Source]) -> list[tuple[str, str, str]]:
    """The figures at the head of a page: a number, what it counts, and a line about it."""
    cells = [result for source in sources for result in source.results]
    ends = Counter(result.status for result in cells)
    right = ends.pop(Status.OK, 0)
    marks = [item for source in sources for item in by_time(source.results).marks.items()]
    won = Counter(str(key[1]) for key, mark in marks if mark == BEST)
    grades = Counter(result.timing.grade for result in cells if result.timing and result.timing.grade)
    others = ", ".join(f"{count} {status}" for status, count in ends.most_common())
    shown = [
        (str(right), "right and timed", f"of {len(cells)} cells"),
        (str(len(cells) - right), "without a time", others or "every cell has one"),
    ]
    if won:
        name, count = won.most_common(1)[0]
        shown.append((str(count), f"won by {name}", f"of {won.total()} problems with a fastest answer"))
    if grades:
        told = ", ".join(f"{grades[grade]} {grade}" for grade in GRADES if grades[grade])
        shown.append((str(grades[GRADES[-1]]), "noisy times", f"grades: {told}"))
    return shown
