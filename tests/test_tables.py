"""Tables that a person reads."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_runs import bad, ok, problem
from rich.cells import cell_len

from attnbench import estimates, tables
from attnbench.errors import UserError
from attnbench.problem import Problem
from attnbench.records import Block, Memory, Result, Status

UGLY = (
    "a|b",
    "<script>alert(1)</script>",
    "**bold**",
    "_x_",
    "`code`",
    "[link](http://x)",
    "核心-注意力",
    "back\\slash",
    "$a$~~b~~",
    "&amp;",
    "esc\x1b[31m",
    "a" * 70,
)


def grid_of(table: tables.Table, part: int = 0) -> dict[tuple[str, str], str]:
    """(row, column) -> the entry with its mark, labels joined by spaces."""
    grid = table.grids[part]
    return {
        (" ".join(row), " ".join(column)): f"{e.mark}{e.value}{e.detail}"
        for (row, column), e in grid.entries.items()
    }


def sweep(lengths: int, implementations: int) -> list[Result]:
    return [
        ok(1e-3 * n * (k + 1), problem(64 * n), f"kernel-{k}")
        for n in range(1, lengths + 1)
        for k in range(implementations)
    ]


# ---------------------------------------------------------------- what stands where


def test_problems_go_down_and_implementations_across() -> None:
    rows = [ok(0.010, problem(512), "a"), ok(0.020, problem(512), "b"), ok(0.040, problem(1024), "a")]
    table = tables.timing(rows)
    assert grid_of(table) == {
        ("512", "a"): "*10.0 ±1.0%",
        ("512", "b"): "20.0 ±1.0%",
        ("1024", "a"): "*40.0 ±1.0%",
    }
    assert table.grids[0].row_axes == ("seqlen",)
    assert table.unit == "ms"


def test_what_all_cells_share_is_said_once() -> None:
    rows = [
        ok(0.01, problem(n, f"heads_q=8 heads_kv=2 head_dim=64 mask={m}"))
        for n in (64, 128)
        for m in ("full", "causal")
    ]
    table = tables.timing(rows)
    assert table.grids[0].row_axes == ("seqlen", "mask")
    for said in ("cpu", "threads 2", "warm cache", "heads 8/2", "head_dim 64", "float32", "forward"):
        assert said in table.common
        assert tables.text(table, width=300).count(said) == 1


def test_only_axes_that_differ_become_columns_in_plan_order() -> None:
    texts = [
        problem(2048, "heads=8 head_dim=128"),
        problem(512, "heads=8 head_dim=64"),
        problem(512, "heads=4 head_dim=64"),
    ]
    grid = tables.timing([ok(0.01, text) for text in texts]).grids[0]
    assert grid.row_axes == ("heads", "head_dim", "seqlen")
    assert grid.rows == (("8", "128", "2048"), ("8", "64", "512"), ("4", "64", "512"))


def test_every_axis_of_a_problem_can_tell_two_rows_apart() -> None:
    plain = "heads=8 head_dim=64"
    others = [
        "heads=8 head_dim=64 batch=2",
        "heads_q=8 heads_kv=4 head_dim=64",
        "heads=8 head_dim=64 head_dim_v=32",
        "heads=8 head_dim=64 dtype=float16",
        "heads=8 head_dim=64 kv_dtype=int8",
        "heads=8 head_dim=64 mask=causal",
        "heads=8 head_dim=64 modifiers=softcap:cap=50",
        "heads=8 head_dim=64 scale=0.5",
        "heads=8 head_dim=64 mechanism=linear",
        "heads=8 head_dim=64 layout=packed",
        "heads=8 head_dim=64 direction=backward",
        "heads=8 head_dim=64 dropout=0.1",
        "heads=8 head_dim=64 shared_kv=true",
    ]
    for other in others:
        grid = tables.timing([ok(0.01, problem(512, plain)), ok(0.02, problem(512, other))]).grids[0]
        assert len(grid.rows) == 2, other
    ragged = Problem.parse("requests=2q512_3q1s1k heads=8 head_dim=64").text
    assert tables.timing([ok(0.01), ok(0.02, ragged)]).grids[0].rows[1][-1] == "2q512_3q1s1024"


def test_devices_and_threads_are_rows_where_they_differ() -> None:
    rows = [
        ok(0.01, device="cpu", threads=2),
        ok(0.02, device="cpu", threads=4),
        ok(0.03, device="cuda:0", threads=4),
    ]
    grid = tables.timing(rows).grids[0]
    assert grid.row_axes == ("device", "threads")
    assert len(grid.entries) == 3


def test_the_baseline_stands_first() -> None:
    rows = [ok(0.01, implementation=name) for name in "abc"]
    assert [c[0] for c in tables.timing(rows, baseline="c").grids[0].columns] == ["c", "a", "b"]


def test_rows_that_arrive_out_of_order_are_gathered_by_problem() -> None:
    rows = [ok(0.01, problem(64), "a"), ok(0.01, problem(128), "a"), ok(0.01, problem(64), "b")]
    assert tables.timing(rows).grids[0].rows == (("64",), ("128",))


# ---------------------------------------------------------------- the fastest right one


def test_the_fastest_is_marked_and_so_is_what_cannot_be_told_from_it() -> None:
    rows = [ok(0.0100, implementation="a"), ok(0.0101, implementation="b"), ok(0.0110, implementation="c")]
    marks = {column: text[0] for (_, column), text in grid_of(tables.timing(rows)).items()}
    assert marks == {"a": "*", "b": "≈", "c": "1"}


def test_a_time_without_an_interval_is_not_called_the_fastest() -> None:
    rows = [
        ok(0.0100, implementation="a", half=None),
        ok(0.0101, implementation="b", half=0.02),
        ok(0.0110, implementation="c"),
    ]
    table = tables.timing(rows)
    assert set(grid_of(table).values()) == {"?10.0", "≈10.1 ±2.0%", "11.0 ±1.0%"}
    assert any("too few blocks" in line for line in table.legend)
    assert any("? the least time" in line for line in table.legend)
    assert not any("* the fastest" in line for line in table.legend)
    assert "**" not in tables.markdown(table)


def test_a_time_without_an_interval_ties_where_it_lies_within_that_of_the_fastest() -> None:
    rows = [ok(0.0100, half=0.02), *(ok(s, implementation=f"{s}", half=None) for s in (0.0101, 0.0103))]
    assert set(grid_of(tables.timing(rows)).values()) == {"*10.0 ±2.0%", "≈10.1", "10.3"}


@pytest.mark.parametrize(("half", "told"), [(0.49, "*10.0 ±49%"), (0.51, "?10.0 too noisy")])
def test_an_interval_of_half_the_time_to_each_side_is_too_noisy(half: float, told: str) -> None:
    table = tables.timing([ok(0.010, half=half), ok(0.030, implementation="b")])
    assert grid_of(table)["512", "a"] == told
    assert any("too noisy" in line for line in table.legend) == ("noisy" in told)


def blocks(values: Sequence[float], launch: int = 0, first: int = 0) -> tuple[Block, ...]:
    return tuple(Block(round=n, launch=launch, seconds=(v,)) for n, v in enumerate(values, first))


DRIFT = (1.0, 1.3, 0.9, 1.2, 1.1, 0.8)


def test_blocks_of_the_same_rounds_tell_apart_what_drift_makes_overlap() -> None:
    a = ok(1.0, implementation="a", half=0.2, blocks=blocks(DRIFT))
    b = ok(1.1, implementation="b", half=0.2, blocks=blocks([1.1 * s for s in DRIFT]))
    c = ok(1.1, implementation="c", half=0.2, blocks=blocks([1.1 * s for s in DRIFT[::-1]]))
    table = tables.timing([a, b, c])
    assert set(grid_of(table).values()) == {"*1.00 ±20%", "1.10 ±20%", "≈1.10 ±20%"}
    assert table.legend == (
        "* the fastest right answer; ≈ cannot be told apart from it: the interval of their ratio holds 1",
    )
    assert grid_of(table)["512", "c"][0] == "≈"


def test_blocks_of_other_rounds_are_no_pairs() -> None:
    a = ok(1.0, implementation="a", half=0.2, blocks=blocks(DRIFT))
    b = ok(1.1, implementation="b", half=0.2, blocks=blocks([1.1 * s for s in DRIFT], first=2))
    table = tables.timing([a, b])
    assert grid_of(table)["512", "b"] == "≈1.10 ±20%"
    assert "the intervals overlap" in table.legend[0]


def test_pairs_that_are_few_of_the_blocks_stand_for_none() -> None:
    slow_start = [3.0, 3.1, 2.9, 3.0, 3.2, *[1.0, 1.01, 0.99] * 5]
    a = ok(1.0, implementation="a", blocks=blocks(slow_start))
    b = ok(1.5, implementation="b", blocks=blocks([1.5, 1.51, 1.49, 1.5, 1.5]))
    assert grid_of(tables.timing([a, b])) == {("512", "a"): "*1.00 ±1.0%", ("512", "b"): "1.50 ±1.0%"}
    assert grid_of(tables.table("speedup", [a, b], baseline="a"))["512", "b"] == "0.667 ±1.4%"


# ---------------------------------------------------------------- other views


def test_speed_ups_are_ratios_of_paired_blocks_with_their_interval() -> None:
    a = ok(1.0, implementation="a", half=0.2, blocks=blocks(DRIFT))
    noise = (1.0, 1.01, 0.99, 1.0, 1.01, 0.99)
    b = ok(
        2.1,
        implementation="b",
        half=0.2,
        blocks=blocks([2 * s * n for s, n in zip(DRIFT, noise, strict=True)]),
    )
    table = tables.table("speedup", [a, b], baseline="a")
    ratio = estimates.ratio(
        [[math.log(2 * s * n) for s, n in zip(DRIFT, noise, strict=True)]], [[math.log(s) for s in DRIFT]]
    )
    assert ratio.low is not None
    assert ratio.high is not None
    percent = 50 * (1 / ratio.low - 1 / ratio.high) * ratio.location
    assert grid_of(table) == {
        ("512", "a"): "*1.00",
        ("512", "b"): f"{1 / ratio.location:.3f} ±{percent:.1f}%",
    }
    assert "Speed-up against a" in table.title
    assert "unit" not in tables.text(table)
    assert len(table.legend) == 1


def test_speed_ups_without_blocks_add_both_intervals_in_quadrature_and_say_so() -> None:
    rows = [ok(0.010, implementation="a", half=0.03), ok(0.020, implementation="b", half=0.04)]
    table = tables.table("speedup", rows, baseline="b")
    assert grid_of(table) == {("512", "b"): "1.00", ("512", "a"): "*2.00 ±5.0%"}
    assert any("from the intervals of both times" in line for line in table.legend)
    bare = [rows[0], ok(0.020, implementation="b", half=None)]
    assert grid_of(tables.table("speedup", bare, baseline="b"))["512", "a"] == "*2.00"


def test_where_the_baseline_has_no_time_there_is_no_speed_up() -> None:
    rows = [
        *(ok(0.01, problem(64), "a"), ok(0.02, problem(64), "b")),
        *(bad(problem(128), "a", Status.CRASHED, "SIGSEGV"), ok(0.02, problem(128), "b")),
    ]
    grid = grid_of(tables.table("speedup", rows, baseline="a"))
    assert grid["128", "b"] == "no baseline"
    assert grid["128", "a"] == "crashed [1]"


def test_the_baseline_of_a_run_that_names_none_is_right_most_often() -> None:
    rows = [
        *(bad(problem(64), "a"), ok(0.02, problem(64), "b"), ok(0.02, problem(64), "c")),
        *(ok(0.01, problem(128), "a"), ok(0.02, problem(128), "b"), ok(0.02, problem(128), "c")),
    ]
    for named in (None, "was-left-out"):
        table = tables.table("speedup", rows, baseline=named)
        assert "against b" in table.title
        assert table.grids[0].columns[0] == ("b",)


def test_rates_are_work_over_the_median_and_bring_its_interval() -> None:
    text = problem(512)
    rows = [ok(0.001, text, "a"), ok(0.002, text, "b", half=None)]
    flops, least = 4 * 512 * 512 * 64 * 8, 4 * 512 * 64 * 8 * 4
    table = tables.table("tflops", rows)
    assert table.unit == "GFLOP/s"
    assert grid_of(table)["512", "a"] == f"*{flops / 1e-3 / 1e9:.0f} ±1.0%"
    assert grid_of(table)["512", "b"] == f"{flops / 2e-3 / 1e9:.0f}"
    table = tables.table("gbps", rows)
    assert (table.unit, grid_of(table)["512", "a"]) == ("GB/s", f"*{least / 1e-3 / 1e9:.2f} ±1.0%")


def test_work_of_a_mechanism_backward_is_counted_as_two_and_a_half_times_that_forward() -> None:
    text = problem(512, "heads=8 head_dim=64 mechanism=linear")
    rows = [ok(0.01, text, "a"), ok(0.025, f"{text} direction=backward", "a")]
    forward, backward = grid_of(tables.table("tflops", rows)).values()
    assert forward == backward


def test_every_view_of_time_marks_the_same_fastest() -> None:
    rows = [ok(0.0100, implementation="a"), ok(0.0101, implementation="b"), ok(0.0200, implementation="c")]
    for view in ("time", "speedup", "tflops", "gbps"):
        (grid,) = tables.table(view, rows, baseline="c").grids
        assert {column: e.mark for (_, (column,)), e in grid.entries.items()} == {"a": "*", "b": "≈", "c": ""}


def test_an_unknown_view_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError) as caught:
        tables.view("speed")
    assert caught.value.hint == "did you mean `speedup`?"


def test_the_file_of_times_ends_with_speed_ups_where_there_is_a_baseline() -> None:
    rows = [
        ok(0.010, implementation="a"),
        ok(0.020, implementation="b"),
        bad(implementation="c"),
        bad(problem(64), "c", Status.FAILED),
    ]
    page = tables.markdown(tables.timing(rows, baseline="b"))
    assert "## Speed-up against b" in page
    assert page.count("no grouped heads") == 2  # c: unsupported once, failed once
    assert "Speed-up" not in tables.markdown(tables.timing(rows))
    assert "Speed-up" not in tables.markdown(tables.timing(rows, baseline="c"))
    assert "Speed-up" not in tables.text(tables.timing(rows, baseline="b"))


def test_a_wrong_answer_is_never_the_fastest() -> None:
    rows = [
        bad(implementation="b", status=Status.WRONG, reason="row error 0.3"),
        ok(0.01, implementation="a"),
    ]
    assert grid_of(tables.timing(rows)) == {("512", "b"): "wrong [1]", ("512", "a"): "*10.0 ±1.0%"}


def test_a_single_implementation_has_won_nothing() -> None:
    table = tables.timing([ok(0.01), ok(0.02, problem(1024))])
    assert not any(entry.mark for entry in table.grids[0].entries.values())
    assert table.legend == ()


def test_each_row_gets_a_unit_that_fits_it() -> None:
    rows = [
        ok(2e-6, problem(64), "a"),
        ok(5e-6, problem(64), "b"),
        ok(2.0, problem(4096), "a"),
        ok(3.0, problem(4096), "b"),
    ]
    table = tables.timing(rows)
    assert table.unit == ""
    assert dict(table.grids[0].units) == {("64",): "us", ("4096",): "s"}
    assert grid_of(table)["64", "a"] == "*2.00 ±1.0%"
    assert re.search(r"seqlen +unit +a +b\n", tables.text(table))
    assert "| seqlen | unit | a | b |" in tables.markdown(table)


# ---------------------------------------------------------------- reasons


def test_reasons_stand_in_place_of_numbers_and_are_given_once_below() -> None:
    rows = [
        ok(0.01, problem(64), "a"),
        bad(problem(64), "b"),
        bad(problem(64), "c", Status.CRASHED, "SIGSEGV\nin its first calls"),
        ok(0.01, problem(128), "a"),
        bad(problem(128), "b"),
        ok(0.02, problem(128), "c"),
        ok(0.02, problem(256), "b"),
    ]
    table = tables.timing(rows)
    assert table.notes == ("crashed: SIGSEGV in its first calls", "unsupported: no grouped heads")
    assert grid_of(table)["64", "b"] == grid_of(table)["128", "b"] == "unsupported [2]"
    assert "[1] crashed: SIGSEGV in its first calls" in tables.text(table)
    assert "- [1] crashed: SIGSEGV in its first calls" in tables.markdown(table)
    assert "SIGSEGV" not in tables.text(table, notes=False)


def test_failures_that_differ_in_figures_are_one_reason_and_answers_are_not() -> None:
    rows = [
        *(ok(0.01, problem(n), "a") for n in (64, 128, 256)),
        *(bad(problem(n), "b", Status.WRONG, f"row error {n / 1e5} at query {n}") for n in (64, 128, 256)),
        *(bad(problem(n), "c", reason=f"no head_dim {n}") for n in (64, 128)),
        ok(0.01, problem(256), "c"),
        *(bad(problem(n), "d", Status.FAILED, f"no {t}") for n, t in ((64, "float16"), (128, "float64"))),
    ]
    assert tables.timing(rows).notes == (
        "wrong: row error 0.00064 at query 64 (and 2 like it, with other figures)",
        "failed: no float16",
        "failed: no float64",
        "unsupported: no head_dim 64",
        "unsupported: no head_dim 128",
    )


def test_an_implementation_that_can_nothing_here_is_a_line_and_no_column() -> None:
    rows = [
        row
        for n in (64, 128)
        for row in (ok(0.01, problem(n)), bad(problem(n), "b", Status.UNAVAILABLE, "not installed"))
    ]
    table = tables.timing(rows)
    assert table.absent == ("b: unavailable: not installed",)
    assert table.grids[0].columns == (("a",),)
    assert "b: unavailable: not installed" in tables.text(table)
    assert "b: unavailable: not installed" in tables.markdown(table)


def test_an_implementation_with_several_reasons_for_all_cells_is_a_line_too() -> None:
    rows = [
        *(ok(0.01, problem(n)) for n in (64, 128, 256)),
        *(bad(problem(n), "b", reason="no cpu" if n < 256 else "no bfloat16") for n in (64, 128, 256)),
    ]
    (line,) = tables.timing(rows).absent
    assert line == "b: unsupported: no cpu (2); unsupported: no bfloat16 (1)"
    assert tables.summary(rows).splitlines()[-1] == f"no column: {line}"


def test_a_wrong_answer_everywhere_keeps_its_column() -> None:
    table = tables.timing([ok(0.01), bad(status=Status.WRONG, reason="row error 0.3")])
    assert table.absent == ()
    assert ("b",) in table.grids[0].columns


def test_a_run_in_which_all_failed_is_a_table_of_reasons() -> None:
    rows = [bad(problem(n), name, Status.FAILED, f"boom {name}") for n in (64, 128) for name in "ab"]
    for table in (tables.timing(rows), tables.memory(rows)):
        assert len(table.grids[0].entries) == 4
        assert len(table.notes) == 2
        assert tables.text(table).count("failed [") == 4
        assert tables.markdown(table).count("failed [") == 4


def test_no_results_are_no_table() -> None:
    for table in (tables.timing([]), tables.memory([])):
        assert "no cells" in tables.text(table)
        assert "No cells" in tables.markdown(table)
    assert tables.summary([]) == "0 cells"


# ---------------------------------------------------------------- memory


def test_workspace_stands_beside_the_bytes_of_inputs_and_those_of_outputs() -> None:
    small, large = problem(64), problem(128)
    rows = [
        ok(0.01, small, "a", workspace=0),
        ok(0.01, small, "b", workspace=2**20),
        ok(0.01, large, "a", workspace=3 * 2**20),
        ok(0.01, large, "b", workspace=None),
    ]
    table = tables.memory(rows)
    assert {"input 3.00 MiB", "output 1.00 MiB"} <= {*table.common}
    assert grid_of(table)["64", "a"] == "*0"
    assert grid_of(table)["128", "b"] == "not measured"
    other = Memory(input_bytes=2**30, output_bytes=0, workspace_bytes=5, method="rss")
    rows[2:] = [
        Result(cell=rows[2].cell, status=Status.OK, timing=rows[2].timing, memory=other),
        bad(large, "b"),
    ]
    grid = tables.memory(rows).grids[0]
    assert grid.row_axes == ("seqlen", "input", "output")
    assert grid.rows == (("64", "3.00 MiB", "1.00 MiB"), ("128", "1.00 GiB", "0 B"))


def test_the_bytes_of_inputs_never_split_a_table() -> None:
    rows = [
        ok(0.01, problem(n, f"heads={h} head_dim=64"), name)
        for n in (64, 128)
        for h in (2, 4)
        for name in "ab"
    ]
    rows = [
        Result(
            cell=r.cell,
            status=r.status,
            timing=r.timing,
            memory=Memory(input_bytes=place, output_bytes=0, workspace_bytes=1, method="rss"),
        )
        for place, r in enumerate(rows)
    ]
    for by in (None, ("seqlen", "implementation"), ("implementation", "problem"), ("seqlen", "heads")):
        assert sum(len(grid.entries) for grid in tables.memory(rows, by=by).grids) == len(rows)
        assert len(tables.memory(rows, by=by).grids) == len(tables.timing(rows, by=by).grids)


# ---------------------------------------------------------------- --by


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("seqlen", "give two"),
        ("seqlen,seqlen", "differ"),
        ("a,b,c", "one of"),
        ("seqlen,mask,dtype", "give two"),
        ("", "one of"),
        ("seqlne,mask", "seqlen"),
        ("seqlen+mask,mask", "differ"),
        ("shape,heads", "differ"),
        ("seqlen+head,mask", "head"),
        ("seqlen+,mask", "one of"),
    ],
)
def test_axes_that_cannot_be_are_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        tables.axes(text)
    assert hint in str(caught.value.hint)


def test_axes_are_read_from_the_command_line() -> None:
    assert tables.axes(None) is None
    assert tables.axes("seqlen + mask, shape") == ("seqlen+mask", "shape")
    assert tables.axes("seqlen, implementation") == ("seqlen", "implementation")


def cross() -> list[Result]:
    return [
        ok(1e-3 * n, problem(n, f"heads_q={h} heads_kv=2 head_dim=64 mask={m}"), name)
        for n in (1024, 256, 512)
        for h in (2, 8)
        for m in ("full", "causal")
        for name in "ab"
    ]


@pytest.mark.parametrize("rows", tables.AXES)
@pytest.mark.parametrize(
    "columns", ["implementation", "seqlen", "problem", "seqlen_q", "heads_q", "mask", "device"]
)
def test_no_two_cells_ever_share_a_place(rows: str, columns: str) -> None:
    results = cross()
    if rows == columns:
        return
    table = tables.timing(results, by=(rows, columns))
    assert sum(len(grid.entries) for grid in table.grids) == len(results)
    assert len({grid.caption for grid in table.grids}) == len(table.grids)


def test_what_remains_splits_a_table_into_parts_with_captions() -> None:
    table = tables.timing(cross(), by=("seqlen", "implementation"))
    assert [grid.caption for grid in table.grids] == [
        f"heads {h}, {m} mask" for h in ("2", "8/2") for m in ("full", "causal")
    ]
    assert table.grids[0].rows == (("256",), ("512",), ("1024",))  # by number, not in plan order


def test_several_axes_may_share_a_side() -> None:
    (grid,) = tables.timing(cross(), by=("seqlen+heads", "mask+implementation")).grids
    assert grid.row_axes == ("seqlen", "heads")
    assert grid.rows == tuple((n, h) for n in ("256", "512", "1024") for h in ("2", "8/2"))
    assert grid.columns == tuple((m, i) for m in ("full", "causal") for i in "ab")


def test_the_shape_of_a_model_is_its_heads_and_their_dimension() -> None:
    rows = [
        ok(1e-3, problem(n, f"heads={h} head_dim={d}")) for n in (64, 128) for h, d in ((12, 64), (32, 128))
    ]
    (grid,) = tables.timing(rows, by=("shape", "seqlen")).grids
    assert (grid.row_axes, grid.rows) == (("heads", "head_dim"), (("12", "64"), ("32", "128")))


def test_an_axis_that_follows_from_another_joins_it() -> None:
    rows = [ok(1e-3, problem(n, f"heads={n // 64} head_dim=64"), name) for n in (128, 256) for name in "ab"]
    grid = tables.timing(rows, by=("seqlen", "implementation")).grids[0]
    assert (grid.row_axes, grid.rows) == (("seqlen", "heads"), (("128", "2"), ("256", "4")))


def test_implementations_down_compare_within_a_column() -> None:
    rows = [
        ok(1e-6, problem(64), "a"),
        ok(2e-6, problem(64), "b"),
        ok(4.0, problem(4096), "a"),
        ok(3.0, problem(4096), "b"),
    ]
    table = tables.timing(rows, by=("implementation", "seqlen"))
    assert grid_of(table) == {
        ("a", "64"): "*1.00 ±1.0%",
        ("b", "64"): "2.00 ±1.0%",
        ("a", "4096"): "4.00 ±1.0%",
        ("b", "4096"): "*3.00 ±1.0%",
    }
    assert dict(table.grids[0].units) == {("64",): "us", ("4096",): "s"}
    assert "| implementation | seqlen 64, us | seqlen 4096, s |" in tables.markdown(table)


# ---------------------------------------------------------------- rendering


def cells_of(line: str) -> list[str]:
    """The cells of a Markdown row, split at bars that are not escaped."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


