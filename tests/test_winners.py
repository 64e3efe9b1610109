"""The fastest right implementation of each problem, and the tables that a program loads."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_results import run as header
from test_tables import bad, ok, problem

from attnbench import results, tables, winners
from attnbench.cli import main
from attnbench.problem import Problem
from attnbench.records import Accuracy, Block, Result, Status
from attnbench.winners import Contest, Terms, Verdict

ROOT = Path(__file__).parents[1]
QUICK, CPU = "results/quick", "results/cpu-20261121-113740"


def contests(*rows: Result, **terms: Any) -> list[Contest]:
    return [*winners.rank(rows, {"rough": "fewer keys"}, Terms(**terms)).contests]


def ranked(*rows: Result, **terms: Any) -> Contest:
    (found,) = contests(*rows, **terms)
    return found


def names(rows: tuple[Result, ...]) -> list[str]:
    return [row.cell.implementation for row in rows]


def graded(result: Result, grade: str) -> Result:
    assert result.timing is not None
    return replace(result, timing=replace(result.timing, grade=grade, noise="other processes were running"))


def repeatable(result: Result, answer: str) -> Result:
    accuracy = Accuracy(
        row=0, rms=0, max=0, cosine=1, yardstick_row=1, yardstick_rms=1, checked_share=1, deterministic=answer
    )
    return replace(result, accuracy=accuracy)


def rounds(*seconds: float) -> tuple[Block, ...]:
    return tuple(Block(round=n, launch=0, seconds=(s,)) for n, s in enumerate(seconds))


# ---------------------------------------------------------------- who wins, and how sure that is


def test_the_least_time_wins_for_certain_where_the_intervals_are_apart() -> None:
    found = ranked(ok(0.02, implementation="b"), ok(0.01, implementation="a"))

    assert names(found.ranked) == ["a", "b"]
    assert (found.verdict, found.tied) == (Verdict.SURE, ())
    assert found.next is not None
    ratio = found.next[1].ratio
    assert ratio.location == pytest.approx(2)
    assert (ratio.low, ratio.high) == (pytest.approx(0.0198 / 0.0101), pytest.approx(0.0202 / 0.0099))


def test_overlapping_intervals_are_a_tie_and_the_next_is_the_first_that_is_certainly_slower() -> None:
    found = ranked(
        ok(0.010, implementation="a"), ok(0.0101, implementation="b"), ok(0.02, implementation="c")
    )

    assert (found.verdict, names(found.tied)) == (Verdict.TIED, ["b"])
    assert found.next is not None
    assert found.next[0].cell.implementation == "c"


@pytest.mark.parametrize(
    "vague",
    [ok(0.03, implementation="v", half=None), graded(ok(0.03, implementation="v"), "C")],
    ids=["bare", "noisy"],
)
def test_a_slower_time_that_is_not_known_well_is_named_as_unknown_and_is_not_the_next(vague: Result) -> None:
    one = ranked(ok(0.01), vague, ok(0.05, implementation="b"))

    assert (one.verdict, names(one.unknown)) == (Verdict.SURE, ["v"])
    assert one.next is not None
    assert one.next[0].cell.implementation == "b"
    told = tables.sheet_text(winners.sheets(winners.rank(one.results, {}, Terms()))[0], width=200)
    assert "sure; b takes 5.00 (4.90 to 5.10); unknown: v?" in told


def test_without_another_time_that_is_known_well_nobody_is_sure_to_be_the_fastest() -> None:
    assert ranked(ok(0.01), ok(0.03, implementation="v", half=None)).verdict is Verdict.UNSURE


def test_paired_blocks_tell_apart_what_the_intervals_cannot() -> None:
    drifting = [0.010 * (1 + n / 10) for n in range(8)]
    one = ok(0.0135, implementation="a", half=0.3, blocks=rounds(*drifting))
    other = ok(0.0138, implementation="b", half=0.3, blocks=rounds(*(s * 1.02 for s in drifting)))

    assert ranked(one, other).verdict is Verdict.SURE
    assert ranked(*(replace(row, blocks=()) for row in (one, other))).verdict is Verdict.TIED


@pytest.mark.parametrize(
    "best",
    [ok(0.01, half=None), ok(0.01, half=0.6), graded(ok(0.01), "C")],
    ids=["no interval", "too wide", "noisy"],
)
def test_a_time_that_cannot_be_trusted_is_no_sure_winner_and_decides_no_regret(best: Result) -> None:
    found = ranked(best, ok(0.03, implementation="b"))

    assert found.verdict is Verdict.UNSURE
    assert winners.regrets([found]) == []


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_what_is_not_ok_is_never_ranked(status: Status) -> None:
    found = ranked(ok(0.02, implementation="a"), bad(implementation="b", status=status))

    assert names(found.ranked) == ["a"]
    assert found.verdict is Verdict.ONLY


def test_wrong_answers_are_named_below_the_table() -> None:
    ranking = winners.rank(
        [ok(0.01), bad(implementation="off-by-one", status=Status.WRONG), bad()], {}, Terms()
    )

    told = tables.sheet_text(winners.sheets(ranking)[0], width=200)
    assert "never ranked: 1 wrong (off-by-one), 1 unsupported; `attnbench show` says why" in told


def test_a_problem_that_nobody_solved_has_its_row_with_how_it_ended() -> None:
    ranking = winners.rank([bad(status=Status.WRONG), bad(implementation="c")], {}, Terms())
    (record,) = winners.records(ranking)

    assert record["verdict"] == "none"
    assert record["fastest"] is None
    assert record["reason"] == "1 wrong, 1 unsupported"
    assert "none: 1 wrong, 1 unsupported" in tables.sheet_text(winners.sheets(ranking)[0])


def test_only_what_was_measured_under_the_same_conditions_competes() -> None:
    found = contests(ok(0.01, implementation="a"), ok(0.02, implementation="b", threads=1))

    assert [one.verdict for one in found] == [Verdict.ONLY, Verdict.ONLY]


# ---------------------------------------------------------------- terms


def test_a_limit_on_workspace_leaves_out_what_needs_more_or_what_is_not_known() -> None:
    rows = [
        ok(0.01, implementation="hungry", workspace=2**26 + 1),
        ok(0.02, implementation="unknown", workspace=None),
        ok(0.03, implementation="fits", workspace=2**26),
    ]
    ranking = winners.rank(rows, {}, Terms(max_workspace=2**26))

    assert names(ranking.contests[0].ranked) == ["fits"]
    assert {why: names(out) for why, out in ranking.left_out.items()} == {
        "needs more than 64.0 MiB of workspace": ["hungry"],
        "its workspace was not measured": ["unknown"],
    }
    told = tables.sheet_text(winners.sheets(ranking)[0], width=200)
    assert "left out, needs more than 64.0 MiB of workspace: hungry (1)" in told


def test_only_what_is_known_to_be_deterministic_is_ranked_where_that_is_asked() -> None:
    rows = [
        repeatable(ok(0.01, implementation="a"), "no"),
        repeatable(ok(0.02, implementation="b"), ""),
        repeatable(ok(0.03, implementation="c"), "yes"),
        ok(0.04, implementation="d"),
    ]

    assert names(ranked(*rows, deterministic=True).ranked) == ["c"]
    assert names(ranked(*rows).ranked) == ["a", "b", "c", "d"]


def test_approximations_are_ranked_only_on_demand_and_are_marked_then() -> None:
    rows = [ok(0.01, implementation="rough"), ok(0.02, implementation="a")]

    assert names(ranked(*rows).ranked) == ["a"]
    assert names(ranked(*rows, approximate=True).ranked) == ["rough", "a"]
    ranking = winners.rank(rows, {"rough": "fewer keys"}, Terms(approximate=True))
    told = tables.sheet_text(winners.sheets(ranking)[0], width=200)
    assert "~rough" in told
    assert "~rough: an approximation: fewer keys" in told


# ---------------------------------------------------------------- regret


def test_regret_counts_wins_and_losses_over_all_problems() -> None:
    short, long = problem(128), problem(1024)
    rows = [
        *(ok(0.01, short, "a"), ok(0.02, short, "b")),
        *(ok(0.08, long, "a"), ok(0.01, long, "b"), ok(0.01, long, "c")),
    ]
    found = {regret.implementation: regret for regret in winners.regrets(contests(*rows))}

    assert [*found] == ["b", "a", "c"]  # c was right once only, so it comes last
    assert (found["a"].ranked, found["a"].alone, found["a"].won) == (2, 1, 1)
    assert found["a"].mean == pytest.approx(8**0.5)
    assert (found["a"].worst, found["a"].worst_at.cell.problem) == (pytest.approx(8), long)
    assert found["b"].mean == pytest.approx(2**0.5)
    assert (found["c"].ranked, found["c"].problems, found["c"].alone, found["c"].won) == (1, 2, 0, 1)


def test_devices_have_tables_of_regret_of_their_own() -> None:
    rows = [
        ok(s, implementation=n, device=d) for d in ("cpu", "cuda:0") for n, s in (("a", 0.01), ("b", 0.02))
    ]
    first, *others = winners.sheets(winners.rank(rows, {}, Terms()))

    assert len(first.rows) == 2
    assert [sheet.common[0] for sheet in others] == ["cpu", "cuda:0"]


# ---------------------------------------------------------------- for programs


def emitted(capsys: pytest.CaptureFixture[str], dialect: str, run: str = QUICK) -> str:
    assert main(["best", str(ROOT / run), "--emit", dialect]) == 0
    return capsys.readouterr().out


LLAMA = {"heads_q": 32, "heads_kv": 8, "head_dim": 128, "mask": "causal", "dtype": "bfloat16"}


def fastest(problem_text: str, run: str = QUICK) -> str:
    """From the rows themselves."""
    rows = [r for r in results.load(ROOT / run)[1] if r.cell.problem == problem_text and r.timing]
    return min(rows, key=lambda r: r.timing.median_s if r.timing else 0).cell.implementation


def test_the_python_module_dispatches(capsys: pytest.CaptureFixture[str]) -> None:
    module: dict[str, Any] = {}
    exec(compile(emitted(capsys, "python"), "dispatch.py", "exec"), module)
    text = "batch=1 seqlen=512 heads_q=32 heads_kv=8 head_dim=128 dtype=bfloat16 mask=causal"
    best, nearest = module["best"], module["nearest"]

    assert len(module["TABLE"]) == 16
    assert best(**LLAMA, seqlen_q=512, seqlen_kv=512) == fastest(text)
    assert best(**LLAMA, seqlen_q=512, seqlen_kv=512, device="cpu", batch=1) == fastest(text)
    assert nearest(**LLAMA, seqlen_q=900, seqlen_kv=900) == fastest(text)
    with pytest.raises(KeyError):
        best(**LLAMA, seqlen_q=513, seqlen_kv=513)
    with pytest.raises(KeyError, match="cuda"):
        best(**LLAMA, seqlen_q=512, seqlen_kv=512, device="cuda:0")
    with pytest.raises(KeyError):
        nearest(**{**LLAMA, "mask": "full"}, seqlen_q=512, seqlen_kv=512)
    with pytest.raises(TypeError, match="no axis seqlen"):
        best(**LLAMA, seqlen=512)
    with pytest.raises(TypeError, match="seqlen_kv must be given"):
        best(**LLAMA, seqlen_q=512)
    with pytest.raises(ValueError, match="seqlen_q must be above 0, got 0"):
        nearest(**LLAMA, seqlen_q=0, seqlen_kv=512)


def test_the_json_table_dispatches(capsys: pytest.CaptureFixture[str]) -> None:
    table = json.loads(emitted(capsys, "json", CPU))
    choose = {tuple(e[axis] for axis in table["axes"]): e["implementation"] for e in table["entries"]}
    wanted = {**LLAMA, "dtype": "float32", "seqlen_q": 1, "seqlen_kv": 4096, "direction": "forward"}
    text = "batch=1 seqlen_q=1 seqlen_kv=4096 heads_q=32 heads_kv=8 head_dim=128 dtype=float32 mask=causal"

    assert len(choose) == len(table["entries"]) == 17
    assert choose[tuple(wanted[axis] for axis in table["axes"])] == fastest(text, CPU)
    assert table["fixed"]["device"] == "cpu"


def test_the_csv_table_dispatches(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(emitted(capsys, "csv"))))
    (found,) = (
        r
        for r in rows
        if all(r[k] == str(v) for k, v in {**LLAMA, "seqlen_q": 128, "seqlen_kv": 128}.items())
    )

    assert len(rows) == 16
    assert found["implementation"] == fastest(found["problem"])
    assert Problem.parse(found["problem"]).dtype == found["dtype"]


def test_batches_of_unequal_lengths_dispatch_by_the_problem() -> None:
    texts = [
        Problem.parse(f"requests={r} heads=4 head_dim=64 layout=packed").text
        for r in ("1q2k_2q1k", "2q2k_1q1k")
    ]
    rows = [ok(0.01, texts[0], "a"), ok(0.01, texts[1], "b")]
    module: dict[str, Any] = {}
    exec(winners.dispatch(winners.rank(rows, {}, Terms()), "python", "r"), module)

    assert [module["best"](problem=text, **_lengths(text, module["AXES"])) for text in texts] == ["a", "b"]


def _lengths(text: str, axes: tuple[str, ...]) -> dict[str, Any]:
    q, kv = Problem.parse(text).uniform or (None, None)
    values = {"seqlen_q": q, "seqlen_kv": kv, "batch": Problem.parse(text).batch}
    return {axis: values[axis] for axis in axes if axis in values}


def test_nothing_from_a_csv_gets_out_of_its_string_in_the_module(tmp_path: Path) -> None:
    evil = '"""\nraise SystemExit("code from a CSV ran")\n"""'
    module: dict[str, Any] = {}
    exec(winners.dispatch(winners.rank([ok(0.01, implementation=evil)], {}, Terms()), "python", evil), module)

    assert module["RUN"] == evil
    assert module["best"]() == evil


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
@pytest.mark.parametrize("run", [QUICK, CPU])
def test_every_format_names_every_problem_and_its_winner(
    form: str, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["best", str(ROOT / run), "--format", form]) == 0
    told = capsys.readouterr().out
    problems = {r.cell.problem for r in results.load(ROOT / run)[1]}
    if form == "csv":
        assert {row["problem"] for row in csv.DictReader(io.StringIO(told))} == problems
    elif form == "json":
        document = json.loads(told)
        assert {entry["problem"] for entry in document["problems"]} == problems
        assert document["regret"][0]["worst_at"] in problems
    elif form == "markdown":
        table = told.split("\n\n")[2]
        assert len(table.splitlines()) == 2 + len(problems)
        assert len({line.count(" | ") for line in table.splitlines()}) == 1
    else:
        assert "What it costs to take one implementation" in told
        assert max(map(len, told.splitlines())) <= 100


def test_best_says_so_where_nobody_can_be_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write_csv(tmp_path, [bad()], header())

    assert main(["best", str(tmp_path / "results.csv")]) == 1
    assert "none: 1 unsupported" in capsys.readouterr().out
    assert main(["best", str(tmp_path / "results.csv"), "--emit", "json"]) == 2
    assert "nothing to dispatch to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-workspace", "lots"], "--max-workspace: 'lots' is not an amount of memory"),
        (["--only", "torch-spda"], "--only: no implementation of this run matches `torch-spda`"),
        (["--without", "*"], "--without leaves no implementation"),
        (["--emit", "json", "--format", "csv"], "--format for the ranking or --emit for a dispatch table"),
    ],
)
def test_bad_input_is_refused_with_what_is_wrong(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["best", str(ROOT / QUICK), *words]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""


def test_an_approximation_is_known_from_the_csv_alone(tmp_path: Path) -> None:
    results.write_csv(tmp_path, [ok(0.01, implementation="rough"), ok(0.02, implementation="a")], header())
    run, rows = results.read_results(tmp_path / "results.csv")

    assert run.approximations == {"rough": "every other key is left out"}
    (found,) = winners.rank(rows, run.approximations, Terms()).contests
    assert names(found.ranked) == ["a"]
