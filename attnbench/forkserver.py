"""The fork server: processes that start in milliseconds, end for certain, and talk JSON on private sockets.

`python -m attnbench.forkserver FD MODULE...` imports the modules once and forks a child for each request. The
server starts no thread, opens no device and runs no parallel region, because a child of such a process hangs.
A child that is handed an entry point `module:function` calls it with its `Channel`.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnbench.errors import UserError

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KEEP = 64 * 1024
"""Bytes of output that are kept from the beginning and from the end."""
TERM_GRACE_S = 0.2
ORPHAN_GRACE_S = 0.5

_HANDLED = (signal.SIGTERM, signal.SIGCHLD)

Message = dict[str, Any]
ID = "id"
"""Of a question and of its answer: a process that an implementation forks would answer too."""


class Channel:
    """JSON messages, one a line, over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        self._question: Message = {}

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        data = json.dumps({**message, **self._question}).encode() + b"\n"
        if fds:
            sent = socket.send_fds(self.sock, [data], list(fds))
            data = data[sent:]
        self.sock.sendall(data)

    def receive(self) -> Message | None:
        """The next message; None where the other side has closed. Blocks."""
        while (message := self.pop()) is None:
            if not self.fill():
                return None
        if ID in message:  # the answer carries it
            self._question = {ID: message.pop(ID)}
        return message

    def fill(self) -> bool:
        """Read what is there; False where the other side has closed."""
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self._buffer += data
        return bool(data)

    def pop(self) -> Message | None:
        """A message that has been read whole, or None."""
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message: Message = json.loads(line)
        return message


# ---------------------------------------------------------------- the server's side


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> dict[int, str]:
    """Living children of this process, with their names."""
    me, found = os.getpid(), {}
    try:
        with open(f"/proc/{me}/task/{me}/children") as file:
            candidates = file.read().split()
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        candidates = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    for entry in candidates:
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as stat:
            head, _, tail = stat.read().rpartition(")")
            state, parent = tail.split()[:2]
            if int(parent) == me and state not in "ZX":
                found[int(entry)] = head.partition("(")[2]
    return found


