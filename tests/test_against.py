import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attnbench
from attnbench import results
from attnbench.against import Against
from attnbench.errors import UserError
from attnbench.turns import paired

KERNEL = """
from attnbench import Capabilities, Implementation, hookimpl


def prepare(problem, inputs):
    import pacing  # of whichever environment runs it
    import torch

    def step():
        pacing.wait()
        return FACTOR * torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)

    return step


@hookimpl
def attnbench_implementations():
    for name in NAMES:
        yield Implementation(
            name=name,
            summary="for the tests of two sides",
            capabilities=Capabilities(dtypes=frozenset({"float32"})),
            prepare=prepare,
            qkv_format="bhsd",
        )
"""
PACING = """
import time


def wait():
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        pass
"""
SUITE = """
question: Has it become slower?
problems: {seqlen: 16, heads: 2, head_dim: 8}
implementations: kernel*
measure: {preset: quick, launches: 2, budget: 800ms, threads: 1}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A new kernel and an old one; the library that both use, and one of another environment that is faster."""
    (tmp_path / "new.py").write_text(f"NAMES, FACTOR = ['kernel', 'kernel-new'], 1\n{KERNEL}")
    (tmp_path / "old.py").write_text(f"NAMES, FACTOR = ['kernel', 'kernel-old'], 1\n{KERNEL}")
    (tmp_path / "same.py").write_text((tmp_path / "new.py").read_text())
    (tmp_path / "half.py").write_text(f"NAMES, FACTOR = ['kernel'], 0.5\n{KERNEL}")
    for environment, seconds in (("ours", 2e-3), ("theirs", 1e-3)):
        (tmp_path / environment).mkdir()
        (tmp_path / environment / "pacing.py").write_text(f"SECONDS = {seconds}\n{PACING}")
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path


def interpreter(path: Path, *packages: Path) -> Path:
    """An interpreter whose environment begins with `packages`."""
    folders = ":".join(map(str, [*packages, Path(attnbench.__file__).parents[1]]))
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folders} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def run(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return attnbench_(here, "run", "-q", "-o", "run", *words)


def attnbench_(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = str(Path(attnbench.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "attnbench", *words],
        cwd=here,
        env={**os.environ, "PYTHONPATH": f"{here / 'ours'}:{own}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(here: Path) -> dict[str, dict[str, str]]:
    with open(here / "run" / "results.csv", newline="") as file:
        return {row["implementation"]: row for row in csv.DictReader(file)}


def test_another_environment_is_measured_in_the_same_rounds(here: Path) -> None:
    python = interpreter(here / "python", here / "theirs")
    done = run(here, "suite.yaml", "--plugin", "new.py", "--against", f"python={python}")
    assert done.returncode == 1, done.stderr
    assert "regressions: 2 slower" in done.stdout
    again = attnbench_(here, "compare", "run")
    assert again.returncode == 1
    assert again.stdout in done.stdout
    _, found = results.load(here / "run")
    kernels = {result.cell.implementation: result for result in found}
    assert set(kernels) == {"kernel", "kernel-new", "kernel@base", "kernel-new@base"}
    assert {row["stop_reason"] for row in rows(here).values()} == {"budget"}  # else few rounds are in common
    ratio = paired(kernels["kernel"], kernels["kernel@base"])
    assert ratio is not None
    assert 1.6 < ratio.location < 2.4


def test_another_plugin_file_brings_its_own_implementations(here: Path) -> None:
    width = ("--set", "measure.width=50%")
    done = run(here, "suite.yaml", "--plugin", "new.py", "--against", "plugin=old.py", *width)
    assert done.returncode == 1, done.stderr
    assert "1 only in base" in done.stdout
    assert "1 only in new" in done.stdout
    assert set(rows(here)) == {"kernel", "kernel-new", "kernel@base", "kernel-old@base"}
    assert {row["stop_reason"] for row in rows(here).values()} == {"interval within 50%"}
    assert {row["status"] for row in rows(here).values()} == {"ok"}


def test_each_side_is_judged_for_itself(here: Path) -> None:
    done = run(here, "suite.yaml", "--plugin", "new.py", "--against", "plugin=half.py")
    assert done.returncode == 0, done.stderr
    assert "1 fixed" in done.stdout
    status = {name: row["status"] for name, row in rows(here).items()}
    assert status == {"kernel": "ok", "kernel-new": "ok", "kernel@base": "wrong"}


def test_the_base_takes_no_module_of_the_folder_one_stands_in(here: Path) -> None:
    """Which is often the checkout of the new version."""
    (here / "pacing.py").write_text(f"SECONDS = 9e-3\n{PACING}")
    python = interpreter(here / "python", here / "theirs")
    run(here, "suite.yaml", "--plugin", "new.py", "--against", f"python={python}")
    assert 1e-3 <= float(rows(here)["kernel@base"]["median_s"]) < 4e-3


def test_sides_that_were_not_measured_whole_are_no_success(here: Path) -> None:
    words = ("suite.yaml", "--plugin", "new.py", "--against", "plugin=same.py")
    done = run(here, *words, "--set", "problems.seqlen=[16, 32, 64]", "--time-budget", "1500ms")
    assert done.returncode == 2, done.stdout
    assert "the sides were not compared: the time budget of 1.50 s was spent" in done.stderr
    assert "go on with: attnbench run --resume run" in done.stderr


def test_a_run_of_two_sides_is_resumed(here: Path) -> None:
    words = ["--plugin", "new.py", "--against", "plugin=same.py"]
    run(here, "suite.yaml", *words)
    journal = here / "run" / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:1]))
    (here / "run" / "results.csv").unlink()
    resumed = attnbench_(here, "run", "-q", "--resume", "run")
    assert resumed.returncode in (0, 1), resumed.stderr
    assert {row["status"] for row in rows(here).values()} == {"ok"}


def test_a_base_without_attnbench_or_with_another_one_is_refused(here: Path) -> None:
    (here / "nothing").write_text("#!/bin/sh\nexit 1\n")
    (here / "nothing").chmod(0o755)
    done = run(here, "suite.yaml", "--plugin", "new.py", "--against", f"python={here / 'nothing'}")
    assert done.returncode == 2
    assert "nothing cannot run attnbench" in done.stderr
    shutil.copytree(Path(attnbench.__file__).parent, here / "other" / "attnbench")
    with open(here / "other" / "attnbench" / "clocks.py", "a") as file:
        file.write("# another\n")
    python = interpreter(here / "python", here / "theirs", here / "other")
    done = run(here, "suite.yaml", "--plugin", "new.py", "--against", f"python={python}")
    assert done.returncode == 2
    assert "the base has another attnbench" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pyton=/usr/bin/python3"], "neither `python=` nor `plugin=`"),
        (["python="], "neither `python=` nor `plugin=`"),
        (["plugin=a.py", "plugin=b.py"], "or given twice"),
        (["python=/no/such/python"], "no such file"),
    ],
)
def test_what_the_base_differs_in_must_be_said_rightly(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Against.parse(words, ["mine.py"])


def test_another_plugin_file_takes_the_place_of_one() -> None:
    assert Against.parse(["plugin=old.py"], ["new.py"]).plugins == ("old.py",)
    assert Against.parse(["python=/bin/sh"], ["new.py"]).plugins == ("new.py",)
    with pytest.raises(UserError, match="which is not given"):
        Against.parse(["plugin=old.py"], [])
