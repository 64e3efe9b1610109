"""A run that ends before its time goes on where it stopped, and leaves no process behind."""

import csv
import fcntl
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import VARIABLE, left_after, living

PLUGIN = """
from attnbench import Capabilities, Implementation, hookimpl


def record(name, attend):
    return Implementation(
        name=name,
        summary="for the tests of resuming",
        capabilities=Capabilities(dtypes=frozenset({"float32"})),
        prepare=lambda problem, inputs: lambda: attend(inputs.q, inputs.k, inputs.v),
        qkv_format="bhsd",
    )


def fused(q, k, v):
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def plain(q, k, v):
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


@hookimpl
def attnbench_implementations():
    yield record("mine-fused", fused)
    yield record("mine-plain", plain)
"""
HANGING = """
import ctypes
from pathlib import Path

from attnbench import Capabilities, Implementation, hookimpl


def prepare(problem, inputs):
    Path(__file__).with_name("hanging").touch()
    ctypes.CDLL(None).sleep(600)


@hookimpl
def attnbench_implementations():
    can = Capabilities(dtypes=frozenset({"float32"}))
    yield Implementation(name="hangs-in-c", summary="", capabilities=can, prepare=prepare)
"""

SUITE = """
question: Does it go on where it stopped?
implementations: mine-*
problems:
  heads: 2
  head_dim: 8
  seqlen: [8, 16, 24]
  batch: [1, 2]
measure:
  preset: quick
  budget: 20ms
  threads: 1
"""
CELLS = 12
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}

TORN = """
import os, signal, sys
from attnbench.cli import main
from attnbench.results.journal import Journal

row, share = int(sys.argv[1]), float(sys.argv[2])
whole = Journal.append
rows = 0

def append(self, result):
    global rows
    rows += 1
    if rows < row:
        return whole(self, result)
    end = self._file.seek(0, 2)
    whole(self, result)
    os.truncate(self._path, end + int(share * (self._file.seek(0, 2) - end)))
    os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append
main(sys.argv[3:])
"""
"""A run that is killed while it writes the row of that number, of which a share reaches the disk."""


def attnbench(here: Path, *words: str, marker: str = "", program: str = "") -> "subprocess.Popen[str]":
    start = [sys.executable, "-c", program] if program else [sys.executable, "-m", "attnbench"]
    return subprocess.Popen(
        [*start, *words],
        cwd=here,
        env={**ENV, VARIABLE: marker},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def rows(folder: Path) -> list[tuple[str, str, str, str]]:
    """Cell and end of every row of the CSV, in its order."""
    with open(folder / "results.csv", newline="") as file:
        return [(r["problem"], r["implementation"], r["status"], r["reason"]) for r in csv.DictReader(file)]


def until(process: "subprocess.Popen[str]", count: int) -> str:
    """Read progress until that many rows have been reported; what was read."""
    assert process.stderr is not None
    text = ""
    while text.count("[") < count:
        line = process.stderr.readline()
        assert line, f"the run ended before row {count}:\n{text}"
        text += line
    return text


@dataclass(frozen=True)
class Workshop:
    """A folder with a suite and a plugin, and an uninterrupted run of both in `whole`."""

    here: Path
    done: "subprocess.CompletedProcess[str]"
    start_s: float
    """From the command to the first row."""

    @property
    def words(self) -> list[str]:
        return ["run", "small.yaml", "--plugin", "mine.py"]

    @property
    def whole(self) -> Path:
        return self.here / "whole"

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.whole, self.here / name))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    here = tmp_path_factory.mktemp("resume")
    (here / "small.yaml").write_text(SUITE)
    (here / "mine.py").write_text(PLUGIN)
    begin = time.monotonic()
    process = attnbench(here, "run", "small.yaml", "--plugin", "mine.py", "-o", "whole")
    until(process, 1)
    start_s = time.monotonic() - begin
    done = finish(process)
    assert done.returncode == 0, done.stderr
    return Workshop(here=here, done=done, start_s=start_s)


# ---------------------------------------------------------------- killed


@dataclass(frozen=True)
class Kill:
    """When a run is killed: so many seconds after so many rows, or within the writing of a row."""

    rows: int
    delay_s: float = 0.0
    torn: float | None = None
    """The share of the row that reaches the disk."""


@dataclass(frozen=True)
class Survivor:
    """A run that was killed several times, gone on with after each, and at last left to end."""

    folder: Path
    outlived: list[str]
    """Processes that outlived one of its deaths."""
    whole_rows: list[int]
    """Rows in its journal after each death."""
    done: "subprocess.CompletedProcess[str]"


def plan_kills(start_s: float) -> list[list[Kill]]:
    """Three runs, each killed four times: while it starts, twice after some rows, and at last within a row."""
    rng = random.Random(20240601)
    last = (Kill(2, torn=0.5), Kill(3, torn=0.999), Kill(2, delay_s=0.1))
    return [
        [
            Kill(0, (third + rng.random()) / 3 * start_s),
            *(Kill(rng.randrange(1, 3), rng.uniform(0, 0.2)) for _ in range(2)),
            last[third],
        ]
        for third in range(3)
    ]


