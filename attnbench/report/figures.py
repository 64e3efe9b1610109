"""The figures, in Altair: each a function of a `Look`, with its title and how to read it.

All of them draw the rows of one data set, `rows`, by transforms of their own, so that a page which filters the rows
needs no other code for any of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from attnbench.report.looks import Look
from attnbench.report.rows import Row

DATA = "rows"
HEIGHT = 190
LENGTH = (
    "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : format(datum.value, 'd')"
)
BYTES = " : ".join(
    [
        *(
            f"datum.value >= {2**power} ? format(datum.value / {2**power}, '.3~r') + ' {unit}'"
            for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB"))
        ),
        "format(datum.value, 'd') + ' B'",
    ]
)
LEAST_BYTES = 4096
"""A page: less than this is drawn as this, since a logarithm has no zero."""
LEAST_RATIOS = [0.8, 1.25]
"""What the axis of ratios shows at least, lest differences of nothing fill the panel."""
PARTS = ("inputs", "outputs", "workspace")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is drawn of some rows, and a sentence that says how to read it."""

    title: str
    reading: str
    needs: tuple[str, ...]
    """Numbers of a row without which the figure does not show it."""
    draw: Callable[[Look], alt.TopLevelMixin]
    by: str = "panel"
    """What each of its small multiples is of; empty where it has none."""
    room: int = 76
    """Pixels beside the panels, for what is written at the axis."""

    def shows(self, row: Row) -> bool:
        return all(isinstance(row.get(n), int | float) and math.isfinite(row[n]) for n in self.needs)


def drawn(figure: Figure, look: Look) -> dict[str, Any]:
    """The figure in Vega-Lite, without its rows."""
    made: dict[str, Any] = figure.draw(look).to_dict()
    return {**made, "config": look.config, "description": figure.title}


# ---------------------------------------------------------------- what they have in common


def _colored(look: Look) -> alt.Color:
    scale = alt.Scale(domain=[*look.names], range=look.colors)
    return alt.Color("implementation:N", scale=scale, title=None, legend=_legend(look))


def _legend(look: Look) -> alt.Legend | None:
    """A page has its filter of implementations for a legend."""
    if look.theme is None:
        return None
    return alt.Legend(orient="bottom", columns=4, symbolOpacity=1, symbolStrokeWidth=0)


def _shaped(look: Look) -> alt.Shape:
    scale = alt.Scale(domain=[*look.names], range=look.shapes)
    return alt.Shape("implementation:N", scale=scale, title=None, legend=_legend(look))


def _length() -> alt.X:
    axis = alt.Axis(labelExpr=LENGTH, labelOverlap="greedy", tickCount=5)
    scale = alt.Scale(type="log", base=2, nice=False, padding=14)
    return alt.X("length:Q", scale=scale, axis=axis, title="sequence length (keys)")


def _si(unit: str) -> alt.Axis:
    """Ticks such as `10 ms`; Vega thins the labels of a logarithm out by emptying them."""
    spaced = "replace(datum.label, regexp('^([0-9.]+)'), '$1 ')"
    return _logarithmic(format="~s", labelExpr=f"datum.label ? {spaced} + '{unit}' : ''", tickCount=5)


def _logarithmic(**more: Any) -> alt.Axis:
    """Without lines and ticks that have no label."""
    labelled = alt.condition("datum.label !== ''", alt.value(1), alt.value(0))
    return alt.Axis(gridOpacity=labelled, tickOpacity=labelled, **more)


def _tooltip(*more: alt.Tooltip) -> list[alt.Tooltip]:
    names = ("implementation", "problem", "run", "time", "grade", "rate", "workspace")
    return [*(alt.Tooltip(f"{name}:N", title=name) for name in names), *more]


def _panels(chart: Any, look: Look, field: str = "panel") -> Any:
    """Small multiples by a field, in the order of the plan."""
    header = alt.Header(labelExpr="split(datum.label, '\\n')", labelAnchor="start", labelAlign="left")
    facet = alt.Facet(
        f"{field}:N", title=None, header=header, sort=alt.EncodingSortField(field="panel_at", op="min")
    )
    return chart.facet(facet=facet, columns=look.columns, data=alt.NamedData(name=DATA))


def _hover() -> alt.Parameter:
    """Implementations but the one under the pointer fade."""
    return alt.selection_point(
        name="hover", on="pointerover", clear="pointerout", fields=["implementation"], empty=True
    )


def _faded(hover: alt.Parameter, full: float = 1.0) -> Any:
    return alt.condition(hover, alt.value(full), alt.value(0.15))


