"""What two results that were measured in the same rounds say about the ratio of their times."""

from collections.abc import Mapping

from attnbench import estimates, noise
from attnbench.estimates import LEAST_BLOCKS, Interval
from attnbench.records import Result

LEAST_SHARE = 0.5
"""Of the blocks of either side, to be in pairs: where one went on alone for long, the first rounds of a launch, which
may be slower, would stand for all."""


Values = Mapping[tuple[int, int], float]


def paired(result: Result, base: Result) -> Interval | None:
    """Time of `result` over that of `base` from the rounds that both have.

    None with fewer than five of them, or where they are less than half of the blocks of either.
    """
    return over(values(result), values(base))


def over(ours: Values, theirs: Values) -> Interval | None:
    """As `paired`, of values that are known."""
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < max(LEAST_BLOCKS, LEAST_SHARE * len(ours), LEAST_SHARE * len(theirs)):
        return None
    launches = sorted({launch for launch, _ in common})
    one, other = (
        [[side[key] for key in common if key[0] == launch] for launch in launches] for side in (ours, theirs)
    )
    return estimates.ratio(one, other)


def values(result: Result) -> Values:
    """Log medians of the blocks that count by launch and round."""
    return {
        (b.launch, b.round): estimates.block_value(b.seconds, b.flagged) for b in noise.counted(result.blocks)
    }
