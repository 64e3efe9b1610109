"""Results -> tables that a person reads, as text and as Markdown. Nothing here prints."""

from attnbench.tables.axes import AXES, axes
from attnbench.tables.comparison import comparison_markdown, comparison_text, document, records, verdict_line
from attnbench.tables.quantities import VIEWS, view
from attnbench.tables.reasons import clean
from attnbench.tables.rendering import LARGEST_GRID, markdown, text, wrapped
from attnbench.tables.sheets import Sheet, sheet_markdown, sheet_text
from attnbench.tables.summary import summary
from attnbench.tables.table import Table, memory, table, timing

__all__ = [
    "AXES",
    "LARGEST_GRID",
    "VIEWS",
    "Sheet",
    "Table",
    "axes",
    "clean",
    "comparison_markdown",
    "comparison_text",
    "document",
    "markdown",
    "memory",
    "records",
    "sheet_markdown",
    "sheet_text",
    "summary",
    "table",
    "text",
    "timing",
    "verdict_line",
    "view",
    "wrapped",
]
