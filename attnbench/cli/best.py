"""`attnbench best`: the fastest right implementation of each problem of a run, and what taking another one costs."""

import argparse
import json

from attnbench import __version__, results, tables, winners
from attnbench.cli import display, stored
from attnbench.errors import UserError
from attnbench.units import parse_bytes


def main(arguments: argparse.Namespace) -> int:
    """Print the ranking, or the dispatch table; 1 where nobody could be ranked for any problem."""
    if arguments.emit and arguments.format:
        raise UserError("give --format for the ranking or --emit for a dispatch table, not both")
    terms = winners.Terms(
        max_workspace=_bytes(arguments.max_workspace),
        deterministic=arguments.deterministic,
        approximate=arguments.approximate,
    )
    run, rows = stored.load(arguments.run)
    stored.check_timed(arguments.run, rows)
    ranking = winners.rank(
        stored.chosen(rows, arguments.only, arguments.without, arguments.where),
        dict(run.approximations),
        terms,
    )
    if arguments.emit:
        print(winners.dispatch(ranking, arguments.emit, run.run_id), end="")
        return 0
    match arguments.format:
        case "json":
            told = {"attnbench": __version__, "run": run.run_id, **winners.document(ranking)}
            print(json.dumps(told, indent=1))
        case "csv":
            print(results.csv_text(winners.RECORD, winners.records(ranking)), end="")
        case "markdown":
            print("\n\n".join(map(tables.sheet_markdown, winners.sheets(ranking))))
        case _:
            width, _ = display.size()
            print("\n\n".join(tables.sheet_text(s, width=width) for s in winners.sheets(ranking)))
    return 0 if any(one.ranked for one in ranking.contests) else 1


def _bytes(text: str | None) -> int | None:
    try:
        return None if text is None else parse_bytes(text)
    except UserError as error:
        raise UserError(f"--max-workspace: {error.message}", hint=error.hint) from None