def survive(workshop: Workshop, number: int, kills: list[Kill]) -> Survivor:
    folder = workshop.here / f"killed-{number}"
    marker = f"{folder}#"
    outlived, whole_rows = [], []

    def words() -> list[str]:
        begun = (folder / "run.json").exists()
        return ["run", "--resume", folder.name] if begun else [*workshop.words, "-o", folder.name]

    for kill in kills:
        if kill.torn is None:
            process = attnbench(workshop.here, *words(), marker=marker)
            until(process, kill.rows)
            time.sleep(kill.delay_s)
            process.kill()
        else:
            torn = [str(kill.rows), str(kill.torn), *words()]
            process = attnbench(workshop.here, *torn, marker=marker, program=TORN)
        finish(process)
        outlived += left_after(marker)
        journal = folder / "journal.jsonl"
        whole_rows.append(journal.read_bytes().count(b"\n") if journal.exists() else 0)
    return Survivor(folder, outlived, whole_rows, finish(attnbench(workshop.here, *words(), marker=marker)))


@pytest.fixture(scope="module")
def survivors(workshop: Workshop) -> list[Survivor]:
    planned = plan_kills(workshop.start_s)
    with ThreadPoolExecutor(len(planned)) as pool:
        return list(pool.map(lambda one: survive(workshop, *one), enumerate(planned)))


def test_a_run_killed_at_random_moments_goes_on_to_the_rows_of_an_uninterrupted_one(
    workshop: Workshop, survivors: list[Survivor]
) -> None:
    expected = rows(workshop.whole)
    assert len(expected) == CELLS
    assert {status for _, _, status, _ in expected} == {"ok"}
    for one in survivors:
        assert one.done.returncode == 0, one.done.stderr
        assert rows(one.folder) == expected
        lines = (one.folder / "journal.jsonl").read_text().splitlines()
        assert len(lines) == len({json.dumps(json.loads(line)["cell"]) for line in lines}) == CELLS


def test_no_row_from_before_a_kill_is_lost_or_measured_again(survivors: list[Survivor]) -> None:
    for one in survivors:
        assert one.whole_rows == sorted(one.whole_rows)
        numbers = re.findall(r"^\[(\d+)/12", one.done.stderr, re.MULTILINE)
        assert [int(n) for n in numbers] == list(range(one.whole_rows[-1] + 1, CELLS + 1))
    assert len({count for one in survivors for count in one.whole_rows}) >= 4  # the moments do differ


def test_a_row_that_a_kill_tore_does_not_count(survivors: list[Survivor]) -> None:
    for one, written in zip(survivors[:2], (1, 2), strict=True):
        *_, before, after = one.whole_rows
        assert after == before + written  # the torn row has no end of line


def test_no_process_outlives_a_killed_run(survivors: list[Survivor]) -> None:
    assert [one.outlived for one in survivors] == [[], [], []]


# ---------------------------------------------------------------- stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(workshop: Workshop, number: signal.Signals) -> None:
    folder = workshop.here / f"stopped by {number.name}"
    process = attnbench(workshop.here, *workshop.words, "-o", folder.name, marker=f"{folder}#")
    seen = until(process, 3)
    process.send_signal(number)
    done = finish(process)
    assert left_after(f"{folder}#") == []
    assert done.returncode == 130, done.stderr
    found = rows(folder)
    assert [row[:2] for row in found] == [row[:2] for row in rows(workshop.whole)]
    assert [row[2] for row in found[:3]] == ["ok"] * 3
    assert found[-1][2:] == ("not run", "interrupted")
    assert {row[2] for row in found} == {"ok", "not run"}
    assert "12 cells: " in done.stdout
    assert "Traceback" not in seen + done.stderr
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith("interrupted; go on with: attnbench run --resume ")
    if number is signal.SIGINT:
        again = shlex.split(last.partition("attnbench ")[2])
        resumed = finish(attnbench(workshop.here, *again))
        assert resumed.returncode == 0, resumed.stderr
        assert rows(folder) == rows(workshop.whole)


