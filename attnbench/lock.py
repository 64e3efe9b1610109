"""One run at a time on a device: a lock that ends with the process that holds it."""

import contextlib
import fcntl
import os
import tempfile
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


@contextlib.contextmanager
def held(devices: Sequence[str], waiting: Callable[[str], object]) -> Iterator[None]:
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
                waiting(name.removeprefix("attnbench-"))
                fcntl.flock(fd, fcntl.LOCK_EX)
        yield
