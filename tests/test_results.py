"""A run's folder: header, journal, CSV."""

import csv
import dataclasses
import json
import math
import shlex
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from attnbench import plugins, results
from attnbench.errors import ResultsError
from attnbench.problem import Problem
from attnbench.records import (
    Accuracy,
    Block,
    Cell,
    Memory,
    Owner,
    Result,
    Run,
    Status,
    Timing,
)
from attnbench.results import files

PROBLEM = Problem.parse("batch=2 seqlen=512 heads_q=8 heads_kv=2 head_dim=64 dtype=bfloat16 mask=causal").text
RAGGED = Problem.parse("requests=2q2k_3q1s1k heads=4 head_dim=64 layout=packed").text
TIMING = Timing(
    median_s=0.1 + 0.2,  # 0.30000000000000004 has all 17 digits
    ci95_low_s=0.29,
    ci95_high_s=0.31,
    p20_s=0.28,
    p80_s=0.32,
    min_s=0.27,
    mad_s=0.001,
    n=120,
    n_flagged=3,
    rounds=8,
    launches=3,
    inner=1,
    stop_reason="interval within 1%",
    setup_s=1e-7,
    first_call_s=0.5,
)
ACCURACY = Accuracy(
    row=1e-3, rms=2e-4, max=0.5, cosine=1.0, yardstick_row=2e-3, yardstick_rms=3e-4, checked_share=0.25
)
MEMORY = Memory(input_bytes=1000, output_bytes=500, workspace_bytes=0, method="rss")


def run(**changes: Any) -> Run:
    plain = Run(
        schema=results.SCHEMA,
        run_id="quick-1",
        suite="quick",
        suite_text="question: which?\n",
        command=("run", "quick"),
        settings={"measure": {"preset": "quick", "threads": None, "budget_s": None}, "verify": {"work": 2e9}},
        seed=7,
        started="2026-01-02T03:04:05+00:00",
        fingerprint={"torch": "2.13"},
        environment={"cpu": {"model": "X", "cores": 2}},
        plugins=(Owner(plugin="torch", source="entry point", version="0.1.0"),),
        versions={"torch-sdpa": "torch 2.13.0"},
        owners={"torch-sdpa": "torch"},
        device_names={"cpu": "X"},
        approximations={"rough": "every other key is left out"},
    )
    return dataclasses.replace(plain, **changes)


def cell(problem: str = PROBLEM, implementation: str = "torch-sdpa", **changes: Any) -> Cell:
    return Cell(problem=problem, implementation=implementation, **({"device": "cpu", "threads": 2} | changes))


def ok(**changes: Any) -> Result:
    blocks = (Block(round=0, launch=0, seconds=(0.3, 0.4), flagged=(1,)),)
    return Result(
        cell=cell(**changes),
        status=Status.OK,
        timing=TIMING,
        accuracy=ACCURACY,
        memory=MEMORY,
        blocks=blocks,
        kernel="flash",
    )


def bad(status: Status = Status.UNSUPPORTED, reason: str = "no causal mask", **changes: Any) -> Result:
    return Result(cell=cell(**changes), status=status, reason=reason)


def written(folder: Path, *rows: Result, header: Run | None = None) -> Path:
    results.write_csv(folder, rows, header or run())
    return folder / "results.csv"


# ---------------------------------------------------------------- columns


def test_columns_keep_their_order_and_new_ones_come_last() -> None:
    assert " ".join(column.name for column in results.COLUMNS) == (
        "schema run_id suite problem implementation plugin versions device device_name threads cache clock preset "
        "protocol_version seed mechanism batch seqlen_q seqlen_kv heads_q heads_kv head_dim head_dim_v dtype "
        "kv_dtype mask modifiers layout direction status reason median_s ci95_low_s ci95_high_s p20_s p80_s min_s "
        "mad_s n n_flagged rounds launches inner stop_reason setup_s first_call_s flops least_bytes flops_per_s "
        "bytes_per_s input_bytes output_bytes workspace_bytes memory_method err_row err_rms err_max cosine "
        "yardstick_row yardstick_rms checked_share kernel repro "
        "host_enqueue_s end_to_end_s device_delta_bytes "
        "grade noise drift cache_method floor_s sm_clock_hz power_w temperature_c throttle energy_j "
        "err_lse deterministic batch_invariant "
        "approximation"
    )