def test_ctrl_c_ends_a_job_that_hangs_in_c(workshop: Workshop) -> None:
    folder = workshop.here / "hung"
    (workshop.here / "hangs.py").write_text(HANGING)
    words = ["run", "--problem", "batch=1 seqlen=8 heads=1 head_dim=8", "--plugin", "hangs.py"]
    words += ["--only", "hangs-in-c", "--only", "torch-sdpa", "-o", folder.name]
    process = attnbench(workshop.here, *words, marker=f"{folder}#")
    end = time.monotonic() + 60
    while not (workshop.here / "hanging").exists() and time.monotonic() < end:
        time.sleep(0.02)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert time.monotonic() - begin < 10  # the job would hang for ten minutes, its time-out is one
    assert done.returncode == 130
    assert [row[2:] for row in rows(folder)] == [("not run", "interrupted")] * 2
    assert left_after(f"{folder}#") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_interrupted_while_it_starts_ends_quietly(workshop: Workshop, number: signal.Signals) -> None:
    marker = f"{workshop.here}-start-{number.name}#"
    process = attnbench(workshop.here, *workshop.words, "-o", "never", marker=marker)
    end = time.monotonic() + 60
    while not any("forkserver" in command for command in living(marker)) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    done = finish(process)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")
    assert left_after(marker) == []
    assert not (workshop.here / "never").exists()


def test_a_time_budget_leaves_the_rest_for_later(workshop: Workshop) -> None:
    for milliseconds in (
        250,
        320,
        420,
        550,
        720,
        940,
        1200,
    ):  # the first in which this machine measures a row
        folder = workshop.here / f"bounded by {milliseconds}"
        words = [*workshop.words, "-o", folder.name, "--time-budget", f"{milliseconds}ms"]
        done = finish(attnbench(workshop.here, *words))
        if "nothing was measured" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    ends = [row[2:] for row in rows(folder)]
    assert ends[-1][0] == "not run"
    assert re.fullmatch(r"the time budget of .* was spent", ends[-1][1])
    assert set(ends) <= {("ok", ""), ends[-1]}
    assert f"go on with: attnbench run --resume 'bounded by {milliseconds}'" in done.stderr
    resumed = finish(attnbench(workshop.here, "run", "--resume", folder.name))
    assert resumed.returncode == 0, resumed.stderr
    assert rows(folder) == rows(workshop.whole)


# ---------------------------------------------------------------- what may be resumed


def test_resuming_a_finished_run_does_nothing_new(workshop: Workshop) -> None:
    folder = workshop.copy("finished")
    journal = (folder / "journal.jsonl").read_bytes()
    done = finish(attnbench(workshop.here, "run", "--resume", folder.name))
    assert done.returncode == 0, done.stderr
    assert (folder / "journal.jsonl").read_bytes() == journal
    assert (folder / "results.csv").read_bytes() == (workshop.whole / "results.csv").read_bytes()
    assert "[" not in done.stderr
    assert done.stdout == workshop.done.stdout


def test_a_plugin_that_has_moved_can_be_given_again(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.whole, tmp_path / "whole")
    moved = tmp_path / "elsewhere" / "mine.py"
    moved.parent.mkdir()
    shutil.copy(workshop.here / "mine.py", moved)
    lost = finish(attnbench(tmp_path, "run", "--resume", "whole"))
    assert (lost.returncode, lost.stdout) == (2, "")
    assert lost.stderr.startswith("error: no plugin file `mine.py`\n")
    assert finish(attnbench(tmp_path, "run", "--resume", "whole", "--plugin", str(moved))).returncode == 0


def test_a_run_whose_plugin_has_changed_cannot_go_on(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.whole, tmp_path / "whole")
    (tmp_path / "mine.py").write_text(PLUGIN + "# faster now\n")
    done = finish(attnbench(tmp_path, "run", "--resume", "whole"))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(
        r"^  source of plugin mine: was [0-9a-f]{64}, is [0-9a-f]{64}$", done.stderr, re.MULTILINE
    )
    assert done.stderr.count(": was ") == 1
    assert "hint: start a new run" in done.stderr


def test_two_runs_may_not_write_to_one_folder(workshop: Workshop) -> None:
    folder = workshop.copy("busy")
    with open(folder / "journal.jsonl", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = finish(attnbench(workshop.here, "run", "--resume", folder.name))
    assert (done.returncode, done.stdout) == (2, "")
    assert "another run is writing to busy/journal.jsonl" in done.stderr


REFUSED = [
    (["nowhere"], "there is no folder nowhere"),
    (["whole", "small.yaml"], "--resume goes on with the same suite and choice"),
    (
        ["whole", "--problem", "seqlen=8 heads=1 head_dim=8"],
        "--resume goes on with the same suite and choice",
    ),
    (["whole", "--set", "measure.budget=1s"], "--resume goes on with the same suite and choice"),
    (["whole", "--device", "cpu"], "--resume goes on with the same suite and choice"),
    (["whole", "--seed", "0"], "--resume goes on with the same suite and choice"),
    (["whole", "-o", "other"], "--resume goes on with the same suite and choice"),
]


@pytest.fixture(scope="module")
def in_workshop(workshop: Workshop) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(workshop.here)
    yield
    os.chdir(before)


@pytest.mark.usefixtures("in_workshop")
@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_resumed_is_refused_with_a_hint(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from attnbench.cli import main

    assert main(["run", "--resume", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"error: {message}")
    assert "\nhint: " in told.err
