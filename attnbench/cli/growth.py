"""`attnbench growth`: how time and workspace grow with length, where the fastest changes, and what lies beyond."""

import argparse
import json
import re

from attnbench import __version__, results, tables
from attnbench import growth as fits
from attnbench.cli import display, stored
from attnbench.errors import UserError


def main(arguments: argparse.Namespace) -> int:
    """Print the growth of every series of lengths. Raises `UserError` where a run has none."""
    further = [length for text in arguments.at for length in _lengths(text)]
    run, rows = stored.load(arguments.run)
    stored.check_timed(arguments.run, rows)
    chosen = stored.chosen(rows, arguments.only, arguments.without, arguments.where)
    series, others = fits.series(chosen)
    if not series:
        raise UserError(
            f"{arguments.run}: no implementation was right at {fits.LEAST_LENGTHS} lengths with all else equal",
            hint="run a suite with a list of lengths, such as seqlen: [512, 1024, 2048, 4096]",
        )
    longest = max(length for one in series for length in one.lengths)
    if within := [length for length in further if length <= longest]:
        raise UserError(
            f"--at: {within[0]} is no extrapolation, lengths up to {longest} were measured",
            hint="`attnbench show` prints what was measured",
        )
    found = [fits.growth(one, further, run.approximations) for one in series]
    match arguments.format:
        case "json":
            print(json.dumps({"attnbench": __version__, "run": run.run_id, **fits.document(found)}, indent=1))
        case "csv":
            print(results.csv_text(fits.RECORD, fits.records(found)), end="")
        case form:
            markdown, (width, _) = form == "markdown", display.size()
            sheets = [*(sheet for growth in found for sheet in fits.sheets(growth)), fits.legend(found)]
            told = [
                tables.sheet_markdown(sheet) if markdown else tables.sheet_text(sheet, width=width)
                for sheet in sheets
            ]
            if others:
                noun = "problem is" if others == 1 else "problems are"
                told.append(f"{others} {noun} in no series of {fits.LEAST_LENGTHS} lengths or more.")
            print("\n\n".join(told))
    return 0


def _lengths(text: str) -> list[int]:
    """`8k,65536` -> lengths. Raises `UserError`."""
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"([1-9]\d{0,12})(k?)", word.strip().lower())
        if match is None:
            raise UserError(f"--at: {word!r} is not a length", hint="write 65536 or 64k, several as 32k,64k")
        found.append(int(match[1]) * (1024 if match[2] else 1))
    return found
