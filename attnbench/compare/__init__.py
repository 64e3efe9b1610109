"""Two runs, or several a side -> what has become of every cell. Nothing here prints or is laid out."""

from attnbench.compare.comparison import KINDS, Comparison, Group, compare
from attnbench.compare.differences import Difference, differences
from attnbench.compare.interleaved import split
from attnbench.compare.pairs import Pair
from attnbench.compare.sides import Side, side
from attnbench.compare.verdicts import INTERLEAVED_MARGIN, MARGIN, Effect, Verdict, Way, judged

__all__ = [
    "INTERLEAVED_MARGIN",
    "KINDS",
    "MARGIN",
    "Comparison",
    "Difference",
    "Effect",
    "Group",
    "Pair",
    "Side",
    "Verdict",
    "Way",
    "compare",
    "differences",
    "judged",
    "side",
    "split",
]