def table_rows(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.startswith("|"))


def ugly() -> list[Result]:
    return [
        ok(0.01 * (place + 1), problem(n), name)
        if place % 2
        else bad(problem(n), name, Status.FAILED, f"{name}\n| x\r\n# y {n}")
        for n in (64, 128)
        for place, name in enumerate(UGLY)
    ]


@pytest.mark.parametrize("make", [tables.timing, tables.memory])
@pytest.mark.parametrize("by", [None, ("implementation", "seqlen")])
def test_ugly_names_break_no_markdown(make: "type[tables.timing]", by: tuple[str, str] | None) -> None:
    text = tables.markdown(make(ugly(), by=by))
    widths = {len(cells_of(line)) for line in table_rows(text)}
    assert len(widths) == 1
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            found.append(tag)

    Parser().feed(text)
    assert found == []
    for wanted in (
        r"a\|b",
        "&lt;script&gt;",
        r"\*\*bold\*\*",
        r"\_x\_",
        r"\`code\`",
        r"\[link\]",
        "核心-注意力",
        "&amp;amp;",
    ):
        assert wanted in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [20, 80, 100, 160])
def test_ugly_names_break_no_text(width: int) -> None:
    for make in (tables.timing, tables.memory):
        text = tables.text(make(ugly()), width=width)
        assert "\x1b" not in text
        assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize(("lengths", "implementations"), [(1, 1), (1, 30), (3, 12), (12, 12)])
