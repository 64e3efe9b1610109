"""Entry points for children of the fork server under test."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any


def echo(channel: Any) -> None:
    while (message := channel.receive()) is not None:
        channel.send({"echo": message, "pid": os.getpid()})


def loaded(channel: Any) -> None:
    while (message := channel.receive()) is not None:
        value = os.environ.get(message["variable"])
        channel.send({"loaded": message["module"] in sys.modules, "value": value})


def leave(channel: Any) -> None:
    channel.receive()
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    channel.send({"pid": process.pid})
    channel.receive()


def stubborn(channel: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.receive()
    channel.send({})
    time.sleep(60)


def segfault(channel: Any) -> None:
    channel.receive()
    ctypes.string_at(0)


def chatter(channel: Any) -> None:
    channel.receive()
    print("first words")
    for _ in range(100):
        sys.stdout.write("x" * 2**20)
    print("\nlast words", flush=True)
    channel.send({"done": True})
    channel.receive()
