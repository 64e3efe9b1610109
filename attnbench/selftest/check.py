"""`Check`: one finding about the harness, with its figure and its bound."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one line of `attnbench selftest` says."""

    name: str
    """Of the group, which `--only` takes."""
    passed: bool | None
    """None where there was nothing to decide: it was left out, or is only told."""
    text: str
    """Figure and bound in words."""
    figure: float | None = None
    """In seconds, bytes, a share or a count, as the text says."""
    bound: float | None = None
    """What the figure may reach, or must reach where the text says `at least`."""
