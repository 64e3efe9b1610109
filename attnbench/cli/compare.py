"""`attnbench compare`: what has become of each cell from one run to another?"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from attnbench import compare, results, tables, units
from attnbench.cli import collector, display
from attnbench.compare import INTERLEAVED_MARGIN, KINDS, MARGIN
from attnbench.errors import ResultsError, UserError
from attnbench.problem import suggestion
from attnbench.records import Result, Run

NONE = "none"
DEFAULT = tuple(kind for kind in KINDS if kind != "accuracy")
"""Errors within the budget are right; how much they vary with the inputs depends on the problem."""
ANYWHERE = ("wrong", "failing")
"""What no other machine, version or setting excuses."""


def main(arguments: argparse.Namespace) -> int:
    """Print what has changed; 1 where it is a regression. Raises `UserError`."""
    with collector.paused():
        return _main(arguments)


def _main(arguments: argparse.Namespace) -> int:
    asked = _kinds(arguments.fail_on)
    margin = None if arguments.margin is None else _margin(arguments.margin)
    try:
        found = _compared(arguments.base, arguments.new, margin)
    except OverflowError:
        raise ResultsError(
            "a time is so far from that of the other side that their ratio is no number",
            hint="look at the smallest and the largest `median_s` of both",
        ) from None
    kinds = asked if asked is not None else DEFAULT if found.comparable else ANYWHERE
    if arguments.format == "csv":
        _write_csv(found, arguments.all)
        print(tables.verdict_line(found, kinds), file=sys.stderr)  # an implementation as a whole has no row
    elif arguments.format == "json":
        document = tables.document(found, kinds, everything=arguments.all)
        print(json.dumps(document, indent=2))
    elif arguments.format == "markdown":
        print(tables.comparison_markdown(found, kinds, everything=arguments.all))
    else:
        width, color = display.size()
        shown = tables.comparison_text(found, kinds, everything=arguments.all, width=width, color=color)
        print(shown)
    return int(bool(found.regressions(kinds)))


def _compared(base: str, new: str | None, margin: float | None) -> compare.Comparison:
    if new is None:
        return in_turns(*results.load(Path(base)), margin)
    return compare.compare(compare.side(base), compare.side(new), MARGIN if margin is None else margin)


def in_turns(run: Run, rows: Sequence[Result], margin: float | None = None) -> compare.Comparison:
    """Of both sides of a run of `--against`. Raises `ResultsError` where it has but one."""
    base, new, ratios = compare.split(run, rows)
    return compare.compare(base, new, INTERLEAVED_MARGIN if margin is None else margin, ratios)


def _margin(text: str) -> float:
    try:
        return units.parse_share(text)
    except UserError as error:
        error.message = f"--margin: {error.message}"
        raise


def _kinds(text: str | None) -> tuple[str, ...] | None:
    """What `--fail-on` names; None where it is not given."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*KINDS, NONE):
            raise UserError(f"--fail-on: there is no `{name}`", hint=suggestion(name, (*KINDS, NONE)))
    if NONE in names and len(names) > 1:
        raise UserError("--fail-on: `none` stands alone", hint=f"one or more of {', '.join(KINDS)}")
    return tuple(name for name in names if name != NONE)


def _write_csv(found: compare.Comparison, everything: bool) -> None:
    """A row a cell, with the columns even where there is none."""
    rows = tables.records(found, everything=everything)
    names = list(rows[0] if rows else tables.records(found, everything=True)[0])
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
