"""The resume drill: a run is killed at random moments and gone on with, until it has ended."""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attnbench import results
from attnbench.errors import ResultsError
from attnbench.selftest.bench import PLUGIN, Bench, NotMeasuredError
from attnbench.selftest.check import Check
from attnbench.selftest.specimens import SAMES

KILLS, QUICK_KILLS = 20, 3
CHAIN = 5
"""Kills of one run at the most."""
TIMEOUT_S = 120.0
GONE_S = 10.0
"""What a killed run leaves behind may take so long to end."""
MARKER = "ATTNBENCH_SELFTEST"
"""A variable of the environment by which a run's processes are known."""
PROGRAM = (sys.executable, "-m", "attnbench")
WORDS = (
    *("run", "--problem", "heads=2 head_dim=8 seqlen=8", "--set", "problems.seqlen=[8, 16, 24]"),
    *("--set", "measure.budget=20ms", "--set", "measure.threads=1", "--preset", "quick", "--quiet"),
    *("--plugin", PLUGIN, "--only", ",".join(SAMES[:2])),
)

Ends = list[tuple[str, str, str, str]]


def checks(bench: Bench, quick: bool, program: Sequence[str] = PROGRAM) -> Iterator[Check]:
    """One check of the rows and one of the processes."""
    wanted, killed, same, ended = (QUICK_KILLS if quick else KILLS), 0, 0, 0
    outlived: list[str] = []
    with tempfile.TemporaryDirectory(prefix="attnbench-selftest-") as name:
        drill = _Drill(Path(name), program)
        begin = time.monotonic()
        if not drill.run("whole", TIMEOUT_S):
            raise NotMeasuredError(f"a run does not end within {TIMEOUT_S:g} s: {drill.told}")
        whole_s = time.monotonic() - begin
        expected = drill.ends("whole")
        if not expected:
            raise NotMeasuredError(f"a run leaves no rows: {drill.told}")
        while killed < wanted:
            folder = f"killed-{ended}"
            for _ in range(min(CHAIN, wanted - killed)):
                if drill.run(folder, random.uniform(0, whole_s)):
                    break
                killed += 1
                outlived += drill.left()
            ended += 1
            same += drill.run(folder, TIMEOUT_S) and drill.ends(folder) == expected
            outlived += drill.left()
    yield Check(
        name="resume",
        figure=same,
        bound=ended,
        passed=same == ended,
        text=f"{same} of {ended} runs, killed {killed} times in all and gone on with, end with the rows of one "
        f"that was not, at least {ended}",
    )
    yield Check(
        name="resume",
        figure=len(outlived),
        bound=0,
        passed=not outlived,
        text=f"{len(outlived)} processes outlive a killed run, at most 0"
        + "".join(f"; {o}" for o in outlived),
    )


class _Drill:
    """Runs in one folder, as processes that are known by a marker."""

    def __init__(self, here: Path, program: Sequence[str]) -> None:
        self._here = here
        self._program = program

    def run(self, folder: str, seconds: float) -> bool:
        """Begin a run, or go on with it; whether it ended within so many seconds, else it is killed."""
        begun = (self._here / folder / "run.json").exists()
        words = ("run", "--resume", folder, "--quiet") if begun else (*WORDS, "-o", folder)
        with open(self._here / "told", "wb") as told:
            process = subprocess.Popen(
                [*self._program, *words],
                cwd=self._here,
                env={
                    **os.environ,
                    MARKER: self._here.name,
                    "TMPDIR": str(self._here),
                },  # with a lock of its own
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
            )
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            finally:
                process.kill()
                process.wait()
        return True

    @property
    def told(self) -> str:
        """The last line that the last run printed."""
        return (self._here / "told").read_text(errors="replace").strip().rpartition("\n")[2] or "nothing said"

    def ends(self, folder: str) -> Ends:
        """Cell and end of every row; none where there are no results."""
        try:
            _, rows = results.read_results(self._here / folder)
        except ResultsError:
            return []
        return [(r.cell.problem, r.cell.implementation, str(r.status), r.reason) for r in rows]

    def left(self) -> list[str]:
        """Names of the run's processes that are still there when they have had time to end; they are killed."""
        deadline = time.monotonic() + GONE_S
        while (found := self._living()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in found:
            os.kill(pid, 9)
        return list(found.values())

    def _living(self) -> dict[int, str]:
        marker, found = f"{MARKER}={self._here.name}".encode(), {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and marker in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except OSError:  # gone, or another user's
                continue
        return found
