"""`Comparison` -> text for a terminal, Markdown for a pull request, and records for programs."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from attnbench.compare import Comparison, Difference, Effect, Group, Pair, Verdict, Way
from attnbench.estimates import Interval
from attnbench.records import Status
from attnbench.results import KEY, Outcome
from attnbench.tables.reasons import clean, short
from attnbench.tables.rendering import GREEN, RED, Column, escaped, in_color, printed, wrapped
from attnbench.units import bytes_text, number, seconds_text

MOST_IN_MARKDOWN = 100
"""Cells at the most, unless all are asked for: a comment of a pull request holds 65,536 characters."""
LONGEST_REASON = 120
FAR = 2
"""Times as long, or as short, from which on it is said that a cell is unclear all the same."""
_BAD = (
    *(Verdict.NEWLY_WRONG, Verdict.NEWLY_FAILING, Verdict.ONLY_IN_BASE),
    *(Verdict.SLOWER, Verdict.LIKELY_SLOWER),
)
_GOOD = (Verdict.FIXED, Verdict.FASTER, Verdict.LIKELY_FASTER)
_CELLS = ("verdict", "implementation", "cell", "base", "new", "ratio", "95 % interval", "also")
_GROUPS = (
    *("implementation", "cells", "ratio", "95 % interval", "least", "most", "base", "new"),
    *("beside others", "verdict"),
)
_RIGHT = ("cells", "base", "new", "ratio", "least", "most")


def chosen(comparison: Comparison, everything: bool) -> list[Pair]:
    """The cells to show: those that changed, or all, the worst first."""
    return [pair for pair in comparison.pairs if everything or pair.changed]


# ---------------------------------------------------------------- words


def percent_text(share: float) -> str:
    """`0.03` -> `3 %`."""
    return f"{100 * share:.3g} %"


def verdict_text(verdict: Verdict, margin: float) -> str:
    """A verdict with the margin that it depends on."""
    return f"same within {percent_text(margin)}" if verdict is Verdict.SAME else verdict.value


def verdict_line(comparison: Comparison, kinds: Collection[str]) -> str:
    """What is a regression, in a few words."""
    if not kinds:
        return "no gate"
    counts = Counter(kind for pair in comparison.pairs for kind in pair.regressions if kind in kinds)
    parts = [f"{count} {kind}" for kind, count in counts.items()]
    if "slower" in kinds:
        names = [clean(group.name) for group in comparison.groups if group.regressed]
        parts += [f"{', '.join(names)} slower as a whole"] * bool(names)
    if parts:
        return f"regressions: {'; '.join(parts)}"
    if not comparison.comparable and "slower" not in kinds:
        return "no gate for times: the runs differ in more than the code"
    return "no regression"


def _counts(comparison: Comparison) -> str:
    counts = comparison.counts
    told = [f"{counts[v]} {verdict_text(v, comparison.margin)}" for v in Verdict if counts[v]]
    changes = Counter(
        change for pair in comparison.pairs for change in (pair.memory, pair.accuracy) if change
    )
    told += [f"{count} {change}" for change, count in changes.items()]
    return f"{len(comparison.pairs)} cells: {', '.join(told)}"


def _side(name: str, runs: int) -> str:
    return f"{clean(name)} ({runs} runs)" if runs > 1 else clean(name)


def _heading(comparison: Comparison) -> tuple[str, str]:
    base, new = comparison.base, comparison.new
    return _side(base.name, len(base.runs)), _side(new.name, len(new.runs))


def _arrow(before: str, now: str) -> str:
    return f"{before} -> {now}"


def _difference(difference: Difference) -> str:
    before, now = (clean(" | ".join(values)) for values in (difference.base, difference.new))
    return f"{difference.kind}: {clean(difference.what)}: {_arrow(before, now)}"


def _ungated(kinds: Collection[str], comparison: Comparison) -> str:
    if comparison.comparable:
        return ""
    if "slower" in kinds:
        return "a change of time need not be the code's"
    return "no change of time or memory is called a regression therefore, unless --fail-on asks for it"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 10 else number(value)


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{_ratio(interval.low)} to {_ratio(interval.high)}"


def _end(outcome: Outcome) -> str:
    """A time, or how the cell ended."""
    if outcome.status is None:
        return "-"
    return seconds_text(outcome.median_s) if outcome.median_s is not None else outcome.status.value


def _also(pair: Pair) -> str:
    """What there is to say of a cell besides its time."""
    told = []
    base, new = pair.base, pair.new
    if pair.memory and base.workspace_bytes is not None and new.workspace_bytes is not None:
        told.append(f"workspace {_arrow(bytes_text(base.workspace_bytes), bytes_text(new.workspace_bytes))}")
    if pair.accuracy:
        errors = ((base.err_row, new.err_row), (base.err_rms, new.err_rms))
        known = [(before, now) for before, now in errors if before is not None and now is not None]
        before, now = max(known, key=lambda pair: max(pair) / (min(pair) or 1e-300))
        told.append(f"error {_arrow(f'{before:.2g}', f'{now:.2g}')}")
    if pair.effect and pair.effect.noisy:
        told.append("too noisy to tell")
    for outcome, whose in ((new, ""), (base, "base: ")):
        if outcome.status not in (None, Status.OK) and outcome.reason:
            told.append(whose + short(outcome.reason, LONGEST_REASON))
            break
    return "; ".join(told)


def _legend(comparison: Comparison) -> list[str]:
    """How the numbers are to be read, as far as they are there."""
    ways = {pair.effect.way for pair in comparison.pairs if pair.effect}
    if not ways:
        return []
    said = " or ".join(way.value for way in Way if way in ways)
    lines = [
        f"ratio: time of new over base, of several cells their geometric mean; intervals rest on {said}; `slower` "
        "and `faster` hold for all cells together"
    ]
    if any(group.beside for group in comparison.groups):
        lines.append(
            "beside others: the ratio over that of each implementation that has not changed, and the median of these, problem "
            "by problem, with its 95 % interval; what moves all alike, as the machine does, is not in it"
        )
    if comparison.in_turns and Way.WITHIN in ways:
        lines.append(
            "some cells have too few rounds in common for a ratio taken in turns: give them more time (`--preset gate`)"
        )
    elif ways & {Way.CELLS, Way.WITHIN}:
        lines.append(
            "how far two runs lie apart here is not known, so a change is at most `likely`: measure three runs a "
            "side, or calibrate the machine (`attnbench selftest --calibrate`)"
        )
    far = [
        pair for pair in comparison.pairs if pair.verdict is Verdict.UNCLEAR and pair.shift > math.log(FAR)
    ]
    if far:
        lines.append(
            f"`unclear`, but more than {FAR} times as long or as short as before: {len(far)}; noise that wide hides a change: "
            "see `--all`, measure three runs a side"
        )
    return lines


# ---------------------------------------------------------------- rows


def _rows(pairs: Sequence[Pair], margin: float) -> tuple[str, list[list[str]]]:
    """What all cells have in common, and for each the texts of `_CELLS`."""
    labels = [_words(pair) for pair in pairs]
    common = set(labels[0]).intersection(*labels[1:]) if len(labels) > 1 else set()
    rows = []
    for pair, label in zip(pairs, labels, strict=True):
        ratio = pair.effect.ratio if pair.effect else None
        rows.append(
            [
                verdict_text(pair.verdict, margin),
                clean(pair.key[1]),
                clean(" ".join(word for word in label if word not in common)),
                _end(pair.base),
                _end(pair.new),
                _ratio(ratio.location) if ratio else "",
                _interval(ratio) if ratio else "",
                _also(pair),
            ]
        )
    return clean(" ".join(word for word in labels[0] if word in common)) if labels else "", rows


def _words(pair: Pair) -> list[str]:
    """Problem and job of a cell, in words that stand on their own."""
    problem, _, device, threads, cache, clock = pair.key
    return [
        *problem.split(),
        f"device={device}",
        f"threads={threads}",
        f"cache={cache}",
        f"clock={clock}",
    ]


def _group_rows(comparison: Comparison) -> list[list[str]]:
    overall = [comparison.overall] if comparison.overall else []
    return [_group_row(group, comparison.margin) for group in (*overall, *comparison.groups)]


def _group_row(group: Group, margin: float) -> list[str]:
    interval = group.effect.ratio
    return [
        clean(group.name) or "all",
        str(group.cells),
        _ratio(interval.location),
        _interval(interval),
        _ratio(group.least),
        _ratio(group.most),
        seconds_text(group.base_s),
        seconds_text(group.new_s),
        _beside(group.beside),
        verdict_text(group.verdict, margin) if group.name else "",
    ]


def _beside(effect: Effect | None) -> str:
    return f"{_ratio(effect.ratio.location)} ({_interval(effect.ratio)})" if effect else ""


# ---------------------------------------------------------------- text and Markdown


def comparison_text(
    comparison: Comparison,
    kinds: Collection[str],
    *,
    everything: bool = False,
    width: int = 100,
    color: bool = False,
) -> str:
    """Differences of the circumstances, the summary, then cells, for a terminal of `width` columns."""
    before, now = _heading(comparison)
    lines = [f"base  {before}", f"new   {now}", ""]
    if comparison.differences:
        lines += [f"  {_difference(difference)}" for difference in comparison.differences]
        lines += [*wrapped(told, width)] if (told := _ungated(kinds, comparison)) else []
        lines.append("")
    lines += [*wrapped(_counts(comparison), width, 2), ""]
    if groups := _group_rows(comparison):
        lines += [*_drawn(_GROUPS, groups, color), ""]
    pairs = chosen(comparison, everything)
    common, rows = _rows(pairs, comparison.margin)
    if rows:
        lines += wrapped(f"cells: {common}", width, 2) if common else []
        lines += [*_drawn(_CELLS, rows, color), ""]
    for told in _legend(comparison):
        lines += wrapped(told, width, 2)
    return "\n".join([*lines, verdict_line(comparison, kinds)])


def _drawn(names: Sequence[str], rows: Sequence[Sequence[str]], color: bool) -> list[str]:
    columns = []
    for name, texts in zip(names, zip(*rows, strict=True), strict=True):
        if any(texts):
            made = Column([name], texts, right=name in _RIGHT)
            if color and name == "verdict":
                made.body = [_painted(line) for line in made.body]
            columns.append(made)
    return printed(columns)


def _painted(line: str) -> str:
    paint = RED if line.strip() in _BAD else GREEN if line.strip() in _GOOD else ""
    return in_color(line, paint) if paint else line


def comparison_markdown(comparison: Comparison, kinds: Collection[str], *, everything: bool = False) -> str:
    """The same as GitHub's Markdown, to be pasted into a pull request."""
    before, now = _heading(comparison)
    lines = [f"### attnbench: {escaped(verdict_line(comparison, kinds))}", ""]
    lines += [f"base: {escaped(before)}, new: {escaped(now)}", ""]
    if comparison.differences:
        lines += [f"- {escaped(_difference(difference))}" for difference in comparison.differences]
        lines += ["", escaped(_ungated(kinds, comparison)), ""]
    lines += [escaped(_counts(comparison)), ""]
    if groups := _group_rows(comparison):
        lines += [*_pipes(_GROUPS, groups), ""]
    pairs = chosen(comparison, everything)
    shown = pairs if everything else pairs[:MOST_IN_MARKDOWN]
    common, rows = _rows(shown, comparison.margin)
    if rows:
        lines += [f"Cells: {escaped(common)}", ""] if common else []
        lines += [*_pipes(_CELLS, rows), ""]
    if len(shown) < len(pairs):
        lines += [f"and {len(pairs) - len(shown)} more, which `--format csv` lists", ""]
    lines += [f"{told}." for told in _legend(comparison)]  # words of our own, with code in backticks
    return "\n".join(lines)


