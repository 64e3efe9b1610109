"""How quiet a measurement was: a grade from signs that do not ask whether a time is long or short, and advice."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.records import Block

GRADES = ("A", "B", "C")
LEAST_THIRDS = 6
"""With fewer blocks than this, thirds say nothing about a drift."""
WAITED = 0.05
"""Share of a block that its threads may have waited for a processor; else it is not sound."""
LEAST_SOUND = 5
"""With fewer sound blocks than this, all count: there would be no interval otherwise."""
LIMITS = {
    "spread": (0.02, 0.1),
    "drift": (0.03, 0.1),
    "waited": (0.02, 0.1),
    "running": (0.25, 1.0),
}
"""The most that each sign may be for A, and for B."""
INTERRUPTED = 0.1
"""Share of flagged samples from which on it is told beside the other signs."""


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Of one cell. None where a sign is not known."""

    spread: float | None
    """Half of the 95 % interval, on the log scale."""
    drift: float | None
    """Relative change from the first third of the blocks to the last."""
    waited: float | None
    """Seconds that its threads waited for a processor, per second."""
    running: float | None
    """Other processes that were running, on average."""
    flagged: float
    """Share of its samples that were interrupted."""
    throttle: str = ""
    """Reasons for which the device lowered its clock."""


def waited(block: "Block") -> float | None:
    """Seconds that the threads waited for a processor, per second of the block; None where it is not known."""
    return block.waited_s / block.busy_s if block.waited_s is not None and block.busy_s else None


def counted(blocks: "Sequence[Block]") -> "list[Block]":
    """The sound blocks, or all where they are few. Whether one is sound does not depend on its times.

    Threads that waited tell it; where that is not known, that each sample was interrupted; and on a device with a
    queue, whose flags are its own, that each sample is flagged.
    """
    sound = []
    for block in blocks:
        share = waited(block)
        flags_tell = share is None or block.host_enqueue_s is not None
        if not (flags_tell and len(block.flagged) == len(block.seconds)) and (share or 0.0) <= WAITED:
            sound.append(block)
    return sound if len(sound) >= LEAST_SOUND else [*blocks]


def drift(values: Sequence[float]) -> float | None:
    """Relative change of the log values of blocks, in the order of time, from their first third to the last."""
    third = len(values) // 3
    return None if len(values) < LEAST_THIRDS else fmean(values[-third:]) - fmean(values[:third])


def grade(signs: Signs) -> tuple[str, str]:
    """`A`, `B` or `C`, the worst that a sign gives, and for `B` and `C` why and what to do about it.

    A time without an interval is at best a `B`, and so is one during which the device lowered its clock.
    """
    told: list[tuple[int, str, str]] = []  # place of the grade, why, advice

    def judge(sign: str, value: float | None, why: str, advice: str) -> None:
        if value is not None and (place := sum(abs(value) > limit for limit in LIMITS[sign])):
            told.append((place, why, advice))

    running, longer = signs.running, "measure longer (--preset gate)"
    crowded = running is not None and running > LIMITS["running"][0]
    judge("running", running, f"{running or 0:.2g} other processes were running", "close them")
    judge(
        "waited",
        signs.waited,
        f"its threads waited {signs.waited or 0:.0%} of the time for a processor",
        "close them" if crowded else "leave the system a core (--set measure.threads)",
    )
    judge("spread", signs.spread, f"the interval is ±{signs.spread or 0:.0%}", longer)
    judge("drift", signs.drift, f"it drifted by {signs.drift or 0:+.0%}", longer)
    if signs.spread is None:
        told.append((1, "too few blocks for an interval", "give it more time (--set measure.budget)"))
    if signs.throttle:
        told.append((1, f"the device lowered its clock ({signs.throttle})", "let it cool, or lock its clock"))
    if not told:
        return GRADES[0], ""
    whys = [why for _, why, _ in told]
    if signs.flagged > INTERRUPTED:
        whys.append(f"{signs.flagged:.0%} of its samples were interrupted")
    advice = dict.fromkeys(advice for _, _, advice in told)
    return GRADES[max(place for place, _, _ in told)], f"{'; '.join(whys)}: {', or '.join(advice)}"
