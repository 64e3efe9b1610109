"""A ranking as tables to read, as records of a CSV, and as a document."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from attnbench.estimates import Interval
from attnbench.records import Result, Status
from attnbench.tables import Sheet
from attnbench.tables.axes import JOB_AXES, Label, Layout, layout, said, values_of
from attnbench.tables.contests import noisy, of_time, trusted, uncertainty
from attnbench.tables.reasons import ANSWERS
from attnbench.units import bytes_text, number, seconds_text
from attnbench.winners.ranking import Contest, Ranking, Regret, Verdict, ends, regrets

RECORD = (
    *("problem", *JOB_AXES, "fastest", "verdict", "median_s", "ci95_low_s", "ci95_high_s", "workspace_bytes"),
    *("tied", "unknown", "next", "ratio", "ratio_low", "ratio_high", "reason"),
)
"""Columns of `--format csv`."""
MOST_NAMES = 4


# ---------------------------------------------------------------- for programs


def _record(one: Contest) -> dict[str, object]:
    best, behind = one.best, one.next
    time = of_time(best) if best else None
    ratio = behind[1].ratio if behind else None
    return {
        **{name: getattr(one.cell, name) for name in ("problem", *JOB_AXES)},
        "fastest": best.cell.implementation if best else None,
        "verdict": one.verdict.value,
        "median_s": time.location if time else None,
        "ci95_low_s": time.low if time else None,
        "ci95_high_s": time.high if time else None,
        "workspace_bytes": best.memory.workspace_bytes if best and best.memory else None,
        **{name: " ".join(found) for name, found in _beside(one).items()},
        "next": behind[0].cell.implementation if behind else None,
        "ratio": ratio.location if ratio else None,
        "ratio_low": ratio.low if ratio else None,
        "ratio_high": ratio.high if ratio else None,
        "reason": _doubt(one),
    }


def _beside(one: Contest) -> dict[str, list[str]]:
    groups = {"tied": one.tied, "unknown": one.unknown}
    return {name: [result.cell.implementation for result in found] for name, found in groups.items()}


def records(ranking: Ranking) -> list[dict[str, object]]:
    """A record a problem, with the keys of `RECORD`; None where there is nothing to say."""
    return [_record(one) for one in ranking.contests]


def _regret(regret: Regret) -> dict[str, object]:
    plain = {field.name: getattr(regret, field.name) for field in fields(regret)}
    return {**plain, "worst_at": regret.worst_at.cell.problem}


def document(ranking: Ranking) -> dict[str, Any]:
    """All of it as JSON has it; times in seconds, memory in bytes."""
    parts = _by_job(ranking.contests)
    return {
        "terms": asdict(ranking.terms),
        "problems": [
            {**record, **_beside(one)} for one, record in zip(ranking.contests, records(ranking), strict=True)
        ],
        "regret": [
            {**dict(zip(JOB_AXES, job, strict=True)), **_regret(regret)}
            for job, contests in parts.items()
            for regret in regrets(contests)
        ],
        "left_out": [
            {"reason": why, "implementation": result.cell.implementation, "problem": result.cell.problem}
            for why, found in ranking.left_out.items()
            for result in found
        ],
        "approximations": dict(ranking.approximations),
    }


# ---------------------------------------------------------------- for people


def sheets(ranking: Ranking) -> list[Sheet]:
    """The fastest of each problem, then for each device (and threads, cache and clock) the table of regrets."""
    cells = [{**values_of(one.results[0]), "implementation": ""} for one in ranking.contests]
    place = layout(cells, None)
    labels = [tuple(cell[axis] for axis in place.rows) for cell in cells]
    common = tuple(said(axis, cells[0][axis]) for axis in place.common)
    found = [_winners(ranking, place, labels, common)]
    parts = _by_job(ranking.contests)
    told = dict(zip(map(id, ranking.contests), labels, strict=True))
    for job, contests in parts.items():
        if len({r.cell.implementation for one in contests for r in one.ranked}) > 1:
            here = tuple(map(said, JOB_AXES, job)) if len(parts) > 1 else ()
            found.append(_regrets(contests, here, place, {id(c): told[id(c)] for c in contests}))
    return found


def _by_job(contests: Sequence[Contest]) -> dict[tuple[str, ...], list[Contest]]:
    parts: dict[tuple[str, ...], list[Contest]] = defaultdict(list)
    for one in contests:
        parts[one.job].append(one)
    return parts


def _winners(ranking: Ranking, place: Layout, labels: Sequence[Label], common: Label) -> Sheet:
    rows = []
    for one, label in zip(ranking.contests, labels, strict=True):
        best = one.best
        rows.append(
            (
                *(value or "-" for value in label),
                _name(best, ranking) if best else "-",
                _time(best) if best else "",
                bytes_text(best.memory.workspace_bytes) if best and best.memory else "",
                _sureness(one, ranking),
            )
        )
    heads = (*place.rows, "fastest", "time", "workspace", "how sure")
    return Sheet(
        title=", ".join(["The fastest right implementation of each problem", *_wishes(ranking)]),
        common=common,
        heads=heads,
        rows=tuple(rows),
        axes=len(place.rows),
        legend=tuple(_legend(ranking)),
    )


def _wishes(ranking: Ranking) -> Iterator[str]:
    terms = ranking.terms
    yield from ["deterministic ones only"] * terms.deterministic
    if terms.max_workspace is not None:
        yield f"with at most {bytes_text(terms.max_workspace)} of workspace"
    yield from ["approximations too"] * terms.approximate


def _name(result: Result, ranking: Ranking) -> str:
    name = result.cell.implementation
    return "~" * (name in ranking.approximations) + name + "?" * (not trusted(result))


def _time(result: Result) -> str:
    time = of_time(result)
    return seconds_text(time.location) + uncertainty(time) if time else ""


def ratio_text(ratio: Interval) -> str:
    """`1.13 (1.08 to 1.19)`."""
    if ratio.low is None or ratio.high is None:
        return number(ratio.location)
    return f"{number(ratio.location)} ({number(ratio.low)} to {number(ratio.high)})"


def _named(one: Contest) -> list[Result]:
    """Whose names stand beside a problem."""
    behind = [one.next[0]] if one.next else []
    return [*one.ranked[:1], *one.tied[:MOST_NAMES], *behind, *one.unknown[:MOST_NAMES]]


def _doubt(one: Contest) -> str:
    """Why there is no winner, or none that is sure; empty where there is one."""
    match one.verdict:
        case Verdict.NONE:
            right = sum(r.status is Status.OK for r in one.results)
            told = [ends(one), f"{right} left out" if right else ""]
            return ", ".join(filter(None, told))
        case Verdict.UNSURE if (best := one.best) and best.timing:
            if trusted(best):
                return "no other time can be trusted"
            if best.timing.ci95_low_s is None:
                return "too few blocks for an interval"
            return f"grade {best.timing.grade}" if noisy(best) else "too wide an interval"
        case _:
            return ""


def _sureness(one: Contest, ranking: Ranking) -> str:
    def listed(found: Sequence[Result]) -> str:
        more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
        return ", ".join(_name(result, ranking) for result in found[:MOST_NAMES]) + more

    parts = [": ".join(filter(None, [one.verdict.value, _doubt(one)]))]
    if one.tied:
        tied = f"tied with {listed(one.tied)}"
        parts = [tied] if one.verdict is Verdict.TIED else [*parts, tied]
    if one.next:
        result, behind = one.next
        parts.append(f"{_name(result, ranking)} takes {ratio_text(behind.ratio)}")
    if one.unknown:
        parts.append(f"unknown: {listed(one.unknown)}")
    return "; ".join(parts)


def _legend(ranking: Ranking) -> list[str]:
    contests = ranking.contests
    verdicts = {one.verdict for one in contests}
    lines = []
    if any(one.next for one in contests):
        lines.append("takes: the first that is certainly slower; its time over the fastest's (95 % interval)")
    if ways := dict.fromkeys(gap.way for one in contests for gap in one.gaps if gap.tied):
        lines.append(f"tied: cannot be told apart from it: {', or '.join(ways)}")
    if Verdict.UNSURE in verdicts:
        lines.append(
            "unsure: the least time, but it, or all others, are too uncertain or noisy to call it the fastest"
        )
    if any(one.unknown for one in contests):
        lines.append("unknown: slower, but without an interval or noisy, so that they may be faster")
    if not all(trusted(r) for one in contests for r in _named(one)):
        lines.append("name?: its own time is noisy (grade C), or has no interval or too wide a one")
    if Verdict.ONLY in verdicts:
        lines.append("only one: no other one was right here and met the terms")
    approximate = {r.cell.implementation for one in contests for r in one.ranked} & {*ranking.approximations}
    lines += [f"~{name}: an approximation: {ranking.approximations[name]}" for name in sorted(approximate)]
    for why, found in ranking.left_out.items():
        counts: dict[str, int] = defaultdict(int)
        for result in found:
            counts[result.cell.implementation] += 1
        names = ", ".join(f"{name} ({count})" for name, count in counts.items())
        lines.append(f"left out, {why}: {names}")
    lost: dict[Status, list[str]] = defaultdict(list)
    for result in (r for one in contests for r in one.results if r.status is not Status.OK):
        lost[result.status].append(result.cell.implementation)
    if lost:
        told = [f"{len(lost[s])} {s}{_who(s, lost[s])}" for s in Status if s in lost]
        lines.append(f"never ranked: {', '.join(told)}; `attnbench show` says why")
    return lines


def _who(status: Status, names: Sequence[str]) -> str:
    """Whom an end befell that is not one of the machine or of the run."""
    once = [*dict.fromkeys(names)] if status not in (*ANSWERS, Status.NOT_RUN) else []
    more = " and more" * (len(once) > MOST_NAMES)
    return f" ({', '.join(once[:MOST_NAMES])}{more})" if once else ""


def _regrets(contests: Sequence[Contest], job: Label, place: Layout, labels: Mapping[int, Label]) -> Sheet:
    found = regrets(contests)
    doubt = any(regret.untrusted for regret in found)
    named = [(axis, at) for at, axis in enumerate(place.rows) if axis not in JOB_AXES or not job]
    rows = []
    for regret in found:
        label = labels[id(regret.worst_at)]
        where = ", ".join(said(axis, label[at]) for axis, at in named if label[at])
        rows.append(
            (
                regret.implementation,
                f"{regret.ranked}/{regret.problems}",
                f"{regret.alone / regret.problems:.0%}",
                f"{regret.won / regret.problems:.0%}",
                number(regret.mean),
                number(regret.worst),
                *[str(regret.untrusted or "")] * doubt,
                where if regret.worst > 1 else "",
            )
        )
    unsure = sum(one.verdict is Verdict.UNSURE for one in contests)
    lines = [
        "problems: those for which it was ranked; won: share of all problems that it won for certain; "
        "or tied: won, or could not be told apart from the best",
        "mean, worst: its time over the best's, geometric mean and maximum where it was ranked",
    ]
    if found and (first := found[0]).ranked == first.problems:
        lines.append(
            f"one for all: {first.implementation}, {number(first.mean)} times the best's time in the mean, "
            f"{number(first.worst)} times at worst"
        )
    elif found:
        lines.append("one for all: none was ranked for every problem")
    if doubt:
        lines.append("noisy: its times with the worst grade, or with no interval or too wide a one")
    if unsure:
        lines.append(
            f"left out: {unsure} {'problem' if unsure == 1 else 'problems'} whose least time is unsure"
        )
    return Sheet(
        title="What it costs to take one implementation for all problems",
        common=job,
        heads=(
            "implementation",
            "problems",
            "won",
            "or tied",
            "mean",
            "worst",
            *["noisy"] * doubt,
            "worst at",
        ),
        rows=tuple(rows),
        legend=tuple(lines),
    )
