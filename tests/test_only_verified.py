"""The preset `none`: cells are verified, and nothing is timed."""

import csv
from pathlib import Path

import pytest

from attnbench import plan, plugins, results, suites, tables
from attnbench.cli import main
from attnbench.errors import ResultsError
from attnbench.records import Status

SUITE = """\
question: who is right?
implementations: [torch-naive, torch-chunked, mine]
problems: {seqlen: 64, heads: 2, head_dim: 16, dtype: [float32, bfloat16]}
measure: {preset: none, threads: 1}
"""
PLUGIN = """\
from attnbench import Capabilities, Implementation, hookimpl

@hookimpl
def attnbench_implementations():
    yield Implementation(
        name="mine",
        summary="the values themselves",
        capabilities=Capabilities(dtypes=frozenset(("float32",))),
        prepare=lambda problem, inputs: inputs.v.clone,
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("verified")
    (here / "suite.yaml").write_text(SUITE)
    (here / "mine.py").write_text(PLUGIN)
    words = ["run", str(here / "suite.yaml"), "--plugin", str(here / "mine.py"), "-o", str(here / "run")]
    assert main([*words, "--quiet"]) == 1  # one is wrong
    return here / "run"


def test_right_rows_are_ok_with_errors_and_memory_and_without_a_time(folder: Path) -> None:
    with open(folder / "results.csv", newline="") as file:
        rows = {(row["implementation"], row["dtype"]): row for row in csv.DictReader(file)}
    for name in ("torch-naive", "torch-chunked"):
        for dtype in ("float32", "bfloat16"):
            row = rows[name, dtype]
            assert (row["status"], row["median_s"], row["grade"]) == ("ok", "", "")
            assert 0 < float(row["err_row"]) <= 3 * float(row["yardstick_row"])
            assert row["workspace_bytes"]
    assert rows["mine", "float32"]["status"] == "wrong"
    assert rows["mine", "bfloat16"]["status"] == "unsupported"


def test_the_table_says_which_part_of_the_budget_the_errors_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in folder.glob("*.md")} == {"error.md"}
    assert main(["show", str(folder)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Error over what is allowed")
    assert "wrong [1]" in told
    _, rows = results.load(folder)
    (grid,) = tables.table("error", rows).grids
    shares = [float(entry.value) for entry in grid.entries.values() if entry.status is Status.OK]
    assert len(shares) == 4
    assert all(0 < share <= 1 for share in shares)


def test_such_a_run_is_read_back_and_compared_by_its_errors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "results.csv"
    alone.write_text((folder / "results.csv").read_text())
    for one in (folder, alone):
        assert main(["compare", str(one), str(folder)]) == 0
    worse = tmp_path / "worse.csv"
    with open(alone, newline="") as file, open(worse, "w", newline="") as other:
        lines = list(csv.DictReader(file))
        writer = csv.DictWriter(other, [*lines[0]])
        writer.writeheader()
        for line in lines:
            more = {"err_rms": repr(5 * float(line["err_rms"]))} if line["err_rms"] else {}
            writer.writerow(line | more)
    capsys.readouterr()
    assert main(["compare", str(alone), str(worse), "--fail-on", "accuracy"]) == 1
    assert "less accurate" in capsys.readouterr().out


def test_an_ok_row_with_neither_time_nor_error_is_refused(folder: Path, tmp_path: Path) -> None:
    lines = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    for line in lines:
        line["err_row"] = ""
    path = tmp_path / "results.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]])
        writer.writeheader()
        writer.writerows(lines)
    with pytest.raises(ResultsError, match="`median_s` is empty"):
        results.load_outcomes(path)


def test_only_a_run_that_verifies_has_ok_rows_without_a_time(folder: Path, tmp_path: Path) -> None:
    """Else a run whose times were taken out would look like one without regressions."""
    lines = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    path = tmp_path / "results.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0]])
        writer.writeheader()
        writer.writerows(line | {"preset": "default"} for line in lines)
    for read in (results.load, results.load_outcomes):
        with pytest.raises(ResultsError, match="`median_s` is empty"):
            read(path)


def test_launches_and_budget_of_the_suite_are_left_out() -> None:
    text = SUITE.replace("[torch-naive, torch-chunked, mine]", "torch-naive")
    suite = suites.parse(text.replace("threads: 1", "launches: 4, budget: 2s"), "s.yaml")
    made = plan.make(suite, plugins.discover(), devices=plan.resolve(["cpu"]), threads=1)
    assert (made.launches, made.budget_s) == (0, 0)
    assert made.seconds < 1


@pytest.mark.parametrize("verb", ["best {}", "best {} --format json", "growth {}", "show {} --baseline nope"])
def test_who_asks_such_a_run_for_times_is_told_that_it_has_none(
    folder: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert main(verb.format(folder).split()) == 2
    out, told = capsys.readouterr()
    assert out == ""
    assert f"error: {folder}: nothing was timed in this run" in told
    assert "another --preset than `none`" in told
