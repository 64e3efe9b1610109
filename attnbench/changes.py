"""What a call may change of its inputs: nothing but the slots that it writes new tokens into, and to these alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from attnbench import elements, tokens
from attnbench.implementation import Inputs
from attnbench.inputs import checksum
from attnbench.problem import Problem

Checksum = tuple[tuple[int, ...], ...]


def promised(inputs: Inputs, problem: Problem) -> Checksum:
    """The checksum of the inputs after a call that keeps the contract."""
    with _appended(inputs, problem):
        return checksum(inputs)


def broken(inputs: Inputs, problem: Problem, promised: Checksum) -> str | None:
    """None where a call has left the inputs as it must, else what is wrong with them in words."""
    if checksum(inputs) == promised:
        return None
    missing = _missing(inputs, problem)
    if missing is None:
        return "the inputs were changed by the call"
    with _appended(inputs, problem):
        elsewhere = checksum(inputs) != promised
    return f"{missing}, and the inputs were changed elsewhere" if elsewhere else missing


def _pairs(inputs: Inputs) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, pages and what is to be appended to them, as types that can be indexed."""
    for name, pages, new in (("k", inputs.k, inputs.k_new), ("v", inputs.v, inputs.v_new)):
        if new is not None:
            yield name, elements.bits(pages), elements.bits(new)


@contextmanager
def _appended(inputs: Inputs, problem: Problem) -> Iterator[None]:
    """New tokens are in their slots meanwhile."""
    if not problem.appends:
        yield
        return
    at = tokens.appended(problem, inputs.index["block_table"])
    held = [pages[at] for _, pages, _ in _pairs(inputs)]
    for _, pages, new in _pairs(inputs):
        pages[at] = new
    try:
        yield
    finally:
        for (_, pages, _), before in zip(_pairs(inputs), held, strict=True):
            pages[at] = before


def _missing(inputs: Inputs, problem: Problem) -> str | None:
    """Which new tokens are not in their slots, bit by bit; None where all are, and where there are none."""
    if not problem.appends:
        return None
    at = tokens.appended(problem, inputs.index["block_table"])
    for name, pages, new in _pairs(inputs):
        found, wanted = (tensor.contiguous().view(torch.uint8) for tensor in (pages[at], new))
        places = (found != wanted).flatten(1).any(1).nonzero().flatten()
        if len(places):
            first = int(places[0])
            b = next(b for b, (queries, _) in enumerate(problem.spans) if first < queries.stop)
            key = problem.sequences[b][1] - (problem.spans[b][0].stop - first)
            several = f"{len(places)} of {len(new)} new tokens are not in their slots after the call"
            return f"{name}: {several}, the first is key {key} of member {b}"
    return None