def _points(chart: Any, look: Look, hover: alt.Parameter, *tooltip: alt.Tooltip, size: int = 52) -> Any:
    return (
        chart.mark_point(filled=True, size=size)
        .encode(color=_colored(look), shape=_shaped(look), opacity=_faded(hover), tooltip=_tooltip(*tooltip))
        .add_params(hover)
    )


def _lines(chart: Any, look: Look, hover: alt.Parameter) -> Any:
    dash = alt.Scale(domain=[*look.names], range=look.dashes)
    return chart.mark_line(strokeWidth=1.8).encode(
        strokeDash=alt.StrokeDash("implementation:N", scale=dash, legend=None), opacity=_faded(hover, 0.85)
    )


def _panel(look: Look, height: int = HEIGHT) -> alt.Chart:
    return alt.Chart().properties(width=look.width, height=height)


# ---------------------------------------------------------------- each of them


def _time(look: Look) -> Any:
    hover = _hover()
    y = alt.Y(
        "median_s:Q",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=_si("s"),
        title="time of one call",
    )
    base = _panel(look).encode(x=_length(), y=y, color=_colored(look))
    lines = _lines(base, look, hover)
    bars = (
        base.transform_filter("isValid(datum.ci95_low_s) && isValid(datum.ci95_high_s)")
        .mark_rule(strokeWidth=1.6)
        .encode(y=alt.Y("ci95_low_s:Q"), y2="ci95_high_s:Q", opacity=_faded(hover, 0.7))
    )
    return _panels(alt.layer(lines, bars, _points(base, look, hover)), look).transform_filter(
        "isValid(datum.median_s)"
    )


def _throughput(look: Look) -> Any:
    hover = _hover()
    x = alt.X(
        "intensity:Q",
        scale=alt.Scale(type="log", nice=False, padding=14),
        axis=_logarithmic(format="~s", tickCount=4),
        title="operations per byte",
    )
    y = alt.Y(
        "flops_per_s:Q",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=_si("FLOP/s"),
        title="throughput",
    )
    base = _panel(look, 230).encode(x=x, y=y)
    roof = (
        base.transform_filter("isValid(datum.limit)")
        .mark_line(strokeWidth=2.5, color=look.ink("soft"), strokeCap="round", tooltip=None)
        .encode(y=alt.Y("limit:Q"))
    )
    points = _points(base.transform_filter("isValid(datum.flops_per_s)"), look, hover)
    return _panels(alt.layer(roof, points), look, "roof").transform_filter(
        "isValid(datum.limit) || isValid(datum.flops_per_s) && isValid(datum.intensity)"
    )


def _memory(look: Look) -> Any:
    names = {"input_bytes": PARTS[0], "output_bytes": PARTS[1], "workspace_bytes": PARTS[2]}
    x = alt.X("mebibytes:Q", axis=alt.Axis(tickCount=4, grid=True), title="memory of one call (MiB)")
    color = alt.Color(
        "part:N",
        scale=alt.Scale(domain=[*PARTS], range=[look.ink(f"part-{i}") for i in range(3)]),
        title=None,
        legend=alt.Legend(orient="top", direction="horizontal", symbolType="square"),
    )
    bars = (
        alt.Chart()
        .mark_bar(height=alt.RelativeBandSize(band=0.68))
        .properties(width=look.width, height=alt.Step(20))
        .encode(
            x=x,
            y=alt.Y("implementation:N", title=None, sort=[*look.names], axis=alt.Axis(labelLimit=130)),
            color=color,
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("implementation:N"),
                alt.Tooltip("problem:N"),
                alt.Tooltip("part:N"),
                alt.Tooltip("amount:N", title="bytes"),
            ],
        )
    )
    order = " : ".join(f"datum.part == '{part}' ? {i}" for i, part in enumerate(PARTS)) + " : 3"
    length = LENGTH.replace("datum.value", "datum.length")
    return (
        _panels(bars, look, "panel_with_length")
        .transform_filter("isValid(datum.workspace_bytes)")
        .transform_joinaggregate(longest="max(length)", groupby=["panel"])
        .transform_filter("datum.length == datum.longest")
        .transform_calculate(
            panel_with_length=f"datum.panel + (datum.panel ? '\\n' : '') + 'length ' + ({length})"
        )
        .transform_fold([*names], as_=["column", "bytes"])
        .transform_calculate(
            part=" : ".join(f"datum.column == '{column}' ? '{part}'" for column, part in names.items())
            + " : ''",
            amount=BYTES.replace("datum.value", "datum.bytes"),
            mebibytes=f"datum.bytes / {2**20}",
        )
        .transform_calculate(order=order)
        .resolve_scale(x="independent")
    )


