"""Growth over a length: which results belong together, what is fitted to them, and what is only extrapolated."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_results import run as header
from test_tables import bad, ok, problem

from attnbench import growth, results, tables
from attnbench.cli import main
from attnbench.growth import Growth
from attnbench.records import Memory, Result, Status

ROOT = Path(__file__).parents[1]
CPU = ROOT / "results/cpu-20261121-113740"
LENGTHS = (256, 512, 1024, 2048)


def quadratic(n: int) -> float:
    return 1e-6 * n + 1e-9 * n**2


def sweep(
    name: str,
    time: Callable[[int], float] = quadratic,
    *,
    lengths: tuple[int, ...] = LENGTHS,
    workspace: Callable[[int], int] = lambda n: 2**20 * n,
    rest: str = "heads=8 head_dim=64",
) -> list[Result]:
    return [ok(time(n), problem(n, rest), name, workspace=workspace(n)) for n in lengths]


def fitted(rows: list[Result], further: tuple[int, ...] = ()) -> Growth:
    (one,), _ = growth.series(rows)
    return growth.growth(one, further)


# ---------------------------------------------------------------- what belongs together


def test_results_that_differ_in_length_only_are_a_series_and_others_are_not() -> None:
    rows = (
        sweep("a")
        + sweep("a", rest="heads=8 head_dim=64 mask=causal")
        + sweep("a", rest="heads=4 head_dim=64")
    )
    found, others = growth.series(rows)

    assert [one.lengths for one in found] == [LENGTHS] * 3
    assert {(one.values["mask"], one.values["heads"]) for one in found} == {
        ("full", "8"),
        ("causal", "8"),
        ("full", "4"),
    }
    assert others == 0


def test_keys_may_grow_alone_beside_a_fixed_number_of_queries() -> None:
    def decode(kv: int) -> str:
        return f"batch=1 seqlen_q=1 seqlen_kv={kv} heads=8 head_dim=64 dtype=float32 mask=full"

    (one,), _ = growth.series([ok(1e-6 * n, decode(n)) for n in LENGTHS])

    assert (one.axis, one.lengths, one.values["seqlen_q"]) == ("seqlen_kv", LENGTHS, "1")
    assert growth.growth(one).time["a"].slope.location == pytest.approx(1)


def test_two_lengths_are_no_series_and_are_counted() -> None:
    assert growth.series(sweep("a", lengths=(256, 512))) == ([], 2)


def test_devices_and_threads_have_series_of_their_own() -> None:
    rows = [ok(quadratic(n), problem(n), device=d) for d in ("cpu", "cuda:0") for n in LENGTHS]

    assert [one.values["device"] for one in growth.series(rows)[0]] == ["cpu", "cuda:0"]


# ---------------------------------------------------------------- fits


def test_time_and_workspace_have_their_own_slopes_and_splits() -> None:
    found = fitted(sweep("a"))
    time, space = found.time["a"], found.workspace["a"]

    assert time.curve.share(2, 2048).location == pytest.approx(2.048 / 3.048)
    assert time.curve.share(1, 2048).location == pytest.approx(1 / 3.048)
    assert space.slope.location == pytest.approx(1)
    assert space.curve.share(1, 2048).location == pytest.approx(1)


def test_the_held_out_error_is_that_of_the_curve_through_the_other_lengths() -> None:
    def kinked(n: int) -> float:
        return quadratic(n) * (2 if n == 2048 else 1)

    assert fitted(sweep("a")).time["a"].held_out == pytest.approx(0, abs=1e-9)
    assert fitted(sweep("a", kinked)).time["a"].held_out == pytest.approx(-0.5)


def test_resident_memory_below_its_resolution_is_not_fitted() -> None:
    assert fitted(sweep("a", workspace=lambda n: 2**19)).workspace == {}
    assert fitted(sweep("a", workspace=lambda n: 0)).workspace == {}


def test_exact_counters_are_fitted_however_small() -> None:
    exact = [
        replace(r, memory=Memory(input_bytes=1, output_bytes=1, workspace_bytes=512 * (k + 1), method="cuda"))
        for k, r in enumerate(sweep("a"))
    ]

    assert "a" in fitted(exact).workspace


def test_what_was_right_at_too_few_lengths_is_named_and_not_fitted() -> None:
    found = fitted(sweep("a") + sweep("b", lengths=(256, 512)))

    assert [*found.time] == ["a"]
    assert found.unfitted == {"b": 2}
    assert "not fitted, right at too few lengths: b (2)" in tables.sheet_text(
        next(iter(growth.sheets(found)))
    )


def test_times_that_cannot_be_trusted_are_named() -> None:
    rows = sweep("a")
    assert rows[1].timing is not None
    rows[1] = replace(rows[1], timing=replace(rows[1].timing, grade="C", noise="busy"))

    assert fitted(rows).untrusted == {"a": (512,)}


# ---------------------------------------------------------------- crossovers


def linear(n: int) -> float:
    return 2e-6 * n


def test_a_crossover_says_who_is_faster_below_and_above_and_where() -> None:
    found = fitted(sweep("square", quadratic) + sweep("line", linear))
    (one,) = found.crossovers

    assert (one.below, one.above) == ("square", "line")
    assert one.at.low < 1000 < one.at.high
    assert one.at.length == pytest.approx(1000, rel=0.02)  # 1e-6 n + 1e-9 n^2 = 2e-6 n, between 512 and 2048
    assert one.at.between == (512, 2048)


def test_a_noisy_time_decides_no_crossover() -> None:
    rows = sweep("square", quadratic) + [
        replace(r, timing=replace(r.timing, grade="C")) if r.timing else r for r in sweep("line", linear)
    ]

    assert fitted(rows).crossovers == ()


def test_wrong_answers_take_no_part() -> None:
    wrong = [bad(problem(n), "line", Status.WRONG, "off by one") for n in LENGTHS]
    found = fitted(sweep("square", quadratic) + wrong, further=(8192,))

    assert found.crossovers == ()
    assert {one.implementation for one in found.extrapolations} == {"square"}


def test_an_approximation_is_marked_wherever_it_is_named() -> None:
    (one,), _ = growth.series(sweep("square", quadratic) + sweep("rough", linear))
    told = "\n".join(
        map(tables.sheet_text, growth.sheets(growth.growth(one, (8192,), {"rough": "fewer keys"})))
    )

    assert told.count("~rough") == told.count("rough") == 4
    assert "~rough: an approximation: fewer keys" in told


# ---------------------------------------------------------------- extrapolation


@pytest.mark.parametrize("status", [Status.OUT_OF_MEMORY, Status.TIMED_OUT, Status.NOT_RUN])
def test_a_length_that_did_not_fit_is_extrapolated_and_labelled(status: Status) -> None:
    found = fitted([*sweep("a"), bad(problem(4096), "a", status, "too large")])
    (one,) = found.extrapolations

    assert (one.length, one.why) == (4096, status.value)
    assert one.time.location == pytest.approx(quadratic(4096))
    assert one.workspace is not None
    assert one.workspace.location == pytest.approx(2**20 * 4096)
    sheet = [*growth.sheets(found)][-1]
    assert "EXTRAPOLATED" in sheet.title
    assert "nothing in this table was measured" in sheet.title
    assert all(row[2].startswith("~") and row[4].startswith("~") for row in sheet.rows)


@pytest.mark.parametrize("status", [Status.WRONG, Status.IMPOSSIBLE, Status.CRASHED, Status.UNSUPPORTED])
def test_what_failed_otherwise_is_not_extrapolated_to(status: Status) -> None:
    assert fitted([*sweep("a"), bad(problem(4096), "a", status, "no")], (4096,)).extrapolations == ()


def test_the_further_away_the_more_the_held_out_error_widens_an_extrapolation() -> None:
    time = fitted(sweep("a", lambda n: quadratic(n) * (1.2 if n == 2048 else 1))).time["a"]
    near, far = time.beyond(4096), time.beyond(16384)
    factor = 1 + abs(time.held_out or 0)

    for interval, steps in ((near, 1), (far, 3)):
        assert interval.high is not None
        assert interval.high >= interval.location * factor**steps * (1 - 1e-9)


def test_a_longer_measurement_lies_within_what_was_extrapolated_to_it() -> None:
    """The shortest four of five lengths of a curve with an overhead, with noise of 2 % as its intervals say."""
    noise = (1.01, 0.985, 1.0, 1.02)
    rows = [ok(t * (2e-4 + quadratic(n)), problem(n), half=0.04) for n, t in zip(LENGTHS, noise, strict=True)]
    found = fitted(rows).time["a"].beyond(4096)

    assert found.low is not None
    assert found.high is not None
    assert found.low <= 2e-4 + quadratic(4096) <= found.high


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_the_tables_of_a_committed_run(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["growth", str(CPU), "--at", "8k,65536", "--format", form]) == 0
    told = capsys.readouterr().out

    assert told.count("Growth over seqlen") == 2
    assert told.count("nothing in this table was measured") == 2
    assert "65536" in told
    assert "How to read it" in told
    assert "11 problems are in no series of 3 lengths or more" in told
    assert form == "markdown" or max(map(len, told.splitlines())) <= 100


def test_csv_and_json_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["growth", str(CPU), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["growth", str(CPU), "--format", "json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    told = {
        (one["mask"], name): found["time"]
        for one in document["series"]
        for name, found in one["implementations"].items()
    }

    assert len(rows) == len(told) == 20
    for row in rows:
        time = told[row["mask"], row["implementation"]]
        assert float(row["time_slope"]) == time["slope"]
        assert float(row["time_held_out"]) == time["held_out"]
        assert row["longest"] == "2048"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--at", "512"], "--at: 512 is no extrapolation, lengths up to 2048 were measured"),
        (["--at", "long"], "--at: 'long' is not a length"),
        (["--at", "8k,"], "--at: '' is not a length"),
        (["--only", "x"], "--only: no implementation of this run matches `x`"),
        (["--only", "torch-varlen"], "no implementation was right at 3 lengths with all else equal"),
    ],
)
def test_bad_input_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["growth", str(CPU), *words]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""


def test_times_without_intervals_are_fitted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ok(quadratic(n), problem(n), half=None) for n in LENGTHS[:3]]
    results.write_csv(tmp_path, rows, header())

    assert main(["growth", str(tmp_path / "results.csv"), "--at", "8k"]) == 0
    assert "noisy, or with no interval or too wide a one: a at all lengths" in capsys.readouterr().out
