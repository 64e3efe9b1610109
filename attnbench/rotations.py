"""Rotary position embedding, the turning of q and k by their positions, as inputs, oracle and yardstick do it.

Coordinates m and m + D/2 are a pair, as in GPT-NeoX and Llama, which a token at position p turns by the angle
p base^(-2m/D) (Su et al. 2021, section 3.2.2 and equation 34). Query i stands at p = i + Sk - Sq, key j at j.
"""

import math
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from attnbench.formulas import Rounding
from attnbench.problem import Problem

Turns = tuple[Tensor, Tensor]
"""cos and sin of the angles of some tokens, [n, D/2] both."""


def plain(problem: Problem, positions: Tensor, dtype: torch.dtype) -> Turns:
    """In `dtype` throughout, as everybody computes them: an angle is rounded, and so off by p eps / 2."""
    d = problem.head_dim
    powers = torch.arange(0, d, 2, dtype=dtype, device=positions.device) / d
    angles = positions.to(dtype)[:, None] / problem.modifier("rotary").base ** powers
    return angles.cos(), angles.sin()


def exact(problem: Problem, positions: Tensor) -> Turns:
    """In float64, and as exact as that is, for positions below 2^26.

    A frequency is split into 26 bits, whose product with a position is exact, and a rest so small that its own is exact
    enough: cos and sin of the sum of both angles by the addition theorems.
    """
    base, d = problem.modifier("rotary").base, problem.head_dim
    parts = []
    with localcontext(prec=40):
        for m in range(d // 2):
            whole = Decimal(base) ** (Decimal(-2 * m) / d)
            fraction, exponent = math.frexp(float(whole))
            coarse = math.ldexp(math.floor(fraction * 2**26), exponent - 26)
            parts.append((coarse, float(whole - Decimal(coarse))))
    high, low = torch.tensor(parts, dtype=torch.float64, device=positions.device).T  # [D/2] both
    a, b = (positions.double()[:, None] * part for part in (high, low))
    return a.cos() * b.cos() - a.sin() * b.sin(), a.sin() * b.cos() + a.cos() * b.sin()


def turned(x: Tensor, turns: Turns, rnd: Rounding = lambda x: x) -> Tensor:
    """x [..., n, D] with its tokens turned; `rnd` rounds the result of each step."""
    (one, two), (cos, sin) = x.chunk(2, -1), turns
    left = rnd(rnd(one * cos) - rnd(two * sin))
    return torch.cat((left, rnd(rnd(two * cos) + rnd(one * sin))), -1)


def back(turns: Turns) -> Turns:
    """The turns that undo these."""
    return turns[0], -turns[1]
