"""`Contrast`: two rows of one run against each other, as the tables judge them, and what chance may do to many."""

from dataclasses import dataclass

from attnbench.estimates import CONFIDENCE
from attnbench.records import Result
from attnbench.turns import paired

MISTAKE = 1e-3
"""How often a bound may fail a sound harness."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How many times as long one takes as the other, with a 95 % interval."""

    ratio: float
    low: float
    high: float

    def holds(self, truth: float) -> bool:
        return self.low <= truth <= self.high


def contrast(ours: Result, theirs: Result) -> Contrast | None:
    """None where the rounds in common are too few for an interval."""
    found = paired(ours, theirs)
    if found is None or found.low is None or found.high is None:
        return None
    return Contrast(ratio=found.location, low=found.low, high=found.high)


def most_missed(contrasts: int) -> int:
    """Of so many sound intervals, those that may leave the truth out."""
    return _quantile(1 - MISTAKE, contrasts, 1 - CONFIDENCE)


def least_held(contrasts: int) -> int:
    """Of so many sound intervals, those that must hold the truth."""
    return _quantile(MISTAKE, contrasts, CONFIDENCE)


def _quantile(share: float, contrasts: int, probability: float) -> int:
    from scipy.stats import binom  # slow to import

    return int(binom.ppf(share, contrasts, probability))
