"""Panels as HTML and SVG, one function for each kind that the dashboards use."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from tests.previews.canvas import (
    FONT_PIXELS,
    LABEL_SHARE,
    LARGEST_PIXELS,
    LEGEND_PIXELS,
    LETTER_PIXELS,
    legend,
    of_field,
    scale,
    svg,
    text_at,
    time_axis,
)
from tests.previews.graph import timeseries
from tests.previews.looks import COLORS, Look, look, series_color, word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.previews.canvas import Cell, Drawn, Series


def draw(drawn: Drawn) -> str:
    """The inside of the panel; its `noValue` text where there is nothing to draw."""
    kind = drawn.panel["type"]
    if kind == "text":
        return f'<div class="text">{escape(drawn.panel["options"]["content"])}</div>'
    if not drawn.rows and not any(series.points for series in drawn.series):
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
    settings = of_field(drawn.panel, series.name, series.ref_id)
    shown = look(series.last, settings, drawn.end)
    return Look(series.name, shown.color) if mode == "name" else shown


def _bar_gauge(drawn: Drawn) -> str:
    top = drawn.settings.get("max") or max(series.last for series in drawn.series) or 1
    rows = []
    for number, series in enumerate(drawn.series):
        shown = look(series.last, of_field(drawn.panel, series.name, series.ref_id), drawn.end)
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
    across = scale(drawn.start, drawn.end, left, drawn.width)
    parts, colors = [], {}
    for number, series in enumerate(rows):
        top = number * row_height
        letters = int(left / LETTER_PIXELS)
        parts.append(text_at(left - 6, top + row_height / 2 + 4, series.name[-letters:], "end"))
        for begin, end, value in _runs(series.points, drawn):
            shown = look(value, of_field(drawn.panel, series.name, series.ref_id), drawn.end)
            color = shown.color or COLORS["text"]
            if shown.text:
                colors[shown.text] = color
            x, width = across(begin), across(end) - across(begin)
            parts.append(
                f'<rect x="{x:.1f}" y="{top + 2:.1f}" width="{max(width, 1):.1f}" '
                f'height="{row_height - 4:.1f}" fill="{color}" fill-opacity=".8"/>'
            )
            if row_height > FONT_PIXELS + 4 and width > len(shown.text) * LETTER_PIXELS + 6:
                parts.append(
                    text_at(x + 4, top + row_height / 2 + 4, shown.text, "start", fill="#111217")
                )
    parts.append(time_axis(drawn, across, len(rows) * row_height + 14))
    return svg(drawn.width, drawn.height - LEGEND_PIXELS, parts) + legend(colors)


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


def _table(drawn: Drawn) -> str:
    titles = _titles(drawn.panel)
    rows = []
    for row in _sorted(drawn):
        cells = []
        for title in titles:
            shown = _cell(row.get(title), of_field(drawn.panel, title), drawn.end)
            style = f' style="color:{shown.color}"' if shown.color else ""
            cells.append(f"<td{style}>{escape(shown.text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f'<table class="table"><tr>{head}</tr>{"".join(rows)}</table>'


def _cell(value: Cell | None, settings: Mapping[str, Any], now: float) -> Look:
    if value is None:
        return Look(settings.get("noValue", ""), None)
    return word(value, settings) if isinstance(value, str) else look(value, settings, now)


def _titles(panel: Mapping[str, Any]) -> list[str]:
    """The columns of a table, in the order of its last transformation."""
    options = panel["transformations"][-1]["options"]
    order, titles = options["indexByName"], options["renameByName"]
    left_out = {name for name, is_out in options.get("excludeByName", {}).items() if is_out}
    shown = [name for name in sorted(order, key=order.__getitem__) if name not in left_out]
    # One value alone has no letter of a query, and both spellings are named.
    return list(dict.fromkeys(titles.get(name, name) for name in shown))


def _sorted(drawn: Drawn) -> list[Mapping[str, Cell]]:
    rows = list(drawn.rows)
    for sort in reversed(drawn.panel["options"].get("sortBy", ())):
        title = sort["displayName"]
        kind = next((type(row[title]) for row in rows if title in row), str)
        rows.sort(key=lambda row: row.get(title, kind()), reverse=bool(sort.get("desc")))
    return rows


_KINDS: Final[Mapping[str, Callable[[Drawn], str]]] = {
    "stat": _stat,
    "gauge": _stat,
    "bargauge": _bar_gauge,
    "state-timeline": _state_timeline,
    "status-history": _state_timeline,
    "timeseries": timeseries,
    "table": _table,
}
