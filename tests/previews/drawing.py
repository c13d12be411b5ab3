"""Panels as HTML and SVG, one function for each kind that the dashboards use."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from tests.previews.looks import COLORS, Look, look, series_color, word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

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
    """A panel, what its queries gave, and the time range that is shown."""

    panel: Mapping[str, Any]
    series: Sequence[Series]
    start: float
    end: float

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


def draw(drawn: Drawn) -> str:
    """The inside of the panel; its `noValue` text where there is nothing to draw."""
    kind = drawn.panel["type"]
    if kind == "text":
        return f'<div class="text">{escape(drawn.panel["options"]["content"])}</div>'
    if not any(series.points for series in drawn.series):
        return f'<div class="none">{escape(drawn.settings.get("noValue", "No data"))}</div>'
    return _KINDS[kind](drawn)


def _stat(drawn: Drawn) -> str:
    size = min(LARGEST_PIXELS, drawn.height / 2)
    mode = drawn.panel["options"].get("textMode", "auto")
    cells = []
    for series in drawn.series:
        shown = _stat_look(drawn, series, mode)
        name = ""
        if len(drawn.series) > 1 and mode in {"value_and_name", "auto"}:
            name = f"<small>{escape(series.name)}</small>"
        color = shown.color or COLORS["text"]
        font = min(size, drawn.width / len(drawn.series) / max(len(shown.text), 1) * 1.7)
        cells.append(
            f'<div class="cell">{name}<b style="color:{color};font-size:{font:.0f}px">'
            f"{escape(shown.text)}</b></div>"
        )
    return f'<div class="stat">{"".join(cells)}</div>'


def _stat_look(drawn: Drawn, series: Series, mode: str) -> Look:
    settings = _of_field(drawn.panel, series)
    shown = look(series.last, settings, drawn.end)
    return Look(series.name, shown.color) if mode == "name" else shown


def _bar_gauge(drawn: Drawn) -> str:
    top = drawn.settings.get("max") or max(series.last for series in drawn.series) or 1
    rows = []
    for number, series in enumerate(drawn.series):
        shown = look(series.last, _of_field(drawn.panel, series), drawn.end)
        color = shown.color or series_color(series.name, number, drawn.settings)
        share = min(100.0, 100 * series.last / top)
        rows.append(
            f'<tr><td>{escape(series.name)}</td><td class="wide"><div class="bar" '
            f'style="width:{share:.1f}%;background:{color}"></div></td>'
            f'<td class="right">{escape(shown.text)}</td></tr>'
        )
    return f'<table class="bars">{"".join(rows)}</table>'


def _state_timeline(drawn: Drawn) -> str:
    rows = [series for series in drawn.series if series.points]
    longest = max(len(series.name) for series in rows) * LETTER_PIXELS + 10
    left = min(longest, drawn.width * LABEL_SHARE)
    bottom = LEGEND_PIXELS + 18
    row_height = min(34.0, (drawn.height - bottom) / len(rows))
    scale = _scale(drawn.start, drawn.end, left, drawn.width)
    parts, legend = [], {}
    for number, series in enumerate(rows):
        top = number * row_height
        letters = int(left / LETTER_PIXELS)
        parts.append(_text(left - 6, top + row_height / 2 + 4, series.name[-letters:], "end"))
        for begin, end, value in _runs(series.points, drawn):
            shown = look(value, _of_field(drawn.panel, series), drawn.end)
            color = shown.color or COLORS["text"]
            if shown.text:
                legend[shown.text] = color
            x, width = scale(begin), scale(end) - scale(begin)
            parts.append(
                f'<rect x="{x:.1f}" y="{top + 2:.1f}" width="{max(width, 1):.1f}" '
                f'height="{row_height - 4:.1f}" fill="{color}" fill-opacity=".8"/>'
            )
            if row_height > FONT_PIXELS + 4 and width > len(shown.text) * LETTER_PIXELS + 6:
                parts.append(
                    _text(x + 4, top + row_height / 2 + 4, shown.text, "start", fill="#111217")
                )
    parts.append(_time_axis(drawn, scale, len(rows) * row_height + 14))
    return _svg(drawn.width, drawn.height - LEGEND_PIXELS, parts) + _legend(legend)


def _runs(points: Sequence[tuple[float, float]], drawn: Drawn) -> Iterator[tuple[float, ...]]:
    """Stretches of one value; a gap of more than two steps ends one."""
    times = [at for at, _ in points]
    step = min((b - a for a, b in pairwise(times)), default=60.0)
    begin, last, value = points[0][0], points[0][0], points[0][1]
    for at, new in points[1:]:
        if new != value or at - last > 2 * step:
            yield begin, min(at if at - last <= 2 * step else last + step, drawn.end), value
            begin, value = at, new
        last = at
    yield begin, min(last + step, drawn.end), value


def _timeseries(drawn: Drawn) -> str:
    custom = drawn.settings.get("custom", {})
    is_stacked = custom.get("stacking", {}).get("mode") in {"normal", "percent"}
    rows = [series for series in drawn.series if series.points]
    bottom = LEGEND_PIXELS + 20
    height = drawn.height - bottom
    stacked = (
        list(_stacked(rows)) if is_stacked else [[(t, 0.0, v) for t, v in s.points] for s in rows]
    )
    top = _nice(max(high for one in stacked for _, _, high in one), drawn.settings)
    across = _scale(drawn.start, drawn.end, AXIS_PIXELS, drawn.width)
    up = _scale(0.0, top, height, 6.0)
    parts = [_value_axis(drawn, up, top)]
    legend = {}
    for number, (series, points) in enumerate(zip(rows, stacked, strict=True)):
        settings = _of_field(drawn.panel, series)
        color = series_color(series.name, number, settings)
        legend[series.name] = color
        if custom.get("drawStyle") == "bars":
            parts.extend(_bars(points, across, up, color))
        else:
            parts.append(_area(points, across, up, color, custom.get("fillOpacity", 0) / 100))
    parts.append(_time_axis(drawn, across, height + 15))
    return _svg(drawn.width, drawn.height - LEGEND_PIXELS, parts) + _legend(legend)


def _stacked(rows: Sequence[Series]) -> Iterator[list[tuple[float, float, float]]]:
    below: dict[float, float] = {}
    for series in rows:
        one = []
        for at, value in series.points:
            low = below.get(at, 0.0)
            below[at] = low + value
            one.append((at, low, low + value))
        yield one


def _bars(
    points: Sequence[tuple[float, float, float]],
    across: Callable[[float], float],
    up: Callable[[float], float],
    color: str,
) -> Iterator[str]:
    for at, low, high in points:
        if high > low:
            yield (
                f'<rect x="{across(at) - 3:.1f}" y="{up(high):.1f}" width="6" '
                f'height="{up(low) - up(high):.1f}" fill="{color}" fill-opacity=".85"/>'
            )


def _area(
    points: Sequence[tuple[float, float, float]],
    across: Callable[[float], float],
    up: Callable[[float], float],
    color: str,
    opacity: float,
) -> str:
    drawn = []
    for piece in _unbroken(points):
        line = " ".join(f"{across(at):.1f},{up(high):.1f}" for at, _, high in piece)
        back = " ".join(f"{across(at):.1f},{up(low):.1f}" for at, low, _ in reversed(piece))
        drawn.append(f'<polygon points="{line} {back}" fill="{color}" fill-opacity="{opacity}"/>')
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.4"/>')
    return "".join(drawn)


def _unbroken(
    points: Sequence[tuple[float, float, float]],
) -> Iterator[Sequence[tuple[float, float, float]]]:
    times = [point[0] for point in points]
    step = min((b - a for a, b in pairwise(times)), default=60.0)
    begin = 0
    for index in range(1, len(points)):
        if times[index] - times[index - 1] > 2 * step:
            yield points[begin:index]
            begin = index
    yield points[begin:]


def _table(drawn: Drawn) -> str:
    columns = _columns(drawn.panel)
    overrides = {
        one["matcher"]["options"]: {
            item["id"]: item["value"] for item in one["properties"] if "value" in item
        }
        for one in drawn.panel["fieldConfig"]["overrides"]
        if one["matcher"]["id"] == "byName"
    }
    head = "".join(f"<th>{escape(title)}</th>" for _, title in columns)
    rows = []
    for series in _sorted(drawn, columns):
        cells = []
        for field, title in columns:
            settings = {**drawn.settings, **overrides.get(title, {}), **overrides.get(field, {})}
            value = _cell_value(field, series)
            if value is None:
                shown = word(series.labels.get(field, ""), settings)
            else:
                shown = look(value, settings, drawn.end)
            style = f' style="color:{shown.color}"' if shown.color else ""
            cells.append(f"<td{style}>{escape(shown.text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="table"><tr>{head}</tr>{"".join(rows)}</table>'


def _cell_value(field: str, series: Series) -> float | None:
    match = re.fullmatch(r"Value(?: #(\w+))?", field)
    return series.last if match and match[1] in {None, series.ref_id} else None


def _columns(panel: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Field name and title, in the order of the panel's transformations."""
    for step in panel.get("transformations", ()):
        if step["id"] == "organize":
            titles = step["options"].get("renameByName", {})
            order = step["options"].get("indexByName", {})
            hidden = step["options"].get("excludeByName", {})
            names = sorted(set(order) | set(titles), key=lambda name: order.get(name, 99))
            return [(name, titles.get(name, name)) for name in names if not hidden.get(name)]
    return [("Value", "Value")]


