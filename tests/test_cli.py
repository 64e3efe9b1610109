import csv
import dataclasses
import io
import json
import os
import pty
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import jsonschema
import pytest
import yaml
from torch import version as torch_version

from attnbench import header, results
from attnbench.cli import display, main, run
from attnbench.environment import available_cores
from attnbench.errors import UserError
from attnbench.records import Cell, Result, Status, Timing
from attnbench.runner import Progress

BAD = sorted((Path(__file__).parent / "bad_suites").glob("*.yaml"))
QUICK = Path(__file__).parent.parent / "suites" / "quick.yaml"
STORED = Path(__file__).parent.parent / "results" / "quick"
PROBLEM = "batch=1 seqlen=16 heads=2 head_dim=8 dtype=float32 mask=full"

PLUGIN = """
from attnbench import Capabilities, Implementation, hookimpl


def fused(inputs):
    import torch

    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)


def record(name, attend, **more):
    return Implementation(
        name=name,
        summary="for the tests of the command line",
        capabilities=Capabilities(dtypes=frozenset({"float32"}), devices=frozenset({"cpu", "cuda"})),
        prepare=lambda problem, inputs: lambda: attend(inputs),
        qkv_format="bhsd",
        **more,
    )


@hookimpl
def attnbench_implementations():
    yield record("mine-good", fused)
    yield record("mine-half", lambda inputs: fused(inputs) / 2, approximation="half of each value")
    yield record("mine-lost", fused, requires=("no-such-distribution",))
"""
SUITE = """
question: Does the command line keep its word?
implementations: mine-*
problems: {seqlen: [8, 16], heads: 2, head_dim: 8}
measure: {preset: quick, budget: 20ms, threads: 1}
"""

Done = subprocess.CompletedProcess[str]


def attnbench(here: Path, *words: str, env: Mapping[str, str] | None = None) -> Done:
    """`python -m attnbench` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "attnbench", *words],
        cwd=here,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def only_folder(results: Path) -> Path:
    (folder,) = results.iterdir()
    return folder


@dataclass(frozen=True)
class Runs:
    """Runs that the tests look at from different sides."""

    here: Path
    full: Done
    """A suite and a plugin by absolute path, an installed one that is broken, one implementation wrong, one
    unavailable."""
    quiet: Done
    """One implementation that is right, with a seed."""
    cuda: Done
    """A device that is not there."""
    exists: Done
    """A folder that exists."""
    blocked: Done
    """A file where the folder of results should be."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    outside, here = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("here")
    for folder in (outside, here):
        (folder / "mine.py").write_text(PLUGIN)
        (folder / "small.yaml").write_text(SUITE)
    (outside / "broken.py").write_text('raise ImportError(f"cannot import name `x` from {__file__}")')
    (outside / "broken-1.0.dist-info").mkdir()
    (outside / "broken-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n"
    )
    (outside / "broken-1.0.dist-info" / "entry_points.txt").write_text("[attnbench]\nbroken = broken\n")
    (here / "blocked").mkdir()
    (here / "blocked" / "results").touch()
    (here / "exists").mkdir()
    tiny = ["--problem", PROBLEM, "--set", "measure.budget=20ms", "--set", "measure.threads=1"]
    tiny += ["--preset", "quick", "--only", "mine-good"]
    mine = ["--plugin", "mine.py"]
    full = ["run", str(outside / "small.yaml"), "--plugin", str(outside / "mine.py")]
    full += ["-o", str(here / "full")]
    jobs: list[tuple[Path, list[str], dict[str, str]]] = [
        (here, full, {"PYTHONPATH": str(outside)}),
        (here, ["run", *tiny, *mine, "--seed", "7", "--quiet"], {}),
        (here, ["run", "small.yaml", *mine, "--device", "cuda", "-o", "cuda"], {}),
        (here, ["run", *tiny, *mine, "-o", "exists"], {}),
        (here / "blocked", ["run", *tiny, "--plugin", "../mine.py"], {}),
    ]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(
            lambda job: attnbench(
                job[0], *job[1], env={"CUDA_VISIBLE_DEVICES": "", "TMPDIR": mkdtemp(), **job[2]}
            ),
            jobs,
        )
        return Runs(here, *done)


# ---------------------------------------------------------------- light to start

