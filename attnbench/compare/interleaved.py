"""A run of two sides, `attnbench run --against`, as both of them, with the ratios of times that were taken in turns."""

from collections.abc import Sequence
from dataclasses import replace

from attnbench.against import OF_THE_BASE, SUFFIX
from attnbench.compare.sides import Side
from attnbench.errors import ResultsError
from attnbench.estimates import Interval
from attnbench.records import Result, Run
from attnbench.results import CellKey, outcome
from attnbench.turns import paired


def split(run: Run, found: Sequence[Result]) -> tuple[Side, Side, dict[CellKey, Interval]]:
    """Base, new, and the ratio of each cell whose blocks are known on both sides.

    Raises `ResultsError` where the run has but one side.
    """
    ours = {r.cell.key: r for r in found if not r.cell.implementation.endswith(SUFFIX)}
    theirs = {}
    for result in found:
        if result.cell.implementation.endswith(SUFFIX):
            cell = replace(result.cell, implementation=result.cell.implementation.removesuffix(SUFFIX))
            theirs[cell.key] = result
    if not theirs:
        raise ResultsError(
            f"{run.run_id} has one side", hint="give two runs, or one of `attnbench run --against`"
        )
    ratios = {
        key: ratio
        for key, result in ours.items()
        if key in theirs and (ratio := paired(result, theirs[key])) is not None
    }
    base, new = (
        Side(name=name, runs=(of,), cells={key: (outcome(result),) for key, result in cells.items()})
        for name, of, cells in (
            (f"{run.run_id} (base)", _base(run), theirs),
            (run.run_id, _new(run), ours),
        )
    )
    return base, new, ratios


def _new(run: Run) -> Run:
    fingerprint = {name: text for name, text in run.fingerprint.items() if not name.endswith(OF_THE_BASE)}
    versions = {name: text for name, text in run.versions.items() if not name.endswith(SUFFIX)}
    return replace(run, fingerprint=fingerprint, versions=versions)


def _base(run: Run) -> Run:
    """The header as it would be of a run of the base alone."""
    told = {
        name.removesuffix(OF_THE_BASE): text
        for name, text in run.fingerprint.items()
        if name.endswith(OF_THE_BASE)
    }
    known, python = (run.environment.get(name, {}) for name in ("versions", "python"))
    return replace(
        run,
        fingerprint={**run.fingerprint, **told},
        versions={name: text for name, text in run.versions.items() if name.endswith(SUFFIX)},
        environment={
            **run.environment,
            "versions": {**known, "torch": told.get("torch", known.get("torch"))},
            "python": {**python, "version": told.get("python", python.get("version"))},
        },
    )
