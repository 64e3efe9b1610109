"""The process of a problem that holds oracle and yardstick, imports no plugin, and gives the verdict."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch

from attnbench import inputs, reference, tokens, verify
from attnbench.forkserver import Channel
from attnbench.problem import Problem


def serve(channel: Channel) -> None:
    """Answer the runner's messages until it closes the channel or says `exit`.

    The first message names the problem; each next one an output file and the kind of inputs it is for.
    """
    first = channel.receive()
    if first is None:
        return
    torch.set_num_threads(
        1
    )  # its work is bounded, and threads that wait for each other on a busy machine cost more
    judge = Judge(first)
    for kind in inputs.KINDS:  # while the first canary is at work
        judge.standard(kind)
    channel.send({})
    while (message := channel.receive()) is not None and message["op"] != "exit":
        channel.send(judge.verdict(message))


class Judge:
    """Oracle and yardstick of one problem, computed once per kind of inputs."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self.problem = Problem.parse(message["problem"])
        self.seed: int = message["seed"]
        self.device: str = message["device"]
        self.sample = inputs.sample(self.problem, work=message["work"], seed=self.seed)
        self._known: dict[str, verify.Standard] = {}

    def standard(self, kind: str) -> verify.Standard:
        """What is right for a kind of inputs."""
        if kind not in self._known:
            plain = tokens.plain(self.problem)
            made = inputs.make(plain, kind=kind, seed=self.seed, device=self.device, qkv_format="bhsd")
            if self.sample.share < 1:
                inputs.mask_dout(made, plain, self.sample, "bhsd")
            self._known[kind] = verify.Standard(
                self.problem,
                reference.oracle(self.problem, made, self.sample),
                reference.yardstick(self.problem, made, self.sample),
                self.sample.share,
                kind,
            )
        return self._known[kind]

    def verdict(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The accuracy of an output, None where it is right and does not count, and None or the reason why it
        is wrong."""
        actual = torch.load(message["path"], weights_only=True)
        os.unlink(message["path"])
        accuracy, reason = self.standard(message["kind"]).compare(actual)
        counts = reason is not None or message["kind"] in inputs.counted(self.problem)
        return {"accuracy": dataclasses.asdict(accuracy) if counts else None, "wrong": reason}
