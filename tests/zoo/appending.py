"""Attention that writes new k and v into pages first, with one thing wrong. See `defects`."""

from dataclasses import replace

import torch
from zoo.defects import Defect, Outputs, inside
from zoo.layouts import members, paged_slots
from zoo.sound import Sound

from attnbench.implementation import Inputs
from attnbench.problem import Problem


def append(problem: Problem, given: Inputs, defect: str = "") -> None:
    """Write k_new and v_new into the pages."""
    pages = given.v, given.k
    if defect != "appended-the-other-way-round":
        pages = given.k, given.v
    table, page = given.index["block_table"].long(), given.k.shape[1]
    for b, ((new, _), (sq, sk)) in enumerate(zip(problem.spans, problem.sequences, strict=True)):
        at, own = torch.arange(sk - sq, sk), table[b]
        if defect == "appended-one-slot-early":
            at = (at - 1).clamp(min=0)
        if defect == "appended-to-the-first-member":
            own = table[0]
        if defect == "appended-last-token-alone":
            at, new = at[-1:], slice(new.stop - len(at[-1:]), new.stop)
        slots = paged_slots(own, at, page)
        for whole, tokens in zip(pages, (given.k_new, given.v_new), strict=True):
            whole[slots // page, slots % page] = tokens[new]
            if defect == "appended-and-cleared-behind" and sk % page:
                whole[own[sk // page], sk % page :] = 0


def copied(given: Inputs) -> Inputs:
    return replace(given, k=given.k.clone(), v=given.v.clone())


def appended(problem: Problem, given: Inputs, defect: str = "") -> Outputs:
    """`members`, after the new tokens have been written into their slots."""
    if defect == "appended-to-nothing":
        given = copied(given)
    if defect == "appended-too-late":
        out = members(problem, given)
        append(problem, given)
        return out
    append(problem, given, defect)
    return members(problem, given, "one-key-too-few" if defect == "newest-token-left-out" else "")


def appended_last(problem: Problem, given: Inputs) -> Outputs:
    """What it attends over is in pages of its own; written is behind that."""
    own = copied(given)
    append(problem, own)
    out = members(problem, own)
    append(problem, given)
    return out


DEFECTS: tuple[Defect, ...] = (
    inside("appended-to-nothing", "append", "attends over the new tokens and writes them nowhere", appended),
    inside("appended-too-late", "append", "attends before it writes", appended),
    inside("appended-one-slot-early", "append", "each new token where the one before it belongs", appended),
    inside("appended-the-other-way-round", "append", "k into the pages of v, v into those of k", appended),
    inside("appended-to-the-first-member", "append", "all new tokens through its row of the block table", appended),
    inside("appended-last-token-alone", "append", "of each member", appended),
    inside("appended-and-cleared-behind", "append", "also zeros behind the last key of a page", appended),
    inside("newest-token-left-out", "append", "written, and not attended over", appended),
)  # fmt: skip

SOUND = (
    Sound(name="appended", what="`members` over pages, the new tokens in them", compute=appended, shapes=("append",)),
    Sound(name="appended-last", what="attends over pages of its own, then writes", compute=appended_last, shapes=("append",)),
)  # fmt: skip
