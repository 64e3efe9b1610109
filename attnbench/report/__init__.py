"""Runs -> one HTML file for people who would rather look than read, and pictures of its figures.

Drawn by Altair (Vega-Lite), which is imported only here and only when something is drawn.
"""

from attnbench.report.library import require
from attnbench.report.rows import FIGURES, Source

__all__ = ["FIGURES", "Source", "page", "picture", "require"]


def page(sources: list[Source]) -> str:
    """The report of some runs as HTML; the first run is what the others are compared with. Raises `UserError`."""
    require()
    from attnbench.report import document

    return document.page(sources)


def picture(sources: list[Source], figure: str, *, dark: bool = False, kind: str = "png") -> bytes:
    """One figure as `png` or `svg`. Raises `UserError` where the runs hold nothing that it shows."""
    require()
    from attnbench.report import pictures

    return pictures.picture(sources, figure, dark=dark, kind=kind)
