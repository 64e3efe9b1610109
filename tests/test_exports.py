"""A stored run in the formats of others."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pytest_benchmark.stats import Stats
from test_results import ok as stored
from test_results import run as header
from test_tables import bad, ok, problem

from attnbench import exports, results
from attnbench.cli import main
from attnbench.records import Block, Result

ROOT = Path(__file__).parents[1]
QUICK = str(ROOT / "results/quick")


def timed(
    *seconds: float, implementation: str = "a", flagged: tuple[int, ...] = (), seqlen: int = 512
) -> Result:
    blocks = (Block(round=0, launch=0, seconds=seconds, flagged=flagged),)
    return ok(0.3, problem(seqlen), implementation, blocks=blocks)


def exported(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["export", *words]) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------- pytest-benchmark


def compare(folder: Path, *files: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", "--group-by=group", *map(str, files)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Failed to load" not in done.stdout + done.stderr
    return done.stdout


def test_pytest_benchmark_compares_a_run_with_its_journal(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    results.write_header(folder, header())
    with results.Journal(folder) as journal:
        for row in (timed(1.0, 2.0, 4.0), timed(8.0, 8.0, 8.0, implementation="b"), bad(problem(512), "c")):
            journal.append(row)
    file = tmp_path / "run.json"
    assert main(["export", str(folder), "--format", "pytest-benchmark", "-o", str(file)]) == 0
    told = compare(tmp_path, file)

    assert "2 tests" in told  # rivals stand in one group
    lines = {name: next(line for line in told.splitlines() if line.startswith(f"{name} ")) for name in "ab"}
    assert [float(word) for word in lines["a"].split() if word.count(".") == 1 and word[0].isdigit()][:3] == [
        1,
        4,
        2.3333,
    ]
    assert "nan" not in told


def test_pytest_benchmark_compares_a_committed_run_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "quick.json"
    assert main(["export", QUICK, "--format", "pytest-benchmark", "-o", str(file)]) == 0
    assert "no journal" in capsys.readouterr().err
    told = compare(tmp_path, file)

    assert told.count(" tests -") == 16
    assert "\ntorch-sdpa-flash " in told


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 21])
def test_statistics_are_those_of_pytest_benchmark(count: int) -> None:
    seconds = [((7 * k) % count + 1) ** 1.5 for k in range(count)]
    theirs = Stats()
    for second in seconds:
        theirs.update(second)
    (benchmark,) = json.loads(exports.as_pytest_benchmark(header(), [timed(*seconds)]))["benchmarks"]

    assert benchmark["stats"].pop("iterations") == 1
    for field, value in theirs.as_dict().items():
        assert benchmark["stats"].pop(field) == (value if isinstance(value, str) else pytest.approx(value)), (
            field
        )
    assert benchmark["stats"] == {}


def test_interrupted_samples_do_not_count() -> None:
    text = exports.as_pytest_benchmark(header(), [timed(1.0, 50.0, 2.0, flagged=(1,))])
    (benchmark,) = json.loads(text)["benchmarks"]

    assert (benchmark["stats"]["max"], benchmark["stats"]["rounds"]) == (2.0, 2)


def test_only_right_answers_become_benchmarks() -> None:
    text = exports.as_pytest_benchmark(header(), [bad(), timed(1.0)])

    assert [b["params"]["implementation"] for b in json.loads(text)["benchmarks"]] == ["a"]


# ---------------------------------------------------------------- JSON, Parquet, Markdown


def rows_of(path: str) -> Sequence[Result]:
    return results.load(Path(path))[1]


def test_json_holds_the_header_and_every_column_of_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = json.loads(exported(QUICK, "--format", "json", capsys=capsys))
    table = results.read_csv(Path(QUICK))

    assert document["run"]["run_id"] == Path(QUICK).name
    assert len(document["results"]) == len(table) == 96
    assert [*document["results"][0]] == [column.name for column in results.COLUMNS]
    for column in ("problem", "status", "reason", "median_s", "workspace_bytes"):
        told = [row[column] for row in document["results"]]
        assert told == [None if pd.isna(value) or value == "" else value for value in table[column].tolist()]


def test_a_data_frame_of_rows_is_the_one_that_is_read(tmp_path: Path) -> None:
    rows = [stored(), bad()]
    results.write_csv(tmp_path, rows, header())

    pd.testing.assert_frame_equal(exports.frame(header(), rows), results.read_csv(tmp_path))


def test_parquet_reads_back_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    file = tmp_path / "quick.parquet"
    assert main(["export", QUICK, "--format", "parquet", "-o", str(file)]) == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet(file, engine="pyarrow"), exports.frame(*results.load(Path(QUICK)))
    )


def test_without_pyarrow_parquet_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    assert main(["export", QUICK, "--format", "parquet", "-o", str(tmp_path / "x.parquet")]) == 2
    assert "hint: pip install 'attnbench[parquet]'" in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()


def test_markdown_is_that_of_the_runs_own_files(capsys: pytest.CaptureFixture[str]) -> None:
    told = exported(QUICK, "--format", "markdown", capsys=capsys)

    assert told == "\n".join((Path(QUICK) / name).read_text() for name in ("timing.md", "memory.md"))


# ---------------------------------------------------------------- bad input


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.json"
    file.write_text("mine")

    assert main(["export", QUICK, "--format", "json", "-o", str(file)]) == 2
    assert f"error: {file} exists already" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([QUICK, "--format", "parquet"], "parquet is a binary format"),
        (["nowhere", "--format", "json"], "there is no"),
        ([QUICK, "--format", "json", "-o", "no/such/folder.json"], "cannot write no/such/folder.json"),
    ],
)
def test_bad_input_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *words]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""
