"""A figure as a picture, without a browser."""

import math
from collections.abc import Sequence

import vl_convert

from attnbench.errors import UserError
from attnbench.report.figures import DATA, FIGURES, drawn
from attnbench.report.looks import Look
from attnbench.report.roofs import known, roofs
from attnbench.report.rows import Row, Source, content

MOST_PANELS = 24
SCALE = 2
"""Pixels of a PNG for one of the layout, so that it is sharp on today's screens."""


def picture(sources: Sequence[Source], name: str, *, dark: bool, kind: str) -> bytes:
    """One of `FIGURES` as `png` or `svg`. Raises `UserError` where it would be empty or too large."""
    figure = FIGURES[name]
    made = content(sources)
    rows = [row for row in made.rows if figure.shows(row)]
    if not rows:
        raise UserError(f"nothing to draw: no row has what `{name}` shows")
    count = len({row[figure.by] for row in rows}) if figure.by else 1
    if count > MOST_PANELS:
        raise UserError(
            f"{count} panels are too many for a picture of `{name}`, at most {MOST_PANELS}",
            hint="choose some, such as --where mask=causal, or look at them in `attnbench report`",
        )
    names = [n for n in made.names if any(row["implementation"] == n for row in rows)]
    columns = min(3 if count > 4 else 2, count)
    look = Look(names=names, theme="dark" if dark else "light", columns=max(columns, 1), width=270)
    limits = roofs(rows, known(rows))
    told = [", ".join(made.common), *([", ".join(limits.machines)] if name == "throughput" else [])]
    spec = drawn(figure, look) | {
        "title": {"text": figure.title, "subtitle": [line for line in told if line]},
        "padding": 22,
        "datasets": {DATA: [_finite(row) for row in (*rows, *limits.corners)]},
    }
    svg = vl_convert.vegalite_to_svg(spec)
    if kind == "svg":
        return svg.encode()
    return vl_convert.svg_to_png(svg, scale=SCALE)


def _finite(row: Row) -> Row:
    """JSON knows no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
