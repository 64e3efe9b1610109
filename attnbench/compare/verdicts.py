"""From the ratio of two times, and what is known of its spread, to a verdict in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from attnbench import estimates
from attnbench.estimates import Interval

MARGIN = 0.03
"""Of stored runs: what is within it counts as no change."""
INTERLEAVED_MARGIN = 0.01
"""Of times that were taken in turns."""
LEVEL = 0.05
"""How often a family of equal cells may have one that is called `slower` or `faster`."""
SUSPECT = 0.05
"""Least shift that is `likely` where it is not known how far two runs lie apart."""
FLOORS = 3.0
"""Least shift, in half intervals, that is `likely`."""


class Verdict(StrEnum):
    """What has become of a cell, the worst first."""

    NEWLY_WRONG = "newly wrong"
    NEWLY_FAILING = "newly failing"
    ONLY_IN_BASE = "only in base"
    SLOWER = "slower"
    LIKELY_SLOWER = "likely slower"
    FIXED = "fixed"
    FASTER = "faster"
    LIKELY_FASTER = "likely faster"
    ONLY_IN_NEW = "only in new"
    UNCLEAR = "unclear"
    SAME = "same"
    NOT_TIMED = "not timed"


class Way(StrEnum):
    """What the interval of a ratio rests on."""

    TURNS = "times taken in turns"
    RUNS = "three runs or more a side"
    CALIBRATION = "the calibration of this machine"
    BESIDE = "its cells beside those of unchanged implementations"
    CELLS = "the spread of the cells compared"
    WITHIN = "what differs within one run"


SURE = (Way.TURNS, Way.RUNS, Way.CALIBRATION)
"""They know how far two equal runs lie apart; `BESIDE` and `CELLS` guess it, `WITHIN` does not know."""


@dataclass(frozen=True, slots=True)
class Effect:
    """How many times as long as before."""

    ratio: Interval
    way: Way
    noisy: bool = False
    """Whether a time that it rests on has the worst grade."""


def judged(effects: Sequence[Effect], margin: float, beside: float | None = None) -> list[Verdict]:
    """The verdicts on a family of ratios, such as all cells of a comparison.

    `slower` and `faster`: the ratio is beyond the margin, by p-values that Holm's correction makes hold for the whole
    family. `same`: its 95 % interval lies within. Where the spread between runs is not known well, a ratio is at
    most `likely`: beyond the margin and `SUSPECT`, and either beyond `FLOORS` times its half interval, or of `Way.BESIDE` and
    beyond the margin `beside`, or the same margin, by such a p-value.
    """
    sure = [p for p, effect in enumerate(effects) if effect.way in (*SURE, Way.BESIDE) and not effect.noisy]
    margins = {Way.BESIDE: margin if beside is None else beside}
    p_values = estimates.holm(
        [estimates.beyond(effects[p].ratio, margins.get(effects[p].way, margin)) for p in sure]
    )
    told = {place for place, p in zip(sure, p_values, strict=True) if p <= LEVEL}
    return [_verdict(effect, margin, place in told) for place, effect in enumerate(effects)]


def _verdict(effect: Effect, margin: float, told: bool) -> Verdict:
    ratio = effect.ratio
    if effect.noisy:
        return Verdict.UNCLEAR
    if told and effect.way in SURE:
        return Verdict.SLOWER if ratio.location > 1 else Verdict.FASTER
    if effect.way not in SURE:
        floor = 0.0 if told else FLOORS * (estimates.half_width(ratio) or 0.0)
        least = max(math.log1p(max(SUSPECT, margin)), floor)
        if abs(math.log(ratio.location)) > least:
            return Verdict.LIKELY_SLOWER if ratio.location > 1 else Verdict.LIKELY_FASTER
    if ratio.low is None or ratio.high is None or effect.way is Way.WITHIN:
        return Verdict.UNCLEAR
    within = ratio.low * (1 + margin) >= 1 and ratio.high <= 1 + margin
    return Verdict.SAME if within else Verdict.UNCLEAR