def test_text_keeps_to_the_width_of_the_terminal(width: int, lengths: int, implementations: int) -> None:
    rows = sweep(lengths, implementations)
    text = tables.text(tables.timing(rows), width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.count("±1.0%") == len(rows)
    for place in range(implementations):
        assert f"kernel-{place}" in text


def test_a_wide_and_short_table_is_put_on_its_side() -> None:
    text = tables.text(tables.timing(sweep(2, 12)), width=80)
    lines = [line for line in text.splitlines() if "kernel-" in line]
    assert len(lines) == 12
    assert all(line.count("±") == 2 for line in lines)


def test_columns_of_text_line_up_with_wide_characters_too() -> None:
    rows = [ok(0.01, problem(n), name) for n in (64, 1024) for name in ("b", "核心-注意力-核心-注意力")]
    heading, rule, *body = tables.text(tables.timing(rows), width=200).splitlines()[3:7]
    assert len({*map(cell_len, (heading, rule, *body))}) == 1
    assert len(heading) < cell_len(heading)


def test_a_large_table_is_a_line_a_cell_on_a_terminal_and_whole_in_the_file() -> None:
    rows = [*sweep(100, 3), bad(problem(64), "kernel-3", Status.CRASHED, "SIGSEGV")]
    table = tables.timing(rows)
    lines = [line for line in tables.text(table).splitlines() if "kernel-" in line]
    assert len(lines) == 301
    assert re.fullmatch(r" +64 +kernel-0 +\*1\.00 ms ±1\.0% +1\.00 MiB", lines[0])
    assert lines[3].endswith("crashed [1]")
    assert len([*table_rows(tables.markdown(table))]) == 102


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lists_and_tables_of_many_axes_keep_to_the_width(width: int) -> None:
    shapes = ("heads=12 head_dim=64", "heads_q=32 heads_kv=8 head_dim=128")
    rows = [
        ok(1e-3, problem(n, f"{s} dtype={t} mask={m} direction={d}"), f"torch-sdpa-efficient-{k}")
        for s in shapes
        for d in ("forward", "forward_backward")
        for t in ("float32", "bfloat16")
        for m in ("full", "causal")
        for n in (64, 128, 16384)
        for k in range(5)
    ]
    for some in (rows, rows[:120]):
        table = tables.timing(some)
        text = tables.text(table, width=width)
        assert max(map(cell_len, text.splitlines())) <= width
        assert text.count("±1.0%") == len(some)
    assert tables.text(tables.timing(rows), width=80).count("heads 32/8") == 2  # one a direction


def test_long_names_are_broken_after_hyphens_where_that_saves_a_part() -> None:
    rows = [ok(0.01, problem(n), f"torch-sdpa-number-{k}") for n in (64, 128) for k in range(4)]
    lines = tables.text(tables.timing(rows), width=80).splitlines()
    (rule,) = [place for place, line in enumerate(lines) if "─" in line]
    assert lines[rule - 2].split() == ["torch-sdpa-"] * 4
    assert lines[rule - 1].split() == ["seqlen", *(f"number-{k}" for k in range(4))]


def test_many_reasons_are_cut_on_a_terminal_only() -> None:
    rows = [ok(0.01), *(bad(problem(64 * n), "b", Status.FAILED, f"boom{n}") for n in range(1, 31))]
    table = tables.timing(rows)
    assert "and 10 more reasons" in tables.text(table)
    assert "- [30] failed: boom30" in tables.markdown(table)


def test_colour_adds_nothing_but_colour() -> None:
    for rows in (ugly(), sweep(100, 3)):
        table = tables.timing(rows)
        colored = tables.text(table, color=True)
        assert "\x1b[1;32m" in colored
        assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == tables.text(table)


def test_the_fastest_is_bold_in_markdown() -> None:
    rows = [ok(0.0100, implementation="a"), ok(0.0200, implementation="b")]
    assert "| 512 | **10.0** ±1.0% | 20.0 ±1.0% |" in tables.markdown(tables.timing(rows))


# ---------------------------------------------------------------- summary


def test_the_summary_counts_and_puts_wrong_answers_first() -> None:
    rows = [
        ok(0.01),
        bad(problem(64), "slow", Status.TIMED_OUT, "no answer within 60 s"),
        bad(problem(64), "b"),
        bad(problem(64), "c", Status.WRONG, "row error 0.3\nat batch 0"),
        bad(problem(128), "c", Status.WRONG, "row error 0.3\nat batch 0"),
        *(bad(problem(256), name, Status.NOT_RUN, "interrupted") for name in "ab"),
    ]
    lines = tables.summary(rows).splitlines()
    assert lines[0] == "7 cells: 1 ok, 2 wrong, 1 unsupported, 1 timed out, 2 not run"
    assert lines[1].startswith("[1] wrong: row error 0.3 at batch 0 (c, 2 cells, first batch=1 seqlen=64 ")
    assert lines[2].startswith("[2] timed out: no answer within 60 s (slow: batch=1 seqlen=64 ")
    assert lines[3] == "[3] not run: interrupted (2 cells)"
    assert lines[4] == "[4] unsupported: no grouped heads (b)"


def test_numbers_of_reasons_are_the_same_in_every_table_and_in_the_summary() -> None:
    rows = [
        *(ok(0.01, problem(64)), ok(0.01, problem(128), "b"), ok(0.01, problem(128), "c")),
        *(bad(problem(64), "b"), bad(problem(64), "c", Status.CRASHED, "SIGSEGV"), bad(problem(128), "a")),
    ]
    told = [line.split(" (")[0] for line in tables.summary(rows).splitlines()[1:]]
    for view in tables.VIEWS:
        notes = tables.table(view, rows, by=("implementation", "seqlen")).notes
        assert told == [f"[{place}] {note}" for place, note in enumerate(notes, 1)]


def test_a_summary_of_many_findings_is_cut_and_says_so() -> None:
    rows = [bad(problem(64), f"k{n}", Status.FAILED, f"k{n} " + "x" * 500) for n in range(30)]
    text = tables.summary(rows)
    assert text.endswith("and 10 more: see the column `reason` of results.csv")
    assert max(map(len, text.splitlines())) < 400


# ---------------------------------------------------------------- noise


def graded(result: Result, grade: str, why: str = "") -> Result:
    assert result.timing
    return replace(result, timing=replace(result.timing, grade=grade, noise=why))


def test_a_noisy_time_says_so_and_does_not_win_for_certain() -> None:
    rows = [graded(ok(1e-3), "C", "others ran"), graded(ok(2e-3, implementation="b"), "B", "a drift")]
    shown = tables.text(tables.timing(rows))
    assert "?1.00 ±1.0% C" in shown
    assert "2.00 ±1.0%\n" in shown
    assert "C: a noisy measurement" in shown
    assert "C" not in tables.text(tables.timing([graded(row, "B") for row in rows])).split("head_dim")[1]


def test_a_noisy_time_does_not_mark_its_memory() -> None:
    assert " C" not in tables.text(tables.memory([graded(ok(1e-3), "C", "others ran")]))


def test_the_summary_counts_grades_and_tells_what_to_do_about_the_worst() -> None:
    rows = [graded(ok(1e-3), "A"), graded(ok(2e-3, implementation="b"), "C", "others ran: close them")]
    assert (
        tables.summary(rows).splitlines()[1]
        == f"noise: 1 A, 1 C; the worst (b: {problem()}): others ran: close them"
    )
    assert tables.summary(rows[:1]) == "1 cell: 1 ok"
