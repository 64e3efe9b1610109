"""Figures, the page that holds them, and the commands that write them."""

import importlib.util
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from made_runs import bad, ok, problem, run, sweep

from attnbench import report, results
from attnbench.cli import main
from attnbench.errors import UserError
from attnbench.peaks import Peaks
from attnbench.problem import Direction, DType, Problem
from attnbench.records import Accuracy, Result, Status
from attnbench.report import facts, looks
from attnbench.report.roofs import roofs
from attnbench.report.rows import Content, Source, budget_share, content
from attnbench.verify import FACTORS

alt = pytest.importorskip("altair", reason="altair is not installed: pip install 'attnbench[report]'")
vl_convert = pytest.importorskip("vl_convert")

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.parent for path in ROOT.glob("results/*/results.csv"))
UGLY = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "</script><script>window.hacked=1</script>",
    "{{data}}",
    "<!--",
    "a&amp;b",
    "' + datum + '",
    "\u2028\u202e",
)
PEAKS = Peaks(
    device="A processor",
    threads=2,
    torch="2.13",
    flops_per_s={"float32": 2e11, "bfloat16": 4e11},
    bytes_per_s={2**26: 4e10},
)


def source(cells: Sequence[Result], name: str = "made", **more: str) -> Source:
    return Source(name=name, run=run(name, cells, **more), results=cells)


def made(*cells: Result) -> Content:
    return content([source(cells)])


# ---------------------------------------------------------------- rows


def test_a_row_has_every_column_of_the_csv_unchanged() -> None:
    cells = [*sweep(), bad(problem(512, "heads=8 head_dim=64 head_dim_v=128"))]
    one = source(cells)
    for row, cell in zip(content([one]).rows, cells, strict=True):
        assert {k: "" if row[k] is None else row[k] for k in results.row(cell, one.run)} == results.row(
            cell, one.run
        )


def test_a_panel_is_what_varies_but_for_implementation_and_length() -> None:
    found = made(*sweep(), ok(1.0, problem(512, "heads=8 head_dim=64 mask=causal"), threads=1))
    assert found.rows[0]["panel"] == "threads 2, float32, full mask"
    assert {"threads", "dtype", "mask", "implementation", "seqlen"} == found.filters.keys()
    assert "cpu" in found.common


def test_one_query_over_many_keys_is_not_in_a_panel_with_self_attention() -> None:
    decode = Problem.parse("seqlen_q=1 seqlen_kv=4096 heads=8 head_dim=64").text
    one, other = made(ok(1e-3, problem(4096)), ok(1e-4, decode)).rows
    assert one["length"] == other["length"] == 4096
    assert (one["panel"], other["panel"]) == ("", "one query")


def test_implementations_with_a_time_have_the_first_colors() -> None:
    assert made(bad(implementation="absent"), ok(implementation="present")).names == ("present", "absent")


def test_numbers_are_filtered_in_their_order() -> None:
    found = made(*(ok(1e-3, problem(n)) for n in (2048, 128, 512)))
    assert found.filters == {"seqlen": ("128", "512", "2048")}


def test_the_share_of_the_budget_is_one_where_a_verdict_changes() -> None:
    (row, rms) = FACTORS["out"]
    at_most = Accuracy(
        row=row * 2e-7, rms=1e-9, max=1, cosine=1, yardstick_row=2e-7, yardstick_rms=1e-7, checked_share=1
    )
    assert budget_share(at_most, Direction.FORWARD) == pytest.approx(1)
    assert budget_share(replace(at_most, row=0, rms=rms * 1e-7), Direction.FORWARD) == pytest.approx(1)


def test_what_is_right_in_every_gradient_is_within_the_budget_that_is_shown() -> None:
    for row, rms in FACTORS.values():
        edge = Accuracy(row=row, rms=rms, max=1, cosine=1, yardstick_row=1, yardstick_rms=1, checked_share=1)
        assert budget_share(edge, Direction.FORWARD_BACKWARD) <= 1


def test_a_second_run_is_held_against_the_first_cell_by_cell() -> None:
    before, after = source([ok(1e-3), ok(1e-3, implementation="gone")]), source([ok(2e-3), bad()], "after")
    old, _, new, failed = content([before, after]).rows
    assert old["ratio"] is None
    assert failed["ratio"] is None
    assert new["ratio"] == pytest.approx(2)
    # half widths of 1 % on both sides, added in quadrature on the log scale
    half = math.hypot(*[math.log(1.01 / 0.99) / 2] * 2)
    assert math.log(new["ratio_high"] / new["ratio"]) == pytest.approx(half)
    assert new["ratio_low"] * new["ratio_high"] == pytest.approx(new["ratio"] ** 2)


