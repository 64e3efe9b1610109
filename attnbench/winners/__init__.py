"""The fastest right implementation of each problem of a run, for people and for programs. Nothing here prints."""

from attnbench.winners.dispatch import DIALECTS, dispatch
from attnbench.winners.ranking import Contest, Ranking, Regret, Terms, Verdict, rank, regrets
from attnbench.winners.telling import RECORD, document, records, sheets

__all__ = [
    "DIALECTS",
    "RECORD",
    "Contest",
    "Ranking",
    "Regret",
    "Terms",
    "Verdict",
    "dispatch",
    "document",
    "rank",
    "records",
    "regrets",
    "sheets",
]