def test_the_manual_of_the_columns_is_made_from_the_code() -> None:
    manual = (Path(__file__).parents[1] / "results/README.md").read_text()
    assert results.columns_markdown() in manual
    for status in Status:
        assert f"| `{status}` |" in manual


def test_every_value_of_a_row_has_its_column_and_type() -> None:
    for result in (ok(), bad(), ok(problem=RAGGED)):
        row = results.row(result, run())
        assert list(row) == [column.name for column in results.COLUMNS]
        for column in results.COLUMNS:
            assert row[column.name] == "" or type(row[column.name]) is column.kind, column.name


def test_axes_and_rates_follow_from_the_problem() -> None:
    row = results.row(ok(), run())
    pairs = 512 * 513 // 2
    assert row["flops"] == 2 * pairs * (64 + 64) * 8 * 2  # per head, of 8 heads and 2 members of the batch
    assert row["flops_per_s"] == row["flops"] / TIMING.median_s
    assert row["least_bytes"] == 2 * 512 * 64 * 2 * (8 + 2 + 2 + 8)
    assert row["bytes_per_s"] == row["least_bytes"] / TIMING.median_s
    assert (row["batch"], row["seqlen_q"], row["heads_q"], row["heads_kv"]) == (2, 512, 8, 2)


def test_a_ragged_batch_has_no_single_length_and_a_row_without_time_no_rate() -> None:
    row = results.row(bad(problem=RAGGED), run())
    assert (row["batch"], row["seqlen_q"], row["seqlen_kv"], row["layout"]) == (5, "", "", "packed")
    assert (row["median_s"], row["flops_per_s"], row["workspace_bytes"]) == ("", "", "")
    assert row["flops"] != ""


def test_repro_runs_just_this_row_with_the_settings_of_the_run() -> None:
    from attnbench.cli import parser  # what it prints must be what the command line takes
    from attnbench.cli.choose import suite

    settings = {
        "measure": {
            "preset": "gate",
            "threads": None,
            "budget_s": 1.5,
            "timeout_s": 60.0,
            "seed": 3,
            "memory_bytes": 2**33,
        },
        "verify": {"work": 5e8},
    }
    header = run(settings=settings, command=("run", "x", "--plugin", "/home/me/my kernel.py", "--plugin=a.b"))
    words = shlex.split(str(results.row(ok(), header)["repro"]))
    assert words[0] == "attnbench"
    arguments = parser().parse_args(words[1:])
    again = suite(arguments, plugins.discover())
    assert [p.text for p in again.problems] == [PROBLEM]
    assert (arguments.only, arguments.seed) == (["torch-sdpa"], 7)
    assert arguments.plugin == ["my kernel.py", "a.b"]
    assert again.devices == ("cpu",)
    assert (again.measure.preset, again.measure.threads, again.measure.budget_s) == ("gate", 2, 1.5)
    assert (again.measure.memory_bytes, again.verify.work) == (2**33, 5e8)


# ---------------------------------------------------------------- CSV


def test_numbers_survive_the_csv_with_every_digit(tmp_path: Path) -> None:
    path = written(tmp_path, ok(), bad(implementation="other"))
    frame = results.read_csv(path)
    assert frame["median_s"][0] == TIMING.median_s
    assert math.isnan(frame["median_s"][1])
    assert frame["setup_s"][0] == 1e-7
    assert list(frame["reason"]) == ["", "no causal mask"]
    assert frame["seqlen_q"].dtype == "Int64"
    assert frame["workspace_bytes"][0] == 0
    assert results.read_csv(tmp_path).equals(frame)


def test_the_csv_is_one_that_pandas_reads_by_itself(tmp_path: Path) -> None:
    import pandas as pd

    written(tmp_path, ok(), bad(reason='a "quoted", split\r\nreason\x00\x1b[31m'))
    frame = pd.read_csv(tmp_path / "results.csv")
    assert frame["reason"][1] == 'a "quoted", split reason [31m'
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_texts_that_look_like_nothing_stay_texts(tmp_path: Path) -> None:
    written(tmp_path, ok(implementation="nan"), ok(implementation="None"))
    assert list(results.read_csv(tmp_path)["implementation"]) == ["nan", "None"]


