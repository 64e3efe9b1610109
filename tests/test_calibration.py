import dataclasses
import math
import stat
from pathlib import Path

import numpy as np
import pytest

from attnbench import calibration
from attnbench.calibration import Calibration, pooled
from attnbench.errors import ResultsError

TAKEN = Calibration(
    device="A processor",
    threads=2,
    torch="2.13.0",
    spread=0.01,
    degrees=16,
    runs=5,
    taken="2026-11-21T12:00:00+00:00",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attnbench" / "calibration.json"


def test_what_was_stored_is_read_back_by_device_threads_and_torch(cache: Path) -> None:
    assert calibration.store(TAKEN) == cache
    assert calibration.read("A processor", 2, "2.13.0") == TAKEN
    for key in (("Another", 2, "2.13.0"), ("A processor", 1, "2.13.0"), ("A processor", 2, "2.11.0")):
        assert calibration.read(*key) is None


def test_a_second_calibration_replaces_the_first_and_keeps_those_of_others() -> None:
    other = dataclasses.replace(TAKEN, threads=1)
    later = dataclasses.replace(TAKEN, spread=0.02)
    for one in (TAKEN, other, later):
        calibration.store(one)
    assert calibration.read(*TAKEN.key) == later
    assert calibration.read(*other.key) == other


def test_nothing_is_known_before_a_calibration() -> None:
    assert calibration.read(*TAKEN.key) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "calibrations": [{"device": "x"}]}']
)
def test_a_damaged_file_is_an_error_that_says_what_to_do(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    with pytest.raises(ResultsError, match="is no calibration") as caught:
        calibration.read(*TAKEN.key)
    assert "--calibrate" in (caught.value.hint or "")


def test_a_relative_cache_home_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration.place() == tmp_path / ".cache" / "attnbench" / "calibration.json"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ResultsError, match=r"cannot (read|write)"):
        calibration.store(TAKEN)


def test_nobody_else_reads_or_writes_the_file(cache: Path) -> None:
    calibration.store(TAKEN)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_the_spread_is_that_within_cells_whatever_their_length() -> None:
    rng = np.random.default_rng(1)
    cells = [np.exp(rng.normal(math.log(scale), 0.01, 200)).tolist() for scale in (1e-5, 1e-3, 0.1)]
    spread, degrees = pooled([*cells, [7.0]])
    assert degrees == 3 * 199
    assert spread == pytest.approx(0.01, rel=4 / math.sqrt(2 * degrees))  # four standard errors


def test_a_spread_needs_two_runs_of_a_cell() -> None:
    with pytest.raises(ValueError, match="no cell has two runs"):
        pooled([[1.0], [2.0]])
