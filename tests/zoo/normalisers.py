"""Entmax of an alpha of its own, with one thing wrong. See `defects`."""

import math

import torch
from torch import Tensor
from zoo.defects import Defect, Outputs, allowed, inside, wider
from zoo.sound import Sound

from attnbench.implementation import Inputs
from attnbench.problem import Problem


def scores(problem: Problem, given: Inputs) -> tuple[Tensor, Tensor]:
    """Masked scores less their row's largest, and v; every query sees a key."""
    q, k, v = wider(problem, given)
    s = (q @ k.mT * problem.softmax_scale).masked_fill(~allowed(problem), -math.inf)
    return s - s.amax(-1, keepdim=True), v


def halved(problem: Problem, given: Inputs, defect: str = "") -> Outputs:
    """The threshold by halving (Peters et al. 2019, algorithm 1)."""
    (s, v), alpha = scores(problem, given), problem.mechanism.alpha
    if defect == "entmax-of-1.5":
        alpha = 1.5
    power, halvings = 1 / (alpha - 1), 4 if defect == "entmax-of-four-halvings" else 30
    z = s if defect == "entmax-of-whole-scores" else s / power
    low, width = torch.full_like(s[..., :1], -1), 1.0
    for _ in range(halvings):
        width /= 2
        enough = (z - low - width).clamp(min=0).pow(power).sum(-1, keepdim=True) >= 1
        low = torch.where(enough, low + width, low)
    p = (z - low).clamp(min=0).pow(power)
    if defect == "entmax-is-softmax":
        p = s.softmax(-1)
    return weighted(given, p / p.sum(-1, keepdim=True), v)


def weighted(given: Inputs, p: Tensor, v: Tensor) -> Outputs:
    dtype = given.q.dtype
    return {"out": (p.to(dtype).to(v.dtype) @ v).to(dtype)}


def newton(problem: Problem, given: Inputs) -> Outputs:
    """The threshold by Newton's steps from its upper end: the sum is convex in it."""
    (s, v), power = scores(problem, given), problem.mechanism.alpha - 1
    depth = torch.ones_like(s[..., :1])  # of the threshold below the largest score
    for _ in range(30):
        t = (s * power + depth).clamp(min=0)
        total, slope = t.pow(1 / power).sum(-1, keepdim=True), t.pow(1 / power - 1).sum(-1, keepdim=True)
        depth = depth - (total - 1) * power / slope
    p = (s * power + depth).clamp(min=0).pow(1 / power)
    return weighted(given, p / p.sum(-1, keepdim=True), v)


DEFECTS: tuple[Defect, ...] = (
    inside("entmax-of-1.5", "entmax", "the usual alpha in place of the problem's", halved),
    inside("entmax-is-softmax", "entmax", "alpha 1", halved),
    inside("entmax-of-whole-scores", "entmax", "(s - tau)^4 for (s / 4 - tau)^4", halved),
    inside("entmax-of-four-halvings", "entmax", "the threshold known to a 16th", halved),
)  # fmt: skip

SOUND = (
    Sound(name="entmax-halved", what="the threshold by halving", compute=halved, shapes=("entmax",)),
    Sound(name="entmax-newton", what="the threshold by Newton's steps", compute=newton, shapes=("entmax",)),
)  # fmt: skip
