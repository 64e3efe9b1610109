"""Plain tables of lines."""

import pytest
from test_tables import UGLY

from attnbench.tables import Sheet, sheet_markdown, sheet_text

SHEET = Sheet(
    title="Who is who",
    common=("cpu", "warm cache"),
    heads=("dtype", "mask", "name", "time", "remark"),
    rows=(
        ("float32", "full", "a", "12.5 ms", "short"),
        (
            "float32",
            "causal",
            "bb",
            "7 us",
            "so long that it needs further lines on a terminal of eighty columns, or more",
        ),
        ("float16", "causal", "bb", "", ""),
    ),
    axes=2,
    legend=("remark: what is to be said",),
)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_sheet_fits_into_its_width_and_loses_no_word(width: int) -> None:
    told = sheet_text(SHEET, width=width)

    assert max(map(len, told.splitlines())) <= width
    for word in " ".join(value for row in SHEET.rows for value in row).split():
        assert word in told


def test_numbers_are_flush_right_and_words_flush_left() -> None:
    lines = sheet_text(SHEET, width=200).splitlines()
    first, second = (next(line for line in lines if time in line) for time in ("12.5 ms", "7 us"))

    assert first.index("12.5 ms") + len("12.5 ms") == second.index("7 us") + len("7 us")
    assert first.index(" a ") == second.index(" bb ")


def test_axes_become_captions_only_where_there_is_no_room_and_stand_once() -> None:
    wide, narrow = (sheet_text(SHEET, width=width).splitlines() for width in (200, 55))

    assert not any(line.startswith("float32") for line in wide)
    assert [line for line in narrow if line and line[0] != " "][2:] == ["float32", "float16", SHEET.legend[0]]


def test_a_sheet_without_rows_is_its_title_and_its_legend() -> None:
    sheet = Sheet(title="How to read it", heads=(), rows=(), legend=("a: b", "c: d"))

    assert sheet_text(sheet) == "How to read it\na: b\nc: d"
    assert sheet_markdown(sheet) == "## How to read it\n\n- a: b\n- c: d"


@pytest.mark.parametrize("text", UGLY)
def test_what_plugins_are_called_neither_breaks_a_table_nor_moves_a_cursor(text: str) -> None:
    sheet = Sheet(title=text, heads=("name", "x"), rows=((text, "1"), ("b", "2")), legend=(text,))
    page = sheet_markdown(sheet)

    assert "\x1b" not in sheet_text(sheet) + page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {line.replace("\\|", "").count("|") for line in rows} == {3}
    assert "<script>" not in page
