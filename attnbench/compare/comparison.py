"""Two sides -> a verdict on every cell, and on every implementation over its cells."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from attnbench import calibration, estimates
from attnbench.calibration import Calibration
from attnbench.compare.beside import besides, by_source
from attnbench.compare.differences import PROTOCOL, UNGATED, Difference, differences
from attnbench.compare.pairs import Pair, accuracy_change, by_status, memory_change, together
from attnbench.compare.sides import Side
from attnbench.compare.verdicts import MARGIN, Effect, Verdict, Way, judged
from attnbench.errors import ResultsError
from attnbench.estimates import Interval
from attnbench.noise import GRADES
from attnbench.records import Run, Status
from attnbench.results import CellKey, Outcome

KINDS = ("slower", "memory", "accuracy", "wrong", "failing", "missing")
"""What can be a regression."""
LEAST_RUNS = 3
"""A side with fewer does not tell how far its runs lie apart."""
LEAST_CELLS = 5
"""Fewer cells do not tell it either."""
WIDEST = 0.05
"""Spread of cells above which it is change, not noise."""
WIDEST_OWN = 0.2
"""The same of the cells of one implementation: of ten, one that takes four times as long is named whatever the others do, of five one
of seven times."""
DOUBTED = 2.0
"""Times as far as a calibration says cells may lie apart, before it is not believed."""
FEW = 0.2
"""Half interval of a time of fewer than five blocks where the machine is not known: of three that scatter by 8 %."""
ALIKE = 0.25
"""Least shift of an implementation that the machine may share with the others, where its shift beside them is known: equal runs
of `quick` lay up to 20 % apart as wholes."""
_SLOWER = (Verdict.SLOWER, Verdict.LIKELY_SLOWER)
_KIND_OF = {
    **dict.fromkeys(_SLOWER, "slower"),
    Verdict.NEWLY_WRONG: "wrong",
    Verdict.NEWLY_FAILING: "failing",
}
NOISY = GRADES[-1]
_CELLS = Way.CELLS  # a member of an enumeration takes long to look up
_NORMAL = 1.4826
"""Standard deviation of normal values over their median absolute deviation."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that are `ok` on both sides, together."""

    name: str
    """The implementation; empty for all."""
    cells: int
    effect: Effect
    """Geometric mean of the ratios."""
    beside: Effect | None
    """Beside the implementations that have not changed, where that is known."""
    verdict: Verdict
    """The worse of what both say, or what one alone can tell."""
    least: float
    most: float
    """Of the ratios."""
    base_s: float
    new_s: float
    """Sums of the medians."""

    @property
    def regressed(self) -> bool:
        """Whether it is slower as a whole, which may show where no cell shows it alone."""
        return bool(self.name) and self.cells > 1 and self.verdict in _SLOWER


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that there is to say about two sides."""

    base: Side
    new: Side
    margin: float
    differences: tuple[Difference, ...]
    """Between the circumstances; where one of them is in `UNGATED`, nothing is a regression unless one asks."""
    pairs: tuple[Pair, ...]
    """Every cell, the worst first."""
    in_turns: bool
    """Whether times were taken in turns, on one machine: then what differs is what is asked about."""
    overall: Group | None
    groups: tuple[Group, ...]
    """By implementation; like `overall` only where cells are `ok` on both sides."""

    @property
    def counts(self) -> Mapping[Verdict, int]:
        return Counter(pair.verdict for pair in self.pairs)

    @property
    def comparable(self) -> bool:
        """Whether a change of time can be the code's."""
        return self.in_turns or not any(difference.kind in UNGATED for difference in self.differences)

    def regressions(self, kinds: Collection[str]) -> int:
        """How many cells and implementations have regressed in one of `kinds`."""
        cells = sum(
            any(kind in kinds for kind in pair.regressions) for pair in self.pairs if pair.regressions
        )
        return cells + ("slower" in kinds) * sum(group.regressed for group in self.groups)


