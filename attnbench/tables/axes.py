"""What tables are laid out by: the axes of a cell, their text, and which of them are rows, columns or parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from attnbench.errors import UserError
from attnbench.problem import Descale, Problem, requests_text, suggestion
from attnbench.records import Result

JOB_AXES = ("device", "threads", "cache", "clock")
PROBLEM_AXES = (
    *("mechanism", "direction", "layout", "batch", "heads", "head_dim", "seqlen", "dtype", "kv_dtype"),
    *("descale", "modifiers", "scale", "dropout", "shared_kv", "mask"),
)
ATOMS = {"seqlen": ("seqlen_q", "seqlen_kv"), "heads": ("heads_q", "heads_kv")}
"""Axes that stand in one column, such as `32/8`, unless `by` names one of their parts."""
SHAPE = {"shape": ("heads", "head_dim")}
"""What a model settles, as one name for `by`."""
AXES = ("problem", "implementation", *JOB_AXES, *PROBLEM_AXES, *ATOMS["seqlen"], *ATOMS["heads"], *SHAPE)
"""What `by` may name."""
FOOTPRINT = ("input", "output")
"""Axes of memory tables: bytes of inputs and of outputs."""
_BARE = ("device", "mechanism", "direction", "layout", "dtype", "modifiers", "implementation", "problem")

Label = tuple[str, ...]
"""A value for each of some axes."""


def axes(text: str | None) -> tuple[str, str] | None:
    """`seqlen+mask,implementation` -> the axes of rows and those of columns. Raises `UserError`."""
    if text is None:
        return None
    sides = ["+".join(name.strip() for name in side.split("+")) for side in text.split(",")]
    for name in "+".join(sides).split("+"):
        if not name:
            hint = f"give two, such as seqlen,implementation; {suggestion(name, AXES)}"
            raise UserError(
                f"--by: an axis is missing in `{text}`" if text.strip() else "--by is empty", hint=hint
            )
        if name not in AXES:
            raise UserError(f"unknown axis `{name}`", hint=suggestion(name, AXES))
    if len(sides) != 2:
        raise UserError(
            f"a table has rows and columns, got `{text}`",
            hint="give two axes, such as seqlen,implementation; several on one side as in seqlen+mask",
        )
    named = [axis for side in sides for axis in _named(side)]
    if twice := [axis for axis in named if named.count(axis) > 1]:
        raise UserError(
            f"`{twice[0]}` is given twice in `{text}`",
            hint="give two axes that differ, such as seqlen,implementation",
        )
    return sides[0], sides[1]


def _named(side: str) -> list[str]:
    return [axis for name in side.split("+") for axis in SHAPE.get(name, (name,))]


@lru_cache(maxsize=4096)
def _problem_values(text: str) -> Mapping[str, str]:
    def pair(one: object, other: object) -> str:
        return f"{one}" if one == other else f"{one}/{other}"

    problem = Problem.parse(text)
    q, kv = problem.uniform or ("", "")
    return {
        "problem": text,
        "mechanism": str(problem.mechanism),
        "direction": problem.direction.value,
        "layout": str(problem.layout),
        "batch": str(problem.batch),
        "heads": pair(problem.heads_q, problem.heads_kv),
        "head_dim": pair(problem.head_dim, problem.head_dim_v),
        "seqlen": pair(q, kv) if problem.uniform else requests_text(problem.sequences),
        "dtype": problem.dtype.value,
        "kv_dtype": "" if problem.kv_dtype == problem.dtype else problem.kv_dtype.value,
        "descale": "" if problem.descale is Descale.TENSOR else problem.descale.value,
        "modifiers": problem.modifiers_text,
        "scale": "" if problem.scale is None else repr(problem.scale),
        "dropout": repr(problem.dropout) if problem.dropout else "",
        "shared_kv": "true" if problem.shared_kv else "",
        "mask": str(problem.mask),
        "seqlen_q": str(q),
        "seqlen_kv": str(kv),
        "heads_q": str(problem.heads_q),
        "heads_kv": str(problem.heads_kv),
    }


def values_of(result: Result) -> dict[str, str]:
    """The text of every axis; empty where a problem has nothing out of the ordinary."""
    job = {name: str(getattr(result.cell, name)) for name in JOB_AXES}
    name = result.cell.implementation
    return {**_problem_values(result.cell.problem), **job, "implementation": name}


def said(axis: str, value: str) -> str:
    """An axis with its value in a caption."""
    if axis in _BARE:
        return value or f"no {axis}"
    return f"{value} {axis}" if axis in ("cache", "clock", "mask") else f"{axis} {value or '-'}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Axes of the rows, of the columns, and those that split a table into parts."""

    rows: Label
    columns: Label
    split: Label
    common: Label
    """Axes on which all cells agree."""


def layout(cells: Sequence[Mapping[str, str]], by: tuple[str, str] | None) -> Layout:
    """Where the axes of some cells go: problems down and implementations across, or as `by` says.

    An axis that follows from the row or from the column joins it; any other one splits, so that no two cells
    have the same place.
    """
    names = ("implementation", *JOB_AXES, *PROBLEM_AXES)
    varied = {name for name in cells[0] if len({cell[name] for cell in cells}) > 1} if cells else set()
    asked = [_named(side) for side in by or ("problem", "implementation")]
    named = [axis for side in asked for axis in side]
    left = [
        part
        for name in names
        for part in (ATOMS[name] if set(ATOMS.get(name, ())) & set(named) else (name,))
        if part in varied and part not in named
    ]
    sides: list[list[str]] = []
    for side in asked:
        if "problem" in side:
            jobs = () if by is None else JOB_AXES  # unasked, a problem on each device is a row of its own
            rest = [a for a in left if a not in ("implementation", *jobs)]
            side = [a for name in side for a in ((rest or ["seqlen"]) if name == "problem" else [name])]
        sides.append(side)
        left = [a for a in left if a not in side]

    def follows(name: str, side: Sequence[str]) -> bool:
        seen: dict[Label, str] = {}
        return all(seen.setdefault(tuple(c[a] for a in side), c[name]) == c[name] for c in cells)

    split: list[str] = []
    keys = [[*side] for side in sides]
    for name in left:
        side = next((side for side, key in zip(sides, keys, strict=True) if follows(name, key)), split)
        side.append(name)
    for name in FOOTPRINT:
        joined = (side for side, key in zip(sides, keys, strict=True) if follows(name, [*split, *key]))
        if name in varied and (to := next(joined, None)) is not None:
            to.append(name)
    told = {*sides[0], *sides[1], *split, *varied}
    common = tuple(
        name for name in (*names[1:], *FOOTPRINT) if cells and cells[0].get(name) and name not in told
    )
    return Layout(rows=tuple(sides[0]), columns=tuple(sides[1]), split=tuple(split), common=common)
