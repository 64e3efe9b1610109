"""The page: one HTML file that holds its rows, its figures and the library that draws them, and asks for nothing else."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import vl_convert

from attnbench import __version__
from attnbench.errors import UserError
from attnbench.report import facts
from attnbench.report.figures import FIGURES, drawn
from attnbench.report.looks import SHAPES, Look, place, shape, style
from attnbench.report.roofs import Roofs, known, roofs
from attnbench.report.rows import Content, Source, content
from attnbench.results import COLUMNS

MOST_PANELS = 24
"""Of a figure, until a reader asks for the others."""
MOST_ROWS = 20_000
"""About 30 MB, which a browser still draws in seconds."""


def page(sources: Sequence[Source]) -> str:
    """The whole page. Raises `UserError` for a problem that is none, and for too many rows."""
    made = content(sources)
    if len(made.rows) > MOST_ROWS:
        raise UserError(
            f"a page of {len(made.rows):,} cells would not open, at most {MOST_ROWS:,}",
            hint="choose some, such as --where mask=causal",
        )
    limits = roofs(made.rows, known(made.rows))
    shown = {name: figure for name, figure in FIGURES.items() if any(map(figure.shows, made.rows))}
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    scripts = [f"<script type=module>{code}</script>" for code in (library, _file("page.js"))]
    sections = "".join(
        f"<figure id=figure-{name}><h2>{escape(figure.title)}</h2>"
        f"<div class=drawing role=group tabindex=0 aria-label='{escape(figure.title)}: figure'></div>"
        f"<p class=panels></p><figcaption>{escape(figure.reading)}{_note(limits) if name == 'throughput' else ''}</figcaption></figure>"
        for name, figure in shown.items()
    )
    title = ", ".join(dict.fromkeys(source.run.suite for source in sources))
    asked = [*dict.fromkeys(filter(None, (facts.question(source.run) for source in sources)))]
    places = {
        "title": escape(title),
        "question": escape(" ".join(asked) or "Attention implementations, side by side"),
        "runs": "".join(f"<li>{_named(source)}</li>" for source in sources),
        "tiles": "".join(
            f"<div class=tile><b>{escape(number)}</b><span>{escape(what)}</span><small>{escape(more)}</small></div>"
            for number, what, more in facts.figures(sources)
        ),
        "common": escape(", ".join(made.common)),
        "figures": sections,
        "environment": _environment(sources),
        "version": escape(__version__),
        "style": style() + _file("page.css"),
        "policy": _policy([library, _file("page.js")]),
        "data": _json(_data(made, limits, shown)),
        "scripts": "".join(scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: places[match[1]], _file("page.html"))


def _file(name: str) -> str:
    return resources.files("attnbench.report").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, whatever text becomes a part of the page, and nothing is fetched from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _json(data: Any) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(made: Content, limits: Roofs, shown: Mapping[str, Any]) -> dict[str, Any]:
    columns = [*made.rows[0]]
    look = Look(names=made.names)
    return {
        "columns": columns,
        "rows": [[_plain(row.get(name)) for name in columns] for row in made.rows],
        "csv": [column.name for column in COLUMNS],
        "roofs": limits.corners,
        "filters": made.filters,
        "reasons": made.reasons,
        "series": {name: [place(i)[0], SHAPES[shape(i)]] for i, name in enumerate(made.names)},
        "most": MOST_PANELS,
        "figures": {
            name: {"spec": drawn(f, look), "needs": f.needs, "by": f.by, "room": f.room}
            for name, f in shown.items()
        },
    }


def _plain(value: Any) -> Any:
    """JSON knows no infinity; as text it is what the CSV has."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _named(source: Source) -> str:
    devices = ", ".join(dict.fromkeys(source.run.device_names.values()))
    when = source.run.started[:16].replace("T", " ")
    return "".join(f"<span>{escape(part)}</span>" for part in (source.name, devices, when) if part)


def _note(limits: Roofs) -> str:
    if limits.machines:
        return f" The line is that of {escape('; '.join(limits.machines))}, as <code>attnbench peaks</code> has measured it."
    return " No line is drawn: <code>attnbench peaks</code> has not measured this device on the machine that made the page."


def _environment(sources: Sequence[Source]) -> str:
    """A row a fact and a column a run; facts that differ are marked."""
    found = [facts.facts(source.run) for source in sources]
    heads = "".join(f"<th scope=col>{escape(source.name)}</th>" for source in sources)
    lines = []
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one.get(name, "") for one in found]
        differs = " class=differs" if len(set(values)) > 1 and name not in ("run", "started", "seed") else ""
        cells = "".join(f"<td>{escape(value) or '–'}</td>" for value in values)
        lines.append(f"<tr{differs}><th scope=row>{escape(name)}</th>{cells}</tr>")
    suites = "".join(
        f"<details><summary>The suite of {escape(source.name)}</summary><pre tabindex=0>{escape(source.run.suite_text)}</pre></details>"
        for source in sources
        if source.run.suite_text
    )
    return (
        f"<div class=scroll tabindex=0 role=region aria-label='Environment'><table><thead><tr><td></td>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>{suites}"
    )