def compare(
    base: Side, new: Side, margin: float = MARGIN, turns: Mapping[CellKey, Interval] | None = None
) -> Comparison:
    """Match the cells of both sides and judge each. Raises `ResultsError` where nothing can be compared.

    `turns` are ratios of cells that both sides measured in turns; nothing else can say as much about their times.
    """
    found = differences(base.runs, new.runs)
    for difference in found:
        if difference.kind == PROTOCOL:
            raise ResultsError(
                f"times of protocols {' and '.join(sorted({*difference.base, *difference.new}))} cannot be compared",
                hint="measure both with one version of attnbench",
            )
    if base.cells.keys().isdisjoint(new.cells):
        raise ResultsError(
            f"{base.name} and {new.name} have no cell in common",
            hint="a cell is problem, implementation, device, threads, cache and clock together",
        )
    differ = any(difference.kind in UNGATED for difference in found)
    pairs = [_pair(key, outcomes, new.cells.get(key, ())) for key, outcomes in base.cells.items()]
    pairs += [_pair(key, (), outcomes) for key, outcomes in new.cells.items() if key not in base.cells]
    unclear = Verdict.UNCLEAR
    timed = [pair for pair in pairs if pair.verdict is unclear]
    steady, changed = by_source((*base.runs, *new.runs))
    _judge(timed, base, new, margin, turns or {}, set() if differ else steady)
    order = {verdict: place for place, verdict in enumerate(Verdict)}
    for pair in pairs:
        pair.regressions = _regressions(pair)
    pairs.sort(key=attrgetter("shift"), reverse=True)
    pairs.sort(key=lambda pair: (not pair.regressions, not pair.changed, order[pair.verdict]))
    beside = {} if turns or differ else besides(base, new, LEAST_RUNS)
    groups = _groups(timed, base, new, margin, beside, changed)
    return Comparison(
        base=base,
        new=new,
        margin=margin,
        differences=tuple(found),
        pairs=tuple(pairs),
        in_turns=bool(turns),
        overall=groups[0] if groups else None,
        groups=tuple(groups[1:]),
    )


def _pair(key: CellKey, base: Sequence[Outcome], new: Sequence[Outcome]) -> Pair:
    before, now = together(base), together(new)
    pair = Pair(key, before, now, by_status(before, now) or Verdict.UNCLEAR)
    if before.status is now.status is Status.OK:
        pair.memory, pair.accuracy = memory_change(before, now), accuracy_change(before, now)
    return pair


def _regressions(pair: Pair) -> tuple[str, ...]:
    if not pair.changed:
        return ()
    found = [_KIND_OF[pair.verdict]] if pair.verdict in _KIND_OF else []
    found += ["missing"] * (pair.verdict is Verdict.ONLY_IN_BASE and pair.base.status is Status.OK)
    found += ["memory"] * (pair.memory == "bigger")
    found += ["accuracy"] * (pair.accuracy == "less accurate")
    return tuple(found)


# ---------------------------------------------------------------- times


def _judge(
    pairs: Sequence[Pair],
    base: Side,
    new: Side,
    margin: float,
    turns: Mapping[CellKey, Interval],
    unchanged: Collection[str],
) -> None:
    """Gives every pair, `ok` on both sides, its effect and verdict."""
    sides = [(_right(base.cells[pair.key]), _right(new.cells[pair.key])) for pair in pairs]
    shifts = [_shift(before, now) for before, now in sides]
    spreads = _spreads([pair.key[1] for pair in pairs], shifts, unchanged)
    known = _calibrations(base.runs, new.runs)
    for pair, (before, now), shift, spread in zip(pairs, sides, shifts, spreads, strict=True):
        if (ratio := turns.get(pair.key)) is not None:
            pair.effect = Effect(ratio, Way.TURNS)
        else:
            pair.effect = _effect(before, now, shift, known(pair.key), spread)
    effects = [pair.effect for pair in pairs if pair.effect]
    for pair, verdict in zip(pairs, judged(effects, margin), strict=True):
        pair.verdict = verdict


