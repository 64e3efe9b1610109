"""The state of the caches before a call: how `cold` is brought about, and what its processes hold for it.

A last-level cache is taken for empty of what a call reads where `TIMES` as many bytes were touched since.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.costs import touched_bytes
from attnbench.implementation import Step
from attnbench.problem import Direction, Problem
from attnbench.records import Memory

TIMES = 2
MOST_COPIES = 64
TURN = 0.25
"""Share of a launch's budget that one turn of a rotation may take: one is made before the first block."""


@dataclass(frozen=True, kw_only=True)
class Caching:
    """What one timed process does about the caches."""

    method: str = ""
    """As in `records.Timing.cache_method`."""
    copies: int = 1
    """Of inputs and outputs, which calls take in turn."""
    flush_bytes: int = 0
    """Read before every sample."""
    bytes: int = 0
    """Memory for it, about."""


def warm(problem: Problem, memory: Memory, cache_bytes: int | None) -> Caching:
    """Nothing is done; but one call's tensors may be more than the cache holds."""
    exceeds = cache_bytes and touched_bytes(problem) + memory.output_bytes > cache_bytes
    return Caching(method="exceeds cache" if exceeds else "")


def cold(
    problem: Problem, memory: Memory, *, cache_bytes: int, limit: int, call_s: float, budget_s: float
) -> Caching:
    """A rotation of copies where it is affordable in memory and in a launch's budget, else a flush.

    Copies are counted by the inputs alone, as far as a call must read them; outputs come on top.
    """
    wanted, touched = TIMES * cache_bytes, touched_bytes(problem)
    if touched + memory.output_bytes >= wanted:
        return Caching(method="exceeds cache")
    copies = max(2, math.ceil(wanted / max(touched, 1)))
    # twice, because a library may keep arrays of its own; before a backward pass it keeps the forward's results
    each = 2 * (memory.input_bytes + memory.output_bytes)
    each += memory.workspace_bytes * (problem.direction is Direction.BACKWARD)
    if (
        copies > MOST_COPIES
        or copies * each + memory.workspace_bytes > limit
        or copies * call_s > TURN * budget_s
    ):
        return Caching(method="flush", flush_bytes=wanted, bytes=wanted)
    return Caching(method="rotation", copies=copies, bytes=(copies - 1) * each)


class Rotation:
    """A step that calls those of several copies in turn and keeps the outputs of the last turn alive.

    A copy is met again after all the others, and an output's memory is free to be written again likewise.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        """In the order in which they are called; what is captured at once must hold a multiple of them."""
        self.kept: list[Any] = [None] * len(self.steps)
        self.place = -1
        """Of the copy that was called last."""

    def __call__(self) -> Any:
        place = self.place = (self.place + 1) % len(self.steps)
        out = self.kept[place] = self.steps[place]()
        return out


class Flush:
    """Reads a buffer through the caches; on CUDA it enqueues that. Reading leaves nothing to write back."""

    def __init__(self, size: int, device: str) -> None:
        import torch

        self.buffer = torch.full((math.ceil(size / 8),), 1.0, dtype=torch.float64, device=device)

    def __call__(self) -> None:
        self.buffer.sum()


def distinct_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the storages of torch tensors, each storage once; None is skipped."""
    storages = [t.untyped_storage() for t in tensors if t is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