def _workspace(look: Look) -> Any:
    hover = _hover()
    y = alt.Y(
        "drawn:Q",
        scale=alt.Scale(type="log", base=2, nice=False, padding=12),
        axis=alt.Axis(labelExpr=BYTES, tickCount=5, labelOverlap="greedy"),
        title="workspace of one call",
    )
    base = _panel(look).encode(x=_length(), y=y, color=_colored(look))
    lines = _lines(base, look, hover)
    inputs = (
        _panel(look)
        .mark_line(strokeWidth=2.5, strokeDash=[2, 4], color=look.ink("soft"), tooltip=None)
        .encode(x=_length(), y=alt.Y("mean(moved):Q"))
    )
    return (
        _panels(alt.layer(inputs, lines, _points(base, look, hover)), look)
        .transform_filter("isValid(datum.workspace_bytes)")
        .transform_calculate(
            drawn=f"max(datum.workspace_bytes, {LEAST_BYTES})",
            moved=f"max(datum.input_bytes + datum.output_bytes, {LEAST_BYTES})",
        )
    )


def _accuracy(look: Look) -> Any:
    hover = _hover()
    scale = alt.Scale(type="log", nice=False, padding=12)
    x = alt.X(
        "share:Q",
        scale=scale,
        axis=_logarithmic(format=".2~%", tickCount=4),
        title="share of the error budget",
    )
    panel = alt.Chart().properties(width=look.width, height=alt.Step(20))
    base = panel.encode(
        y=alt.Y("implementation:N", title=None, sort=[*look.names], axis=alt.Axis(labelLimit=130, grid=True))
    )
    limit = panel.mark_rule(color=look.ink("soft"), strokeWidth=2.5, tooltip=None).encode(x=alt.X("budget:Q"))
    wanted = [
        alt.Tooltip("share:Q", title="share of the budget", format=".2~%"),
        alt.Tooltip("err_row:Q", title="error of the worst row", format=".2~e"),
        alt.Tooltip("yardstick_row:Q", title="of the yardstick", format=".2~e"),
        alt.Tooltip("status:N"),
    ]
    points = _points(base.encode(x=x), look, hover, *wanted)
    return (
        _panels(alt.layer(limit, points), look, "precision")
        .transform_filter("isValid(datum.share) && isNumber(datum.share)")
        .transform_calculate(budget="1", share=f"max(datum.share, {1e-3})")
    )


def _winners(look: Look) -> Any:
    tied = "datum.best.mark ? datum.mark == '≈' : isValid(datum.ci95_low_s) && datum.ci95_low_s <= datum.best.ci95_high_s"
    lead = "datum.ties > 0 ? '≈ ' + datum.ties + (datum.ties > 1 ? ' others' : ' other') : "
    lead += "datum.second ? format(datum.second / datum.median_s, '.3~r') + '× ahead' : 'alone'"
    base = (
        alt.Chart(alt.NamedData(name=DATA))
        .transform_filter("isValid(datum.median_s)")
        .transform_joinaggregate(
            [alt.JoinAggregateFieldDef(op="argmin", field="median_s", **{"as": "best"})], groupby=["contest"]
        )
        .transform_calculate(behind="datum.implementation != datum.best.implementation")
        .transform_calculate(
            tied=f"datum.behind && ({tied}) ? 1 : 0", other="datum.behind ? datum.median_s : null"
        )
        .transform_joinaggregate(ties="sum(tied)", second="min(other)", groupby=["contest"])
        .transform_filter("!datum.behind")
        .transform_calculate(
            told=f"(datum.mark == '?' ? '? ' : '') + datum.implementation + '\\n' + ({lead})",
            lead=lead,
        )
        .encode(
            x=alt.X(
                "length:O",
                title="sequence length (keys)",
                axis=alt.Axis(labelExpr=LENGTH, labelAngle=0, orient="top", domain=False, ticks=False),
                scale=alt.Scale(paddingInner=0.05, paddingOuter=0.03),
            ),
            y=alt.Y(
                "panel:N",
                title=None,
                sort=alt.EncodingSortField(field="panel_at", op="min"),
                axis=alt.Axis(labelExpr="split(datum.label, '\\n')", labelLimit=300, ticks=False),
                scale=alt.Scale(paddingInner=0.12, paddingOuter=0.06),
            ),
        )
        .properties(width=alt.Step(122), height=alt.Step(46))
    )
    cells = base.mark_rect(cornerRadius=5, fillOpacity=0.22, strokeOpacity=0.9, strokeWidth=1.2).encode(
        fill=alt.Fill(
            "implementation:N",
            scale=alt.Scale(domain=[*look.names], range=look.colors),
            legend=None,
        ),
        stroke=alt.Stroke(
            "implementation:N",
            scale=alt.Scale(domain=[*look.names], range=look.colors),
            legend=None,
        ),
        tooltip=_tooltip(alt.Tooltip("lead:N", title="the next")),
    )
    words = base.mark_text(lineBreak="\n", fontSize=11, lineHeight=15, limit=116, tooltip=None, dy=-7).encode(
        text="told:N"
    )
    return alt.layer(cells, words)