def test_a_roof_is_the_lower_of_both_limits_and_bends_where_they_meet() -> None:
    rows = made(*sweep()).rows
    found = roofs(rows, {("A processor", 2): PEAKS})
    assert found.machines == (PEAKS.identity,)
    low, bend, high = (corner for corner in found.corners if corner["roof"] == "float32")
    limit = PEAKS.flops_limit(DType.FLOAT32)
    assert bend["intensity"] == pytest.approx(limit / 4e10)
    assert bend["limit"] == pytest.approx(limit) == pytest.approx(high["limit"])
    assert low["limit"] == pytest.approx(4e10 * low["intensity"])
    drawn = [row["intensity"] for row in rows if row["dtype"] == "float32"]
    assert low["intensity"] <= min(drawn) < max(drawn) <= high["intensity"]


def test_no_roof_is_drawn_of_another_device() -> None:
    assert roofs(made(*sweep()).rows, {("Another", 2): PEAKS}).corners == ()


def test_no_roof_is_drawn_of_two_devices_at_once() -> None:
    one, other = source(sweep()), source(sweep(), "other")
    other = replace(other, run=replace(other.run, device_names={"cpu": "Another"}))
    known = {("A processor", 2): PEAKS, ("Another", 2): PEAKS}
    assert roofs(content([one, other]).rows, known).corners == ()


# ---------------------------------------------------------------- colours


def linear(color: str) -> tuple[float, float, float]:
    r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b))  # type: ignore[return-value]


def seen(rgb: Sequence[float], rows: Sequence[Sequence[float]]) -> list[float]:
    return [min(max(math.fsum(m * c for m, c in zip(row, rgb, strict=True)), 0), 1) for row in rows]


VISION = {  # Machado, Oliveira, Fernandes 2009: severity 1
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.3039),
    ),
}
OKLAB = (
    (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ),
    (
        (0.2104542553, 0.793617785, -0.0040720468),
        (1.9779984951, -2.428592205, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.808675766),
    ),
)


def oklab(rgb: Sequence[float]) -> list[float]:
    roots = [math.cbrt(value) for value in seen(rgb, OKLAB[0])]
    return [math.fsum(m * c for m, c in zip(row, roots, strict=True)) for row in OKLAB[1]]


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", looks.SERIES)
def test_colors_differ_by_five_times_what_can_just_be_seen(theme: str, vision: str) -> None:
    """A just noticeable difference is 0.02 in Oklab (Ottosson 2020)."""
    places = [oklab(seen(linear(color), VISION[vision])) for color in looks.SERIES[theme]]
    assert min(math.dist(a, b) for a, b in combinations(places, 2)) > 5 * 0.02


@pytest.mark.parametrize("theme", looks.SERIES)
def test_colors_and_words_stand_out_from_the_paper(theme: str) -> None:
    """By at least 3:1 for graphics and 4.5:1 for words (WCAG 2.2, 1.4.11 and 1.4.3)."""

    def luminance(color: str) -> float:
        return math.fsum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(color), strict=True))

    def contrast(color: str) -> float:
        a, b = (luminance(c) + 0.05 for c in (color, looks.INKS[theme]["paper"]))
        return max(a, b) / min(a, b)

    assert all(contrast(color) >= 3 for color in looks.SERIES[theme])
    assert all(contrast(looks.INKS[theme][name]) >= 4.5 for name in ("ink", "soft"))


def test_sixty_four_implementations_differ_in_color_or_shape() -> None:
    assert len({looks.place(index) for index in range(64)}) == 64


def test_thirty_two_lines_differ_in_color_or_dash() -> None:
    look = looks.Look(names=[f"n{index}" for index in range(32)], theme="light")
    assert len(set(zip(look.colors, map(tuple, look.dashes), strict=True))) == 32


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", report.FIGURES)
def test_every_figure_becomes_a_picture_with_the_names_in_it(name: str, dark: bool) -> None:
    sources = [source(sweep()), source(sweep(), "after")]
    svg = report.picture(sources, name, dark=dark, kind="svg").decode()
    words = " ".join(filter(None, (element.text for element in ET.fromstring(svg).iter())))
    assert "kernel-0" in words
    paper = looks.INKS["dark" if dark else "light"]["paper"]
    assert f'fill="{paper}"' in svg
    assert "NaN" not in svg
    assert "undefined" not in words


