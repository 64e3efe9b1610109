"""Every defect is wrong and its clean twin right, every cheat is caught, and no sound algorithm is rejected.

At 512 keys in the default run; at 8k and 32k too, and written into docs/measuring.md, with `pytest -m full`.
"""

import csv
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from zoo import appending, cage, defects, layouts, normalisers, sound
from zoo.cheats import KNOWN_SEED, MEMBERS, Member
from zoo.defects import Compute, Defect

from attnbench import worker

DEFECTS = (*defects.DEFECTS, *layouts.DEFECTS, *appending.DEFECTS, *normalisers.DEFECTS)
SOUND = (*sound.SOUND, *layouts.SOUND, *appending.SOUND, *normalisers.SOUND)
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "measuring.md"
CHEATS = [one for one in MEMBERS if one.statuses != ("ok",)]
HONEST = [one for one in MEMBERS if one.statuses == ("ok",)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the judge: threads that wait for each other on a busy machine cost more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def judged(
    defects: Iterable[Defect], shape: str, keys: int, dtype: str
) -> Iterator[tuple[Defect, cage.Found]]:
    """The verdicts on the defects of one problem, after those on their twins."""
    of, twins = cage.problem(shape, keys, dtype), dict[Compute, cage.Found]()
    for one in defects:
        if one.shape == shape:
            if one.clean not in twins:
                twins[one.clean] = cage.judge(one.clean, of)
                assert twins[one.clean].reason is None, (one.name, of.text)
            yield one, cage.judge(one.broken, of)


@pytest.mark.parametrize("dtype", cage.DTYPES)
@pytest.mark.parametrize("shape", cage.SHAPES)
def test_every_defect_is_wrong_and_its_twin_right(shape: str, dtype: str) -> None:
    found = {one.name: verdict.reason for one, verdict in judged(DEFECTS, shape, 512, dtype)}
    assert found
    assert [name for name, reason in found.items() if reason is None] == []


@pytest.mark.parametrize("dtype", cage.DTYPES)
@pytest.mark.parametrize("shape", cage.SHAPES)
def test_no_sound_algorithm_is_rejected(shape: str, dtype: str) -> None:
    of = cage.problem(shape, 512, dtype)
    found = {one.name: cage.judge(one.compute, of).reason for one in SOUND if shape in one.shapes}
    assert {name: reason for name, reason in found.items() if reason} == {}


# ---------------------------------------------------------------- cheats


def run(folder: Path, keys: Sequence[int], dtypes: Iterable[str], *words: str) -> list[dict[str, str]]:
    """The rows of a run of cheats, each in processes of its own, as anybody would run them."""
    folder = folder / "-".join(map(str, keys))
    folder.mkdir()
    suite = folder / "zoo.yaml"
    suite.write_text(
        "question: who is caught?\n"
        f"problems: {{seqlen_q: 128, seqlen_kv: {[*keys]}, heads: 2, head_dim: 64, dtype: [{', '.join(dtypes)}]}}\n"
        "measure: {preset: quick, threads: 1}\n"
    )
    command = [
        "run",
        str(suite),
        "--plugin",
        str(Path(__file__).with_name("cheats.py")),
        "-o",
        str(folder / "run"),
        *(() if "--only" in words else ("--only", "cheat-*,honest-*")),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "attnbench", *command, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert (folder / "run" / "results.csv").is_file(), done.stderr
    with open(folder / "run" / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def surprise(one: Member, row: dict[str, str]) -> str | None:
    """None where a row is as it must be, else what it is."""
    honest = int(row["seqlen_kv"]) < one.least_keys
    statuses, reason = (("ok",), "") if honest else (one.statuses, one.reason)
    if row["status"] in statuses and re.search(reason, row["reason"]):
        return None
    return f"{one.name} {row['problem']}: {row['status']}: {row['reason']}"


@pytest.fixture(scope="module")
def cheated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    rows = run(tmp_path_factory.mktemp("zoo"), [512], ["float32"])
    return {row["implementation"]: row for row in rows}


@pytest.mark.parametrize("one", MEMBERS, ids=lambda one: one.name)
def test_every_cheat_is_caught_and_no_honest_one(one: Member, cheated: dict[str, dict[str, str]]) -> None:
    assert surprise(one, cheated[one.name]) is None


def test_who_knows_a_seed_is_right_only_where_it_is_asked_for(tmp_path: Path) -> None:
    words = ("--only", "cheat-seeds", "--seed", str(KNOWN_SEED))
    (row,) = run(tmp_path, [512], ["float32"], *words)
    assert row["status"] == "ok"


def told(otherwise: float) -> float:
    """Probability that pairs, of which each is otherwise with the given one, are said to show that answers are kept."""
    reached = {0: 1.0}  # pairs that were otherwise -> probability
    for pairs in range(1, worker._PAIRS + 1):
        allowed, before, reached = worker._MISSED + worker._MISSED_SHARE * pairs, reached, {}
        for missed, probability in before.items():
            reached[missed] = reached.get(missed, 0.0) + probability * (1 - otherwise)
            if missed + 1 <= allowed:
                reached[missed + 1] = reached.get(missed + 1, 0.0) + probability * otherwise
    return sum(reached.values())


def test_chance_is_seldom_taken_for_memory_and_memory_seldom_for_chance() -> None:
    assert told(0.5) < 14e-6
    assert told(0.1) > 0.985
    assert told(0.0) == 1


# ---------------------------------------------------------------- the whole, and its table


def test_the_zoo_is_as_large_as_it_is_said_to_be() -> None:
    for least, members in ((60, DEFECTS), (20, CHEATS), (12, SOUND)):
        names = [one.name for one in members]
        assert len(set(names)) == len(names) >= least


def test_the_table_in_the_docs_names_the_members() -> None:
    named = re.findall(r"^\| `([^`]+)` \|", section(PAGE.read_text()), re.MULTILINE)
    assert named == [one.name for one in (*DEFECTS, *CHEATS, *SOUND, *HONEST)]


def section(page: str) -> str:
    return page.partition("<!-- zoo -->\n")[2].partition("<!-- /zoo -->")[0]


def figure(ratio: float) -> str:
    return (
        "inf" if math.isinf(ratio) else f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0e}".replace("e+0", "e")
    )


def table(title: str, rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {title} | | {' | '.join(cage.LENGTHS)} |", "|---|---|" + "---|" * len(cage.LENGTHS)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


@pytest.mark.full
@pytest.mark.timeout(4800)
def test_the_whole_zoo(tmp_path: Path) -> None:
    """Prints every verdict, and writes the table even where something has escaped."""
    ratios: dict[tuple[str, str, str], float] = {}
    wrong: list[str] = []
    for shape, length, dtype, of in cage.grid(cage.LENGTHS, cage.DTYPES):
        cage.exhibit.cache_clear()
        for one, found in judged(DEFECTS, shape, cage.LENGTHS[length], dtype):
            ratios[one.name, length, dtype] = found.ratio
            print(
                f"{length} {dtype} {one.name}: {'wrong' if found.reason else 'ESCAPED'}, {found.ratio:.3g} x the budget"
            )
            wrong += [] if found.reason else [f"escaped: {one.name} {of.text}"]
        for one in SOUND:
            if shape in one.shapes:
                found = cage.judge(one.compute, of)
                key = one.name, length, dtype
                ratios[key] = max(found.ratio, ratios.get(key, 0.0))
                print(
                    f"{length} {dtype} {one.name} {shape}: {found.reason or 'right'}, {found.ratio:.3g} x the budget"
                )
                wrong += [f"rejected: {one.name} {of.text}: {found.reason}"] if found.reason else []
    *short, longest = cage.LENGTHS.values()
    slow = ("--set", "measure.budget=3s")  # a launch must come to the calls in which some begin to cheat
    rows = [
        row
        for keys, more in ((short, ()), ([longest], slow))
        for row in run(tmp_path, keys, cage.DTYPES, *more)
    ]
    members, ends = {one.name: one for one in MEMBERS}, dict[tuple[str, int], list[str]]()
    for row in rows:
        print(f"{row['seqlen_kv']} {row['dtype']} {row['implementation']}: {row['status']}: {row['reason']}")
        seen = ends.setdefault((row["implementation"], int(row["seqlen_kv"])), [])
        seen += [row["status"]] if row["status"] not in seen else []
        unexpected = surprise(members[row["implementation"]], row)
        wrong += [unexpected] if unexpected else []

    def cells(name: str) -> list[str]:
        return [
            " ".join(figure(ratios[name, length, dtype]) for dtype in cage.DTYPES) for length in cage.LENGTHS
        ]

    def statuses(name: str) -> list[str]:
        return [", ".join(ends[name, keys]) for keys in cage.LENGTHS.values()]

    text = table("defect", ([f"`{d.name}`", d.what, *cells(d.name)] for d in DEFECTS))
    text += "\n" + table("cheat", ([f"`{c.name}`", c.what, *statuses(c.name)] for c in CHEATS))
    text += "\n" + table("sound", ([f"`{s.name}`", s.what, *cells(s.name)] for s in SOUND))
    text += "\n" + table("honest", ([f"`{h.name}`", h.what, *statuses(h.name)] for h in HONEST))
    page = PAGE.read_text()
    PAGE.write_text(page.replace(f"<!-- zoo -->\n{section(page)}", f"<!-- zoo -->\n{text}"))
    assert not wrong, "\n".join(wrong)
