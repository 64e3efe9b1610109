"""Who is the fastest for each problem, how sure that is, and what it costs to take another one."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from attnbench.estimates import geometric_mean
from attnbench.records import Cell, Result, Status
from attnbench.tables.axes import JOB_AXES
from attnbench.tables.contests import Gap, contest, gap, noisy, trusted
from attnbench.units import bytes_text


class Verdict(StrEnum):
    """How sure it is that the least time is the fastest implementation."""

    SURE = "sure"
    TIED = "tied"
    """Others cannot be told apart from it."""
    ONLY = "only one"
    """No other one was ranked."""
    UNSURE = "unsure"
    """Its time has no interval or too wide a one, or the worst grade; or the times of all others are of that kind."""
    NONE = "none"
    """Nobody was ranked."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an implementation must fulfil to be ranked, beside being right."""

    max_workspace: int | None = None
    """Bytes."""
    deterministic: bool = False
    approximate: bool = False
    """Whether approximations are ranked too."""

    def objection(self, result: Result, approximation: str | None) -> str | None:
        """None where an ok result may be ranked, else the reason in words."""
        if approximation and not self.approximate:
            return "an approximation"
        if self.max_workspace is not None:
            if result.memory is None:
                return "its workspace was not measured"
            if result.memory.workspace_bytes > self.max_workspace:
                return f"needs more than {bytes_text(self.max_workspace)} of workspace"
        if self.deterministic:
            found = result.accuracy.deterministic if result.accuracy else ""
            if found != "yes":
                return "is not deterministic" if found else "not known to be deterministic"
        return None


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One problem under the same conditions, and who competed."""

    results: tuple[Result, ...]
    """Of all implementations, whatever became of them."""
    ranked: tuple[Result, ...]
    """The least time first."""
    gaps: tuple[Gap, ...]
    """From the best to each other one."""

    @property
    def cell(self) -> Cell:
        """Problem and conditions; the implementation means nothing."""
        return self.results[0].cell

    @property
    def job(self) -> tuple[str, ...]:
        return tuple(str(getattr(self.cell, name)) for name in JOB_AXES)

    @property
    def best(self) -> Result | None:
        return self.ranked[0] if self.ranked else None

    @property
    def verdict(self) -> Verdict:
        if not self.ranked:
            return Verdict.NONE
        if not trusted(self.ranked[0]) or (self.gaps and len(self.unknown) == len(self.gaps)):
            return Verdict.UNSURE
        if not self.gaps:
            return Verdict.ONLY
        return Verdict.TIED if self.tied else Verdict.SURE

    @property
    def tied(self) -> tuple[Result, ...]:
        """Those that cannot be told apart from the best."""
        return tuple(r for r, behind in self._behind if behind.tied)

    @property
    def unknown(self) -> tuple[Result, ...]:
        """Those that were slower, but whose times have no interval or the worst grade: they may be faster."""
        return tuple(r for r, behind in self._behind if not behind.tied and _vague(r))

    @property
    def next(self) -> tuple[Result, Gap] | None:
        """The first that is certainly slower."""
        return next(((r, behind) for r, behind in self._behind if not behind.tied and not _vague(r)), None)

    @property
    def _behind(self) -> Iterator[tuple[Result, Gap]]:
        return zip(self.ranked[1:], self.gaps, strict=True)

    @property
    def losses(self) -> Iterator[tuple[Result, float]]:
        """How many times as long as the best each one took, at least 1."""
        yield from ((r, 1.0) for r in self.ranked[:1])
        yield from ((result, max(1.0, behind.ratio.location)) for result, behind in self._behind)


def _vague(result: Result) -> bool:
    """Whether a time is not even certain to be long."""
    return result.timing is None or result.timing.ci95_low_s is None or noisy(result)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All contests of a run under some terms."""

    terms: Terms
    contests: tuple[Contest, ...]
    left_out: Mapping[str, tuple[Result, ...]]
    """Right answers that the terms leave out, by the reason."""
    approximations: Mapping[str, str]


def rank(results: Sequence[Result], approximations: Mapping[str, str], terms: Terms) -> Ranking:
    """The ranking of a run. Only `ok` results are ranked, and of them those that fulfil the terms."""
    entered: dict[object, list[Result]] = defaultdict(list)
    left_out: dict[str, list[Result]] = defaultdict(list)
    ranked: dict[object, list[Result]] = defaultdict(list)
    for result in results:
        entered[contest(result)].append(result)
        if result.timing is not None:
            why = terms.objection(result, approximations.get(result.cell.implementation))
            (left_out[why] if why else ranked[contest(result)]).append(result)
    contests = []
    for key, found in entered.items():
        order = sorted(ranked[key], key=lambda r: r.timing.median_s if r.timing else 0.0)
        gaps = tuple(gap(result, order[0]) for result in order[1:])
        contests.append(Contest(results=tuple(found), ranked=tuple(order), gaps=gaps))
    return Ranking(
        terms=terms,
        contests=tuple(contests),
        left_out={why: tuple(found) for why, found in left_out.items()},
        approximations=approximations,
    )


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What it costs to take one implementation for every problem."""

    implementation: str
    ranked: int
    """Problems for which it was ranked, of `problems`."""
    problems: int
    alone: int
    """Problems that it won for certain."""
    won: int
    """Problems that it won or could not be told apart from the best of."""
    mean: float
    """Geometric mean of its loss: its time over the best's, where it was ranked."""
    worst: float
    worst_at: Contest
    untrusted: int
    """Of its times, those with the worst grade, or with no interval or too wide a one."""


def regrets(contests: Sequence[Contest]) -> list[Regret]:
    """The regret of every implementation that was ranked, over the contests whose best can be trusted.

    Those ranked for most problems come first, and of them the least mean loss.
    """
    decided = [c for c in contests if c.verdict not in (Verdict.NONE, Verdict.UNSURE)]
    losses: dict[str, list[tuple[float, Contest, Result]]] = defaultdict(list)
    won: dict[str, int] = defaultdict(int)
    alone: dict[str, int] = defaultdict(int)
    for one in decided:
        for result, loss in one.losses:
            losses[result.cell.implementation].append((loss, one, result))
        for result in (*one.ranked[:1], *one.tied):
            won[result.cell.implementation] += 1
        alone[one.ranked[0].cell.implementation] += not one.tied
    found = []
    for name, lost in losses.items():
        worst, worst_at, _ = max(lost, key=lambda entry: entry[0])
        found.append(
            Regret(
                implementation=name,
                ranked=len(lost),
                problems=len(decided),
                alone=alone[name],
                won=won[name],
                mean=geometric_mean([loss for loss, _, _ in lost]),
                worst=worst,
                worst_at=worst_at,
                untrusted=sum(not trusted(result) for _, _, result in lost),
            )
        )
    return sorted(found, key=lambda regret: (-regret.ranked, regret.mean))


def ends(one: Contest) -> str:
    """How the results of a contest ended that are not ok, in words."""
    counts = {s: sum(r.status is s for r in one.results) for s in Status if s is not Status.OK}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)