def test_a_picture_is_a_png_too() -> None:
    assert report.picture([source(sweep())], "time").startswith(b"\x89PNG\r\n")


def marks(name: str, cells: Sequence[Result]) -> list[str]:
    svg = report.picture([source(cells)], name, kind="svg").decode()
    return [
        element.text or ""
        for element in ET.fromstring(svg).iter()
        if element.tag.endswith("text") or element.tag.endswith("tspan")
    ]


def test_the_winners_are_named_with_their_lead_and_their_ties() -> None:
    found = marks(
        "winners",
        [
            *(ok(s, problem(128), name) for s, name in ((1e-3, "first"), (2e-3, "second"))),
            *(ok(s, problem(512), name) for s, name in ((1e-3, "near"), (1.001e-3, "second"))),
            ok(1e-3, problem(1024), "first"),
            *(ok(s, problem(2048), name, half=None) for s, name in ((1e-3, "bare"), (5e-3, "second"))),
        ],
    )
    for told in ("first", "2× ahead", "near", "≈ 1 other", "alone", "? bare", "5× ahead"):
        assert told in found, found


def test_what_has_nothing_to_show_is_said() -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        report.picture([source([bad()])], "time")


def test_too_many_panels_for_a_picture_are_refused_with_advice() -> None:
    cells = [ok(1e-3, problem(128, f"heads={n} head_dim=64")) for n in range(1, 40)]
    with pytest.raises(UserError, match="39 panels are too many") as caught:
        report.picture([source(cells)], "time")
    assert "--where" in (caught.value.hint or "")


