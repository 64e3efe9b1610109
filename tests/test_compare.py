"""Two runs, or several a side: what is a change, what is a regression, and what is no run at all."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from attnbench import calibration, compare, results
from attnbench.calibration import Calibration
from attnbench.cli import main
from attnbench.compare import INTERLEAVED_MARGIN, MARGIN, Effect, Verdict, Way, judged
from attnbench.estimates import Interval, half_of, ratio, welch, widened
from attnbench.records import Block, Cell, Memory, Result, Run, Status, Timing

PROBLEM = "batch=1 seqlen=512 heads=2 head_dim=64 dtype=float32 mask=causal"
KEY = {
    "problem": PROBLEM,
    "implementation": "mine",
    "device": "cpu",
    "threads": "2",
    "cache": "warm",
    "clock": "wall",
}
DEVICE = "a CPU of ours"

Row = Mapping[str, Any]


def row(median_s: float | str = 1e-3, **changes: Any) -> Row:
    return {**KEY, "median_s": median_s, **changes}


def written(path: Path, *rows: Row) -> str:
    """A CSV by hand, with a column for every key of any row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list({name: None for one in rows for name in one}))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def cells(count: int, factor: float = 1.0, **changes: Any) -> list[Row]:
    return [row(1e-3 * factor * (1 + at), problem=f"seqlen={at}", **changes) for at in range(count)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and a machine that was never calibrated."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def told(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `attnbench compare`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["compare", *words])
    return code, out.getvalue(), err.getvalue()


def document(*words: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = told(*words, "--format", "json", "--all")
    return code, json.loads(out)


def compared(base: Sequence[Row], new: Sequence[Row], *words: str) -> tuple[int, dict[str, Any]]:
    return document(written(Path("base.csv"), *base), written(Path("new.csv"), *new), *words)


def verdict(base: Row, new: Row, *words: str) -> tuple[int, str]:
    """Exit code, and the verdict on one cell among five that have not changed."""
    code, found = compared([*cells(5), base], [*cells(5), new], *words)
    (cell,) = [cell for cell in found["cells"] if cell["problem"] == PROBLEM]
    return code, cell["verdict"]


# ---------------------------------------------------------------- what is no run

HEADER = ",".join([*KEY, "median_s"])
LINE = ",".join([*KEY.values(), "0.001"])
TWO = f"{HEADER}\n{LINE}\n"
MALFORMED = {
    "an empty file": (b"", ":1: the file is empty"),
    "a 0-row file": (f"{HEADER}\n".encode(), ":2: there are no rows below the header"),
    "no header": (f"{LINE}\n".encode(), ":1: there is no header: "),
    "semicolons": (TWO.replace(",", ";").encode(), ":1: there is no header: "),
    "a missing key column": (TWO.replace("threads", "thread").encode(), ":1: column `threads` is missing"),
    "missing key columns": (b"problem,median_s\nx,1\n", ":1: columns `implementation`, `device`, "),
    "no times": (TWO.replace("median_s", "seconds").encode(), ":1: column `median_s` is missing"),
    "a column twice": (TWO.replace("cache", "clock").encode(), ":1: column `clock` is there 2 times"),
    "text for a number": (f"{TWO}{LINE[:-5]}fast\n".encode(), ":3: column `median_s` must be a number, got 'fast'"),
    "a decimal comma": (f'{HEADER}\n{LINE[:-5]}"0,1"\n'.encode(), ":2: column `median_s` must be a number, got '0,1'"),
    "thousands": (TWO.replace("0.001", "1_000").encode(), ":2: column `median_s` must be a number, got '1_000'"),
    "other digits": (TWO.replace("0.001", "٣").encode(), ":2: column `median_s` must be a number, got '٣'"),
    "memory below zero": (
        f"workspace_bytes,{HEADER}\n-8,{LINE}\n".encode(),
        ":2: column `workspace_bytes` must be zero or more, got -8",
    ),
    "half a thread": (TWO.replace(",2,", ",1.5,").encode(), ":2: column `threads` must be a whole number, got '1.5'"),
    "no time at all": (TWO.replace("0.001", "0").encode(), ":2: column `median_s` must be above zero, got 0.0"),
    "not a number": (TWO.replace("0.001", "nan").encode(), ":2: column `median_s` must be finite, got nan"),
    "infinitely long": (TWO.replace("0.001", "inf").encode(), ":2: column `median_s` must be finite, got inf"),
    "a time is missing": (TWO.replace("0.001", "").encode(), ":2: column `median_s` is empty"),
    "a key is missing": (TWO.replace("warm", "").encode(), ":2: column `cache` is empty"),
    "duplicate keys": (f"{TWO}\n{LINE}\n".encode(), ":4: columns problem, implementation, device, threads, cache, "),
    "too few values": (f"{TWO}{LINE[:-6]}\n".encode(), ":3: 6 values for 7 columns"),
    "too many values": (f"{TWO}{LINE},9\n".encode(), ":3: 8 values for 7 columns"),
    "an unknown status": (f"status,{HEADER}\nfine,{LINE}\n".encode(), ":2: column `status`: unknown status 'fine'"),
    "another schema": (f"schema,{HEADER}\n99,{LINE}\n".encode(), ":2: `schema` is 99, newer than "),
    "no schema number": (f"schema,{HEADER}\nx,{LINE}\n".encode(), ":2: 'x' is no schema number"),
    "Latin-1": (TWO.replace("mine", "möglich").encode("latin-1"), ":2: column `implementation`: byte 0xf6 is not UTF-8"),
    "a Latin-1 header": (TWO.replace("cache", "Größe").encode("latin-1"), ":1: byte 0xf6 is not UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", " is not a text file"),
    "an odd interval": (
        f"ci95_low_s,ci95_high_s,{HEADER}\n0.002,0.003,{LINE}\n".encode(),
        ":2: column `median_s`: 0.001 does not lie between ",
    ),
    "an unknown grade": (f"grade,{HEADER}\nD,{LINE}\n".encode(), ":2: column `grade`: unknown grade 'D'"),
    "two protocols": (
        f"protocol_version,{HEADER}\n1,{LINE}\n2,{LINE.replace('mine', 'yours')}\n".encode(),
        ": column `protocol_version` has both 1 and 2",
    ),
    "an open quote": (f'{TWO}"{LINE}\n'.encode(), ":3: "),
}  # fmt: skip


def test_times_whose_ratio_is_no_number_are_bad_input_and_no_regression() -> None:
    Path("short.csv").write_text(TWO.replace("0.001", "1e-320"))
    Path("long.csv").write_text(TWO.replace("0.001", "1"))
    code, out, err = told("short.csv", "long.csv")
    assert (code, out) == (2, "")
    assert "their ratio is no number" in err


@pytest.mark.parametrize("first", [True, False], ids=["base", "new"])
@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_table_of_times_is_said_in_a_line_with_its_place_and_a_hint(
    kind: str, first: bool
) -> None:
    content, words = MALFORMED[kind]
    Path("odd.csv").write_bytes(content)
    sound = written(Path("sound.csv"), row())

    code, out, err = told(*(("odd.csv", sound) if first else (sound, "odd.csv")))

    assert (code, out) == (2, "")
    assert err.startswith(f"error: odd.csv{words}"), err
    assert re.fullmatch(r"error: [^\n]+\n\nhint: [^\n]+\n", err), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such", "new.csv"], "there is no no-such"),
        (["no-such-*", "new.csv"], "no run matches no-such-*"),
        ([".", "new.csv"], ". is not the folder of a run: it has no run.json"),
        (["new.csv", "other.csv"], "new.csv and other.csv have no cell in common"),
        (["new.csv", "old.csv"], "times of protocols 1 and 2 cannot be compared"),
        (["new.csv", "new.csv", "--margin", "3"], "--margin: '3' is not a share below 100 %"),
        (["new.csv", "new.csv", "--margin", "-1%"], "--margin: '-1%' is not a share below 100 %"),
        (["new.csv", "new.csv", "--fail-on", "slow"], "--fail-on: there is no `slow`"),
        (["new.csv", "new.csv", "--fail-on", "none,slower"], "--fail-on: `none` stands alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_compared_is_exit_code_2(words: list[str], message: str) -> None:
    written(Path("new.csv"), row(protocol_version=2))
    written(Path("old.csv"), row(protocol_version=1))
    written(Path("other.csv"), row(implementation="other"))

    words = [word.replace("-1%", " -1%") for word in words]
    code, out, err = told(*words)

    assert (code, out) == (2, "")
    assert err.splitlines()[0].replace("' -1%'", "'-1%'") == f"error: {message}"
    assert "\nhint: " in err


# ---------------------------------------------------------------- single cells


@pytest.mark.parametrize(
    ("seconds", "words", "expected"),
    [
        (1.0e-3, "", (0, "same")),
        (1.04e-3, "", (0, "unclear")),
        (1.06e-3, "", (1, "likely slower")),
        (1.06e-3, "--margin 8%", (0, "same")),
        (1.06e-3, "--fail-on memory,wrong", (0, "likely slower")),
        (1.06e-3, "--fail-on none", (0, "likely slower")),
        (1e-3 / 1.06, "", (0, "likely faster")),
    ],
)
def test_a_time_alone_is_at_most_likely_to_have_changed(
    seconds: float, words: str, expected: tuple[int, str]
) -> None:
    assert verdict(row(1e-3), row(seconds), *words.split()) == expected


def test_of_few_cells_nobody_knows_how_far_runs_lie_apart() -> None:
    assert compared([row(1e-3)], [row(1e-3)])[1]["cells"][0]["verdict"] == "unclear"
    assert compared([row(1e-3)], [row(1.06e-3)])[1]["cells"][0]["verdict"] == "likely slower"


def test_an_interval_of_its_own_must_be_passed_thrice() -> None:
    wide = {"ci95_low_s": 0.97e-3, "ci95_high_s": 1.1e-3}

    assert verdict(row(1e-3, **wide), row(1.06e-3, **wide)) == (0, "unclear")
    assert verdict(row(1e-3, **wide), row(1.6e-3, ci95_low_s=1.5e-3, ci95_high_s=1.7e-3)) == (
        1,
        "likely slower",
    )


def test_a_time_of_few_blocks_must_change_more_to_be_likely() -> None:
    assert verdict(row(1e-3), row(1.7e-3)) == (1, "likely slower")  # by hand, without a grade
    assert verdict(row(1e-3, grade="B"), row(1.7e-3, grade="B")) == (0, "unclear")
    assert verdict(row(1e-3, grade="B"), row(2.5e-3, grade="B")) == (1, "likely slower")
    assert verdict(row(1e-3, grade="A"), row(1.7e-3, grade="A")) == (1, "likely slower")  # steady, so by hand
    own = {"ci95_low_s": 1.6e-3, "ci95_high_s": 1.8e-3, "grade": "B"}
    assert verdict(row(1e-3, ci95_low_s=0.95e-3, ci95_high_s=1.05e-3, grade="B"), row(1.7e-3, **own)) == (
        1,
        "likely slower",
    )


def test_a_time_that_was_disturbed_is_no_regression() -> None:
    assert verdict(row(1e-3), row(2e-3, grade="C")) == (0, "unclear")
    assert verdict(row(1e-3), row(2e-3, grade="B")) == (1, "likely slower")


@pytest.mark.parametrize(("factor", "said"), [(2.1, True), (1 / 2.1, True), (1.9, False)])
def test_what_is_unclear_though_it_takes_twice_as_long_is_counted(factor: float, said: bool) -> None:
    base = written(Path("base.csv"), *cells(5), row(1e-3))
    new = written(Path("new.csv"), *cells(5), row(1e-3 * factor, grade="C"))

    _, out, _ = told(base, new)

    assert ("more than 2 times as long or as short as before: 1;" in " ".join(out.split())) is said


ENDS = [
    ("ok", "wrong", "newly wrong", 1),
    ("ok", "impossible", "newly wrong", 1),
    ("unsupported", "wrong", "newly wrong", 1),
    ("ok", "out of memory", "newly failing", 1),
    ("ok", "timed out", "newly failing", 1),
    ("ok", "crashed", "newly failing", 1),
    ("ok", "failed", "newly failing", 1),
    ("ok", "unsupported", "newly failing", 1),
    ("ok", "unavailable", "newly failing", 1),
    ("ok", "not run", "only in base", 1),
    ("not run", "ok", "only in new", 0),
    ("not run", "wrong", "newly wrong", 1),
    ("wrong", "ok", "fixed", 0),
    ("unsupported", "ok", "fixed", 0),
    ("crashed", "wrong", "newly wrong", 1),
    ("wrong", "impossible", "not timed", 0),
    ("crashed", "timed out", "not timed", 0),
]


@pytest.mark.parametrize(("before", "now", "expected", "code"), ENDS)
def test_an_end_that_is_worse_is_a_regression_by_itself(
    before: str, now: str, expected: str, code: int
) -> None:
    def ended(status: str) -> Row:
        return row(
            "0.001" if status == "ok" else "", status=status, reason="" if status == "ok" else "because"
        )

    assert verdict(ended(before), ended(now)) == (code, expected)
    assert verdict(ended(before), ended(now), "--fail-on", "slower,memory") == (0, expected)


def test_a_cell_that_one_side_lacks_is_shown_and_one_that_was_right_is_missed() -> None:
    more = row(problem="seqlen=9")
    failed = row("", problem="seqlen=9", status="unsupported", reason="no")

    for base, new, expected, kinds, code in (
        ([row(), more], [row()], "only in base", "missing", 1),
        ([row(), failed], [row()], "only in base", "", 0),
        ([row()], [row(), more], "only in new", "", 0),
    ):
        found_code, found = compared(base, new)
        (cell,) = [cell for cell in found["cells"] if cell["problem"] == "seqlen=9"]
        assert (cell["verdict"], cell["regressions"], found_code) == (expected, kinds, code)
    assert compared([row(), more], [row()], "--fail-on", "slower")[0] == 0


def test_a_time_that_is_gone_is_missed_though_the_row_is_right() -> None:
    """Presets differ then, so that it is a regression for those who ask."""
    timed = row(err_row=1e-4, status="ok", preset="default")
    verified = row("", err_row=1e-4, status="ok", preset="none")
    worse = {**verified, "err_row": 1e-2}

    for base, new, expected, kinds, code in (
        (timed, verified, "only in base", "missing", 1),
        (timed, worse, "only in base", "missing+accuracy", 1),
        (verified, timed, "only in new", "", 0),
        (verified, verified, "not timed", "", 0),
    ):
        found_code, found = compared([base], [new], "--fail-on", "missing")
        (cell,) = found["cells"]
        assert (cell["verdict"], cell["regressions"], found_code) == (expected, kinds, code)


MIB = 2**20


@pytest.mark.parametrize(
    ("before", "now", "method", "expected"),
    [
        (10 * MIB, 11 * MIB, "rss", ""),
        (10 * MIB, 11 * MIB + 1, "rss", "bigger"),
        (10 * MIB + 1, 9 * MIB, "rss", "smaller"),
        (1000 * MIB, 1010 * MIB, "rss", ""),
        (1000 * MIB, 1011 * MIB, "rss", "bigger"),
        (0, 2 * MIB, "rss", "bigger"),
        (10 * MIB, 100 * MIB, "own", ""),
        (10 * MIB, "", "rss", ""),
    ],
)
def test_memory_has_changed_by_more_than_a_mebibyte_and_a_hundredth(
    before: int, now: int | str, method: str, expected: str
) -> None:
    base = row(workspace_bytes=before, memory_method="rss")
    code, found = compared([base], [row(workspace_bytes=now, memory_method=method)])

    assert (found["cells"][0]["memory"], code) == (expected, int(expected == "bigger"))
    assert compared([base], [row(workspace_bytes=now, memory_method=method)], "--fail-on", "slower")[0] == 0


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((1e-6, 1e-7), (1.9e-6, 1.9e-7), ""),
        ((1e-6, 1e-7), (1e-6, 2.1e-7), "less accurate"),
        ((1e-6, 1e-7), (2.1e-6, 1e-7), "less accurate"),
        ((1e-6, 1e-7), (1e-6, 4e-8), "more accurate"),
        ((1e-6, 1e-7), (4e-7, 3e-7), "less accurate"),
        ((0.0, 0.0), (1e-16, 0.0), "less accurate"),
        (("", ""), (1e-6, 1e-7), ""),
    ],
)
def test_an_error_has_changed_by_a_factor_and_fails_only_where_it_is_asked_to(
    before: Sequence[float], now: Sequence[float], expected: str
) -> None:
    base, new = (row(err_row=errors[0], err_rms=errors[1]) for errors in (before, now))

    code, found = compared([base], [new])
    assert (found["cells"][0]["accuracy"], code) == (expected, 0)
    assert compared([base], [new], "--fail-on", "accuracy")[0] == int(expected == "less accurate")


# ---------------------------------------------------------------- several runs a side


def runs(name: str, *factors: float, count: int = 5, slow: float = 1.0) -> str:
    """Runs of some cells, all `factors` as long as those of the first; `mine` another time `slow`."""
    for at, factor in enumerate(factors):
        others = cells(count, factor, implementation="other")
        written(Path(f"{name}-{at}.csv"), *others, *cells(count, factor * slow))
    return f"{name}-*.csv"


def test_three_runs_a_side_tell_how_far_they_lie_apart() -> None:
    base = runs("base", 1.0, 1.002, 0.998)

    code, found = document(base, runs("new", 1.001, 0.999, 1.0, slow=1.1))
    assert code == 1
    assert found["counts"] == {"slower": 5, "same": 5}
    assert {group["implementation"]: group["verdict"] for group in found["implementations"]} == {
        "other": "same",
        "mine": "slower",
    }
    assert found["cells"][0]["interval_from"] == "three runs or more a side"
    assert document(base, runs("quiet", 1.0, 1.002))[1]["counts"] == {
        "same": 10
    }  # two, and quiet cells beside


def test_the_interval_of_runs_is_welchs() -> None:
    code, found = document(runs("base", 1.0, 1.02, 0.98), runs("new", 1.01, 1.05, 1.0, 0.99))
    logs = [[math.log(f) for f in side] for side in ((1.01, 1.05, 1.0, 0.99), (1.0, 1.02, 0.98))]
    expected = welch(*logs)

    for one in (*found["cells"], *found["implementations"], found["overall"]):
        assert one["ratio"] == pytest.approx(expected.location)
        assert (one["ratio_ci95_low"], one["ratio_ci95_high"]) == pytest.approx((expected.low, expected.high))
    assert code == 0


def test_a_side_is_as_bad_as_the_worst_of_its_runs() -> None:
    ok, wrong = row(), row("", status="wrong", reason="off")
    short = row("", status="not run", reason="interrupted")
    base = [written(Path(f"base-{at}.csv"), ok) for at in range(2)]

    for name, side, expected in (
        ("flaky", (ok, wrong, ok), "newly wrong"),
        ("short", (ok, short, ok), "unclear"),
        ("gone", (short, short), "only in base"),
    ):
        for at, one in enumerate(side):
            written(Path(f"{name}-{at}.csv"), one)
        assert document("base-*.csv", f"{name}-*.csv")[1]["cells"][0]["verdict"] == expected
        assert document(base[0], f"{name}-*.csv")[1]["cells"][0]["verdict"] == expected
    assert document("flaky-*.csv", base[0])[1]["cells"][0]["verdict"] == "fixed"


def test_memory_and_errors_of_several_runs_are_medians() -> None:
    for at, (workspace, error) in enumerate([(MIB, 1e-6), (2 * MIB, 9e-6), (90 * MIB, 2e-6)]):
        written(Path(f"side-{at}.csv"), row(workspace_bytes=workspace, memory_method="rss", err_row=error))

    (cell,) = document("side-*.csv", "side-*.csv")[1]["cells"]
    assert (cell["base_workspace_bytes"], cell["new_err_row"], cell["base_runs"]) == (2 * MIB, 2e-6, 3)


# ---------------------------------------------------------------- folders of runs


def header(**changes: Any) -> Run:
    plain = Run(
        schema=results.SCHEMA,
        run_id="a-run",
        suite="quick",
        suite_text="",
        command=(),
        settings={"measure": {"preset": "quick", "seed": None}},
        seed=1,
        started="",
        fingerprint={"protocol": "2", "torch": "2.13.0", "source of plugin mine": "0123456789abcdef"},
        environment={
            "versions": {"torch": "2.13.0"},
            "load": {"average": [0.1]},
            "cpu": {"logical_cores": 2},
        },
        versions={"mine": "torch 2.13.0"},
        device_names={"cpu": DEVICE},
    )
    return dataclasses.replace(plain, **changes)


def timed(seconds: float, **changes: Any) -> Result:
    timing = Timing(
        median_s=seconds,
        ci95_low_s=seconds * 0.999,
        ci95_high_s=seconds * 1.001,
        p20_s=seconds,
        p80_s=seconds,
        min_s=seconds,
        mad_s=0.0,
        n=9,
        n_flagged=0,
        rounds=9,
        launches=1,
        inner=1,
        stop_reason="budget",
        setup_s=0.0,
        first_call_s=0.0,
    )
    cell = Cell(problem=PROBLEM, implementation="mine", device="cpu", threads=2)
    memory = Memory(input_bytes=1, output_bytes=1, workspace_bytes=MIB, method="rss")
    return Result(cell=dataclasses.replace(cell, **changes), status=Status.OK, timing=timing, memory=memory)


def run_folder(name: str, *rows: Result, journal: Sequence[Result] = (), run: Run | None = None) -> str:
    folder = Path(name)
    folder.mkdir()
    results.write_header(folder, run or header())
    if rows:
        results.write_csv(folder, rows, run or header())
    if journal:
        with results.Journal(folder) as file:
            for one in journal:
                file.append(one)
    return name


def test_a_folder_its_csv_and_its_journal_are_the_same_run() -> None:
    rows = [timed(1e-3), timed(2e-3, implementation="b")]
    sides = [run_folder("csv", *rows), "csv/results.csv", run_folder("killed", journal=rows)]

    for side in sides:
        assert [one.runs for one in (compare.side(side),)] == [(header(),)]
        assert compare.side(side).cells == compare.side("csv").cells


def test_a_table_of_an_unfinished_run_gives_way_to_its_journal() -> None:
    open_ = Result(cell=timed(1).cell, status=Status.NOT_RUN, reason="interrupted")

    (found,) = compare.side(run_folder("resumed", open_, journal=[timed(1e-3)])).cells.values()
    assert found[0].median_s == 1e-3


def test_a_glob_takes_folders_of_runs_and_leaves_out_the_rest() -> None:
    run_folder("r-1", timed(1e-3))
    run_folder("r-2", timed(1e-3))
    Path("r-3").mkdir()
    Path("r-4.md").touch()

    assert len(compare.side("r-*").runs) == 2


def test_an_old_schema_is_read() -> None:
    path = run_folder("old", timed(1e-3)) + "/results.csv"
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    written(Path("schema-1.csv"), *({**one, "schema": 1} for one in rows))

    assert compare.side("schema-1.csv").cells == compare.side("old").cells


# ---------------------------------------------------------------- circumstances


def test_what_differs_between_the_machines_comes_first_and_opens_the_gate() -> None:
    base = run_folder("base", timed(1e-3))
    new = run_folder("new", timed(2e-3), run=header(device_names={"cpu": "another CPU"}))

    code, out, _ = told(base, new)
    lines = out.splitlines()
    assert lines[3] == f"  machine: device cpu: {DEVICE} -> another CPU"
    assert "no change of time or memory is called a regression" in lines[4]
    assert lines[-1] == "no gate for times: the runs differ in more than the code"
    assert "likely slower" in out
    assert code == 0
    assert told(base, new, "--fail-on", "slower")[0] == 1


def test_what_is_wrong_or_fails_is_a_regression_on_any_machine() -> None:
    base = row(device_name="x")

    for status in ("wrong", "out of memory"):
        new = row("", device_name="y", status=status, reason="because")
        assert compared([base], [new])[0] == 1
        assert compared([base], [new], "--fail-on", "none")[0] == 0
    assert compared([base], [row(5e-3, device_name="y")])[0] == 0


CIRCUMSTANCES: list[tuple[dict[str, Any], str | None, bool]] = [
    ({}, None, True),
    ({"seed": 2, "started": "now", "run_id": "x"}, None, True),
    ({"environment": {"load": {"average": [9.0]}}}, None, True),
    ({"environment": {"cpu": {"logical_cores": 4}}}, "machine: cpu.logical_cores: 2 -> 4", False),
    ({"environment": {"memory": {"total_bytes": 2**34}}}, None, True),  # the other side does not say
    ({"versions": {"mine": "torch 2.11.0"}, "environment": {}}, "versions: torch: 2.13.0 -> 2.11.0", False),
    ({"settings": {"measure": {"preset": "gate"}}}, "settings: measure.preset: quick -> gate", False),
    ({"settings": {"measure": {"seed": 3}}}, None, True),
    (
        {"fingerprint": {"source of plugin mine": "fedcba9876543210"}},
        "sources: plugin mine: 0123456789ab -> fedcba987654",
        True,
    ),
]


@pytest.mark.parametrize(("changes", "said", "gate"), CIRCUMSTANCES)
def test_circumstances_are_compared_as_far_as_both_sides_know_them(
    changes: dict[str, Any], said: str | None, gate: bool
) -> None:
    base = run_folder("base", timed(1e-3))
    new = run_folder("new", timed(2e-3), run=header(**changes))

    code, out, _ = told(base, new)
    assert (code == 1) is gate
    shown = [line.strip() for line in out.splitlines() if " -> " in line and ": " in line]
    assert shown == ([said] if said else [])


def test_a_csv_knows_device_versions_and_preset_of_its_run() -> None:
    base = row(device_name="x", versions="torch 2.11.0", preset="quick")
    new = row(device_name="y", versions="torch 2.13.0", preset="gate")

    found = compared([base], [new])[1]["differences"]
    assert [(one["kind"], one["what"], one["base"], one["new"]) for one in found] == [
        ("machine", "device cpu", ["x"], ["y"]),
        ("versions", "torch", ["2.11.0"], ["2.13.0"]),
        ("settings", "measure.preset", ["quick"], ["gate"]),
    ]


# ---------------------------------------------------------------- a machine that was calibrated


def calibrated(spread: float, **changes: Any) -> None:
    known = Calibration(
        device=DEVICE, threads=2, torch="2.13.0", spread=spread, degrees=16, runs=5, taken="today"
    )
    calibration.store(dataclasses.replace(known, **changes))


def test_a_calibration_makes_two_runs_enough() -> None:
    run_folder("base", timed(1e-3))
    run_folder("new", timed(1.1e-3))
    run_folder("again", timed(1.001e-3))

    calibrated(0.005)
    code, found = document("base", "new")
    (cell,) = found["cells"]
    half = math.hypot(half_of(0.005 * math.sqrt(2), 16), *[math.log(1.001 / 0.999) / 2] * 2)
    assert (code, cell["verdict"]) == (1, "slower")
    assert cell["ratio_ci95_low"] == pytest.approx(1.1 * math.exp(-half))
    assert document("base", "again")[1]["cells"][0]["verdict"] == "same"
    calibrated(0.05)
    assert document("base", "new")[1]["cells"][0]["verdict"] == "unclear"


@pytest.mark.parametrize(("swing", "verdict"), [(0.0, "slower"), (0.04, "unclear")])
def test_a_calibration_that_the_cells_contradict_is_not_believed(swing: float, verdict: str) -> None:
    """The machine was calm when it was calibrated."""
    factors = [1.15, *[1 + swing, 1 - swing] * 4]
    for name, several in (("base", [1.0] * 9), ("new", factors)):
        rows = [timed(1e-3 * f, problem=PROBLEM.replace("512", str(at))) for at, f in enumerate(several, 1)]
        run_folder(name, *rows)
    calibrated(0.005)

    _, found = document("base", "new")

    (slow,) = [cell for cell in found["cells"] if cell["ratio"] > 1.1]
    assert slow["verdict"] == verdict


@pytest.mark.parametrize("changes", [{"threads": 1}, {"device": "another"}, {"torch": "2.11.0"}])
def test_a_calibration_of_something_else_does_not_count(changes: dict[str, Any]) -> None:
    run_folder("base", timed(1e-3))
    run_folder("new", timed(1.1e-3))
    calibrated(0.005, **changes)

    assert document("base", "new")[1]["cells"][0]["interval_from"] == "what differs within one run"


# ---------------------------------------------------------------- formats


@pytest.fixture
def sides() -> tuple[str, str]:
    """A slowdown, a missing cell with an odd name, something wrong, more memory."""
    odd = row(implementation="<b>|`x`", problem="seqlen=7")
    base = [*cells(6), odd, row(workspace_bytes=MIB, memory_method="rss")]
    new = [
        *cells(5),
        row(9e-3, problem="seqlen=5"),
        row("", status="wrong", reason="row 3\n| is off", workspace_bytes="", memory_method=""),
    ]
    return written(Path("base.csv"), *base), written(Path("new.csv"), *new)


def test_a_table_tells_the_worst_first_and_what_did_not_change_only_when_asked(
    sides: tuple[str, str],
) -> None:
    code, out, err = told(*sides)
    verdicts = re.findall(r"^  (newly wrong|only in base|likely slower|same\b.*?)  ", out, re.MULTILINE)

    assert (code, err) == (1, "")
    assert verdicts == ["newly wrong", "only in base", "likely slower"]
    assert out.splitlines()[3].startswith(
        "8 cells: 1 newly wrong, 1 only in base, 1 likely slower, 5 same within 3 %"
    )
    assert out.splitlines()[-1] == "regressions: 1 wrong; 1 missing; 1 slower"
    assert told(*sides, "--all")[1].count("same within 3 %") == 6
    assert max(map(len, out.splitlines())) < 200


def test_the_summary_has_mean_extremes_and_sums() -> None:
    found = compared(
        [row(1.0, problem=f"seqlen={at}") for at in range(3)],
        [row(ratio, problem=f"seqlen={at}") for at, ratio in enumerate((0.5, 1.0, 4.0))],
    )[1]

    overall = found["overall"]
    assert overall["ratio"] == pytest.approx(2 ** (1 / 3))
    assert (overall["least"], overall["most"], overall["base_s"], overall["new_s"]) == (0.5, 4.0, 3.0, 5.5)
    assert overall["ratio_ci95_low"] < 1 < overall["ratio_ci95_high"]


def test_markdown_holds_nothing_that_it_does_not_mean(sides: tuple[str, str]) -> None:
    code, out, _ = told(*sides, "--format", "markdown")

    assert code == 1
    assert out.startswith("### attnbench: regressions: 1 wrong; 1 missing; 1 slower\n")
    assert r"&lt;b&gt;\|\`x\`" in out
    assert "<b>" not in out
    for line in out.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (9, 10)
    assert "\x1b" not in out
    assert "`slower` and `faster` hold for all cells together." in out


def test_markdown_fits_into_a_comment() -> None:
    base = written(Path("base.csv"), *cells(2000))
    new = written(Path("new.csv"), *cells(2000, 1.5))

    out = told(base, new, "--format", "markdown")[1]
    assert len(out) < 65_536
    assert "and 1900 more, which `--format csv` lists" in out


def test_csv_and_json_hold_the_same_cells(sides: tuple[str, str]) -> None:
    for words in ([], ["--all"]):
        rows = list(csv.DictReader(told(*sides, "--format", "csv", *words)[1].splitlines()))
        found = json.loads(told(*sides, "--format", "json", *words)[1])["cells"]
        as_text = [{k: "" if v is None else str(v) for k, v in one.items()} for one in found]
        assert [{**one, "base_reason": "", "new_reason": ""} for one in rows] == [
            {**one, "base_reason": "", "new_reason": ""} for one in as_text
        ]
    assert [one["verdict"] for one in rows[:3]] == ["newly wrong", "only in base", "likely slower"]
    assert [one["regressions"] for one in rows[:3]] == ["wrong", "missing", "slower"]
    assert {one["device"] for one in rows} == {"cpu"}


def test_what_a_csv_has_no_row_for_stands_beside_it(tmp_path: Path) -> None:
    base = written(tmp_path / "base.csv", *cells(5))
    code, out, err = told(base, written(tmp_path / "new.csv", *cells(5, 2.0)), "--format", "csv")

    assert (code, err) == (1, "regressions: 5 slower; mine slower as a whole\n")
    assert told(base, base, "--format", "csv")[2] == "no regression\n"
    assert len(out.splitlines()) == 6


def test_a_csv_without_changes_has_its_header() -> None:
    base = written(Path("base.csv"), *cells(5))

    code, out, _ = told(base, base, "--format", "csv")
    assert code == 0
    assert out.startswith("problem,implementation,device,threads,cache,clock,verdict,")
    assert len(out.splitlines()) == 1


# ---------------------------------------------------------------- false alarms and power

FAMILIES = 1000
CELLS = 88
MISTAKE = 1e-3
"""How often a bound may fail a sound procedure, were the seed not fixed."""


def most(share: float) -> int:
    return int(binom.ppf(1 - MISTAKE, FAMILIES, share))


def least(share: float) -> int:
    return int(binom.ppf(MISTAKE, FAMILIES, share))


def calibrated_families(seed: int, spread: float, slow: float = 1.0) -> Iterator[list[Effect]]:
    """Pairs of single runs of `CELLS` cells, the first 16 `slow` times as long, on a calibrated machine.

    The calibration has 16 degrees of freedom, as `attnbench selftest --calibrate` takes it, and errs accordingly.
    """
    rng = np.random.default_rng(seed)
    for _ in range(FAMILIES):
        known = spread * math.sqrt(rng.chisquare(16) / 16)
        shifts = rng.normal(0, spread * math.sqrt(2), CELLS)
        shifts[:16] += math.log(slow)
        half = half_of(known * math.sqrt(2), 16)
        yield [Effect(widened(shift, [half], 16), Way.CALIBRATION) for shift in shifts.tolist()]


def count(verdicts: Sequence[Verdict], *wanted: Verdict) -> int:
    return sum(one in wanted for one in verdicts)


CHANGED = (Verdict.SLOWER, Verdict.FASTER, Verdict.LIKELY_SLOWER, Verdict.LIKELY_FASTER)


def test_in_a_twentieth_of_comparisons_of_equals_at_most_a_cell_has_changed() -> None:
    strict = sum(count(judged(family, 0.0), *CHANGED) > 0 for family in calibrated_families(1, 0.01))
    gated = sum(count(judged(family, MARGIN), *CHANGED) > 0 for family in calibrated_families(1, 0.01))

    assert strict <= most(0.05)  # however small the margin
    assert gated <= most(0.001)


def test_a_tenth_slower_is_found_and_only_where_it_is() -> None:
    families = [judged(family, MARGIN) for family in calibrated_families(2, 0.01, slow=1.1)]

    assert sum(count(family[:16], Verdict.SLOWER) > 0 for family in families) >= least(0.95)
    assert sum(count(family[16:], *CHANGED) > 0 for family in families) <= most(0.001)


def test_two_per_cent_slower_are_never_the_same_within_one() -> None:
    for spread in (0.003, 0.01, 0.03):
        families = [judged(family, 0.01)[:16] for family in calibrated_families(3, spread, slow=1.02)]
        said = sum(count(family, Verdict.SAME, Verdict.FASTER) for family in families)
        assert said <= binom.ppf(1 - MISTAKE, 16 * FAMILIES, 0.001)


@pytest.mark.parametrize("number", [3, 5])
def test_equal_sides_of_several_runs_raise_no_alarm(number: int) -> None:
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(FAMILIES):
        sides = rng.normal(0, rng.uniform(0.002, 0.03, (CELLS, 1, 1)), (CELLS, 2, number)).tolist()
        alarms += count(judged([Effect(welch(*cell), Way.RUNS) for cell in sides], 0.0), *CHANGED) > 0

    assert alarms <= most(0.05)


def test_times_taken_in_turns_are_judged_by_the_same_rules() -> None:
    rng = np.random.default_rng(5)
    found = []
    for slow in (1.0, 1.02):
        noise = rng.normal(0, 0.005, (200, 2, 3, 20)) + np.array([math.log(slow), 0.0])[:, None, None]
        effects = [Effect(ratio(*pair), Way.TURNS) for pair in noise.tolist()]
        found.append([judged([effect], INTERLEAVED_MARGIN)[0] for effect in effects])

    assert count(found[0], *CHANGED) == 0
    assert count(found[0], Verdict.SAME) >= binom.ppf(MISTAKE, 200, 0.95)
    assert count(found[1], Verdict.SAME, Verdict.FASTER) == 0
    assert count(found[1], Verdict.SLOWER) >= binom.ppf(MISTAKE, 200, 0.8)


def test_ratios_taken_in_turns_come_before_anything_that_stored_runs_say() -> None:
    written(Path("base.csv"), *cells(6))
    written(Path("new.csv"), *cells(6, 1.5))
    base, new = compare.side("base.csv"), compare.side("new.csv")
    turns = {key: widened(0.0, [0.004], 9) for key in base.cells}

    found = compare.compare(base, new, INTERLEAVED_MARGIN, turns)
    assert found.counts == {Verdict.SAME: 6}
    assert found.regressions(compare.KINDS) == 0


def single_runs(seed: int, spread: float, slow: float = 1.0) -> Iterator[dict[str, Any]]:
    """Documents of comparisons of two runs with 16 cells of each of six implementations; `torch-0` is `slow`."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        base, new = (
            [
                row(
                    1e-3 * math.exp(noise) * (factor if name == 0 else 1),
                    problem=f"seqlen={at}",
                    implementation=f"torch-{name}",
                )
                for (name, at), noise in np.ndenumerate(rng.normal(0, spread, (6, 16)))
            ]
            for factor in (1.0, slow)
        )
        yield compared(base, new)[1]


@pytest.mark.parametrize("spread", [0.003, 0.01, 0.02])
def test_without_anything_known_of_the_machine_equals_raise_no_alarm(spread: float) -> None:
    assert [found["regressions"] for found in single_runs(6, spread)] == [0] * 20


@pytest.mark.parametrize("spread", [0.003, 0.01, 0.02])
def test_without_anything_known_of_the_machine_a_slower_implementation_is_named(spread: float) -> None:
    for found in single_runs(7, spread, slow=1.1):
        told = {group["implementation"]: group["verdict"] for group in found["implementations"]}
        assert told.pop("torch-0") == "likely slower"
        assert not {*told.values()} & {*CHANGED}
        slow = {cell["implementation"] for cell in found["cells"] if cell["verdict"] in CHANGED}
        assert slow <= {"torch-0"}


# ---------------------------------------------------------------- beside what has not changed

OWNED = header(
    owners={f"torch-{name}": f"plugin-{name}" for name in range(6)},
    fingerprint={"attnbench source": "0", **{f"source of plugin plugin-{name}": "0" for name in range(6)}},
)


def side_of(seconds: np.ndarray, **changes: Any) -> compare.Side:
    """Runs of a side from their times by run, implementation and problem."""
    fingerprint = {**OWNED.fingerprint, **changes}
    return compare.Side(
        name="a side",
        runs=tuple(dataclasses.replace(OWNED, fingerprint=fingerprint) for _ in seconds),
        cells={
            (f"seqlen={at}", f"torch-{name}", "cpu", 2, "warm", "wall"): tuple(
                results.Outcome(status=Status.OK, median_s=float(run), half_width=0.01) for run in several
            )
            for name, problems in enumerate(np.moveaxis(seconds, 0, 2))
            for at, several in enumerate(problems)
        },
    )


def on_a_restless_machine(
    seed: int, slow: float = 1.0, runs: int = 1, apart: float = 0.0, source: str = "1"
) -> Iterator[compare.Comparison]:
    """100 comparisons of 16 problems, each of which the machine computes at another speed in each run (15 %), each
    implementation with all of its cells too (`apart`), and each cell (3 %); `torch-0` is `slow` on the new side."""
    rng = np.random.default_rng(seed)
    for _ in range(100):
        times = rng.normal(0, 0.03, (2 * runs, 6, 16)) + rng.normal(0, 0.15, (2 * runs, 1, 16))
        times += rng.normal(0, apart, (2 * runs, 6, 1)) if apart else 0.0
        times[runs:, 0] += math.log(slow)
        base, new = np.exp(times[:runs]), np.exp(times[runs:])
        yield compare.compare(side_of(base), side_of(new, **{"source of plugin plugin-0": source}))


@pytest.mark.parametrize(("runs", "apart"), [(1, 0.0), (1, 0.02), (1, 0.05), (5, 0.0), (5, 0.02)])
def test_on_a_restless_machine_equals_are_alike_beside_each_other(runs: int, apart: float) -> None:
    alarms, suspected = 0, 0
    for found in on_a_restless_machine(8, runs=runs, apart=apart):
        effects = [group.beside for group in found.groups if group.beside]
        assert len(effects) == 6
        alarms += count(judged(effects, 0.0 if runs > 1 else MARGIN), *CHANGED) > 0
        suspected += found.groups[0].verdict in CHANGED  # its source has changed, its time has not

    assert alarms <= binom.ppf(1 - MISTAKE, 100, 0.05)
    assert suspected <= binom.ppf(1 - MISTAKE, 100, 0.05)


@pytest.mark.parametrize(("runs", "verdict"), [(1, Verdict.LIKELY_SLOWER), (5, Verdict.SLOWER)])
def test_on_a_restless_machine_a_slower_implementation_is_named_by_those_beside_it(
    runs: int, verdict: Verdict
) -> None:
    named = 0
    for found in on_a_restless_machine(9, slow=1.1, runs=runs):
        effects = [group.beside for group in found.groups if group.beside]
        slow, *others = judged(effects, MARGIN)
        assert not {*others} & {*CHANGED}
        assert found.groups[0].name == "torch-0"
        named += found.groups[0].verdict is slow is verdict

    assert named >= binom.ppf(MISTAKE, 100, 0.9)


def test_what_has_another_source_is_judged_by_itself() -> None:
    named = [
        sum(
            found.groups[0].verdict in (Verdict.SLOWER, Verdict.LIKELY_SLOWER)
            for found in on_a_restless_machine(10, slow=1.08, apart=0.02, source=source)
        )
        for source in ("1", "0")
    ]
    assert named[0] > named[1] + 10


def test_rounds_in_common_tell_more_than_medians() -> None:
    names = [f"torch-{name}" for name in range(5)]

    def stored(folder: str, short: str) -> str:
        """A machine that is half as fast from the tenth round on, which one implementation does not see."""
        blocks = [Block(round=at, launch=0, seconds=(1e-3 if at < 10 else 2e-3,) * 3) for at in range(20)]
        rows = [
            dataclasses.replace(
                timed(
                    1e-3 if name == short else 1.5e-3,
                    implementation=name,
                    problem=PROBLEM.replace("512", str(at)),
                ),
                blocks=tuple(blocks[: 10 if name == short else 20]),
            )
            for at in range(1, 6)
            for name in names
        ]
        return run_folder(folder, *rows, journal=rows, run=OWNED)

    base, new = stored("base", ""), stored("new", "torch-0")
    whole, tables = (
        compare.compare(compare.side(f"{base}{file}"), compare.side(f"{new}{file}")).groups[0].beside
        for file in ("", "/results.csv")
    )
    assert whole is not None
    assert tables is not None
    assert whole.ratio.location == pytest.approx(1.0)
    assert tables.ratio.location == pytest.approx(1 / 1.5)

    mixed = compare.compare(compare.side(base), compare.side("base/results.csv")).groups[0].beside
    assert mixed is not None
    assert mixed.ratio.location == 1.0  # medians on both sides


@pytest.mark.parametrize(
    "damage",
    [
        ("[0.001,", "[0.0,"),
        ("[0.001,", "[-1.0,"),
        ("[0.001,", '["x",'),
        ("[0.001,", "[NaN,"),
        ("[0.001, 0.001, 0.001]", "[]"),
        ('"round": 3', '"round": [3]'),
        ('"median_s": 0.001', '"median_s": 0.002'),  # of another run
        ('{"', "damaged"),
    ],
    ids=str,
)
def test_what_a_journal_says_that_cannot_be_is_not_heard(damage: tuple[str, str]) -> None:
    blocks = tuple(Block(round=at, launch=0, seconds=(1e-3,) * 3) for at in range(8))
    rows = [
        dataclasses.replace(
            timed(1e-3, implementation=f"torch-{name}", problem=PROBLEM.replace("512", str(at))),
            blocks=blocks,
        )
        for at in range(1, 6)
        for name in range(5)
    ]
    journal = Path(run_folder("new", *rows, journal=rows, run=OWNED)) / "journal.jsonl"
    run_folder("base", *rows, journal=rows, run=OWNED)
    first, *rest = [json.dumps(json.loads(line)) for line in journal.read_text().splitlines()]
    assert damage[0] in first
    journal.write_text("\n".join([first.replace(*damage), *rest, ""]))

    groups = compare.compare(compare.side("base"), compare.side("new")).groups

    assert [group.beside.ratio.location for group in groups if group.beside] == [1.0] * 5


def test_of_many_problems_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = np.ones((1, 6, 40))
    slow[:, 0, ::2] = 1.2
    pairs = 6 * 5 // 2
    found = {}
    for problems in (20, 4):
        monkeypatch.setattr(compare.beside, "MOST_PAIRS", problems * pairs)
        effect = compare.compare(side_of(np.ones((1, 6, 40))), side_of(slow)).groups[0].beside
        found[problems] = effect and effect.ratio.location
    assert found[20] == pytest.approx(math.sqrt(1.2), rel=0.05)
    assert found[4] is None


def test_the_base_of_a_run_of_two_sides_has_a_source_of_its_own() -> None:
    owners = {"mine": "a", "mine@base": "a"}
    runs = [
        header(owners=owners, fingerprint={"source of plugin a": ours, "source of plugin a of the base": "0"})
        for ours in ("1", "2")
    ]
    runs = [dataclasses.replace(run, run_id="a", fingerprint={**run.fingerprint}) for run in runs]
    assert compare.beside.by_source(runs) == ({"mine@base"}, {"mine"})


def test_the_others_of_one_beside_them_are_those_that_have_not_changed() -> None:
    base = side_of(np.ones((1, 6, 5)))
    new = side_of(np.array([[[2.2] * 5] + [[2.0] * 5] * 5]), **{"source of plugin plugin-5": "1"})

    found = compare.compare(base, new)
    assert found.overall is not None
    assert found.overall.beside is None
    for group in found.groups:
        assert group.effect.ratio.location == pytest.approx(2.2 if group.name == "torch-0" else 2.0)
        assert group.beside is not None
        assert group.beside.ratio.location == pytest.approx(1.1 if group.name == "torch-0" else 1.0)


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, Verdict.LIKELY_SLOWER), (1.2, Verdict.UNCLEAR)])
def test_what_befalls_all_alike_is_named_where_no_machine_does_it(factor: float, verdict: Verdict) -> None:
    found = compare.compare(side_of(np.ones((1, 6, 16))), side_of(np.full((1, 6, 16), factor)))

    assert {group.verdict for group in found.groups} == {verdict}
    assert {group.beside.ratio.location for group in found.groups if group.beside} == {1.0}


@pytest.mark.parametrize(("source", "named"), [("0", 0), ("1", 6)])
def test_what_differs_between_the_cells_of_an_unchanged_implementation_is_noise(
    source: str, named: int
) -> None:
    times = np.ones((1, 6, 16))
    times[:, 0, :6] = 1.6
    times[:, 1, 3] = 10.0  # alone, and too far from all others

    found = compare.compare(
        side_of(np.ones((1, 6, 16))), side_of(times, **{"source of plugin plugin-0": source})
    )

    slower = [pair.key[1] for pair in found.pairs if pair.verdict is Verdict.LIKELY_SLOWER]
    assert sorted(slower) == ["torch-0"] * named + ["torch-1"]


@pytest.mark.parametrize("source", ["0", "1"])
@pytest.mark.parametrize("slow", [2, 5, 8])
def test_cells_that_are_ten_times_as_slow_do_not_hide_each_other(slow: int, source: str) -> None:
    times = np.ones((1, 6, 16))
    times[:, 0, :slow] = 10.0

    found = compare.compare(
        side_of(np.ones((1, 6, 16))), side_of(times, **{"source of plugin plugin-0": source})
    )

    slower = [pair.key[1] for pair in found.pairs if pair.verdict is Verdict.LIKELY_SLOWER]
    assert slower == ["torch-0"] * slow


def test_where_versions_differ_nothing_is_known_to_be_unchanged() -> None:
    times = np.ones((1, 6, 16))
    times[:, 0, :6] = 1.6
    (run,) = side_of(times).runs
    new = dataclasses.replace(
        side_of(times), runs=(dataclasses.replace(run, environment={"versions": {"torch": "3.0"}}),)
    )

    found = compare.compare(side_of(np.ones((1, 6, 16))), new)

    assert any(difference.kind == "versions" for difference in found.differences)
    assert [pair.key[1] for pair in found.pairs if pair.verdict is Verdict.LIKELY_SLOWER] == ["torch-0"] * 6


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"attnbench source": "1"}, (1, 6, 5)),  # what all of them share
        ({f"source of plugin plugin-{name}": "1" for name in range(4)}, (1, 6, 5)),  # two are left
        ({}, (1, 3, 5)),  # two others
        ({}, (1, 6, 4)),  # too few cells to tell their spread
    ],
)
def test_too_few_that_have_not_changed_tell_nothing(
    changes: Mapping[str, str], shape: tuple[int, ...]
) -> None:
    found = compare.compare(side_of(np.ones(shape)), side_of(np.full(shape, 1.1), **changes))

    assert {group.beside for group in found.groups} == {None}


def test_an_interval_that_is_missing_is_unclear() -> None:
    bare = Interval(location=1.0, low=None, high=None)

    assert judged([Effect(bare, Way.WITHIN), Effect(bare, Way.RUNS)], MARGIN) == [Verdict.UNCLEAR] * 2
    assert judged([], MARGIN) == []