def test_a_csv_that_a_spreadsheet_has_saved_is_still_read(tmp_path: Path) -> None:
    path = written(tmp_path, ok())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert results.read_csv(path)["n"][0] == 120


def test_a_csv_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = written(tmp_path, ok())
    before = path.read_bytes()

    def torn() -> Any:
        yield ok()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.write_csv(tmp_path, torn(), run())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_columns_of_others_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, ok())
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]},note\n{lines[1]},mine\n")
    assert list(results.read_csv(path)["note"]) == ["mine"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a text file"),
        (b"schema\x00", "not a text file"),
        (b"a,b\n1,2\n", "no column `schema`"),
        (b"schema,problem\n1,x\n", "no column `run_id`"),
        (b"schema\n1,2\n", ":2: 2 values for 1 columns"),
        (b"schema\none\n", "no schema number"),
        (b"schema\n0\n", "no schema number"),
        (b'schema\n"1', "no column `run_id`"),
    ],
)
def test_what_is_no_results_file_is_said_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=words):
        results.read_csv(path)


def test_a_missing_file_gets_a_hint(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.csv", tmp_path / "no/such/folder"):
        with pytest.raises(ResultsError, match="there is no") as caught:
            results.read_csv(path)
        assert caught.value.hint


def test_a_value_of_the_wrong_type_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, ok(), ok(implementation="b"))
    rows = list(csv.reader(path.read_text().splitlines()))
    rows[2][rows[0].index("threads")] = "two"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(
        ResultsError, match=r"results.csv:3: column `threads` must be a whole number, got 'two'"
    ):
        results.read_csv(path)


def test_a_newer_schema_asks_for_a_newer_attnbench(tmp_path: Path) -> None:
    results.write_header(tmp_path, run(schema=results.SCHEMA + 1))
    with pytest.raises(ResultsError, match="newer") as caught:
        results.read_header(tmp_path)
    assert "upgrade" in str(caught.value.hint)
    path = written(tmp_path, ok())
    path.write_text(path.read_text().replace(f"\n{results.SCHEMA},", f"\n{results.SCHEMA + 1},"))
    with pytest.raises(ResultsError, match="newer"):
        results.read_csv(path)


def test_old_schemas_are_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_header(tmp_path, run())
    with results.Journal(tmp_path) as journal:
        journal.append(ok())
    written(tmp_path, bad(implementation="b"))
    steps: list[tuple[int, str]] = []

    def step(schema: int) -> Any:
        def upgrade(what: str, data: dict[str, Any]) -> dict[str, Any]:
            steps.append((schema, what))
            return {**data, "kernel": "upgraded"} if what != "header" else data

        return upgrade

    now = results.SCHEMA
    monkeypatch.setattr(files, "SCHEMA", now + 2)
    monkeypatch.setattr(files, "UPGRADES", {n: step(n) for n in (now, now + 1)})
    header, rows = results.load(tmp_path)
    assert header.schema == now + 2
    assert {row.kernel for row in rows} == {"upgraded"}
    assert steps == [(n, what) for what in ("header", "row", "result") for n in (now, now + 1)]


@pytest.mark.parametrize(
    ("schema", "later"),
    [
        (1, {**files._SINCE_2, **files._SINCE_3, **files._SINCE_4}),
        (2, {**files._SINCE_3, **files._SINCE_4}),
        (3, files._SINCE_4),
    ],
    ids=["1", "2", "3"],
)
def test_a_run_of_an_old_schema_is_read(tmp_path: Path, schema: int, later: dict[str, str]) -> None:
    path = written(tmp_path, ok())
    rows = list(csv.DictReader(path.read_text().splitlines()))
    old = [name for name in rows[0] if name not in later]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, old, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"schema": schema} for row in rows)
    (found,) = results.read_results(path)[1]
    assert found == dataclasses.replace(ok(), blocks=())


# ---------------------------------------------------------------- header and folder