def _sorted(drawn: Drawn, columns: Sequence[tuple[str, str]]) -> list[Series]:
    rows = list(drawn.series)
    for sort in reversed(drawn.panel["options"].get("sortBy", ())):
        field = next(name for name, title in columns if title == sort["displayName"])
        rows.sort(
            key=lambda series: (
                _cell_value(field, series) or 0.0,
                series.labels.get(field, ""),
            ),
            reverse=bool(sort.get("desc")),
        )
    return rows


def _of_field(panel: Mapping[str, Any], series: Series) -> dict[str, Any]:
    """The settings of the series' field, with the overrides that match it by name or query."""
    settings = dict(panel["fieldConfig"]["defaults"])
    for one in panel["fieldConfig"].get("overrides", ()):
        kind, option = one["matcher"]["id"], one["matcher"]["options"]
        is_match = (
            (kind == "byName" and option == series.name)
            or (kind == "byFrameRefID" and option == series.ref_id)
            or (kind == "byRegexp" and re.search(option.strip("/"), series.name) is not None)
        )
        if is_match:
            settings |= {item["id"]: item["value"] for item in one["properties"]}
    return settings


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    spread = (high - low) or 1.0
    return lambda value: first + (value - low) / spread * (last - first)


def _nice(value: float, settings: Mapping[str, Any]) -> float:
    if settings.get("max") is not None:
        return float(settings["max"])
    if value <= 0 or not math.isfinite(value):
        return 1.0
    base: float = 1024.0 ** int(math.log(value, 1024)) if settings.get("unit") == "bytes" else 1.0
    power: float = 10.0 ** math.floor(math.log10(value / base))
    return base * power * next(step for step in (1, 2, 2.5, 5, 10) if step * power * base >= value)


