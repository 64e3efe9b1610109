"""What figures look like: colours that the colour-blind tell apart, in light and dark, and a shape beside each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SERIES = {
    "light": ("#0462d3", "#da7e05", "#23a49b", "#641596", "#7d0803", "#a47df6", "#736722", "#14444f"),
    "dark": ("#2290ff", "#ee9a2a", "#0a856c", "#cca8d4", "#d33f22", "#935ab7", "#eee931", "#76f6fe"),
}
"""A colour an implementation. `tests/test_report.py` asks for their distances as protanopes, deuteranopes and
tritanopes see them, and for their contrast with the background."""
SHAPES = {
    "circle": "●",
    "square": "■",
    "triangle-up": "▲",
    "diamond": "◆",
    "triangle-down": "▼",
    "cross": "✚",
    "triangle-right": "▶",
    "triangle-left": "◀",
}
"""Shapes of Vega, and a character that looks like each. From the ninth implementation on a colour meets another shape."""
DASHES = ([1, 0], [7, 3], [2, 3], [8, 3, 2, 3])
"""Pixels of line and gap, by turns: a line has no shape, so from the ninth implementation on it has gaps."""
INKS: Mapping[str, Mapping[str, str]] = {
    "light": {
        "paper": "#ffffff",
        "ink": "#1b1f27",
        "soft": "#5b6472",
        "line": "#e4e7ec",
        "axis": "#9aa3b1",
        "part-0": "#b9c4d6",
        "part-1": "#6d7f9c",
        "part-2": "#da7e05",
    },
    "dark": {
        "paper": "#14171d",
        "ink": "#e8ebf1",
        "soft": "#a3adbd",
        "line": "#2a303b",
        "axis": "#6b7587",
        "part-0": "#45506a",
        "part-1": "#8392b0",
        "part-2": "#ee9a2a",
    },
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


def place(index: int) -> tuple[int, int]:
    """Colour and shape of the implementation with this index: 64 pairs before one comes again."""
    return index % 8, (index + index // 8) % 8


def shape(index: int) -> str:
    return [*SHAPES][place(index)[1]]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a figure is drawn: on a page, where colours are variables of its style, or in a picture of its own."""

    names: Sequence[str]
    """Implementations, in the order of colours and shapes."""
    theme: str | None = None
    """`light` or `dark`; None on a page, which has both."""
    columns: int = 3
    width: int = 250
    """Of a panel."""

    def ink(self, name: str) -> str:
        return f"var(--{name})" if self.theme is None else INKS[self.theme][name]

    @property
    def colors(self) -> list[str]:
        places = [place(index)[0] for index in range(len(self.names))]
        return [f"var(--s{at})" if self.theme is None else SERIES[self.theme][at] for at in places]

    @property
    def shapes(self) -> list[str]:
        return [shape(index) for index in range(len(self.names))]

    @property
    def dashes(self) -> list[list[int]]:
        return [DASHES[index // 8 % len(DASHES)] for index in range(len(self.names))]

    @property
    def config(self) -> dict[str, Any]:
        """Of Vega-Lite."""
        words = {"labelColor": self.ink("soft"), "titleColor": self.ink("soft"), "labelFont": FONT}
        fonts = {"titleFont": FONT, "titleFontWeight": 500, "titleFontSize": 12, "labelFontSize": 11}
        return {
            "background": "transparent" if self.theme is None else self.ink("paper"),
            "font": FONT,
            "view": {"stroke": None},
            "mark": {"aria": False},
            "axis": {
                **words,
                **fonts,
                "gridColor": self.ink("line"),
                "domainColor": self.ink("axis"),
                "tickColor": self.ink("axis"),
                "tickSize": 4,
                "labelPadding": 5,
                "titlePadding": 10,
                "domain": False,
            },
            "axisX": {"domain": True, "grid": False},
            "header": {
                **words,
                "labelColor": self.ink("ink"),
                "labelFontSize": 12,
                "labelFontWeight": 600,
                "labelLineHeight": 16,
                "labelPadding": 8,
            },
            "legend": {**words, **fonts, "labelColor": self.ink("ink"), "symbolSize": 70, "labelLimit": 260},
            "title": {
                "color": self.ink("ink"),
                "subtitleColor": self.ink("soft"),
                "font": FONT,
                "subtitleFont": FONT,
                "fontSize": 17,
                "subtitleFontSize": 12,
                "subtitleLineHeight": 17,
                "anchor": "start",
                "offset": 18,
                "subtitlePadding": 6,
            },
            "text": {"font": FONT, "color": self.ink("ink")},
            "facet": {"spacing": 26},
        }


def style() -> str:
    """The same colours as variables of a page: `--ink`, `--s0`."""
    made = {
        theme: "".join(
            f"--{name}:{value};"
            for name, value in [*INKS[theme].items(), *((f"s{i}", c) for i, c in enumerate(SERIES[theme]))]
        )
        for theme in SERIES
    }
    light, dark = (f"color-scheme:{theme};{made[theme]}" for theme in SERIES)
    return (
        f":root{{{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{{dark}}}}}\n"
    )