WHAT_IS_IMPORTED = """
import sys
from attnbench.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted({"torch", "numpy", "pandas", "scipy", "yaml", "rich"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], {"torch", "numpy", "pandas", "scipy", "yaml", "rich"}),
        (["run", "--help"], {"torch", "numpy", "pandas", "scipy", "yaml", "rich"}),
        (["plan", "quick"], {"torch", "pandas", "scipy", "rich"}),
        (["plan", "quick", "--device", "cuda"], {"torch", "pandas", "scipy", "rich"}),
        (["list"], {"torch", "pandas", "scipy", "rich"}),
        (["schema"], {"torch", "pandas", "scipy", "rich"}),
        (["best", str(STORED)], {"torch", "pandas", "scipy"}),
        (["growth", str(STORED)], {"torch", "pandas"}),
        (["export", str(STORED), "--format", "json"], {"torch", "pandas", "scipy"}),
    ],
)
def test_what_need_not_be_imported_is_not(words: list[str], absent: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IS_IMPORTED, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not absent & set(done.stderr.split())


def test_help_is_there_in_less_than_three_tenths_of_a_second(tmp_path: Path) -> None:
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        done = attnbench(tmp_path, "--help")
        taken.append(time.perf_counter() - begin)
        assert done.returncode == 0
        assert done.stderr == ""
    assert min(taken) < 0.3


def test_every_verb_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ("run", "plan", "show", "compare", "best", "growth", "export", "list", "check", "schema")
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert f"usage: attnbench {verb}" in capsys.readouterr().out


# ---------------------------------------------------------------- bad input


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command: exit code 2, one line, at most a hint, and nothing on standard output."""
    code = main(list(words))
    told = capsys.readouterr()
    assert (code, told.out) == (2, ""), told
    assert re.fullmatch(r"error: [^\n]+\n(\nhint: [^\n]+\n)?", told.err), told.err
    return told.err.splitlines()[0].removeprefix("error: ")


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing may be left, and no process may be started."""
    monkeypatch.chdir(tmp_path)

    def never() -> None:
        raise AssertionError("the fork server was started")

    monkeypatch.setattr("attnbench.runner.fork_server", never)
    return tmp_path


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_suite_is_one_line_with_file_and_line(
    path: Path, verb: str, in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.match(rf"{re.escape(str(path))}:[1-9]\d*: \S", refused([verb, str(path)], capsys))
    assert list(in_an_empty_folder.iterdir()) == []


NO_MODULE = "ModuleNotFoundError: No module named 'no_such'"
REFUSED = [
    ("run", "no suite"),
    ("plan", "no suite"),
    ("run no-such-suite", "no-such-suite: no such file"),
    ("run .", ".: a directory is no suite"),
    ("run quick --problem seqlen=8", "give a suite or --problem, not both"),
    ("run --problem ''", "--problem is empty"),
    ("check numpy --problem ''", "--problem is empty"),
    (
        "run --problem 'model=gpt2 seqlen=128,256'",
        "--problem: `seqlen` has a list of values, and a problem has one for each key",
    ),
    (
        "run quick --set measure.threads=9999999",
        f"`threads` is 9,999,999, more than the cores that this process may use: {available_cores()}",
    ),
    ("run quick --plugin no_such", f"--plugin no_such: it cannot be loaded: {NO_MODULE}"),
    ("plan quick --plugin no_such", f"--plugin no_such: it cannot be loaded: {NO_MODULE}"),
    ("check numpy --plugin no_such", f"--plugin no_such: it cannot be loaded: {NO_MODULE}"),
    (
        "run quick --set implementations=torhc-*",
        "--set implementations=torhc-*: no implementation matches `torhc-*`",
    ),
    ("run --problem seqlen", "cannot read 'seqlen' in a problem"),
    ("run --problem 'seqlen=8 heads=2'", "--problem: a problem needs `head_dim`"),
    ("run quick --only no-such", "no implementation matches `no-such`"),
    ("run quick --without no-such", "no implementation matches `no-such`"),
    ("run quick --without *", "no implementation is left to run"),
    ("run quick --device tpu", "--device tpu: unknown device `tpu`"),
    ("plan quick --device cpu --device tpu", "--device cpu --device tpu: unknown device `tpu`"),
    ("run quick --preset slow", "--preset slow: unknown preset `slow`"),
    ("run quick --by ''", "--by is empty"),
    ("show no-such --by ''", "--by is empty"),
    ("show no-such --by seqlen,", "--by: an axis is missing in `seqlen,`"),
    ("list --problem ''", "--problem is empty"),
    ("list --why numpy --problem ''", "--problem is empty"),
    ("run quick --by seqlen,colour", "unknown axis `colour`"),
    ("run quick --by seqlen", "a table has rows and columns, got `seqlen`"),
    ("run quick --set nonsense", "--set nonsense: no key=value"),
    ("run quick --set colour=red", "--set colour=red: unknown key `colour` in a suite"),
    ("run quick --set measure.colour=red", "--set measure.colour=red: unknown key `colour` in `measure`"),
    ("run quick --set measure.budget=red", "--set measure.budget=red: `budget`: 'red' is not a duration"),
    (
        "run quick --set baseline=no-such",
        "--set baseline=no-such: the baseline `no-such` is no implementation",
    ),
    ("run quick --time-budget red", "--time-budget: 'red' is not a duration"),
    ("run quick --time-budget 0", "--time-budget must be above 0, got 0"),
    ("run quick --seed -1", "--seed must be at least 0, got -1"),
    ("run quick --plugin no-such.py", "no plugin file `no-such.py`"),
    ("list --plugin no-such.py", "no plugin file `no-such.py`"),
    ("check no-such", "no implementation matches `no-such`"),
    ("check numpy --device tpu", "--device: unknown device `tpu`"),
    ("check numpy --device cuda:99", "--device: torch finds no device `cuda:99`"),
    ("show no-such", "there is no no-such"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_bad_arguments_are_one_line_with_what_is_wrong(
    line: str, message: str, in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(shlex.split(line), capsys) == message
    assert list(in_an_empty_folder.iterdir()) == []


def test_debug_shows_the_traceback_of_an_error() -> None:
    with pytest.raises(UserError):
        main(["--debug", "run", "no-such-suite"])


def test_an_existing_folder_is_never_overwritten(runs: Runs) -> None:
    assert (runs.exists.returncode, runs.exists.stdout) == (2, "")
    assert runs.exists.stderr.startswith("error: exists exists already\n\nhint: give another folder with -o")
    assert list((runs.here / "exists").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(runs: Runs) -> None:
    assert (runs.blocked.returncode, runs.blocked.stdout) == (2, "")
    assert runs.blocked.stderr.startswith("error: cannot create a folder in results: ")
    assert "Traceback" not in runs.blocked.stderr


# ---------------------------------------------------------------- exit codes of a run

CELL = Cell(problem=PROBLEM, implementation="i", device="cpu", threads=1)


def result(status: Status, cell: Cell = CELL) -> Result:
    times = dict.fromkeys(("p20_s", "p80_s", "min_s", "mad_s", "setup_s", "first_call_s"), 1.0)
    counts = dict.fromkeys(("n", "n_flagged", "rounds", "launches", "inner"), 1)
    timing = Timing(median_s=1.0, ci95_low_s=None, ci95_high_s=None, stop_reason="budget", **times, **counts)
    ok = status is Status.OK
    return Result(cell=cell, status=status, reason="" if ok else "why", timing=timing if ok else None)


@pytest.mark.parametrize("status", Status)
def test_the_exit_code_of_a_run_says_how_its_rows_ended(status: Status) -> None:
    bad = {Status.WRONG, Status.IMPOSSIBLE, Status.FAILED, Status.CRASHED}
    strict = bad | {Status.OUT_OF_MEMORY, Status.TIMED_OUT}
    both = [result(Status.OK), result(status)]
    assert run._code(both, strict=False) == (1 if status in bad else 0)
    assert run._code(both, strict=True) == (1 if status in strict else 0)


def test_a_noisy_time_is_bad_for_those_who_are_strict() -> None:
    row = result(Status.OK)
    noisy = dataclasses.replace(row, timing=dataclasses.replace(row.timing, grade="C"))  # type: ignore[type-var]
    assert [run._code([noisy], strict=strict) for strict in (False, True)] == [0, 1]


@pytest.mark.parametrize("status", [Status.UNSUPPORTED, Status.UNAVAILABLE])
def test_a_run_in_which_nothing_could_run_is_an_error(status: Status) -> None:
    with pytest.raises(UserError) as caught:
        run._code([result(status)], strict=False)
    assert caught.value.message == f"nothing could run: i: {status.value}: why"
    assert "attnbench list" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("status", "reason"), [(Status.UNAVAILABLE, "no CUDA device (gone)"), (Status.UNSUPPORTED, "no cuda")]
)
def test_where_only_the_device_is_in_the_way_the_hint_is_another_device(status: Status, reason: str) -> None:
    row = result(status, dataclasses.replace(CELL, device="cuda:1"))
    with pytest.raises(UserError) as caught:
        run._code([dataclasses.replace(row, reason=reason)], strict=False)
    assert (caught.value.hint or "").startswith("run with --device cpu")


def test_right_rows_exit_with_0_and_a_wrong_one_with_1(runs: Runs) -> None:
    assert runs.quiet.returncode == 0, runs.quiet.stderr
    assert runs.full.returncode == 1, runs.full.stderr
    ends = {row["implementation"]: row["status"] for row in rows(runs.here / "full")}
    assert ends == {"mine-good": "ok", "mine-half": "wrong", "mine-lost": "unavailable"}


def test_a_device_that_is_not_there_makes_rows_and_one_line_that_helps(runs: Runs) -> None:
    assert runs.cuda.returncode == 2
    found = rows(runs.here / "cuda")
    assert len(found) == 6
    assert {row["status"] for row in found} == {"unavailable"}
    assert {row["reason"].partition(" (")[0] for row in found} == {"no CUDA device"}
    assert {(row["device"], row["device_name"]) for row in found} == {("cuda:0", "")}
    *_, error, _, hint = runs.cuda.stderr.rstrip().splitlines()
    assert re.fullmatch(r"error: nothing could run: mine-good: unavailable: no CUDA device \(.+\)", error)
    assert hint.startswith("hint: run with --device cpu, or install a CUDA build of torch")
    assert "6 unavailable" in runs.cuda.stdout


# ---------------------------------------------------------------- what a run says and leaves


def test_data_goes_to_standard_output_and_everything_else_to_standard_error(runs: Runs) -> None:
    assert runs.full.stdout.startswith("Time of one call")
    assert "6 cells: 2 ok, 2 wrong, 2 unavailable" in runs.full.stdout
    assert "warning" not in runs.full.stdout
    assert "[1/4" not in runs.full.stdout
    assert "Traceback" not in runs.full.stderr
    assert "Time of one call" not in runs.full.stderr


def test_progress_in_a_log_is_a_plain_line_for_each_job(runs: Runs) -> None:
    lines = [line for line in runs.full.stderr.splitlines() if line.startswith("[")]
    assert [re.match(r"\[(\d)/4", line)[1] for line in lines] == ["1", "2", "3", "4"]  # type: ignore[index]
    assert re.fullmatch(r"\[4/4\] mine-\w+  batch=1 seqlen=16 .*", lines[-1])
    assert any("mine-half" in line and "wrong: " in line for line in lines)
    assert "\r" not in runs.full.stderr
    assert "\x1b" not in runs.full.stderr + runs.full.stdout


def test_quiet_says_only_where_the_results_are(runs: Runs) -> None:
    folder = only_folder(runs.here / "results")
    assert re.fullmatch(r"problem-\d{8}-\d{6}", folder.name)
    assert runs.quiet.stderr == f"\nresults/{folder.name}/results.csv\n"
    assert "1 cell: 1 ok" in runs.quiet.stdout


def test_show_prints_again_what_run_printed(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(runs.here / "full")]) == 0
    assert capsys.readouterr().out == runs.full.stdout
    assert main(["show", str(runs.here / "full"), "--by", "implementation,seqlen"]) == 0
    turned = capsys.readouterr().out
    assert turned.startswith("Time of one call")
    assert turned != runs.full.stdout


def test_show_says_that_a_run_without_its_table_lacks_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell(problem=PROBLEM, implementation="mine", device="cpu", threads=1)
    results.write_header(tmp_path, results.load(QUICK.parent.parent / "results" / "quick")[0])
    with results.Journal(tmp_path) as journal:
        journal.append(Result(cell=cell, status=Status.FAILED, reason="it fell"))
    assert main(["show", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "it fell" in told.out
    assert "has no results.csv: these are the rows of its journal, and those not run are missing" in told.err
    assert f"`attnbench run --resume {tmp_path}`" in told.err


def test_show_shows_the_views_that_are_asked_for(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["show", str(runs.here / "full"), "--view", "speedup", "--view", "gbps"]
    assert main([*words, "--baseline", "mine-good"]) == 0
    told = capsys.readouterr().out
    assert "Speed-up against mine-good" in told
    assert "Least bytes per second" in told
    assert "Time of one call" not in told
    assert "mine-lost: unavailable" in told
    assert (
        refused([*words, "--baseline", "mine-half"], capsys)
        == "--baseline: no time of `mine-half` in this run"
    )
    assert refused([*words, "--view", "speed"], capsys) == "unknown view `speed`"


def test_a_reason_is_printed_once(runs: Runs) -> None:
    told = runs.full.stdout
    assert told.count("needs no-such-distribution") == 1
    assert told.count("[1] wrong: ") == 1
    assert re.search(r"(?m)^\[1\] wrong: .*$", told)


def test_a_run_without_anything_to_show_has_only_a_summary(runs: Runs) -> None:
    assert re.fullmatch(
        r"6 cells: 6 unavailable\n\[1\] unavailable: no CUDA device \([^\n]+\n[^[]*", runs.cuda.stdout
    )
    assert "unavailable [1]" in (runs.here / "cuda" / "timing.md").read_text()


def test_the_baseline_of_a_run_stands_first_where_it_is_printed_too() -> None:
    folder = QUICK.parent.parent / "results" / "quick"
    stored, cells = results.load(folder)
    assert display.baseline(stored) == "torch-sdpa"
    assert re.search(r"unit +torch-sdpa +numpy", display.tables_text(cells, None, stored))
    other = dataclasses.replace(stored, command=("run", "quick", "--set", "baseline=numpy"))
    assert display.baseline(other) == "numpy"
    assert display.baseline(dataclasses.replace(stored, suite_text="of: another version")) is None


def test_a_csv_alone_is_shown_too(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(runs.here / "full" / "results.csv", tmp_path)
    assert main(["show", str(tmp_path / "results.csv")]) == 0
    assert "6 cells: 2 ok, 2 wrong, 2 unavailable" in capsys.readouterr().out


def test_a_run_leaves_its_files(runs: Runs) -> None:
    folder = runs.here / "full"
    assert {path.name for path in folder.iterdir()} == {
        *("run.json", "journal.jsonl", "results.csv", "timing.md", "memory.md")
    }
    assert "| mine-good |" in (folder / "timing.md").read_text()
    assert "| mine-good |" in (folder / "memory.md").read_text()


def test_a_broken_plugin_of_the_command_line_is_an_error_with_a_command_that_shows_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise SystemExit('not today')")
    assert main(["run", "quick", "--plugin", str(path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: --plugin {path}: it cannot be loaded: SystemExit: not today\n")
    assert told.endswith("` shows the traceback\n")
    command = shlex.split(told.split("hint: `")[1].split("` shows")[0])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "not today\n")


def test_the_command_shows_the_traceback_of_a_hook_that_raises_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(
        "import attnbench\n@attnbench.hookimpl\ndef attnbench_implementations():\n    return [1 / 0]\n"
    )
    assert main(["run", "quick", "--plugin", str(path)]) == 2
    command = shlex.split(capsys.readouterr().err.split("hint: `")[1].split("` shows")[0])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert f'File "{path}", line 4, in attnbench_implementations' in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_broken_plugin_that_is_installed_is_a_warning_and_is_stored(runs: Runs) -> None:
    (warning,) = [line for line in runs.full.stderr.splitlines() if line.startswith("warning: ")]
    assert re.fullmatch(r"warning: plugin `broken` \(entry point\) was left out: ImportError: .+", warning)
    stored = json.loads((runs.here / "full" / "run.json").read_text())["plugins"]
    (broken,) = [plugin for plugin in stored if plugin["error"]]
    assert (broken["plugin"], broken["source"]) == ("broken", "entry point")
    assert broken["error"] == "ImportError: cannot import name `x` from broken.py"


def test_a_header_tells_neither_where_nor_on_whose_machine_it_was_made(runs: Runs) -> None:
    text = (runs.here / "full" / "run.json").read_text()
    assert json.loads(text)["command"] == [*("run", "small.yaml", "--plugin", "mine.py", "-o", "full")]
    for secret in (socket.gethostname(), str(Path.home()), str(runs.here), str(runs.here.parent)):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text), secret
    assert not re.findall(r"(?<![\w.~>/-])/[\w.-]+/[\w./-]*", text)


def test_what_is_approximated_stands_in_the_header_and_in_every_row(runs: Runs) -> None:
    told = {"mine-half": "half of each value"}
    assert json.loads((runs.here / "full" / "run.json").read_text())["approximations"] == told
    found = {(row["implementation"], row["approximation"]) for row in rows(runs.here / "full")}
    assert found == {("mine-good", ""), ("mine-lost", ""), *told.items()}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/home/me/suite.yaml", "suite.yaml"),
        ("-o/home/me/run", "-orun"),
        ("-qo/home/me/run", "-qorun"),
        ("--output=/home/me/run", "--output=run"),
        ("--plugin=/home/me/x=y.py", "--plugin=x=y.py"),
        ("results/run", "results/run"),
        ("measure.budget=1s", "measure.budget=1s"),
        ("seqlen=8 heads=2", "seqlen=8 heads=2"),
    ],
)
def test_a_stored_command_line_holds_no_absolute_path(word: str, expected: str) -> None:
    assert header.portable([word]) == [expected]


def test_a_path_below_the_working_directory_is_stored_relative_to_it() -> None:
    assert header.portable([str(Path.cwd() / "a" / "b.py")]) == ["a/b.py"]


def test_a_seed_that_is_given_is_used_and_otherwise_it_changes(runs: Runs) -> None:
    folders = [runs.here / "full", runs.here / "cuda", only_folder(runs.here / "results")]
    seeds = [json.loads((folder / "run.json").read_text())["seed"] for folder in folders]
    assert len(set(seeds)) == 3
    assert seeds[2] == 7
    for folder, seed in zip(folders, seeds, strict=True):
        assert {row["seed"] for row in rows(folder)} == {str(seed)}
    assert run._seed(None, 5) == 5
    assert run._seed(3, 5) == 3


def test_the_command_of_a_row_runs_just_that_row_again(runs: Runs, tmp_path: Path) -> None:
    (row,) = rows(only_folder(runs.here / "results"))
    shutil.copy(runs.here / "mine.py", tmp_path)
    program, *words = shlex.split(row["repro"])
    assert program == "attnbench"
    done = attnbench(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    (again,) = rows(only_folder(tmp_path / "results"))
    same = ("problem", "implementation", "device", "threads", "cache", "clock", "preset", "seed", "repro")
    assert [again[name] for name in same] == [row[name] for name in same]
    assert again["err_row"] == row["err_row"]  # the same inputs


# ---------------------------------------------------------------- terminals and pipes


def on_a_terminal(here: Path, *words: str, env: Mapping[str, str]) -> str:
    """What a command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "attnbench", *words],
        cwd=here,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", **env},
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


