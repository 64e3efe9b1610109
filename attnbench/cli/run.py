"""`attnbench run`: measure a suite, print its tables, leave a folder."""

import argparse
import contextlib
import dataclasses
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from types import FrameType

from attnbench import header, lock, plan, results, runner, tables, units
from attnbench.against import SUFFIX, Against, ask, merged
from attnbench.cli import INTERRUPTED, choose, compare, display, parser
from attnbench.errors import ResultsError, UserError
from attnbench.noise import GRADES
from attnbench.records import Result, Run, Status

BAD = (Status.WRONG, Status.IMPOSSIBLE, Status.FAILED, Status.CRASHED)
STRICT = (Status.OUT_OF_MEMORY, Status.TIMED_OUT)
PARENT = Path("results")


def main(arguments: argparse.Namespace) -> int:
    """Run, and return 0 (done), 1 (a row is bad), 2 (nothing could run) or 130 (interrupted)."""
    if sys.platform != "linux":
        raise UserError(
            f"attnbench measures on Linux only, not on {sys.platform}",
            hint="`attnbench show` works everywhere",
        )
    by = tables.axes(arguments.by)
    budget = _time_budget(arguments.time_budget)
    if arguments.seed is not None and arguments.seed < 0:
        raise UserError(f"--seed must be at least 0, got {arguments.seed}")
    earlier: Run | None = None
    if arguments.resume:
        folder = Path(arguments.resume)
        earlier = _earlier(folder)
        arguments = _again(arguments, earlier)
    registry = choose.registry(arguments)
    against = Against.parse(arguments.against, arguments.plugin) if arguments.against else None
    suite = choose.suite(arguments, registry, earlier.suite_text if earlier else None)
    threads = choose.threads(suite)
    choose.check_threads(threads)
    choice = {"threads": threads, "only": arguments.only, "without": arguments.without}
    plan.make(
        suite, registry, devices=plan.resolve(suite.devices), **choice
    )  # bad input ends here, before any work
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminated_is_interrupted())
        patient = stack.enter_context(runner.fork_server(patient=True))
        server = stack.enter_context(runner.fork_server())
        devices, why, probed = runner.probe(patient)
        wanted = plan.resolve(suite.devices, (choose.cpu(suite), *devices))
        missing = {str(d): f"no CUDA device ({why})" for d in wanted if d.kind == "cuda" and not d.name}
        made = plan.make(suite, registry, devices=wanted, missing=missing, **choice)
        base, side = None, None
        if against:
            theirs = [patient, server]
            if against.python != sys.executable:
                theirs = [
                    stack.enter_context(runner.fork_server(asleep, against.python))
                    for asleep in (True, False)
                ]
            base = ask(theirs[0], against, suite, devices=wanted, missing=missing, choice=choice)
            side = base.side(*theirs)
            made = merged(made, base, suite.measure.width)
        seed = earlier.seed if earlier else _seed(arguments.seed, suite.measure.seed)
        head = header.make(
            schema=results.SCHEMA,
            run_id="",
            suite=suite,
            words=arguments.words,
            plan=made,
            registry=registry,
            seed=seed,
            probed=probed,
            base=base,
        )
        if earlier is None:
            folder = results.create(PARENT, arguments.output, suite.name)
            head = dataclasses.replace(head, run_id=folder.resolve().name)
            results.write_header(folder, head)
        else:
            head = _same(earlier, head)
        stack.enter_context(lock.held([str(device) for device in wanted], display.waiting))
        done = {r.cell.key: r for r in results.read_journal(folder)} if earlier else {}
        if earlier:
            _nothing_lost(folder, done)
        if earlier and all(cell.cell.key in done for cell in made.cells):
            print("nothing was left to do: every cell has its row", file=sys.stderr)
        decided = len(made.cells) - len(made.jobs)
        progress = stack.enter_context(display.progress(sys.stderr, arguments.quiet, decided))
        job = runner.Runner(
            plan=made,
            suite=suite,
            registry=registry,
            server=server,
            patient=patient,
            base=side,
            folder=folder,
            seed=seed,
            done=done,
            listener=progress,
            time_budget_s=budget,
            limits=True,
        )
        rows = job.run()
    results.write_csv(folder, rows, head)
    if display.only_verified(rows):
        shown = {"error": tables.table("error", rows, baseline=made.baseline)}
    else:
        shown = {"timing": tables.timing(rows, baseline=made.baseline)}
        shown["memory"] = tables.memory(rows, baseline=made.baseline)
    for kind, table in shown.items():
        (folder / f"{kind}.md").write_text(tables.markdown(table), encoding="utf-8")
    print(display.tables_text(rows, by, head))
    regressed = False
    if against and not job.stopped:
        compared = compare.in_turns(head, rows)
        width, color = display.size()
        print("\n" + tables.comparison_text(compared, compare.DEFAULT, width=width, color=color))
        regressed = bool(compared.regressions(compare.DEFAULT))
    print(f"\n{folder}/results.csv", file=sys.stderr)
    if any(r.status is Status.NOT_RUN for r in rows):
        given = [word for plugin in arguments.plugin for word in ("--plugin", plugin)]
        given += [word for against in arguments.against for word in ("--against", against)]
        again = shlex.join(["attnbench", "run", "--resume", str(folder), *given])
        print(f"{job.stopped}; go on with: {again}", file=sys.stderr)
    else:
        shutil.rmtree(folder / runner.CACHE, ignore_errors=True)
    if job.stopped == "interrupted":
        return INTERRUPTED
    if against and job.stopped:
        raise UserError(
            f"the sides were not compared: {job.stopped}",
            hint="go on with the run: a part of it is no verdict",
        )
    ours = [row for row in rows if not row.cell.implementation.endswith(SUFFIX)]
    return max(_code(ours, arguments.strict), int(regressed))