def _right(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    return outcomes if len(outcomes) == 1 else [one for one in outcomes if one.median_s is not None]


def _logs(outcomes: Sequence[Outcome]) -> list[float]:
    return [math.log(outcome.median_s) for outcome in outcomes if outcome.median_s]


def _shift(before: Sequence[Outcome], now: Sequence[Outcome]) -> float:
    return _log(now) - _log(before)


def _log(outcomes: Sequence[Outcome]) -> float:
    """The mean of the logs of a side's medians."""
    if len(outcomes) == 1:
        return math.log(outcomes[0].median_s or math.nan)
    logs = _logs(outcomes)
    return math.fsum(logs) / len(logs)


def _spreads(
    names: Sequence[str], shifts: Sequence[float], unchanged: Collection[str]
) -> list[tuple[float, int] | None]:
    """For each cell, the standard deviation of equal log ratios, and its degrees of freedom; None of few cells.

    That of most cells of the comparison, or of the implementation's own, where these lie wider apart: one that takes large
    buffers may differ by half from process to process where another does not at all. Where nothing that is known of it has
    changed, all by which its other cells differ is noise; else what most of them differ by, from their median.
    """
    if len(shifts) < LEAST_CELLS:
        return [None] * len(shifts)
    of_most = min(WIDEST, _NORMAL * estimates.mad(shifts)), len(shifts) - 1
    own: dict[str, list[float]] = defaultdict(list)
    for name, shift in zip(names, shifts, strict=True):
        own[name].append(shift)
    several = {name: found for name, found in own.items() if len(found) >= LEAST_CELLS}
    of_others = {name: estimates.deviation_of_others(several[name]) for name in several.keys() & unchanged}
    of_own = {
        name: _NORMAL * estimates.mad(found) for name, found in several.items() if name not in unchanged
    }
    spreads: list[tuple[float, int] | None] = []
    for name, shift in zip(names, shifts, strict=True):
        error = of_others[name](shift) if name in of_others else of_own.get(name, 0.0)
        spreads.append(max(of_most, (min(WIDEST_OWN, error), len(own[name]) - 1 - (name in of_others))))
    return spreads


def _effect(
    before: Sequence[Outcome],
    now: Sequence[Outcome],
    shift: float,
    known: Calibration | None,
    spread: tuple[float, int] | None,
) -> Effect:
    if len(before) >= LEAST_RUNS and len(now) >= LEAST_RUNS:
        return Effect(estimates.welch(_logs(now), _logs(before)), Way.RUNS)
    noisy = any(outcome.grade == NOISY for side in (before, now) for outcome in side)
    sides = [(side, _within(side)) for side in (before, now)]
    within = [half for _, half in sides if half is not None]
    if known is not None:
        error = known.spread * math.sqrt(1 / len(before) + 1 / len(now))
        if spread is None or spread[0] <= DOUBTED * error:
            halves = [*within, estimates.half_of(error, known.degrees)]
            return Effect(estimates.widened(shift, halves, known.degrees), Way.CALIBRATION, noisy)
    within += [FEW for side, half in sides if half is None and any(one.grade > GRADES[0] for one in side)]
    if spread is not None:
        error, degrees = spread
        halves = [*within, estimates.half_of(error, degrees)]
        return Effect(estimates.widened(shift, halves, degrees), _CELLS, noisy)
    if len(within) == 2:
        return Effect(estimates.widened(shift, within, math.inf), Way.WITHIN, noisy)
    return Effect(Interval(location=math.exp(shift), low=None, high=None), Way.WITHIN, noisy)


def _within(side: Sequence[Outcome]) -> float | None:
    """Half width of the mean of a side's log medians, from the intervals of its runs."""
    if len(side) == 1:
        return side[0].half_width
    halves = [outcome.half_width for outcome in side]
    known = [half for half in halves if half is not None]
    return math.hypot(*known) / len(known) if len(known) == len(halves) else None


def _calibrations(base: Sequence[Run], new: Sequence[Run]) -> Callable[[CellKey], Calibration | None]:
    """What is known of a cell's device: the wider, where the sides have different versions of torch."""
    kept: dict[tuple[str, int], Calibration | None] = {}

    def of(key: CellKey) -> Calibration | None:
        device, threads = key[2], key[3]
        if (device, threads) not in kept:
            asked = {(run.device_names.get(device), _torch(run)) for run in (*base, *new)}
            found = [calibration.read(name, threads, torch) for name, torch in asked if name and torch]
            known = [one for one in found if one is not None]
            alone = len({name for name, _ in asked}) == 1
            kept[device, threads] = max(known, key=lambda one: one.spread) if known and alone else None
        return kept[device, threads]

    return of


def _torch(run: Run) -> str | None:
    known = run.environment.get("versions", {}).get("torch") or run.fingerprint.get("torch")
    words = " ".join(run.versions.values()).split()
    return known or dict(zip(words[::2], words[1::2], strict=False)).get("torch")


# ---------------------------------------------------------------- groups


def _groups(
    pairs: Sequence[Pair],
    base: Side,
    new: Side,
    margin: float,
    beside: Mapping[str, Effect],
    changed: set[str],
) -> list[Group]:
    """All pairs together, then those of each implementation."""
    if not pairs:
        return []
    members: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        members[pair.key[1]].append(pair)
    overall, *effects = [_mean(part, base, new) for part in (list(pairs), *members.values())]
    alone = dict(zip(members, effects, strict=True))
    verdicts: dict[str, Verdict] = {}
    # which sources have changed is known before any time is: what one asks about is a family of its own, and may be suspected
    for family, least in ((members.keys() & changed, 0.0), (members.keys() - changed, margin)):
        both = [
            (name, of[name]) for of in (alone, beside) for name in members if name in family and name in of
        ]
        for (name, effect), verdict in zip(
            both, judged([effect for _, effect in both], margin, least), strict=True
        ):
            shared = name in beside and effect.way is Way.CELLS and verdict is not Verdict.SAME
            if shared and abs(math.log(effect.ratio.location)) <= math.log1p(ALIKE):
                verdict = Verdict.UNCLEAR
            verdicts[name] = _worse(verdicts.get(name, verdict), verdict)
    return [
        _group("", pairs, overall, None, *judged([overall], margin)),
        *(
            _group(name, part, alone[name], beside.get(name), verdicts[name])
            for name, part in members.items()
        ),
    ]


def _worse(verdict: Verdict, beside: Verdict) -> Verdict:
    """Of two on the same cells: what is slower, else what is faster, else the first."""
    order = list(Verdict)
    told = [one for one in (verdict, beside) if one not in (Verdict.SAME, Verdict.UNCLEAR)]
    return min(told, key=order.index) if told else verdict


def _mean(pairs: Sequence[Pair], base: Side, new: Side) -> Effect:
    """The geometric mean of the ratios.

    Where all rest on runs, its interval does too, on the runs that have all these cells; else the cells are the unit,
    and what befalls all of them in a run is not in it.
    """
    effects = [pair.effect for pair in pairs if pair.effect]
    if len(effects) == 1:
        return effects[0]
    if all(effect.way is Way.TURNS and effect.ratio.degrees for effect in effects):
        logs = [math.log(effect.ratio.location) for effect in effects]
        halves = [(estimates.half_width(effect.ratio) or 0.0) / len(effects) for effect in effects]
        degrees = min(effect.ratio.degrees or 0.0 for effect in effects)
        return Effect(estimates.widened(statistics.fmean(logs), halves, degrees), Way.TURNS)
    if all(effect.way is Way.RUNS for effect in effects):
        sides = [_means([side.cells[pair.key] for pair in pairs]) for side in (new, base)]
        if all(len(means) >= LEAST_RUNS for means in sides):
            return Effect(estimates.welch(*sides), Way.RUNS)
    return Effect(estimates.mean([math.log(effect.ratio.location) for effect in effects]), Way.CELLS)


def _means(cells: Sequence[Sequence[Outcome]]) -> list[float]:
    """The mean log median of each run, where all cells are in all runs."""
    if len({len(outcomes) for outcomes in cells}) > 1:
        return []
    runs = [_logs(run) for run in zip(*cells, strict=True)]
    return [statistics.fmean(run) for run in runs if len(run) == len(cells)]


def _group(
    name: str, pairs: Sequence[Pair], effect: Effect, beside: Effect | None, verdict: Verdict
) -> Group:
    ratios = [pair.effect.ratio.location for pair in pairs if pair.effect]
    return Group(
        name=name,
        cells=len(pairs),
        effect=effect,
        beside=beside,
        verdict=verdict,
        least=min(ratios),
        most=max(ratios),
        base_s=math.fsum(pair.base.median_s or 0.0 for pair in pairs),
        new_s=math.fsum(pair.new.median_s or 0.0 for pair in pairs),
    )
