"""The page of a report as a browser shows it, opened from the disk.

Needs a Chromium of the system (`apt-get install chromium`); skipped without.
`ATTNBENCH_SCREENSHOTS=FOLDER` keeps the screenshots.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_runs import bad, ok, problem, run, sweep

from attnbench import report, results
from attnbench.records import Status
from attnbench.report.rows import Source

pytest.importorskip("altair", reason="altair is not installed: pip install 'attnbench[report]'")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'attnbench[test]'"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]

EVIL = "<script>window.hacked=1</script>"
WIDTHS = {"light": 1380, "dark": 1380, "phone": 390}
DRAWN = "document.documentElement.dataset.drawn"


@dataclass
class Heard:
    """What a page says, asks for and does beside what is shown."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: 36 right cells and a wrong one each, and a plugin that is named like a script."""
    evil = [ok(4e-5, problem(128), EVIL), bad(problem(512), EVIL, Status.WRONG, f"{EVIL} is off by 3")]
    cells = [*sweep(), *evil]
    path = tmp_path_factory.mktemp("report") / "report.html"
    sources = [Source(name=name, run=run(name, cells, EVIL), results=cells) for name in ("first", "second")]
    path.write_text(report.page(sources), encoding="utf-8")
    return path


@pytest.fixture(params=["light"])
def page(chromium: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, drawn; the parameter is how it is looked at. Whatever the test does, it is quiet and stays alone."""
    context = chromium.new_context(
        viewport={"width": WIDTHS[request.param], "height": 900},
        color_scheme="dark" if request.param == "dark" else "light",
        accept_downloads=True,
    )
    shown, heard = context.new_page(), Heard()
    shown.on("console", lambda message: heard.messages.append(f"{message.type}: {message.text}"))
    shown.on("pageerror", lambda error: heard.messages.append(str(error)))
    shown.on("request", lambda asked: heard.requests.append(asked.url))
    shown.on("dialog", lambda dialog: (heard.dialogs.append(dialog.message), dialog.dismiss()))
    shown.goto(file.as_uri())
    settled(shown)
    yield shown
    hacked = shown.evaluate("window.hacked")
    context.close()
    assert heard.messages == []
    assert [url for url in heard.requests if not url.startswith("blob:")] == [file.as_uri()]
    assert heard.dialogs == []
    assert hacked is None


def settled(page: Any, after: int = 0) -> int:
    """Waits for all figures to be drawn once more; returns how often they were."""
    page.wait_for_function(f"Number({DRAWN} ?? 0) > {after}", timeout=60_000)
    return int(page.evaluate(DRAWN))


def box(page: Any, axis: str, value: str) -> Any:
    return page.locator(f"input[data-axis='{axis}'][data-value='{value}']")


def points(page: Any, figure: str = "time") -> int:
    return int(page.locator(f"#figure-{figure} .mark-symbol path").count())


def column(page: Any, title: str) -> list[str]:
    """The words of a column of the table of all cells, from above."""
    titles = [t.strip() for t in page.locator("#cells thead th").all_inner_texts()]
    at = titles.index(title) + 1
    return [t.strip() for t in page.locator(f"#cells tbody tr > :nth-child({at})").all_inner_texts()]


def test_every_figure_is_drawn_and_every_cell_is_listed(page: Any) -> None:
    for name in report.FIGURES:
        assert page.locator(f"#figure-{name} svg").count() == 1, name
    assert points(page) == 2 * 37
    assert page.locator("#count").inner_text() == "76 of 76 cells are shown"
    assert page.locator("#cells tbody tr").count() == 76


def test_filters_change_figures_and_tables(page: Any) -> None:
    box(page, "run", "second").uncheck()
    drawn = settled(page, 1)
    assert points(page) == 37
    box(page, "mask", "causal").uncheck()
    box(page, "implementation", "kernel-1").uncheck()
    settled(page, drawn + 1)
    assert points(page) == 2 * 2 * 3 + 1
    assert set(column(page, "mask")) == {"full"}
    assert page.locator("#count").inner_text() == "14 of 76 cells are shown"
    assert page.locator("#figure-ratio svg").count() == 0
    assert "Nothing that is chosen" in page.locator("#figure-ratio .drawing").inner_text()


def test_the_winner_is_found_among_those_that_are_shown(page: Any) -> None:
    assert "kernel-0" in page.locator("#figure-winners svg").text_content()
    box(page, "implementation", "kernel-0").uncheck()
    settled(page, 1)
    told = page.locator("#figure-winners svg").text_content()
    assert "kernel-1" in told
    assert "kernel-0" not in told
    assert "1.5× ahead" in told  # kernel-k takes k + 1 times as long as kernel-0


def test_tables_sort_by_number_and_what_is_empty_stays_last(page: Any) -> None:
    button = page.locator("#cells thead button", has_text=re.compile("^time$"))
    button.click()
    assert page.locator("#cells th[aria-sort=ascending]").inner_text().strip() == "time"
    upwards = column(page, "time")
    assert upwards[0].startswith("16.4 us")
    assert upwards[-1] == ""
    button.click()
    assert column(page, "time")[0].startswith("12.6 ms")
    assert column(page, "time")[-1] == ""


def test_a_table_is_filtered_by_words(page: Any) -> None:
    page.locator("#cells input[type=search]").fill("causal kernel-2 bfloat16")
    assert page.locator("#cells tbody tr").count() == 2 * 3
    assert page.locator("#cells .tools span").inner_text() == "6 of 76 rows"


def test_a_point_says_what_it_is(page: Any) -> None:
    tip = page.locator("#vg-tooltip-element")
    page.locator("#figure-time .mark-symbol path").first.hover()
    tip.wait_for(state="visible")
    told = tip.inner_text()
    assert "kernel-0" in told
    assert "seqlen=128" in told
    assert "±1.0%" in told


def test_the_name_of_a_plugin_is_only_text_in_a_tooltip_too(page: Any) -> None:
    tip = page.locator("#vg-tooltip-element")
    box(page, "implementation", "kernel-0").uncheck()
    box(page, "implementation", "kernel-1").uncheck()
    box(page, "implementation", "kernel-2").uncheck()
    settled(page, 3)
    page.locator("#figure-time .mark-symbol path").first.hover()
    tip.wait_for(state="visible")
    assert EVIL in tip.inner_text()
    assert tip.locator("script").count() == 0
    assert EVIL in page.locator("#reasons tbody").inner_text()


def test_what_is_saved_is_a_results_file_of_the_cells_that_are_shown(page: Any, tmp_path: Path) -> None:
    box(page, "run", "second").uncheck()
    box(page, "dtype", "bfloat16").uncheck()
    with page.expect_download() as download:
        page.locator("#cells button", has_text="save as CSV").click()
    saved = tmp_path / "saved.csv"
    download.value.save_as(saved)
    assert download.value.suggested_filename == "attnbench-cells.csv"
    _, rows = results.load(saved)
    wanted = [c for c in sweep() if "dtype=bfloat16" not in c.cell.problem]
    assert [row for row in rows if row.cell.implementation != EVIL] == wanted
    assert len(rows) == len(wanted) + 2


def test_everything_is_reached_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(e => e.dataset.value ?? e.id + '|' + e.className + '|' + e.getAttribute('aria-label'))(document.activeElement)"
            )
        )
    assert reached[0] == "|skip|null"
    assert "theme||null" in reached
    assert "kernel-0" in reached
    assert any("Time over sequence length" in name for name in reached)
    box(page, "mask", "full").focus()
    page.keyboard.press("Space")
    settled(page, 1)
    assert set(column(page, "mask")) == {"causal"}
    page.locator("#cells thead button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#cells th[aria-sort=ascending]").count() == 1


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_it_fits_in_light_in_dark_and_on_a_phone(
    page: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind = request.node.callspec.params["page"]
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[kind]
    wide = page.locator(".drawing").evaluate_all(
        "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.parentElement.id)"
    )
    assert set(wide) <= {"figure-winners"}  # a table of names: a phone scrolls it
    assert background(page) == ("rgb(20, 23, 29)" if kind == "dark" else "rgb(255, 255, 255)")
    shots = Path(os.environ.get("ATTNBENCH_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    assert page.screenshot(path=shots / f"{kind}.png", full_page=True).startswith(b"\x89PNG")


def test_the_button_changes_the_theme(page: Any) -> None:
    seen = [background(page)]
    for _ in range(3):
        page.locator("#theme").click()
        seen.append(background(page))
    assert seen == ["rgb(255, 255, 255)", "rgb(255, 255, 255)", "rgb(20, 23, 29)", "rgb(255, 255, 255)"]


@pytest.mark.parametrize("page", ["dark"], indirect=True)
def test_print_is_light_and_without_controls(page: Any) -> None:
    page.emulate_media(media="print")
    assert background(page) == "rgb(255, 255, 255)"
    assert not page.locator("aside").is_visible()
    assert not page.locator("#cells .tools").is_visible()
    assert page.locator("#legend").is_visible()