def _ratio(look: Look) -> Any:
    hover = _hover()
    offset = alt.XOffset("implementation:N", sort=[*look.names])
    x = alt.X("length:O", axis=alt.Axis(labelExpr=LENGTH, labelAngle=0), title="sequence length (keys)")
    y = alt.Y(
        "ratio:Q",
        scale=alt.Scale(type="log", nice=False, domain=alt.DomainUnionWith(unionWith=LEAST_RATIOS)),
        axis=_logarithmic(format="~g", tickCount=5, labelExpr="datum.label ? datum.label + '×' : ''"),
        title="time over that of the first run",
    )
    base = _panel(look).encode(x=x, y=y, color=_colored(look))
    equal = (
        _panel(look)
        .mark_rule(color=look.ink("axis"), strokeWidth=1.2, tooltip=None)
        .encode(y=alt.Y("equal:Q"))
    )
    bars = (
        base.transform_filter("isValid(datum.ratio_low)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ratio_low:Q"), y2="ratio_high:Q", xOffset=offset, opacity=_faded(hover, 0.8))
    )
    told = [
        alt.Tooltip("ratio:Q", title="ratio", format=".3~r"),
        alt.Tooltip("ratio_low:Q", title="from", format=".3~r"),
        alt.Tooltip("ratio_high:Q", title="to", format=".3~r"),
    ]
    points = _points(base, look, hover, *told, size=40).encode(xOffset=offset)
    return (
        _panels(alt.layer(equal, bars, points), look)
        .transform_filter("isValid(datum.ratio)")
        .transform_calculate(equal="1")
    )


FIGURES: Mapping[str, Figure] = {
    "time": Figure(
        title="Time over sequence length",
        reading="Lower is faster; both axes are logarithmic, so a straight line is a power of the length, and the "
        "steeper, the faster it grows. A bar is the 95 % interval of a time; where none is seen, it is smaller than its "
        "point. A point that is missing has no time: the table of reasons says why.",
        needs=("median_s",),
        draw=_time,
    ),
    "ratio": Figure(
        title="Times over those of the first run",
        reading="Above the line a cell was slower than in the first run, below it faster; a bar is the 95 % interval that "
        "follows from the intervals of both times. These know nothing of what differs from one run to the next, so a bar "
        "that misses the line is a reason to measure again, interleaved, and no proof.",
        needs=("ratio",),
        draw=_ratio,
    ),
    "winners": Figure(
        title="The fastest for each problem",
        reading="Each field names the fastest right answer among the implementations that are shown, and by which factor "
        "it is ahead of the next; ≈ means that others cannot be told apart from it, and ? that its own time is too "
        "uncertain to call it the fastest.",
        needs=("median_s",),
        draw=_winners,
        by="",
    ),
    "throughput": Figure(
        title="Throughput against the roofline",
        reading="Higher is better. The grey line, where it is known, is the most that this device was seen to do: to the "
        "left of its bend memory limits, to the right of it matrix products do. How far a point lies below the line is "
        "what an implementation leaves unused; caches can lift it above the left part. Operations are those of the two "
        "matrix products, bytes those that every implementation must move.",
        needs=("flops_per_s", "intensity"),
        draw=_throughput,
        by="roof",
        room=100,
    ),
    "memory": Figure(
        title="Memory at the longest sequence",
        reading="The length of a bar is the memory that one call needs: inputs and outputs are the same for all, and "
        "workspace is what an implementation takes beyond them. Every panel has a scale of its own.",
        needs=("workspace_bytes",),
        draw=_memory,
        room=140,
    ),
    "workspace": Figure(
        title="Workspace over sequence length",
        reading="Lower is leaner; the dotted line is inputs and outputs together. Workspace that grows along with it "
        "grows with the length, and one that is twice as steep with its square. Less than 4 KiB is drawn as 4 KiB.",
        needs=("workspace_bytes",),
        draw=_workspace,
        room=84,
    ),
    "accuracy": Figure(
        title="Error against its budget",
        reading="Each point is one problem: the error against a float64 computation, in parts of what is allowed. Left of "
        "the line is right, and farther left is more exact; right of it is wrong. With gradients the budget is that of "
        "the loosest tensor, so that a wrong one may lie left of the line.",
        needs=("share",),
        draw=_accuracy,
        by="precision",
        room=140,
    ),
}
"""By name, in the order of the page."""


def shown(rows: Sequence[Row]) -> dict[str, Figure]:
    """The figures that have something to show."""
    return {name: figure for name, figure in FIGURES.items() if any(map(figure.shows, rows))}