def _value_axis(drawn: Drawn, up: Callable[[float], float], top: float) -> str:
    parts = []
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = up(value)
        text = look(value, {**drawn.settings, "mappings": (), "thresholds": {}}, drawn.end).text
        parts.append(
            f'<line x1="{AXIS_PIXELS}" x2="{drawn.width:.0f}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#2c3235"/>'
        )
        parts.append(_text(AXIS_PIXELS - 6, y + 4, text, "end"))
    return "".join(parts)


def _time_axis(drawn: Drawn, scale: Callable[[float], float], y: float) -> str:
    minutes = (drawn.end - drawn.start) / 60
    step = next(one for one in (5, 10, 15, 30, 60, 120) if minutes / one <= drawn.width / 90)
    marks = []
    first = math.ceil(drawn.start / 60 / step) * step * 60
    for at in range(int(first), int(drawn.end), step * 60):
        clock = f"{at // 3600 % 24:02}:{at // 60 % 60:02}"
        marks.append(_text(scale(at), y, clock, "middle"))
    return "".join(marks)


def _text(x: float, y: float, text: str, anchor: str, *, fill: str = "#9fa7b3") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-size="{FONT_PIXELS}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'


def _legend(colors: Mapping[str, str]) -> str:
    names = "".join(
        f'<span><i style="background:{color}"></i>{escape(name)}</span>'
        for name, color in colors.items()
    )
    return f'<div class="legend">{names}</div>'


_KINDS: Final[Mapping[str, Callable[[Drawn], str]]] = {
    "stat": _stat,
    "gauge": _stat,
    "bargauge": _bar_gauge,
    "state-timeline": _state_timeline,
    "status-history": _state_timeline,
    "timeseries": _timeseries,
    "table": _table,
}