def test_colour_is_for_terminals_without_no_color(runs: Runs) -> None:
    colour = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    shown = on_a_terminal(runs.here, "show", "full", env={**colour, "COLUMNS": "100"})
    plain = on_a_terminal(runs.here, "show", "full", env={"NO_COLOR": "1", "COLUMNS": "100"})
    assert "\x1b[" in shown
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == plain == runs.full.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_drawn_with_the_count_of_jobs_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with display.progress(stream, quiet=False, decided=3) as listener:
        listener(Progress(done=4, total=7, current="verifying mine[1] on seqlen=8", left_s=90.0))
        listener(Progress(done=5, total=7, current="", left_s=60.0, row=result(Status.WRONG)))
    drawn = stream.getvalue()
    assert "verifying mine[1] on seqlen=8" in drawn
    assert "2/4" in drawn
    assert "60.0 s left" in drawn
    assert f"i  {PROBLEM}  wrong: why" in drawn


def test_quiet_is_quiet_on_a_terminal_too() -> None:
    stream = Terminal()
    with display.progress(stream, quiet=True) as listener:
        listener(Progress(done=1, total=4, current="", left_s=90.0, row=result(Status.OK)))
    assert stream.getvalue() == ""


@pytest.mark.parametrize("verb", ["list", "schema"])
def test_a_reader_that_has_seen_enough_is_no_error(verb: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "attnbench", verb],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_is_an_error_and_no_finding(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "attnbench", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
    assert (done.returncode, done.stderr) == (2, "error: cannot write: No space left on device\n")


# ---------------------------------------------------------------- the other verbs


def test_a_shipped_suite_is_found_by_its_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "quick"]) == 0
    by_name = capsys.readouterr().out
    assert main(["plan", str(QUICK)]) == 0
    assert capsys.readouterr().out == by_name
    assert by_name.startswith("quick: ")


