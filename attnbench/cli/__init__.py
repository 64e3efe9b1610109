"""The command line: arguments and exit codes. This package is the only one that prints.

Each verb lives in a module of its own, imported when it is asked for, so that `--help` stays quick.
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from attnbench import __version__
from attnbench.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130


class _Once(argparse.Action):
    """An option whose earlier value would be lost if it were given again."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option} is given twice; several problems are a suite")
        setattr(namespace, self.dest, values)


def _problem(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--problem", action=_Once, metavar="TEXT", help="words such as 'model=gpt2 seqlen=512'")


def _suite(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("suite", nargs="?", help="a YAML file, or the name of a shipped suite such as `quick`")
    _problem(verb)
    verb.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the suite"
    )
    verb.add_argument(
        "--device", action="append", default=[], help="override the suite's devices: cpu, cuda, cuda:1"
    )
    verb.add_argument(
        "--preset", help="quick, default or gate: how long each cell is measured; none: not at all"
    )
    _choice(verb)


def _choice(verb: argparse.ArgumentParser) -> None:
    _names(verb)
    _plugin(verb)


def _names(verb: argparse.ArgumentParser) -> None:
    for option, meaning in (("--only", "take"), ("--without", "leave out")):
        verb.add_argument(
            option,
            action="extend",
            type=lambda text: text.split(","),
            default=[],
            metavar="GLOB,...",
            help=f"implementations to {meaning}",
        )


def _plugin(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py|MODULE",
        help="a plugin that is not installed",
    )


def _stored(verb: argparse.ArgumentParser) -> None:
    _names(verb)
    verb.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="AXIS=VALUE,...",
        help="only cells such as mask=causal",
    )


def _ranked(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="a run's folder or its results.csv")
    _stored(verb)
    verb.add_argument("--format", choices=("table", "markdown", "csv", "json"), help="default: table")


def _drawn(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "run", nargs="+", help="runs' folders or results.csv; the others are held against the first"
    )
    _stored(verb)


def _by(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--by", metavar="ROWS,COLUMNS", help="axes of the tables, such as seqlen+mask,implementation"
    )


