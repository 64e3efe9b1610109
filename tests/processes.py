"""Processes of tests, known by a marker in their environment."""

import time
from pathlib import Path

VARIABLE = "ATTNBENCH_TEST_MARKER"


def living(marker: str) -> list[str]:
    """Command lines of living processes whose environment carries the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


def left_after(marker: str, seconds: float = 10.0) -> list[str]:
    """The processes that are still there when they have had some time to end."""
    end = time.monotonic() + seconds
    while (found := living(marker)) and time.monotonic() < end:
        time.sleep(0.05)
    return found