def test_a_file_goes_before_a_shipped_suite_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text(SUITE.replace("mine-*", "numpy"))
    assert main(["plan", "quick"]) == 0
    assert "Does the command line keep its word?" in capsys.readouterr().out


def test_plan_tells_counts_reasons_and_every_cell_if_asked(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", str(runs.here / "small.yaml"), "--plugin", str(runs.here / "mine.py")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "cells            6, of which 4 are jobs" in told
    assert "2  mine-lost: unavailable: needs no-such-distribution, which is not installed" in told
    assert "preset           quick: 20.0 ms a cell, over 3 fresh processes" in told
    assert main([*words, "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("batch=1 ")]) == 6
    assert len([line for line in lines if line.endswith("  job")]) == 4


def test_a_plan_may_be_for_a_machine_with_more_cores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quick", "--set", "measure.threads=9999"]) == 0
    assert f"9,999 threads, too many for a run here: {available_cores()} cores\n" in capsys.readouterr().out
    assert main(["plan", "quick", "--set", "measure.threads=1"]) == 0
    assert re.search(r"^devices +cpu; 1 threads$", capsys.readouterr().out, re.MULTILINE)


def test_plan_looks_for_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "quick", "--device", "cuda:3", "--only", "torch-sdpa"]) == 0
    told = capsys.readouterr().out
    assert "devices          cuda:3;" in told
    assert "of which 0 are jobs" not in told


def test_a_plan_for_a_device_that_is_not_here_says_so_and_blames_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attnbench.environment.no_cuda", lambda: "no NVIDIA driver")
    assert main(["plan", "gpu", "--only", "torch-flex"]) == 0
    told = capsys.readouterr().out
    assert told.count("no CUDA device (no NVIDIA driver), so this plan is for another machine\n") == 1
    assert "triton" not in told
    assert main(["plan", "quick"]) == 0
    assert "CUDA" not in capsys.readouterr().out


def test_list_shows_what_there_is_and_marks_what_is_missing_or_broken(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('not today')")
    words = ["--plugin", str(tmp_path / "broken.py"), "--plugin", str(runs.here / "mine.py")]
    assert main(["list", *words]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^  mine-good +ok ", told, re.MULTILINE)
    (note,) = re.findall(r"^  mine-lost +no (\[\d\]) ", told, re.MULTILINE)
    assert f"{note} needs no-such-distribution, which is not installed\n" in told
    assert re.search(
        r"plugin broken \(.+\) could not be loaded: SystemExit: not today$", " ".join(told.split())
    )
    for name in (
        "numpy",
        "torch-naive",
        "torch-chunked",
        "torch-sdpa",
        "torch-sdpa-math",
        "torch-sdpa-flash",
    ):
        assert re.search(rf"^  {name} +ok ", told, re.MULTILINE)


def test_the_schema_accepts_our_suite_and_refuses_a_misspelt_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    suite = yaml.safe_load(QUICK.read_text())
    jsonschema.validate(suite, schema, cls=jsonschema.Draft202012Validator)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**suite, "colour": "red"}, schema, cls=jsonschema.Draft202012Validator)


BFLOAT16 = PROBLEM.replace("float32", "bfloat16")


@pytest.mark.parametrize(
    ("name", "ends", "code"),
    [
        ("mine-good", {"mine-good": "right"}, 0),
        ("mine-half", {"mine-half": "wrong: .*(RMS error|row error).*"}, 1),
        ("mine-[gl]*", {"mine-good": "right", "mine-lost": "unavailable: needs no-such-distribution.*"}, 0),
        ("mine-[hl]*", {"mine-half": "wrong: .*", "mine-lost": "unavailable: .*"}, 1),
    ],
)
def test_check_says_whether_an_implementation_is_right(
    runs: Runs, name: str, ends: dict[str, str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", name, "--plugin", str(runs.here / "mine.py"), "--problem", PROBLEM]
    assert main(words) == code
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert told.keys() == ends.keys()
    for implementation, end in ends.items():
        assert re.fullmatch(rf"{PROBLEM}  {end}", told[implementation])


def test_a_problem_that_check_finds_unsupported_is_an_answer(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--plugin", str(runs.here / "mine.py"), "--problem", BFLOAT16]
    assert main(["check", "mine-good", "torch-naive", *words]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"torch-naive  {BFLOAT16}  right",
        f"mine-good  {BFLOAT16}  unsupported: no bfloat16",
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["mine-good", "--problem", BFLOAT16], "mine-good: unsupported: no bfloat16"),
        (["mine-lost"], "mine-lost: unavailable: needs no-such-distribution, which is not installed"),
        (["mine-never"], "mine-never: it supports no small problem on cpu"),
    ],
)
def test_where_check_could_check_nothing_it_is_an_error(
    tmp_path: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    never = 'objection=lambda problem, device: "never"'
    (tmp_path / "mine.py").write_text(f"{PLUGIN}    yield record('mine-never', fused, {never})\n")
    assert main(["check", *words, "--plugin", str(tmp_path / "mine.py")]) == 2
    error, _, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: nothing could be checked: {reason}"
    assert "attnbench list" in hint


@pytest.mark.parametrize("words", [["run"], ["plan"], ["list"], ["check", "numpy"]])
def test_a_problem_may_be_given_once(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--problem", PROBLEM, "--problem", BFLOAT16])
    assert ended.value.code == 2
    assert "--problem is given twice; several problems are a suite" in capsys.readouterr().err


def test_resuming_a_run_that_is_done_says_so(runs: Runs) -> None:
    folder = str(only_folder(runs.here / "results"))
    done = attnbench(runs.here, "run", "--resume", folder, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout) == (0, runs.quiet.stdout)
    assert "nothing was left to do: every cell has its row\n" in done.stderr


def test_the_console_script_and_the_module_are_the_same_program(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("attnbench")
    if not script.exists():
        pytest.skip("attnbench is not installed beside this interpreter")
    one = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    two = attnbench(tmp_path, "--version")
    assert one.stdout == two.stdout
    assert re.fullmatch(r"attnbench \d+\.\d+\.\d+\n", one.stdout)


def test_several_globs_may_stand_behind_one_only(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--problem", "seqlen=64 heads=1 head_dim=8", "--only", "numpy,torch-sdpa-m*"]
    assert main([*words, "--only", "torch-naive"]) == 0
    assert "3: numpy, torch-naive, torch-sdpa-math\n" in capsys.readouterr().out
    assert main([*words, "--without", "numpy,torch-*"]) == 2


def test_a_run_whose_journal_is_lost_is_not_written_over(runs: Runs, tmp_path: Path) -> None:
    whole = only_folder(runs.here / "results")
    damaged = tmp_path / whole.name
    shutil.copytree(whole, damaged)
    (damaged / "journal.jsonl").write_text("not JSON\n")
    before = (damaged / "results.csv").read_text()
    done = attnbench(runs.here, "run", "--resume", str(damaged), env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "cannot be resumed: 1 rows of its results.csv are not in its journal" in done.stderr
    assert (damaged / "results.csv").read_text() == before
    (damaged / "results.csv").write_text("schema\none\n")
    (damaged / "journal.jsonl").write_bytes((whole / "journal.jsonl").read_bytes())
    shown = attnbench(runs.here, "show", str(damaged))
    assert shown.returncode == 2
    assert f"hint: `attnbench run --resume {damaged}` writes the tables again" in shown.stderr


def test_a_time_budget_in_which_nothing_was_measured_is_an_error(runs: Runs) -> None:
    words = [
        "run",
        "--problem",
        PROBLEM,
        "--plugin",
        "mine.py",
        "--only",
        "mine-good",
        "--time-budget",
        "1ms",
    ]
    done = attnbench(runs.here, *words, "-o", "spent")
    assert done.returncode == 2
    assert "error: nothing was measured: the time budget of 1.00 ms was spent" in done.stderr
    assert "go on with: attnbench run --resume spent" in done.stderr


# ---------------------------------------------------------------- peaks


def test_peaks_are_measured_once_and_printed_for_people_and_programs(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    first, again = (attnbench(tmp_path, "peaks", env=env) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert re.search(r"^  float32 +[\d.]+ [GT]FLOP/s$", first.stdout, re.MULTILINE)
    assert re.search(r"^  64\.0 MiB +[\d.]+ [GT]B/s$", first.stdout, re.MULTILINE)
    assert again.stdout == first.stdout
    document = json.loads(attnbench(tmp_path, "peaks", "--json", env=env).stdout)
    assert document["threads"] == available_cores()
    assert document["flops_per_s"]["float32"] > 1e8
    assert document["bytes_per_s"].keys() == {str(2**26), str(2**28)}


def test_peaks_that_cannot_be_kept_are_shown_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = attnbench(tmp_path, "peaks", env={"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert shown.returncode == 0
    assert "float32" in shown.stdout
    assert shown.stderr == f"not kept: {tmp_path}/file/attnbench cannot be written\n"


@pytest.mark.parametrize(
    ("device", "why"),
    [("gpu", "unknown device `gpu`"), ("cuda:7", "no `cuda:7` (this build of torch has no CUDA)")],
)
def test_peaks_of_a_device_that_is_not_there_are_an_error(
    device: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if device != "gpu" and torch_version.cuda:
        pytest.skip("a build of torch with CUDA")
    assert main(["peaks", "--device", device]) == 2
    assert why in capsys.readouterr().err


def test_a_run_says_the_least_time_that_its_device_needs(runs: Runs) -> None:
    (row,) = rows(only_folder(runs.here / "results"))
    assert 0 < float(row["floor_s"]) < float(row["median_s"])