def test_a_header_reads_back_the_same(tmp_path: Path) -> None:
    header = run()
    results.write_header(
        tmp_path, dataclasses.replace(header, fingerprint=MappingProxyType({"torch": "2.13"}))
    )
    assert results.read_header(tmp_path) == header
    assert (tmp_path / "run.json").read_text().startswith(f'{{\n "schema": {results.SCHEMA},')


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        '{"schema": 1}',
        '{"schema": "1"}',
        '{"schema": 1, "plugins": 3, "command": []}',
        "\0",
    ],
)
def test_what_is_no_header_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ResultsError, match=r"run\.json"):
        results.read_header(tmp_path)


def test_a_folder_without_header_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"not the folder of a run: it has no run\.json"):
        results.load(tmp_path)


def test_generated_folders_never_collide(tmp_path: Path) -> None:
    made = [results.create(tmp_path / "results", None, "my suite/../x") for _ in range(3)]
    assert len(set(made)) == 3
    for folder in made:
        assert folder.parent == tmp_path / "results"
        assert folder.is_dir()
        assert folder.name.startswith("my-suite-..-x-20")


def test_a_folder_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    asked = tmp_path / "a/b"
    assert results.create(Path("unused"), str(asked), "quick") == asked
    with pytest.raises(ResultsError, match="exists already") as caught:
        results.create(Path("unused"), str(asked), "quick")
    assert "--resume" in str(caught.value.hint)


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="cannot create"):
        results.create(tmp_path, str(tmp_path / "file/below"), "quick")
    with pytest.raises(ResultsError, match="cannot create"):
        results.create(tmp_path / "file", None, "quick")


def test_fingerprints_are_compared_in_words() -> None:
    old, new = (
        {"torch": "2.11", "python": "3.12", "gone": "x"},
        {"torch": "2.13", "python": "3.12", "new": "y"},
    )
    assert results.compatible(old, old) == []
    assert results.compatible(old, new) == [
        "torch: was 2.11, is 2.13",
        "gone: was x, is absent",
        "new: was absent, is y",
    ]


# ---------------------------------------------------------------- journal


def test_a_row_is_in_the_journal_at_once_and_whole(tmp_path: Path) -> None:
    with results.Journal(tmp_path) as journal:
        for row in (ok(), bad(implementation="b", reason="two\nlines \udc80")):
            journal.append(row)
            assert results.read_journal(tmp_path)[-1] == row  # before the journal is closed


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    with results.Journal(tmp_path) as journal:
        journal.append(ok())
        journal.append(bad(implementation="b"))
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert results.read_journal(tmp_path) == [ok()]
    path.write_bytes(whole[:first] + b"\0\0\0\n")  # a power cut, not a kill
    with results.Journal(tmp_path) as journal:
        journal.append(bad(implementation="b"))
    assert path.read_bytes() == whole


