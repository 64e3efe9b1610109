"""Each check passes a sound harness and fails a broken one; the cheap ones run for real."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from attnbench import calibration, runner, selftest
from attnbench.cli import main
from attnbench.records import Block, Cell, Memory, Result, Status, Timing
from attnbench.selftest import (
    Bench,
    Check,
    NotMeasuredError,
    agreement,
    alarms,
    caches,
    contention,
    durations,
    faults,
    memory,
    resume,
    runs,
    slowdowns,
)
from attnbench.selftest.bench import timing
from attnbench.selftest.contention import busy
from attnbench.selftest.contrast import least_held, most_missed
from attnbench.selftest.specimens import FAULTS, SAMES, SCRATCH_BYTES, STRETCHES, WAITS_S

# ---------------------------------------------------------------- for real


@pytest.fixture(scope="module")
def sound() -> Iterator[Bench]:
    with Bench() as bench:
        yield bench


DEFECTS = """
from attnbench import clocks, measure

true = clocks.perf_counter
clocks.perf_counter = lambda: 0.98 * true()


def rise(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = measure._status_bytes("VmRSS:")
    kept = call()
    return measure._status_bytes("VmHWM:") - before, kept


measure._rise = rise
measure.return_memory_eagerly = lambda: None
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Its clock runs 2 % slow, and its memory is that of a process in which freed memory is used again."""
    here = tmp_path_factory.mktemp("defects")
    (here / "selftest_defects.py").write_text(DEFECTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setattr(runner, "PRELOAD", (*runner.PRELOAD, "selftest_defects"))
        with Bench() as bench:
            yield bench


def by_text(checks: Iterator[Check], word: str) -> Check:
    (found,) = [check for check in checks if word in check.text]
    return found


def test_a_known_duration_is_measured_right(sound: Bench) -> None:
    check = by_text(durations.checks(sound, quick=True), "1.00 ms")
    assert check.passed, check.text


def test_a_clock_that_is_two_percent_off_is_found(broken: Bench) -> None:
    check = by_text(durations.checks(broken, quick=True), "1.00 ms")
    assert check.passed is False, check.text
    assert check.figure == pytest.approx(-20e-6, rel=0.5)


def test_known_allocations_are_measured_right(sound: Bench) -> None:
    found = list(memory.checks(sound, quick=True))
    assert len(found) == len(SCRATCH_BYTES)
    assert [check.text for check in found if not check.passed] == []


def test_memory_that_hides_where_it_is_used_again_is_found(broken: Bench) -> None:
    assert by_text(memory.checks(broken, quick=True), "16.0 MiB after a trap").passed is False


def test_the_fault_drill_passes(sound: Bench) -> None:
    assert [(check.passed, check.figure) for check in faults.checks(sound, quick=True)] == [
        (True, 7),
        (True, 2),
    ]


def test_other_timers_take_their_samples_in_the_rounds_of_ours(sound: Bench) -> None:
    clocks = dict(
        zip(SAMES[1:4], (*agreement.RIVALS.values(), "attnbench.selftest.rivals:Autorange"), strict=True)
    )
    rows = sound.measure("batch=1 heads=1 head_dim=8 seqlen=8", SAMES[:4], clocks=clocks)

    assert {name: row.cell.clock for name, row in rows.items()} == {SAMES[0]: "wall", **clocks}
    ours, *theirs = (timing(row) for row in rows.values())
    assert ours.inner > 1
    for other in theirs:
        assert other.inner == 1
        assert 0.3 < other.median_s / ours.median_s < 3


def test_busy_processes_are_there_and_then_gone() -> None:
    before = children()
    with busy(2):
        assert len(children() - before) == 2
    assert children() <= before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


# ---------------------------------------------------------------- the resume drill

LOSSY = """
import subprocess
import sys
import time

from attnbench import results
from attnbench.cli import main

whole = results.write_csv
if "--resume" in sys.argv:
    results.write_csv = lambda folder, rows, head: whole(folder, rows[:-1], head)
elif sys.argv[-1] != "whole":
    results.write_csv = lambda *_: time.sleep(600)  # it is killed, however fast the machine is by then
subprocess.Popen(["sleep", "30"], start_new_session=True)
sys.exit(main())
"""


def test_the_resume_drill_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = itertools.cycle([0.8, 0.4, 0.2])  # a first run may take twice as long as those that follow
    monkeypatch.setattr(resume, "QUICK_KILLS", 1)
    monkeypatch.setattr("random.uniform", lambda low, high: next(shares) * high)
    assert [check.passed for check in resume.checks(Paper(row), quick=True)] == [True, True]


@pytest.mark.full
def test_rows_lost_and_processes_left_are_found_by_the_resume_drill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lossy.py").write_text(LOSSY)
    monkeypatch.setattr(resume, "QUICK_KILLS", 1)
    monkeypatch.setattr(resume, "GONE_S", 0.1)
    monkeypatch.setattr("random.uniform", lambda low, high: 2 * high)
    rows, processes = resume.checks(
        Paper(row), quick=True, program=(sys.executable, str(tmp_path / "lossy.py"))
    )
    assert (rows.passed, rows.figure, rows.bound) == (False, 0, 1)
    assert processes.passed is False
    assert "sleep" in processes.text


def test_a_run_that_does_not_start_is_no_pass() -> None:
    with pytest.raises(NotMeasuredError, match=r"no rows: .*no such thing"):
        list(
            resume.checks(
                Paper(row), quick=True, program=(sys.executable, "-c", "raise SystemExit('no such thing')")
            )
        )


# ---------------------------------------------------------------- on paper


def row(
    name: str,
    seconds: float,
    *,
    rng: random.Random,
    grade: str = "A",
    workspace: int = 0,
    status: Status = Status.OK,
) -> Result:
    """A row of ten blocks that scatter by 0.1 %."""
    blocks = tuple(
        Block(round=n, launch=0, seconds=(seconds * math.exp(rng.gauss(0, 1e-3)),) * 3) for n in range(10)
    )
    timing = Timing(
        median_s=seconds,
        ci95_low_s=seconds,
        ci95_high_s=seconds,
        p20_s=seconds,
        p80_s=seconds,
        min_s=seconds,
        mad_s=0.0,
        n=30,
        n_flagged=0,
        rounds=10,
        launches=1,
        inner=1,
        stop_reason="budget",
        setup_s=0.0,
        first_call_s=0.0,
        grade=grade,
    )
    ok = status is Status.OK
    return Result(
        cell=Cell(problem="", implementation=name, device="cpu", threads=1),
        status=status,
        reason="" if ok else "a reason",
        timing=timing if ok else None,
        memory=Memory(input_bytes=0, output_bytes=0, workspace_bytes=workspace, method="rss") if ok else None,
        blocks=blocks if ok else (),
    )


class Paper:
    """A bench on which nothing is measured. `rows` makes a row from its name and the settings."""

    cores = 2
    late = False

    def __init__(self, rows: Callable[..., Result]) -> None:
        self.rows = rows
        self.rng = random.Random(1)

    def measure(
        self, problem: str, names: Sequence[str], *, settings: Sequence[str] = (), **_: object
    ) -> Mapping[str, Result]:
        return {name: self.rows(name, settings, rng=self.rng) for name in names}


def passed(checks: Iterator[Check]) -> list[bool | None]:
    return [check.passed for check in checks]


def timed(took: Callable[[str], float]) -> Paper:
    return Paper(lambda name, settings, rng: row(name, took(name), rng=rng))


@pytest.mark.parametrize(("factor", "good"), [(1.0, True), (1.009, True), (1.05, False), (0.95, False)])
def test_a_duration_may_be_off_by_one_percent(factor: float, good: bool) -> None:
    found = list(durations.checks(timed(lambda name: factor * WAITS_S[name]), quick=True))
    assert {check.passed for check in found[2:]} == {good}
    assert found[0].bound == 300e-9
    assert found[-1].bound == pytest.approx(1e-4)


def test_memory_that_reads_nothing_is_found() -> None:
    assert set(passed(memory.checks(Paper(lambda name, _, rng: row(name, 1.0, rng=rng)), quick=True))) == {
        False
    }


def test_memory_that_reads_what_was_allocated_passes() -> None:
    bench = Paper(lambda name, _, rng: row(name, 1.0, rng=rng, workspace=SCRATCH_BYTES[name] + 2**18))
    assert set(passed(memory.checks(bench, quick=True))) == {True}


def test_equals_that_scatter_alike_raise_few_alarms() -> None:
    told, floor = alarms.checks(timed(lambda _: 1e-3), quick=False)
    assert told.passed, told.text
    assert told.bound == 0.12
    assert floor.passed is None
    assert 0 < (floor.figure or 0.0) < 2e-3  # of ten rounds that scatter by 0.14 %


def test_intervals_that_are_too_narrow_raise_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.estimates._t", lambda degrees: 0.5)
    told, _ = alarms.checks(timed(lambda _: 1e-3), quick=False)
    assert told.passed is False


def test_equals_that_are_told_apart_by_their_place_raise_alarms() -> None:
    told, _ = alarms.checks(timed(lambda name: 1.02e-3 if name in SAMES[::2] else 1e-3), quick=True)
    assert (told.passed, told.figure) == (False, 1.0)


def test_without_intervals_there_is_no_pass() -> None:
    def few(name: str, settings: Sequence[str], rng: random.Random) -> Result:
        whole = row(name, 1e-3, rng=rng)
        return Result(cell=whole.cell, status=whole.status, timing=whole.timing, blocks=whole.blocks[:4])

    with pytest.raises(NotMeasuredError, match="only 0 of 16 pairs"):
        list(alarms.checks(Paper(few), quick=True))
    found, held, _ = slowdowns.checks(Paper(few), quick=True)
    assert (found.passed, held.passed) == (False, False)


def test_a_slowdown_of_two_percent_must_be_found_and_measured() -> None:
    assert passed(slowdowns.checks(timed(lambda name: 1e-3 * STRETCHES[name]), quick=True)) == [
        True,
        True,
        True,
    ]
    assert passed(slowdowns.checks(timed(lambda name: 1e-3), quick=True)) == [False, False, True]
    assert passed(slowdowns.checks(timed(lambda name: 1e-3 * STRETCHES[name] ** 3), quick=True)) == [
        True,
        False,
        True,
    ]


def test_a_slowdown_of_a_fifth_of_a_percent_may_not_be_called_more_than_one() -> None:
    slow = {name: factor**10 for name, factor in STRETCHES.items()}
    *_, called = slowdowns.checks(timed(lambda name: 1e-3 * slow[name]), quick=True)
    assert (called.passed, called.figure) == (False, 4)


def under_load(times: Sequence[float], grades: Sequence[str]) -> Paper:
    """Medians and grades beside nothing, one, two busy processes, and nothing again; three kinds of work."""
    stages = itertools.chain.from_iterable(
        [(time, grade)] * 3 for time, grade in zip(times, grades, strict=True)
    )

    def rows(name: str, settings: Sequence[str], rng: random.Random) -> Result:
        time, grade = next(stages)
        return row(name, 1e-3 * time, rng=rng, grade=grade)

    return Paper(rows)


@pytest.fixture
def nobody_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.selftest.contention.busy", lambda count: contextlib.nullcontext())


@pytest.mark.usefixtures("nobody_busy")
@pytest.mark.parametrize(
    ("times", "grades", "good"),
    [
        ((1, 1, 1, 1), "AAAA", True),
        ((1, 1.02, 0.98, 1), "AAAA", True),
        ((1, 1, 26, 1), "AAAA", False),
        ((1, 0.5, 1, 1), "AAAA", False),
        ((1, 1.2, 26, 1), "ABCA", True),
        ((1, 1, 1.1, 1), ("A", "A", "", "A"), False),
        ((1, 1.02, 1, 1.02), "AAAA", True),
        ((1, 1.5, 26, 1.2), "ABCB", True),  # not steady alone, but nothing is told under load without a grade
        ((1, 1.5, 26, 1.2), "AACA", False),
    ],
)
def test_under_load_a_time_is_right_or_graded_noisy(
    times: Sequence[float], grades: Sequence[str], good: bool
) -> None:
    assert passed(contention.checks(under_load(times, grades), quick=True)) == [good] * 3


@pytest.mark.usefixtures("nobody_busy")
@pytest.mark.parametrize(
    ("times", "grades", "why"),
    [((1, 1.2, 1.2, 1.2), "AAAA", "alone"), ((1, 1, 1, 1), "CCCC", "graded C with nothing beside it")],
)
def test_on_a_machine_that_is_not_quiet_contention_is_no_pass(
    times: Sequence[float], grades: Sequence[str], why: str
) -> None:
    *_, several = contention.checks(under_load(times, grades), quick=True)
    assert several.passed is False
    assert why in several.text


@pytest.mark.usefixtures("nobody_busy")
@pytest.mark.parametrize(
    ("times", "good"), [((1, 1, 1, 1), True), ((1, 1, 26, 1), False), ((1, 2, 2, 2), False)]
)
def test_contention_is_judged_by_the_first_try_that_is_steady_alone(
    times: Sequence[float], good: bool
) -> None:
    unsteady = (1, 1.2, 1.2, 1.2)
    stages = itertools.chain.from_iterable([time] * 2 for time in (*unsteady, *times, *times))

    def rows(name: str, settings: Sequence[str], rng: random.Random) -> Result:
        return row(name, WAITS_S[name] if name in WAITS_S else 1e-3 * next(stages), rng=rng, grade="A")

    wait, *attention = contention.checks(Paper(rows), quick=False)
    assert wait.passed
    assert passed(iter(attention)) == [good] * 2


@pytest.mark.parametrize(("factor", "good"), [(1.01, True), (0.99, True), (1.05, False), (0.95, False)])
def test_other_timers_may_differ_by_two_percent(factor: float, good: bool) -> None:
    found = list(agreement.checks(timed(lambda name: factor if name == SAMES[0] else 1.0), quick=False))
    assert passed(iter(found)) == [good] * 4
    assert found[0].figure == pytest.approx(factor - 1, abs=2e-3)


@pytest.mark.parametrize(
    ("scatter", "late", "measured"), [(1e-3, False, 2), (0.03, False, 6), (0.03, True, 2)]
)
def test_agreement_is_measured_until_it_is_known_well_enough(
    scatter: float, late: bool, measured: int
) -> None:
    count = itertools.count()

    def rows(name: str, settings: Sequence[str], rng: random.Random) -> Result:
        next(count)
        plain = row(name, 1.0, rng=rng)
        blocks = [
            dataclasses.replace(block, seconds=(math.exp(rng.gauss(0, scatter)),) * 3)
            for block in plain.blocks
        ]
        return dataclasses.replace(plain, blocks=tuple(blocks))

    paper = Paper(rows)
    paper.late = late
    list(agreement.checks(paper, quick=False))
    assert next(count) == measured * 3


def test_timers_without_rounds_in_common_are_no_pass() -> None:
    def rows(name: str, settings: Sequence[str], rng: random.Random) -> Result:
        whole = row(name, 1.0, rng=rng)
        return whole if name == SAMES[0] else dataclasses.replace(whole, blocks=whole.blocks[:3])

    with pytest.raises(NotMeasuredError, match="timeit have too few rounds in common"):
        list(agreement.checks(Paper(rows), quick=False))


@pytest.mark.usefixtures("nobody_busy")
def test_nothing_is_taken_again_once_it_is_late() -> None:
    unsteady = under_load((1, 1.2, 1.2, 1.2), "AAAA")
    unsteady.late = True

    *_, last = contention.checks(unsteady, quick=False)
    assert last.passed is False


@pytest.mark.parametrize(("cold", "good"), [(3.0, True), (0.8, False)])
def test_a_cold_call_may_not_be_faster_than_a_warm_one(cold: float, good: bool) -> None:
    bench = Paper(lambda name, settings, rng: row(name, cold if settings else 1.0, rng=rng))
    assert passed(caches.checks(bench, quick=True)) == [good]


def test_a_cache_that_cannot_be_emptied_is_skipped_with_the_reason() -> None:
    bench = Paper(lambda name, settings, rng: row(name, 1.0, rng=rng, status=Status.UNSUPPORTED))
    assert list(caches.checks(bench, quick=True)) == [
        Check(name="caches", passed=None, text="skipped: a reason")
    ]


def test_a_fault_without_its_status_and_a_row_that_is_lost_are_found() -> None:
    def rows(name: str, settings: Sequence[str], rng: random.Random) -> Result:
        status = Status.FAILED if name in FAULTS or name == SAMES[1] else Status.OK
        return row(name, 1.0, rng=rng, status=status)

    drill, beside = faults.checks(Paper(rows), quick=True)
    assert (drill.passed, drill.figure) == (False, 1)  # only the one that exits is rightly `failed`
    assert "selftest-aborts is failed" in drill.text
    assert (beside.passed, beside.figure) == (False, 1)


def test_bounds_of_few_contrasts_allow_for_chance() -> None:
    assert most_missed(208) < 0.12 * 208
    assert (most_missed(16), least_held(16), least_held(4)) == (4, 12, 2)


# ---------------------------------------------------------------- the command


def test_each_check_is_a_line_and_one_that_fails_is_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    several = [
        Check(name="durations", passed=True, text="right", figure=0.1, bound=0.2),
        Check(name="caches", passed=None, text="skipped: a reason"),
    ]
    monkeypatch.setattr(selftest, "checks", lambda names, quick, waiting: iter(several))
    assert main(["selftest"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pass  durations   right",
        "-     caches      skipped: a reason",
    ]
    several.append(Check(name="memory", passed=False, text="wrong"))
    assert main(["selftest", "--json", "--quick"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["passed"], document["quick"]) == (False, True)
    assert document["checks"][0] == {
        "name": "durations",
        "passed": True,
        "text": "right",
        "figure": 0.1,
        "bound": 0.2,
    }
    assert main(["selftest"]) == 1
    assert "1 of 3 failed" in capsys.readouterr().out


def test_only_chooses_checks_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(selftest, "checks", lambda names, quick, waiting: iter(asked.append(names) or ()))
    assert main(["selftest", "--only", "memory,durations"]) == 0
    assert asked == [["durations", "memory"]]


def test_an_unknown_check_is_refused_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--only", "duration"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --only: there is no check `duration`\n\nhint: did you mean"
    )


def test_what_cannot_be_measured_fails_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(bench: Bench, quick: bool) -> Iterator[Check]:
        raise NotMeasuredError("it is wrong: a reason")
        yield

    def right(bench: Bench, quick: bool) -> Iterator[Check]:
        yield Check(name="right", passed=True, text="")

    monkeypatch.setattr(selftest, "Bench", contextlib.nullcontext)
    monkeypatch.setattr(selftest, "CHECKS", {"wrong": wrong, "right": right})
    found = list(selftest.checks(["wrong", "right"], quick=True, waiting=str))
    assert [(check.name, check.passed) for check in found] == [("wrong", False), ("right", True)]


def test_a_calibration_is_stored_where_it_can_be_read_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = itertools.cycle([1.0, 1.02, 0.98])

    class Shop(Paper):
        """A bench on which everything takes a little longer or shorter from run to run."""

        def __init__(self) -> None:
            speed = next(speeds)
            super().__init__(lambda name, settings, rng: row(name, speed, rng=rng))

        def __enter__(self) -> "Shop":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(runs, "Bench", Shop)
    monkeypatch.setattr(runs, "RUNS", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("attnbench.cli.selftest.available_cores", lambda: 4)
    assert main(["selftest", "--calibrate", "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [document["threads"] for document in documents] == [1, 4]
    for document in documents:
        assert document["spread"] == pytest.approx(0.02, rel=0.02)
        stored = calibration.read(document["device"], document["threads"], document["torch"])
        assert stored is not None
        assert stored.spread == document["spread"]
    assert main(["selftest", "--calibrate", "--quick"]) == 2
