"""How time and workspace of a run's implementations grow with length. Nothing here prints."""

from attnbench.growth.series import LEAST_LENGTHS, Series, series
from attnbench.growth.telling import RECORD, document, legend, records, sheets
from attnbench.growth.trends import Growth, Trend, growth

__all__ = [
    "LEAST_LENGTHS",
    "RECORD",
    "Growth",
    "Series",
    "Trend",
    "document",
    "growth",
    "legend",
    "records",
    "series",
    "sheets",
]