def _time_budget(text: str | None) -> float | None:
    """Seconds; None where there is no such bound."""
    if text is None:
        return None
    try:
        seconds = units.parse_seconds(text)
    except UserError as error:
        error.message = f"--time-budget: {error.message}"
        raise
    if seconds <= 0:
        raise UserError(
            f"--time-budget must be above 0, got {text}", hint="give a time such as 10m, or leave it out"
        )
    return seconds


def _seed(given: int | None, of_suite: int | None) -> int:
    """A seed that nobody can have tuned for, unless one is asked for."""
    if given is not None:
        return given
    return secrets.randbelow(2**31) if of_suite is None else of_suite


def _earlier(folder: Path) -> Run:
    """The header of the run to go on with."""
    try:
        return results.read_header(folder)
    except ResultsError as error:
        error.hint = error.hint or "give the folder of a run, or start one with `attnbench run SUITE`"
        raise


def _again(arguments: argparse.Namespace, earlier: Run) -> argparse.Namespace:
    """The arguments of the earlier run; only how this part of it ends and looks is taken from now."""
    fixed = ("suite", "problem", "set", "device", "preset", "only", "without", "output", "seed")
    if any(getattr(arguments, name) not in (None, []) for name in fixed):
        raise UserError("--resume goes on with the same suite and choice", hint="give only --resume DIR")
    first = parser().parse_args(list(earlier.command))
    first.words = list(earlier.command)
    first.plugin = arguments.plugin or first.plugin
    first.against = arguments.against or first.against
    for name in ("quiet", "time_budget", "strict", "resume"):
        setattr(first, name, getattr(arguments, name))
    return first


def _same(earlier: Run, now: Run) -> Run:
    """The earlier header, where this machine and code can go on with its rows. Raises `ResultsError`."""
    if differences := results.compatible(earlier.fingerprint, now.fingerprint):
        raise ResultsError(
            "cannot resume, because rows of both parts could not stand in one table:\n  "
            + "\n  ".join(differences),
            hint="start a new run, or restore what has changed",
        )
    return earlier


def _nothing_lost(folder: Path, done: Container[object]) -> None:
    """Raises `ResultsError` where `results.csv` has measured rows that the journal lacks: it would be replaced."""
    try:
        rows = results.read_results(folder)[1]
    except ResultsError:  # the run was killed before it was written
        return
    if lost := sum(row.timing is not None and row.cell.key not in done for row in rows):
        raise ResultsError(
            f"{folder} cannot be resumed: {lost} rows of its results.csv are not in its journal",
            hint="restore journal.jsonl, or start a new run",
        )


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as cleanly as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _code(rows: Sequence[Result], strict: bool) -> int:
    """0 or 1, see `main`. Raises `UserError` where nothing could run."""
    statuses = {row.status for row in rows}
    noisy = any(row.timing and row.timing.grade == GRADES[-1] for row in rows)
    if statuses & {*BAD, *(STRICT if strict else ())} or (strict and noisy):
        return 1
    if statuses <= {Status.UNSUPPORTED, Status.UNAVAILABLE, Status.NOT_RUN} and Status.NOT_RUN in statuses:
        reason = next(row.reason for row in rows if row.status is Status.NOT_RUN)
        raise UserError(f"nothing was measured: {reason}", hint="give it more time: `--time-budget`")
    if statuses <= {Status.UNSUPPORTED, Status.UNAVAILABLE}:
        row = next((r for r in rows if r.status is Status.UNAVAILABLE), rows[0])
        hint = "`attnbench list` shows what each implementation needs and supports"
        kind = row.cell.device.partition(":")[0]
        if kind != "cpu" and (row.status is Status.UNAVAILABLE or row.reason == f"no {kind}"):
            hint = "run with --device cpu, or install a CUDA build of torch on a machine with such a device"
        raise UserError(
            f"nothing could run: {row.cell.implementation}: {row.status}: {row.reason}", hint=hint
        )
    return 0
