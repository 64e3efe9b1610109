"""A device is held by one process at a time; the next one says that it waits."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from attnbench import lock
from attnbench.errors import UserError

HOLD = """
import sys
from attnbench import lock
with lock.held(sys.argv[1].split(","), lambda *told: print("waits for", *told, flush=True)):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def holder(devices: str, *more: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", HOLD, devices, *more]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_second_process_says_that_it_waits_and_gets_the_device_when_the_first_has_ended(
    folder: Path,
) -> None:
    with holder("cpu,cuda:0") as first:
        assert line(first) == "holds"
        with holder("cuda:0") as second:
            waits, for_, device, told = line(second).split(" ", 3)
            assert (waits, for_, device) == ("waits", "for", "cuda-0")
            assert re.fullmatch(rf"process {first.pid} \(python[\d.]* -c .*\) \d+\.\d+", told)
            first.kill()
            assert line(second) == "holds"
            second.kill()


def test_who_has_not_signed_yet_is_another_process(folder: Path) -> None:
    with lock.held(["cpu"], pytest.fail), open(folder / "attnbench-cpu.lock", "r+") as file:
        file.truncate(0)
        assert lock._holder(file.fileno()) == ("another process", 0.0)


def test_of_a_command_line_the_verb_is_told_and_no_line_break(folder: Path) -> None:
    words = ["/opt/bin/attnbench", "run", "a\nb"]
    with holder("cuda:0", *words) as first:
        assert line(first) == "holds"
        with open(folder / "attnbench-cuda-0.lock") as file:
            who, _ = lock._holder(file.fileno())
        first.kill()
    assert who == f"process {first.pid} (attnbench run a b)"


def test_other_devices_are_free(folder: Path) -> None:
    with holder("cuda:0") as first:
        assert line(first) == "holds"
        with lock.held(["cpu", "cuda:1"], pytest.fail):
            first.kill()


def test_the_device_is_the_physical_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with lock.held(["cuda:0"], pytest.fail):
        assert [path.name for path in folder.iterdir()] == ["attnbench-cuda-3.lock"]


def test_a_folder_without_room_for_a_lock_is_an_error_with_a_hint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "gone"))
    with pytest.raises(UserError, match="cannot open the lock") as caught, lock.held(["cpu"], pytest.fail):
        pass
    assert "TMPDIR" in str(caught.value.hint)
