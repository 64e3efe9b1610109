"""What plugins do wrong ends as a row each; the good ones beside them are measured."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import VARIABLE, living

PLUGIN = Path(__file__).parent / "faults" / "faulty.py"
PROBLEM = "batch=1 seqlen_q=32 seqlen_kv=64 heads=2 head_dim=32 dtype=float32 mask=causal"

EXPECTED = {
    "good-one": ("ok", ""),
    "good-two": ("ok", ""),
    "fault-raises": ("failed", "ValueError: no such head (faulty.py:"),
    "fault-exits": ("failed", "SystemExit: 3"),
    "fault-interrupts": ("failed", "KeyboardInterrupt"),
    "fault-segfaults": ("crashed", "killed by SIGSEGV in its first calls"),
    "fault-aborts": ("crashed", "killed by SIGABRT in its first calls"),
    "fault-hangs-in-python": ("timed out", "no answer within 5.00 s in its first calls"),
    "fault-hangs-in-c": ("timed out", "no answer within 5.00 s in its first calls"),
    "fault-ignores-term": ("timed out", "no answer within 5.00 s in its first calls"),
    "fault-exhausts-memory": ("out of memory", "(limit 1.00 GiB)"),
    "fault-prints-a-lot": ("ok", ""),
    "fault-leaves-a-child": ("failed", "running: sleep"),
    "fault-leaves-a-child-in-its-group": ("failed", "running: sleep"),
    "fault-forks": ("failed", "running: python"),
    "fault-mutates-inputs": ("wrong", "the inputs were changed"),
    "fault-returns-a-view": ("wrong", "the output is a view of an input"),
    "fault-wrong-shape": ("wrong", "shape"),
    "fault-wrong-dtype": ("wrong", "float64"),
    "fault-not-a-tensor": ("wrong", "NoneType"),
    "fault-some-nan": ("wrong", "finite"),
    "fault-stale": ("wrong", "not finite"),
    "fault-top-left": ("wrong", "out"),
    "fault-remembers": ("wrong", "peaked"),
    "fault-right-only-at-first": ("wrong", "after it was timed"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path, str]:
    folder = tmp_path_factory.mktemp("faults") / "run"
    marker = f"{VARIABLE}={folder}"
    name, value = marker.split("=", 1)
    words = ["run", "--problem", PROBLEM, "--plugin", str(PLUGIN), "--only", "good-*", "--only", "fault-*"]
    words += [
        "--set",
        "measure.timeout=5s",
        "--set",
        "measure.memory=1GiB",
        "--preset",
        "quick",
        "-o",
        str(folder),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "attnbench", *words],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, name: value},
    )
    return done, folder, marker


def test_every_fault_has_its_status_and_reason(
    run: tuple[subprocess.CompletedProcess[str], Path, str],
) -> None:
    done, folder, _ = run
    assert (folder / "results.csv").is_file(), done.stderr
    with open(folder / "results.csv", newline="") as file:
        rows = {row["implementation"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}
    assert rows.keys() == EXPECTED.keys()
    for name, (status, reason) in EXPECTED.items():
        assert rows[name][0] == status, (name, rows[name])
        assert reason in rows[name][1], (name, rows[name])


def test_the_exit_code_says_that_a_row_is_bad(
    run: tuple[subprocess.CompletedProcess[str], Path, str],
) -> None:
    assert run[0].returncode == 1


def test_no_process_is_left(run: tuple[subprocess.CompletedProcess[str], Path, str]) -> None:
    assert living(run[2]) == []


def test_the_output_of_a_failed_job_is_kept(run: tuple[subprocess.CompletedProcess[str], Path, str]) -> None:
    lines = (run[1] / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len(EXPECTED)
    assert all(len(line) < 2**20 for line in lines)
    raised = next(json.loads(line) for line in lines if "fault-raises" in line)
    assert "second line" in raised["output"]
    assert {json.loads(line)["cell"]["implementation"] for line in lines} == EXPECTED.keys()
