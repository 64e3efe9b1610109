"""Plain tables of lines, for answers that are no grid of implementations: as text and as Markdown."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from attnbench.tables.axes import said
from attnbench.tables.reasons import clean
from attnbench.tables.rendering import cell_len, escaped, padded, wrapped

_GAP = 2
_LEAST_LAST = 30
"""Columns that the last column of a terminal gets at least; what is longer continues on a further line."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A heading, a table of texts, and what its words mean. The last column may be long."""

    title: str
    common: tuple[str, ...] = ()
    """What holds for all rows."""
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    axes: int = 0
    """How many of the first columns are axes; on a narrow terminal they become captions, from the left."""
    legend: tuple[str, ...] = ()


def sheet_text(sheet: Sheet, *, width: int = 100) -> str:
    """The sheet for a terminal of `width` columns."""
    lines = wrapped(clean(sheet.title), width)
    together = ", ".join(map(clean, sheet.common)).replace(" ", "\xa0").replace(",\xa0", ", ")
    lines += [line.replace("\xa0", " ") for line in wrapped(together, width)]
    lines += ["", *_drawn(sheet, width)] if sheet.rows else []
    lines += [""] * bool(sheet.rows and sheet.legend)
    lines += [line for item in sheet.legend for line in wrapped(clean(item), width, 2)]
    return "\n".join(lines)


def _drawn(sheet: Sheet, width: int) -> Iterator[str]:
    rows = [[clean(value) for value in row] for row in sheet.rows]
    widths = [max(map(cell_len, column)) for column in zip(sheet.heads, *rows, strict=True)]
    right = [_numeric(column) for column in zip(*rows, strict=True)]
    least, taken = min(_LEAST_LAST, widths[-1]), 0
    while taken < sheet.axes and sum(w + _GAP for w in widths[taken:-1]) + _GAP + least > width:
        taken += 1
    last = max(width - sum(w + _GAP for w in widths[taken:-1]) - _GAP, least)
    widths[-1] = min(widths[-1], max(last, cell_len(sheet.heads[-1])))

    def line(values: Sequence[str]) -> str:
        shown = zip(values[taken:], widths[taken:], right[taken:], strict=True)
        return (" " * _GAP).join(["", *(padded(v, w, r) for v, w, r in shown)]).rstrip()

    yield line(sheet.heads)
    yield line(["─" * w for w in widths])
    before = ""
    for row in rows:
        caption = ", ".join(map(said, sheet.heads[:taken], row[:taken]))
        if caption != before:
            before = caption
            yield caption
        first, *more = textwrap.wrap(row[-1], widths[-1], break_on_hyphens=False) or [""]
        yield line([*row[:-1], first])
        yield from (line([*[""] * (len(row) - 1), rest]) for rest in more)


def _numeric(column: Sequence[str]) -> bool:
    """Whether a column's texts begin with digits, so that they are flush right."""
    return all(not value or value.lstrip("~-+<>≈?")[:1].isdigit() for value in column)


def sheet_markdown(sheet: Sheet) -> str:
    """The sheet as GitHub's Markdown."""
    parts = [f"## {escaped(sheet.title)}"]
    parts += [escaped(", ".join(sheet.common))] * bool(sheet.common)
    if sheet.rows:
        right = [_numeric(column) for column in zip(*sheet.rows, strict=True)]
        heads, *rows = ([*map(escaped, row)] for row in (sheet.heads, *sheet.rows))
        rules = ["---:" if flush else "---" for flush in right]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in (heads, rules, *rows)))
    parts += ["\n".join(f"- {escaped(line)}" for line in sheet.legend)] * bool(sheet.legend)
    return "\n\n".join(parts)
