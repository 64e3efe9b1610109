"""Results -> tables that a person reads, as text and as Markdown. Nothing here prints."""

from attnbench.tables.axes import AXES, axes
from attnbench.tables.rendering import markdown, text
from attnbench.tables.summary import summary
from attnbench.tables.table import Table, memory, timing

__all__ = ["AXES", "Table", "axes", "markdown", "memory", "summary", "text", "timing"]