def parser() -> argparse.ArgumentParser:
    """Every verb with its arguments."""
    root = argparse.ArgumentParser(
        prog="attnbench",
        description="Verified, isolated, honestly timed comparisons of attention implementations.",
    )
    root.add_argument("--version", action="version", version=f"attnbench {__version__}")
    root.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = root.add_subparsers(dest="verb", metavar="VERB", required=True)

    run = verbs.add_parser("run", help="measure a suite and write its tables")
    _suite(run)
    _by(run)
    run.add_argument("-o", "--output", metavar="DIR", help="the run's folder (default: results/SUITE-TIME)")
    run.add_argument("--resume", metavar="DIR", help="go on with a run that was interrupted")
    run.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="python=PATH|plugin=FILE.py",
        help="measure the same with another interpreter, or with another file for --plugin, in the same rounds",
    )
    run.add_argument("--seed", type=int, help="of inputs and order; by default it changes from run to run")
    run.add_argument(
        "--time-budget", metavar="TIME", help="start no further job after 90s, 10m, 1h; the rest is `not run`"
    )
    run.add_argument(
        "--strict", action="store_true", help="exit 1 for out of memory, timed out and noisy too"
    )
    run.add_argument("-q", "--quiet", action="store_true", help="no progress")

    plan = verbs.add_parser("plan", help="show what a run would do, without touching a device")
    _suite(plan)
    plan.add_argument("--all", action="store_true", help="a line for every cell")

    show = verbs.add_parser("show", help="print the tables of a run again")
    show.add_argument("run", help="a run's folder or its results.csv")
    _by(show)
    show.add_argument(
        "--view",
        action="append",
        default=[],
        help="time, speedup, tflops, gbps or memory (default: time and memory)",
    )
    show.add_argument("--baseline", metavar="NAME", help="what speed-ups are against (default: the suite's)")

    compare = verbs.add_parser("compare", help="say what has become of each cell from one run to another")
    compare.add_argument(
        "base", help="a run's folder, a CSV with its cells, or a glob in quotes of several runs"
    )
    compare.add_argument("new", nargs="?", help="likewise; left out, the one run is one of `run --against`")
    compare.add_argument("--all", action="store_true", help="every cell, not only those that changed")
    compare.add_argument(
        "--format", choices=("table", "markdown", "csv", "json"), default="table", help="(default: table)"
    )
    compare.add_argument(
        "--margin",
        metavar="SHARE",
        help="a change of time that counts as none (default: 3%%, and 1%% of times taken in turns)",
    )
    compare.add_argument(
        "--fail-on",
        metavar="KIND,...",
        help="what is a regression: slower, memory, accuracy, wrong, failing, missing, or none "
        "(default: all but accuracy, where machine, versions and settings are the same)",
    )

    best = verbs.add_parser("best", help="name the fastest right implementation of each problem of a run")
    _ranked(best)
    best.add_argument("--max-workspace", metavar="BYTES", help="rank only what needs no more, such as 64MiB")
    best.add_argument(
        "--deterministic", action="store_true", help="rank only what gave the same bits in repeated calls"
    )
    best.add_argument("--approximate", action="store_true", help="rank approximations too")
    best.add_argument(
        "--emit", choices=("python", "json", "csv"), help="write a table by which a program chooses instead"
    )

    growth = verbs.add_parser(
        "growth", help="fit time and workspace of a run over length, and find crossovers"
    )
    _ranked(growth)
    growth.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="LENGTH,...",
        help="extrapolate to these too, such as 64k",
    )

    export = verbs.add_parser("export", help="write a run in the format of another tool")
    export.add_argument("run", help="a run's folder or its results.csv")
    export.add_argument(
        "--format",
        required=True,
        choices=("pytest-benchmark", "json", "parquet", "markdown"),
        help="what to write",
    )
    export.add_argument("-o", "--output", metavar="FILE", help="a new file (default: standard output)")
    page = verbs.add_parser("report", help="write runs as one HTML file with figures, filters and tables")
    _drawn(page)
    page.add_argument(
        "-o", "--output", metavar="FILE.html", help="default: report.html in the first run's folder"
    )

    plot = verbs.add_parser("plot", help="draw one figure of a run as a picture")
    _drawn(plot)
    plot.add_argument("-o", "--output", metavar="FILE.png|svg", required=True)
    plot.add_argument(
        "--figure",
        default="time",
        help="time, ratio, winners, throughput, memory, workspace or accuracy (default: time)",
    )
    plot.add_argument("--dark", action="store_true", help="light on dark")

    lists = verbs.add_parser("list", help="implementations and plugins, with the reason where one is missing")
    lists.add_argument(
        "--problem", action=_Once, metavar="TEXT", help="say of each whether it computes this problem"
    )
    lists.add_argument(
        "--why", action="append", default=[], metavar="NAME", help="with --problem: of these only, and why"
    )
    lists.add_argument("--json", action="store_true", help="all of it for programs")
    _plugin(lists)

    check = verbs.add_parser("check", help="verify implementations without timing them")
    check.add_argument("only", nargs="+", metavar="GLOB", help="implementations to check")
    _problem(check)
    check.add_argument("--device", default="cpu")
    check.add_argument("--strided", action="store_true", help="with inputs that are not contiguous")
    check.add_argument(
        "--batch-invariance", action="store_true", help="a member of a batch alone, bit for bit"
    )
    _plugin(check)

    proof = verbs.add_parser("selftest", help="check that attnbench measures right on this machine")
    proof.add_argument("--quick", action="store_true", help="in a minute, with fewer repetitions")
    proof.add_argument(
        "--only",
        action="extend",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="checks to make, such as durations,memory",
    )
    proof.add_argument("--json", action="store_true", help="all of it for programs")
    proof.add_argument(
        "--calibrate", action="store_true", help="make no checks, but store how far runs lie apart here"
    )

    peaks = verbs.add_parser("peaks", help="show what a device does at most, measured where it is not known")
    peaks.add_argument("--device", default="cpu")
    peaks.add_argument("--json", action="store_true", help="for programs")
    peaks.add_argument("--again", action="store_true", help="measure in any case, and keep what is higher")

    verbs.add_parser("schema", help="print the JSON Schema of a suite")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    words = [*(sys.argv[1:] if argv is None else argv)]  # `list` is a module here, once it was asked for
    arguments = parser().parse_args(words)
    arguments.words = words
    try:
        verb = importlib.import_module(f"attnbench.cli.{arguments.verb}")
        code: int = verb.main(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if arguments.debug:
            raise
        print(f"error: {error.message}", file=sys.stderr)
        if error.shown:
            print(f"\n{error.shown}", file=sys.stderr)
        if error.hint:
            print(f"\nhint: {error.hint}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `attnbench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC or arguments.debug:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: cannot write: {error.strerror}", file=sys.stderr)
        return BAD_INPUT