def test_a_journal_that_is_all_torn_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"cell": {"prob')
    assert results.read_journal(tmp_path) == []
    with results.Journal(tmp_path) as journal:
        journal.append(ok())
    assert results.read_journal(tmp_path) == [ok()]


def test_a_cell_that_occurs_twice_keeps_its_last_end(tmp_path: Path) -> None:
    with results.Journal(tmp_path) as journal:
        journal.append(bad())
        journal.append(bad(implementation="b"))
        journal.append(ok())
    assert results.read_journal(tmp_path) == [ok(), bad(implementation="b")]


@pytest.mark.parametrize("line", ["{", "3", "[]", '{"cell": {}}', '{"cell": null, "status": "ok"}', ""])
def test_corruption_elsewhere_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    with results.Journal(tmp_path) as journal:
        journal.append(ok())
        journal.append(ok(implementation="b"))
    path = tmp_path / "journal.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(ResultsError, match=r"journal.jsonl:2: not a row of a journal"):
        results.read_journal(tmp_path)


def test_two_runs_never_write_to_one_journal(tmp_path: Path) -> None:
    with (
        results.Journal(tmp_path),
        pytest.raises(ResultsError, match="another run"),
        results.Journal(tmp_path),
    ):
        pass
    with results.Journal(tmp_path):  # free again
        pass


# ---------------------------------------------------------------- whole runs


def stored(folder: Path) -> Path:
    results.write_header(folder, run())
    with results.Journal(folder) as journal:
        journal.append(ok(implementation="b"))
        journal.append(ok())
    written(folder, ok(), ok(implementation="b"), bad(Status.NOT_RUN, "interrupted", implementation="c"))
    return folder


def test_a_run_is_loaded_in_plan_order_with_its_samples(tmp_path: Path) -> None:
    header, rows = results.load(stored(tmp_path))
    assert header == run()
    assert [row.cell.implementation for row in rows] == ["torch-sdpa", "b", "c"]
    assert rows[0].blocks
    assert rows[2].status is Status.NOT_RUN


def test_a_run_that_was_killed_is_loaded_from_its_journal(tmp_path: Path) -> None:
    (stored(tmp_path) / "results.csv").unlink()
    _, rows = results.load(tmp_path)
    assert [row.cell.implementation for row in rows] == ["b", "torch-sdpa"]


def test_a_run_without_journal_differs_only_by_its_samples(tmp_path: Path) -> None:
    _, before = results.load(stored(tmp_path))
    (tmp_path / "journal.jsonl").unlink()
    _, after = results.load(tmp_path)
    assert after == [dataclasses.replace(row, blocks=()) for row in before]


def test_a_csv_alone_is_enough(tmp_path: Path) -> None:
    path = stored(tmp_path) / "results.csv"
    (tmp_path / "run.json").unlink()
    header, rows = results.load(path)
    assert len(rows) == 3
    assert (header.run_id, header.seed, header.owners) == ("quick-1", 7, {"torch-sdpa": "torch"})
    assert header.device_names == {"cpu": "X"}


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("status", "fine", "column `status`: unknown status 'fine'"),
        ("median_s", "", "column `median_s` is empty"),
        ("median_s", "nan", "column `median_s` must be finite, got nan"),
        ("threads", "", "column `threads` is empty"),
        ("implementation", "", "column `implementation` is empty"),
        ("p20_s", "", "column `p20_s` is empty"),
        ("grade", "D", "column `grade`: unknown grade 'D'"),
        ("problem", "foo=3", "column `problem`: unknown key `foo`"),
        ("dtype", "float7", "column `dtype` is 'float7', and its problem says 'bfloat16'"),
        ("heads_q", "9" * 400, "column `heads_q` must be a whole number, got '999"),
        ("heads_q", "3", "column `heads_q` is '3', and its problem says '8'"),
        ("schema", "9", "`schema` is 9, newer"),
        ("implementation", "b", "are those of line 2"),
    ],
)
def test_a_row_that_cannot_be_a_result_is_named_with_its_line(
    tmp_path: Path, column: str, value: str, words: str
) -> None:
    path = written(tmp_path, ok(implementation="b"), ok())
    rows = list(csv.reader(path.read_text().splitlines()))
    rows[2][rows[0].index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(ResultsError) as caught:
        results.load(path)
    assert caught.value.message.startswith(f"{path}:3: ")
    assert words in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 500


def test_an_end_without_a_reason_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, bad(implementation="b"), ok())
    path.write_text(path.read_text().replace("no causal mask", ""))
    with pytest.raises(ResultsError, match=r"results.csv:2: .* needs a reason"):
        results.load(path)


def test_rows_of_two_protocols_are_no_run(tmp_path: Path) -> None:
    path = written(tmp_path, ok(), ok(implementation="b"))
    header, first, second = csv.reader(path.read_text().splitlines())
    second[header.index("protocol_version")] = "1"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, first, second])
    with pytest.raises(ResultsError, match="column `protocol_version` has both 3 and 1"):
        results.load(path)


def test_who_gives_a_csv_of_her_own_is_told_what_takes_it(tmp_path: Path) -> None:
    (tmp_path / "hand.csv").write_text("problem,implementation,median_s\nseqlen=1,mine,1\n")
    with pytest.raises(ResultsError) as caught:
        results.load(tmp_path / "hand.csv")
    assert "`attnbench compare` takes one written by hand" in str(caught.value.hint)


def test_a_csv_with_only_a_header_has_no_rows(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert len(results.read_csv(path)) == 0
    with pytest.raises(ResultsError, match="no rows"):
        results.load(path)


def test_the_journal_is_one_json_object_a_line(tmp_path: Path) -> None:
    lines = (stored(tmp_path) / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"]["implementation"] for line in lines] == ["b", "torch-sdpa"]