def _pipes(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    kept = [at for at, texts in enumerate(zip(*rows, strict=True)) if any(texts)]
    rule = "|".join("---:" if names[at] in _RIGHT else "---" for at in kept)
    lines = [f"| {' | '.join(names[at] for at in kept)} |", f"|{rule}|"]
    return [*lines, *(f"| {' | '.join(escaped(row[at]) for at in kept)} |" for row in rows)]


# ---------------------------------------------------------------- records


def _record(pair: Pair) -> dict[str, Any]:
    """None where there is no value."""
    effect = pair.effect
    return {
        **dict(zip(KEY, pair.key, strict=True)),
        "verdict": pair.verdict.value,
        "regressions": "+".join(pair.regressions),
        **_effect_record(effect),
        "memory": pair.memory,
        "accuracy": pair.accuracy,
        **{
            f"{side}_{name}": value
            for side, outcome in (("base", pair.base), ("new", pair.new))
            for name, value in (
                ("status", outcome.status.value if outcome.status else None),
                ("reason", outcome.reason),
                ("runs", outcome.runs if outcome.status else 0),
                ("median_s", outcome.median_s),
                ("workspace_bytes", outcome.workspace_bytes),
                ("err_row", outcome.err_row),
                ("err_rms", outcome.err_rms),
            )
        },
    }


def records(comparison: Comparison, *, everything: bool = False) -> list[dict[str, Any]]:
    """Cells for programs, in SI units, each with the same keys."""
    return [_record(pair) for pair in chosen(comparison, everything)]


def _effect_record(effect: Effect | None) -> dict[str, Any]:
    interval = effect.ratio if effect else None
    return {
        "ratio": interval.location if interval else None,
        "ratio_ci95_low": interval.low if interval else None,
        "ratio_ci95_high": interval.high if interval else None,
        "interval_from": effect.way.value if effect else "",
    }


def document(comparison: Comparison, kinds: Collection[str], *, everything: bool = False) -> dict[str, Any]:
    """All of it for programs, in SI units."""

    def group(one: Group) -> dict[str, Any]:
        return {
            "implementation": one.name or None,
            "cells": one.cells,
            **_effect_record(one.effect),
            "least": one.least,
            "most": one.most,
            "base_s": one.base_s,
            "new_s": one.new_s,
            **{f"beside_{name}": value for name, value in _effect_record(one.beside).items()},
            "verdict": one.verdict.value,
        }

    return {
        "base": {"name": comparison.base.name, "runs": [run.run_id for run in comparison.base.runs]},
        "new": {"name": comparison.new.name, "runs": [run.run_id for run in comparison.new.runs]},
        "margin": comparison.margin,
        "comparable": comparison.comparable,
        "fail_on": sorted(kinds),
        "regressions": comparison.regressions(kinds),
        "differences": [
            {"kind": one.kind, "what": one.what, "base": one.base, "new": one.new}
            for one in comparison.differences
        ],
        "counts": {verdict.value: count for verdict, count in comparison.counts.items()},
        "overall": group(comparison.overall) if comparison.overall else None,
        "implementations": [group(one) for one in comparison.groups],
        "cells": records(comparison, everything=everything),
    }