def test_figures_are_documented_in_their_order() -> None:
    page = (ROOT / "docs/reporting.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == report.FIGURES


def test_names_of_figures_are_those_that_are_drawn() -> None:
    from attnbench.report import figures

    assert tuple(figures.FIGURES) == report.FIGURES


# ---------------------------------------------------------------- page


class Page(HTMLParser):
    """Tags with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def ugly() -> str:
    cells = [ok(1e-3 * (n + 1), implementation=name) for n, name in enumerate(UGLY)]
    cells += [bad(implementation=name, reason=name, status=Status.WRONG) for name in UGLY]
    sources = [
        Source(
            name=name,
            run=replace(run(name, cells, name, kernel=name), suite=name, command=("run", name)),
            results=cells,
        )
        for name in UGLY
    ]
    return report.page(sources)


def test_whatever_a_run_holds_is_only_text(ugly: str) -> None:
    page = Page(ugly)
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "base", "form")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    told = json.loads(page.scripts[0])
    assert [*told["series"]] == [*UGLY]
    words = "".join(page.words)
    assert all(name in words for name in UGLY)


def test_only_the_pages_own_scripts_may_run_and_nothing_is_asked_for(ugly: str) -> None:
    page = Page(ugly)
    (policy,) = (
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "unsafe-eval" not in policy
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)


def test_two_thousand_rows_are_below_eight_megabytes() -> None:
    cells = [
        replace(r, cell=replace(r.cell, threads=threads))
        for r in sweep(10, (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536))
        for threads in (1, 2, 4, 8, 16)
    ]
    assert len(cells) == 2000
    assert len(report.page([source(cells)]).encode()) < 8e6


def test_a_page_that_no_browser_would_open_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.report.document.MOST_ROWS", 35)
    with pytest.raises(UserError, match="a page of 36 cells would not open, at most 35"):
        report.page([source(sweep())])


def test_every_figure_has_a_sentence_on_how_to_read_it() -> None:
    page = report.page([source(sweep()), source(sweep(), "after")])
    parts = page.split("<figure ")[1:]
    assert len(parts) == len(report.FIGURES)
    for part in parts:
        assert part.split("<figcaption>")[1].split("</figcaption>")[0].rstrip().endswith(".")


def test_a_run_without_any_time_has_a_page_with_its_reasons() -> None:
    page = Page(report.page([source([bad(), bad(implementation="third", reason="no such thing")])]))
    told = json.loads(page.scripts[0])
    assert told["figures"] == {}
    assert ["unsupported", "no such thing"] in told["reasons"]


def test_infinite_errors_are_written_as_the_csv_has_them() -> None:
    cell = ok()
    assert cell.accuracy
    wrong = replace(bad(status=Status.WRONG), accuracy=replace(cell.accuracy, row=math.inf, max=math.nan))
    told = json.loads(Page(report.page([source([cell, wrong])])).scripts[0])
    row = dict(zip(told["columns"], told["rows"][1], strict=True))
    assert (row["err_row"], row["err_max"], row["share"]) == ("inf", "nan", "inf")


def test_facts_in_which_runs_differ_are_marked() -> None:
    page = report.page([source(sweep(), kernel="6.1"), source(sweep(), "after", kernel="6.2")])
    assert "<tr class=differs><th scope=row>kernel</th><td>6.1</td><td>6.2</td></tr>" in page
    assert "<tr><th scope=row>threads</th><td>2</td><td>2</td></tr>" in page


def test_the_head_of_a_page_counts_all_cells() -> None:
    cells = [*sweep(), bad(), bad(status=Status.WRONG, implementation="third", reason="off")]
    numbers = {what: (number, more) for number, what, more in facts.figures([source(cells)])}
    assert numbers["right and timed"] == ("36", "of 38 cells")
    assert numbers["without a time"] == ("2", "1 unsupported, 1 wrong")
    assert numbers["won by kernel-0"][0] == "12"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_committed_runs_have_a_page(path: Path) -> None:
    found, cells = results.load(path)
    told = json.loads(Page(report.page([Source(name="it", run=found, results=cells)])).scripts[0])
    assert len(told["rows"]) == len(cells)
    assert told["figures"].keys() == {*report.FIGURES} - {"ratio"}


# ---------------------------------------------------------------- commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in `made`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    stored = run("made", sweep())
    Path("made").mkdir()
    results.write_header(Path("made"), stored)
    results.write_csv(Path("made"), sweep(), stored)
    return tmp_path


def refused(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    done = capsys.readouterr()
    assert done.out == ""
    assert done.err.startswith("error: ")
    return done.err


@pytest.mark.usefixtures("folder")
def test_a_report_lies_beside_its_run_unless_a_name_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "made"]) == 0
    assert main(["report", "made", "made/results.csv", "-o", "both.html"]) == 0
    assert capsys.readouterr() == ("", "made/report.html\nboth.html\n")
    assert Path("made/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "made (2)" in Path("both.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("folder")
def test_a_plot_shows_the_cells_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "plot",
        "made",
        "--where",
        "mask=causal",
        "--where",
        "dtype=float32,float64",
        "--only",
        "*-0,*-2",
    ]
    assert main([*words, "--figure", "workspace", "--dark", "-o", "a.svg"]) == 0
    svg = Path("a.svg").read_text(encoding="utf-8")
    assert "kernel-2" in svg
    assert "kernel-1" not in svg
    assert "causal mask" in svg
    assert "full mask" not in svg
    assert main(["plot", "made", "-o", "time.png"]) == 0
    assert Path("time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "made", "-o", "results.csv"], "a report is HTML"),
        (["report", "nowhere"], "there is no nowhere"),
        (["report", "made", "-o", "nowhere/a.html"], "cannot write nowhere/a.html"),
        (["plot", "made", "-o", "a.gif"], "a picture is a .png or a .svg"),
        (["plot", "made", "-o", "a.png", "--figure", "tme"], "did you mean `time`?"),
        (["plot", "made", "-o", "a.png", "--figure", "ratio"], "nothing to draw"),
        (["plot", "made", "-o", "a.png", "--where", "mask"], "no value in `mask`"),
        (["plot", "made", "-o", "a.png", "--where", "masks=full"], "did you mean `mask`?"),
        (
            ["plot", "made", "-o", "a.png", "--where", "mask=window"],
            "no cell agrees with every --where, --only and --without",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(words, capsys)
    assert not Path("a.png").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("words", [["report", "made"], ["plot", "made", "-o", "a.png"]])
def test_without_the_library_the_extra_is_named(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "attnbench.report.library.find_spec", lambda name: None if name == "altair" else there(name)
    )
    told = refused(words, capsys)
    assert "figures need altair, which is not installed" in told
    assert "pip install 'attnbench[report]'" in told


def test_the_library_is_imported_only_to_draw() -> None:
    code = "import sys, attnbench.cli.report, attnbench.cli.plot; print({'altair', 'vl_convert'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
