"""Which results of a run differ in a length only."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnbench.problem import Problem
from attnbench.records import Result, Status
from attnbench.tables.axes import JOB_AXES, PROBLEM_AXES, values_of

LEAST_LENGTHS = 3
"""Lengths at which an implementation must be right to be fitted."""
LENGTHS = ("seqlen", "seqlen_kv", "seqlen_q")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Problems that differ in a length only, and what became of each implementation."""

    axis: str
    """`seqlen` where queries and keys are as many, else `seqlen_q` or `seqlen_kv`, with the other one fixed."""
    values: Mapping[str, str]
    """All other axes, as in tables."""
    results: Mapping[str, Mapping[int, Result]]
    """Implementation -> length -> result, shortest first."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """At which somebody was right."""
        found = {n for ours in self.results.values() for n, r in ours.items() if r.status is Status.OK}
        return tuple(sorted(found))

    def right(self, name: str) -> dict[int, Result]:
        """The right answers of an implementation by their length."""
        return {n: result for n, result in self.results[name].items() if result.timing is not None}


def series(results: Sequence[Result]) -> tuple[list[Series], int]:
    """All series in which an implementation was right at `LEAST_LENGTHS` lengths or more, in the plan's order, and
    how many others there are with right answers.
    """
    found: dict[tuple[str, ...], dict[str, dict[int, Result]]] = defaultdict(lambda: defaultdict(dict))
    values: dict[tuple[str, ...], dict[str, str]] = {}
    for result in results:
        text = values_of(result)
        uniform = Problem.parse(result.cell.problem).uniform
        if uniform is None:
            continue
        rest = {name: text[name] for name in (*JOB_AXES, *PROBLEM_AXES) if name != "seqlen"}
        for axis, length, fixed in zip(
            LENGTHS, (uniform[0], uniform[1], uniform[0]), _fixed(uniform), strict=True
        ):
            if fixed is not None:
                key = (axis, *fixed.values(), *rest.values())
                found[key][result.cell.implementation][length] = result
                values[key] = {**fixed, **rest}
    made, short = [], 0
    for key, ours in found.items():
        one = Series(
            axis=key[0], values=values[key], results={n: dict(sorted(by.items())) for n, by in ours.items()}
        )
        if max(len(one.right(name)) for name in one.results) >= LEAST_LENGTHS:
            made.append(one)
    covered = {r.cell.key for one in made for by in one.results.values() for r in by.values()}
    short = len({r.cell.problem for r in results if r.timing and r.cell.key not in covered})
    return made, short


def _fixed(uniform: tuple[int, int]) -> tuple[dict[str, str] | None, dict[str, str], dict[str, str]]:
    """For each of `LENGTHS` the axes that stay as they are; None where the lengths differ."""
    q, kv = uniform
    return {} if q == kv else None, {"seqlen_q": str(q)}, {"seqlen_kv": str(kv)}
