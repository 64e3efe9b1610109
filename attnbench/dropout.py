"""What an output tells of the weights that were dropped in it, which nobody knows beforehand.

A weight w becomes 0 with the chance p, else w / (1 - p) (Srivastava et al. 2014, section 10). Where the values are unit
vectors each element of the output is a weight, and all is seen: which are dropped, and what the others are. Where
one weight of a row is all, the row is zero or its value / (1 - p), whatever that value is. Of other rows only moments are
known: the output's mean is the undropped one, and the mean square of a row's distance from it
is p / (1 - p) times the sum of w^2 |v|^2, the squared `out_size` of the oracle.
"""

import math

import torch
from torch import Tensor

FRACTION = 0.01
"""Of weights that may be dropped too many or too few: some kernels compare p with a random byte."""
SIGMAS = 6.0
"""Standard deviations that a sum over many independent weights may be off: by chance once in 6e7 (see `_within`)."""
CHANCE = 1e-9
"""How likely it must be that independent neighbours differ in no more weights than were seen to."""


def read_out(actual: Tensor, right: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """What `actual` [..., R, n] says that the weights `right` are, before they were dropped, and which were kept.

    Of a dropped one it says the right one, unless it is not zero: then as much more.
    """
    shrunk = actual * (1 - p)
    kept = shrunk > right / 2
    return torch.where(kept, shrunk, right + shrunk), kept


def rows_of_one(actual: Tensor, right: Tensor, p: float) -> Tensor:
    """What `actual` [..., n] says that its rows `right`, each one weight times a value, are before they were dropped. Of a
    dropped one it says the right one, unless it is not zero: then as much more."""
    shrunk = actual * (1 - p)
    kept = (shrunk - right).square().sum(-1, keepdim=True) < shrunk.square().sum(-1, keepdim=True)
    return torch.where(kept, shrunk, right + shrunk)


def _within(variance: float, largest: float) -> float:
    """How far a sum of independent terms, none of which is farther than `largest` off its mean, may be off its own (Bernstein's
    inequality, exp(-t^2 / 2 / (variance + largest t / 3)) = exp(-`SIGMAS`^2 / 2)): of few rare drops, more than `SIGMAS`."""
    part = SIGMAS * largest / 6
    return SIGMAS * (part + math.sqrt(part**2 + variance))


def unfair(kept: Tensor, right: Tensor, p: float, least: float) -> str | None:
    """None where weights [G, Hq/Hk, R, n] above `least` were dropped with the chance p and independently, else what was not.

    Masks that neighbours share agree everywhere, others in p^2 + (1 - p)^2 of all weights.
    """
    seen = right > least
    count = int(seen.sum())
    if not count:
        return None
    from scipy.special import bdtr  # slow to import

    dropped = float((~kept & seen).sum()) / count
    if abs(dropped - p) > max(FRACTION, _within(p * (1 - p) / count, 1 / count)):
        return f"{100 * dropped:.3g} % of {count:,} weights dropped, expected {100 * p:.3g} %"
    differ = 2 * p * (1 - p)
    heads, of_heads = (tensor.flatten(0, 1) for tensor in (kept, seen))
    for what, axis in (("heads", 0), ("rows", 1), ("keys", 2)):
        couples = heads.shape[axis] // 2  # none of which has a member in common with another
        (one, other), (here, there) = (
            torch.unflatten(tensor.narrow(axis, 0, 2 * couples), axis, (couples, 2)).unbind(axis + 1)
            for tensor in (heads, of_heads)
        )
        both = here & there
        number, found = int(both.sum()), int(((one != other) & both).sum())
        if number and bdtr(found, number, differ) < CHANCE:
            told = 100 * found / number
            return f"neighbouring {what} drop the same: {told:.3g} % of weights differ, expected {100 * differ:.3g} %"
    return None


def unlikely(actual: Tensor, right: Tensor, size: Tensor, p: float) -> str | None:
    """None where an output [G, Hq/Hk, R, n] may be `right` with weights dropped, by its moments, else what may not be.

    `size` [G, Hq/Hk, R] is the root of the sum of w^2 |v|^2. The square of a row's distance over its mean varies most
    where one weight is all: (1 - p)^2 / p + p^2 / (1 - p) - 1. Its product with the right row has the mean 0 and at most
    the variance p / (1 - p) size^2 |right|^2.
    """
    if not bool(actual.isfinite().all()):
        return f"{100 * float((~actual.isfinite()).double().mean()):.3g} % of it is not finite"
    off, noise = actual - right, p / (1 - p)
    expected = noise * size.square()
    total = float(expected.sum())
    if not total:
        return None
    varies, worst = (1 - p) ** 2 / p + p**2 / (1 - p) + 1, max(1.0, noise) ** 2 / noise
    bound = _within(varies * float(expected.square().sum()), worst * float(expected.max())) / total
    ratio = float(off.square().sum()) / total
    if abs(ratio - 1) > bound:
        return f"the variance is {ratio:.3g} of what dropping {100 * p:.3g} % makes, within {bound:.2g}"
    along, norms = float((off * right).sum()), right.square().sum(-1)
    bound = _within(float((expected * norms).sum()), max(1.0, noise) * float(norms.max()))
    if abs(along) > bound:
        return f"the mean is {along / float(norms.sum()):+.3g} of the output off, within {bound / float(norms.sum()):.2g}"
    return None
