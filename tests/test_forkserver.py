import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench.errors import UserError
from attnbench.forkserver import KEEP, ChildEndedError, ChildTimeoutError, ForkServer, running

ENTRIES = Path(__file__).parent / "entries"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(["entries"], env={"PYTHONPATH": str(ENTRIES)}) as found:
        yield found


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it ends while we look
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def gone(pid: int, within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def test_a_child_answers_in_a_process_of_its_own(server: ForkServer) -> None:
    with running(server, "entries:echo") as one, running(server, "entries:echo") as two:
        first, second = one.ask({"n": 1}, 5), two.ask({"n": 2}, 5)
    assert first["echo"] == {"n": 1}
    assert second["echo"] == {"n": 2}
    assert len({first["pid"], second["pid"], os.getpid()}) == 3


def test_a_message_longer_than_a_socket_buffer_arrives_whole(server: ForkServer) -> None:
    long = "x" * 3_000_000
    with running(server, "entries:echo") as child:
        assert child.ask({"text": long}, 10)["echo"]["text"] == long


def test_a_server_sets_variables_and_loads_further_modules_and_passes_over_those_that_fail() -> None:
    question = {"module": "wave", "variable": "TO_BE_SEEN"}
    with ForkServer(["entries"], env={"PYTHONPATH": str(ENTRIES)}) as server:
        with running(server, "entries:loaded") as child:
            assert child.ask(question, 5) == {"loaded": False, "value": None}
        server.load(["no_such_module", "wave"], {"TO_BE_SEEN": "here"})
        with running(server, "entries:loaded") as child:
            assert child.ask(question, 5) == {"loaded": True, "value": "here"}


def test_a_paused_child_does_not_answer_until_it_is_resumed(server: ForkServer) -> None:
    with running(server, "entries:echo") as child:
        child.pause()
        with pytest.raises(ChildTimeoutError):
            child.ask({"n": 1}, 0.1)
        child.resume()
        assert child.ask({"n": 2}, 5)["echo"] == {"n": 2}  # the late answer to the first is let go


def test_ending_a_paused_child_works(server: ForkServer) -> None:
    child = server.start("entries:echo")
    child.pause()
    assert child.end().code == -signal.SIGTERM
    assert gone(child.pid)


def test_a_child_that_ignores_term_is_killed(server: ForkServer) -> None:
    child = server.start("entries:stubborn")
    child.ask({}, 5)
    assert child.end(grace=0.1).code == -signal.SIGKILL
    assert gone(child.pid)


def test_a_crash_names_the_signal(server: ForkServer) -> None:
    with running(server, "entries:segfault") as child, pytest.raises(ChildEndedError) as caught:
        child.ask({}, 5)
    assert caught.value.reason == "killed by SIGSEGV"


def test_what_a_child_leaves_running_is_named_and_ended(server: ForkServer) -> None:
    child = server.start("entries:leave")
    pid = child.ask({}, 5)["pid"]
    assert child.end().left == ("sleep",)
    assert gone(pid)


def test_output_is_kept_from_both_ends_and_bounded(server: ForkServer) -> None:
    with running(server, "entries:chatter") as child:
        assert child.ask({}, 60) == {"done": True}
    text = child.output.text
    assert text.startswith("first words\n")
    assert text.endswith("\nlast words\n")
    assert child.output.total > 100 * 2**20
    assert len(text) < 2 * KEEP + 100


def test_an_unknown_entry_shows_its_traceback(server: ForkServer) -> None:
    with running(server, "entries:nothing") as child, pytest.raises(ChildEndedError):
        child.ask({}, 5)
    assert "has no attribute 'nothing'" in child.output.text


def test_closing_the_server_ends_every_child() -> None:
    server = ForkServer(["entries"], env={"PYTHONPATH": str(ENTRIES)})
    pids = [server.start("entries:stubborn").pid for _ in range(3)]
    paused = server.start("entries:echo")
    paused.pause()
    server.close()
    assert all(gone(pid) for pid in [*pids, paused.pid])


def test_killing_the_runner_leaves_no_process() -> None:
    program = (
        "import time; from attnbench.forkserver import ForkServer\n"
        "s = ForkServer(['entries']); a = s.start('entries:stubborn'); b = s.start('entries:leave')\n"
        "a.ask({}, 5); print(s.process.pid, a.pid, b.pid, b.ask({}, 5)['pid'], flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ENTRIES)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as runner:
        assert runner.stdout is not None
        pids = [int(word) for word in runner.stdout.readline().split()]
        assert len(pids) == 4
        runner.kill()
        runner.wait()
    assert all(gone(pid) for pid in pids)


def test_a_server_that_was_killed_is_named_and_not_waited_for() -> None:
    with ForkServer(["entries"], env={"PYTHONPATH": str(ENTRIES)}) as server:
        server.wait()
        server.process.kill()
        with pytest.raises(UserError, match="the fork server ended with code -9") as caught:
            server.start("entries:echo")
        assert "--without" in str(caught.value.hint)
