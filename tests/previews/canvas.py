"""What all kinds of panels are drawn with: the panel's answers, axes, texts and legends."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Cell: TypeAlias = "str | float"

CELL_PIXELS: Final = 30
"""The height of one unit of Grafana's grid; its gap of 8 pixels included."""
GAP_PIXELS: Final = 8
GRID_COLUMNS: Final = 24
PAGE_PIXELS: Final = 1600
HEADER_PIXELS: Final = 34
LEGEND_PIXELS: Final = 26
AXIS_PIXELS: Final = 62
TICKS: Final = 4
FONT_PIXELS: Final = 12
LARGEST_PIXELS: Final = 44.0
LETTER_PIXELS: Final = 6.6
"""The width of a letter of that size, on average."""
LABEL_SHARE: Final = 0.22
"""How much of a timeline's width its row names may take."""


@dataclass(frozen=True, slots=True)
class Series:
    """What one query gave for one series: unix time → value, and its labels."""

    ref_id: str
    name: str
    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A panel, what its queries gave, and the time range that is shown.

    A table has `rows` by the titles of its columns, and no series.
    """

    panel: Mapping[str, Any]
    series: Sequence[Series]
    start: float
    end: float
    rows: Sequence[Mapping[str, Cell]] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        defaults: Mapping[str, Any] = self.panel.get("fieldConfig", {}).get("defaults", {})
        return defaults

    @property
    def width(self) -> float:
        column = PAGE_PIXELS / GRID_COLUMNS
        return float(self.panel["gridPos"]["w"]) * column - GAP_PIXELS - 18

    @property
    def height(self) -> float:
        return float(self.panel["gridPos"]["h"]) * CELL_PIXELS - GAP_PIXELS - HEADER_PIXELS - 8


def of_field(panel: Mapping[str, Any], name: str, ref_id: str = "") -> dict[str, Any]:
    """The settings of a field, `custom.…` among them, with the overrides that match it."""
    defaults = panel["fieldConfig"]["defaults"]
    settings = {key: value for key, value in defaults.items() if key != "custom"}
    settings |= {f"custom.{key}": value for key, value in defaults.get("custom", {}).items()}
    for one in panel["fieldConfig"].get("overrides", ()):
        kind, option = one["matcher"]["id"], one["matcher"]["options"]
        is_match = (
            (kind == "byName" and option == name)
            or (kind == "byFrameRefID" and option == ref_id)
            or (kind == "byRegexp" and re.search(option.strip("/"), name) is not None)
        )
        if is_match:
            settings |= {item["id"]: item["value"] for item in one["properties"]}
    return settings


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """From values to pixels."""
    spread = (high - low) or 1.0
    return lambda value: first + (value - low) / spread * (last - first)


def time_axis(drawn: Drawn, across: Callable[[float], float], y: float) -> str:
    """The hours below a picture."""
    minutes = (drawn.end - drawn.start) / 60
    step = next(one for one in (5, 10, 15, 30, 60, 120) if minutes / one <= drawn.width / 90)
    marks = []
    first = math.ceil(drawn.start / 60 / step) * step * 60
    for at in range(int(first), int(drawn.end), step * 60):
        clock = f"{at // 3600 % 24:02}:{at // 60 % 60:02}"
        marks.append(text_at(across(at), y, clock, "middle"))
    return "".join(marks)


def text_at(x: float, y: float, text: str, anchor: str, *, fill: str = "#9fa7b3") -> str:
    """A text in a picture."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{FONT_PIXELS}">{escape(text)}</text>'
    )


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    """A picture."""
    return f'<svg width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'


def legend(colors: Mapping[str, str]) -> str:
    """Names and their colours, below a picture."""
    names = "".join(
        f'<span><i style="background:{color}"></i>{escape(name)}</span>'
        for name, color in colors.items()
    )
    return f'<div class="legend">{names}</div>'