def _become(entry: str, sock: socket.socket, output: int, parent: int) -> None:
    """The life of a child, from fork to exit."""
    code = 1
    try:
        os.setpgid(0, 0)  # the server does the same, so that signals to the group find it at once
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for fd in (null, output):
            os.close(fd)
        sys.stdout = os.fdopen(1, "w", buffering=1, errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function)(Channel(sock))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class _Server:
    """Forks, reaps and ends children at the runner's word; ends all of them when the runner is gone."""

    def __init__(self, control: socket.socket) -> None:
        self.control = Channel(control)
        self.alive: set[int] = set()
        self.kill_at: dict[int, float] = {}
        self.scratch = ""

    def serve(self) -> None:
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(self._end_all()))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError):  # the runner is killed before it hears of a child's end
            self._serve(read)
        self._end_all()

    def _serve(self, read: int) -> None:
        control = self.control.sock
        sources: list[Any] = [control, read]
        while True:
            wait = min(self.kill_at.values(), default=None)
            ready = select.select(
                sources, [], [], None if wait is None else max(0.0, wait - time.monotonic())
            )[0]
            if read in ready:
                os.read(read, 4096)
            if control in ready:
                try:
                    data, fds, _, _ = socket.recv_fds(control, 1 << 16, 16)
                except ConnectionResetError:
                    data, fds = b"", []
                if not data:
                    return
                for line in data.splitlines():  # one request at a time is under way
                    self._obey(json.loads(line), fds)
            for pid, deadline in list(self.kill_at.items()):
                if time.monotonic() >= deadline:
                    del self.kill_at[pid]
                    self._signal(pid, signal.SIGKILL)
            self._reap()

    def _obey(self, message: Message, fds: list[int]) -> None:
        if "scratch" in message:
            self.scratch = message["scratch"]
            return
        if "load" in message:
            os.environ.update(message["env"])
            for name in message["load"]:
                with contextlib.suppress(Exception):  # the child that needs it tells why
                    importlib.import_module(name)
            _settle()
            return
        if "end" in message:
            pid = message["end"]
            if pid in self.alive:
                self._signal(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGTERM)  # it alone: what it leaves behind is to be seen
                self.kill_at[pid] = time.monotonic() + message["grace"]
            return
        sock, output = fds
        server = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # a child must not run the server's handlers
        pid = os.fork()
        if pid == 0:
            self.control.sock.close()
            _become(message["entry"], socket.socket(fileno=sock), output, server)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        with contextlib.suppress(PermissionError):
            os.setpgid(pid, pid)
        os.close(sock)
        os.close(output)
        self.alive.add(pid)
        self.control.send({"started": pid})

    def _signal(self, pid: int, number: int) -> None:
        for send in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(pid, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self.alive:
                continue  # a grandchild that was left to us
            self.alive.discard(pid)
            self.kill_at.pop(pid, None)
            left = self._end_orphans()
            self.control.send({"exit": pid, "code": os.waitstatus_to_exitcode(status), "left": left})

    def _end_orphans(self) -> list[str]:
        """Names of processes that a child left behind; they get a moment to end, then they are killed."""
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while orphans := {p: name for p, name in _children().items() if p not in self.alive}:
            if time.monotonic() > deadline:
                for pid in orphans:
                    self._signal(pid, signal.SIGKILL)
                return sorted(orphans.values())
            time.sleep(0.01)
        return []

    def _end_all(self) -> int:
        for pid in self.alive:
            self._signal(pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while (left := _children()) and time.monotonic() < deadline:
            for pid in left:
                self._signal(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.005)
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return 0


def _settle() -> None:
    """What has been imported stays: a child's collections then touch no page of the server's."""
    gc.collect()
    gc.freeze()


def main(argv: Sequence[str]) -> None:
    """Import the modules named after the file descriptor, then serve until the other side closes."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    control = socket.socket(fileno=int(argv[0]))
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # imports take seconds
    if select.select([control], [], [], 0)[0]:
        return  # the runner was gone before
    for name in argv[1:]:
        importlib.import_module(name)
    _settle()
    _prctl(PR_SET_PDEATHSIG, 0)  # from now on the end of the channel says that the runner is gone
    with contextlib.suppress(BrokenPipeError):
        Channel(control).send({"ready": os.getpid()})
    _Server(control).serve()


# ---------------------------------------------------------------- the runner's side


class ChildEndedError(Exception):
    """The child is gone. `code` is its exit code, negative for a signal; `left` names processes it left."""

    def __init__(self, code: int, left: Sequence[str] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.left = tuple(left)

    @property
    def reason(self) -> str:
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"the process exited with code {self.code}"


class ChildTimeoutError(Exception):
    """The child did not answer in time."""


@dataclass
class Output:
    """The first and the last `KEEP` bytes of a stream."""

    head: bytearray = field(default_factory=bytearray)
    tail: deque[bytes] = field(default_factory=deque)
    total: int = 0
    _tail_bytes: int = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = KEEP - len(self.head)
        self.head += data[:room]
        if rest := data[room:]:
            self.tail.append(rest)
            self._tail_bytes += len(rest)
            while self._tail_bytes - len(self.tail[0]) >= KEEP:
                self._tail_bytes -= len(self.tail.popleft())

    @property
    def text(self) -> str:
        tail = b"".join(self.tail)[-KEEP:]
        left_out = self.total - len(self.head) - len(tail)
        gap = f"\n... {left_out} bytes left out ...\n".encode() if left_out else b""
        return (bytes(self.head) + gap + tail).decode(errors="backslashreplace")


class Child:
    """A forked process that answers one message at a time."""

    def __init__(self, server: "ForkServer", pid: int, sock: socket.socket, output: int) -> None:
        self.server = server
        self.pid = pid
        self.channel = Channel(sock)
        self.output = Output()
        self.output_fd: int | None = output
        self.asked = 0
        self.ended: ChildEndedError | None = None

    def ask(self, message: Mapping[str, Any], timeout: float) -> Message:
        """Send, and wait for the answer. Raises `ChildEndedError` or `ChildTimeoutError`."""
        self.say(message)
        return self.answer(timeout)

    def say(self, message: Mapping[str, Any]) -> None:
        """Send, and do not wait."""
        self.asked += 1
        with contextlib.suppress(OSError):  # that it has ended is told with the answer
            self.channel.send({**message, ID: self.asked})

    def answer(self, timeout: float) -> Message:
        """Wait for the answer to what was said last. Raises `ChildEndedError` or `ChildTimeoutError`."""
        deadline = time.monotonic() + timeout
        while True:
            while (answer := self.channel.pop()) is not None:
                if answer.pop(ID, None) == self.asked:
                    return answer
            if self.ended:
                raise self.ended
            if not self.server.pump(self, deadline):
                raise ChildTimeoutError

    def pause(self) -> None:
        """Stop it, so that its idle threads do not spin beside a measurement."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close_output(self) -> None:
        if self.output_fd is not None:
            os.close(self.output_fd)
            self.output_fd = None

    def _signal(self, number: int) -> None:
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def leave(self, grace: float = TERM_GRACE_S) -> None:
        """Have the server continue it, terminate it, and kill it after `grace` seconds; does not wait."""
        if not self.ended:
            self.server._tell({"end": self.pid, "grace": grace})

    def end(self, grace: float = TERM_GRACE_S) -> ChildEndedError:
        """`leave` it and wait; returns how it ended."""
        self.leave(grace)
        while not self.ended:
            self.server.pump(self, time.monotonic() + 60)
        return self.ended


class ForkServer:
    """Client of a fork server in a process of its own; a context manager that leaves no process behind.

    It imports while the caller goes on; the first `start` or `owns` waits for it.
    """

    def __init__(
        self, preload: Sequence[str], python: str = sys.executable, env: Mapping[str, str] | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **(env or {})}
        if (
            python == sys.executable
        ):  # it finds what we find; another one has its own, not what lies in this folder
            env["PYTHONPATH"] = os.pathsep.join([*filter(None, [env.get("PYTHONPATH")]), *sys.path])
        self.control = Channel(ours)
        self.children: dict[int, Child] = {}
        self._starting: tuple[socket.socket, int] | None = None
        with theirs:
            self.process = subprocess.Popen(
                [python, "-P", "-m", "attnbench.forkserver", str(theirs.fileno()), *preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C on the terminal is for us alone
                env=env,
            )
        self._ready = False

    def wait(self) -> None:
        """Wait until it has imported. Raises `UserError` where it ended instead."""
        if self._ready:
            return
        try:
            self._ready = self.control.receive() is not None
        except BaseException:  # Ctrl-C while it imports
            self.process.kill()
            self.close()
            raise
        if not self._ready:
            self.close()
            raise self._gone()

    def _gone(self) -> UserError:
        return UserError(
            f"the fork server ended with code {self.process.wait()}",
            hint="an implementation may have ended its parent: leave it out with --without",
        )

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, entry: str) -> Child:
        """A fresh process that calls `module:function` with its channel."""
        self.wait()
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._starting = (ours, read)  # before it is asked for, so that a Ctrl-C in between does no harm
        with theirs:
            try:
                self._tell({"entry": entry}, [theirs.fileno(), write])
            finally:
                os.close(write)
        while self._starting:
            self._take_control(block=True)
        return self._newest

    def owns(self, scratch: str) -> None:
        """Have the server remove the folder `scratch` when it ends, should this process be killed before."""
        self.wait()
        self._tell({"scratch": scratch})

    def load(self, modules: Sequence[str], env: Mapping[str, str]) -> None:
        """Have the server import further modules, with `env` set, before the next `start`; does not wait for it."""
        self.wait()
        self._tell({"load": list(modules), "env": dict(env)})

    def _tell(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            self.control.send(message, fds)
        except OSError:
            raise self._gone() from None

    def pump(self, waiting: Child, deadline: float) -> bool:
        """Move what is there: notices, output of every child, the answer of `waiting`. False at the deadline."""
        fds: dict[Any, Child] = {c.output_fd: c for c in self.children.values() if c.output_fd is not None}
        sources: list[Any] = [self.control.sock, *fds]
        if not waiting.ended:
            sources.append(waiting.channel.sock)
        ready = select.select(sources, [], [], max(0.0, deadline - time.monotonic()))[0]
        for source in ready:
            if source in fds:
                self._drain(fds[source])
            elif source is waiting.channel.sock:
                if not waiting.ended and not waiting.channel.fill():
                    self._take_control(block=True)  # closed: the notice of its end is under way
            elif source is self.control.sock:
                self._take_control(block=False)
        return bool(ready) or time.monotonic() < deadline

    def _drain(self, child: Child, everything: bool = False) -> None:
        while child.output_fd is not None:
            try:
                data = os.read(child.output_fd, 1 << 16)
            except BlockingIOError:
                return
            child.output.add(data)
            if not data:
                child.close_output()
            if not everything:
                return

    def _take_control(self, block: bool) -> None:
        ready = block or select.select([self.control.sock], [], [], 0)[0]
        if ready and not self.control.fill():
            raise self._gone()
        while (message := self.control.pop()) is not None:
            if "started" in message:
                assert self._starting is not None
                self._newest = self.children[message["started"]] = Child(
                    self, message["started"], *self._starting
                )
                self._starting = None
                continue
            child = self.children.pop(message["exit"])
            while select.select([child.channel.sock], [], [], 0)[0] and child.channel.fill():
                pass  # its last words
            child.channel.sock.close()
            self._drain(child, everything=True)
            child.close_output()
            child.ended = ChildEndedError(message["code"], message["left"])

    def close(self) -> None:
        """End the server and with it every child."""
        self.control.sock.close()
        if self._starting:
            self._starting[0].close()
            os.close(self._starting[1])
            self._starting = None
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in self.children.values():
            child.channel.sock.close()
            child.close_output()
        self.children.clear()


@contextlib.contextmanager
def running(server: ForkServer, entry: str) -> Iterator[Child]:
    """A child that is ended when the block is left."""
    child = server.start(entry)
    try:
        yield child
    finally:
        child.end()


if __name__ == "__main__":
    main(sys.argv[1:])
