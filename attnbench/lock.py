"""One run at a time on a device: a lock that ends with the process that holds it."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attnbench.errors import UserError


def _name(device: str) -> str:
    """What a device is called for all processes of the machine: `cuda:0` is another one where few are visible."""
    kind, _, index = device.partition(":")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if index and int(index) < len(visible) and visible[int(index)].strip():
        index = visible[int(index)].strip()
    return "-".join(filter(None, ("attnbench", kind, index)))


def _open(name: str) -> int:
    path = Path(tempfile.gettempdir()) / f"{name}.lock"
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except PermissionError:  # another user's; reading is enough for a lock
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(
            f"cannot open the lock of the device, {path}: {error.strerror}",
            hint="set TMPDIR to a folder that can be written",
        ) from None


Waiting = Callable[[str, str, float], object]
"""Is told which device is waited for, who holds it, in words, and for how many seconds already."""
LONGEST = 100
"""Characters of a command line."""


def _sign(fd: int) -> None:
    """Say in the file who holds its lock; where it is another user's, it stays as it is."""
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)


def _holder(fd: int) -> tuple[str, float]:
    """Who holds a lock, in words, and for how many seconds, as far as file and system tell; else 0."""
    try:
        pid = int(os.pread(fd, 20, 0))
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except (OSError, ValueError):  # it has not signed yet, or is in another container
        return "another process", 0.0
    start = next((at for at, word in enumerate(words) if Path(word).name == "attnbench"), 0)
    command = " ".join([Path(words[start]).name, *words[start + 1 :]])
    shown = "".join(c if c.isprintable() else " " for c in command)
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
    return f"process {pid} ({shown})", max(0.0, time.time() - os.fstat(fd).st_mtime)


@contextlib.contextmanager
def held(devices: Sequence[str], waiting: Waiting) -> Iterator[None]:
    """Hold the locks of `devices` (`cpu`, `cuda:0`). Where another process holds one, say so to `waiting`, and wait.

    Raises `UserError` where a lock cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        for name in sorted({_name(device) for device in devices}):  # in one order: no two wait for each other
            fd = _open(name)
            stack.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(name.removeprefix("attnbench-"), *_holder(fd))
                fcntl.flock(fd, fcntl.LOCK_EX)
            _sign(fd)
        yield
