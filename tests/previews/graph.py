"""Graphs over time: lines, areas, stacks and bars, on one axis or two."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tests.previews.canvas import (
    AXIS_PIXELS,
    LEGEND_PIXELS,
    legend,
    of_field,
    scale,
    svg,
    text_at,
    time_axis,
)
from tests.previews.looks import look, series_color

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.previews.canvas import Drawn, Series

    Pixels: TypeAlias = Callable[[float], float]
    Points: TypeAlias = Sequence[tuple[float, float, float]]
    """Time, lower edge, upper edge."""

TICKS: Final = 4
_BAR_PIXELS: Final = 6


def timeseries(drawn: Drawn) -> str:
    """The graph of a panel; series of a second unit have an axis of their own at the right."""
    fields = [
        (series, of_field(drawn.panel, series.name, series.ref_id))
        for series in drawn.series
        if series.points
    ]
    height = drawn.height - LEGEND_PIXELS - 20
    sides = {False: [one for one in fields if not _is_right(one[1])]}
    sides[True] = [one for one in fields if _is_right(one[1])]
    right = drawn.width - (AXIS_PIXELS if sides[True] else 0)
    across = scale(drawn.start, drawn.end, AXIS_PIXELS, right)
    colors: dict[str, str] = {}
    parts = []
    for is_right, side in sides.items():
        if not side:
            continue
        stacked = list(_stacked(side))
        settings = side[0][1]
        top = _nice(max(high for one in stacked for _, _, high in one), settings)
        up = scale(0.0, top, height, 6.0)
        parts.append(_value_axis(drawn, settings, up, top, right if is_right else None))
        for (series, own), points in zip(side, stacked, strict=True):
            color = series_color(series.name, len(colors), own)
            colors[series.name] = color
            if own.get("custom.drawStyle") == "bars":
                parts.extend(_bars(points, across, up, color))
            else:
                parts.append(_area(points, across, up, color, own))
    parts.append(time_axis(drawn, across, height + 15))
    return svg(drawn.width, drawn.height - LEGEND_PIXELS, parts) + legend(colors)


def _is_right(settings: Mapping[str, Any]) -> bool:
    return settings.get("custom.axisPlacement") == "right"


def _stacked(fields: Sequence[tuple[Series, Mapping[str, Any]]]) -> Iterator[Points]:
    below: dict[float, float] = {}
    for series, settings in fields:
        if settings.get("custom.stacking", {}).get("mode") not in {"normal", "percent"}:
            yield [(at, 0.0, value) for at, value in series.points]
            continue
        one = []
        for at, value in series.points:
            low = below.get(at, 0.0)
            below[at] = low + value
            one.append((at, low, low + value))
        yield one


def _bars(points: Points, across: Pixels, up: Pixels, color: str) -> Iterator[str]:
    for at, low, high in points:
        if high > low:
            yield (
                f'<rect x="{across(at) - _BAR_PIXELS / 2:.1f}" y="{up(high):.1f}" '
                f'width="{_BAR_PIXELS}" height="{up(low) - up(high):.1f}" '
                f'fill="{color}" fill-opacity=".85"/>'
            )


def _area(
    points: Points, across: Pixels, up: Pixels, color: str, settings: Mapping[str, Any]
) -> str:
    opacity = settings.get("custom.fillOpacity", 0) / 100
    dash = settings.get("custom.lineStyle", {}).get("dash")
    dashes = f' stroke-dasharray="{" ".join(map(str, dash))}"' if dash else ""
    drawn = []
    for piece in _unbroken(points):
        line = " ".join(f"{across(at):.1f},{up(high):.1f}" for at, _, high in piece)
        back = " ".join(f"{across(at):.1f},{up(low):.1f}" for at, low, _ in reversed(piece))
        drawn.append(f'<polygon points="{line} {back}" fill="{color}" fill-opacity="{opacity}"/>')
        drawn.append(
            f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.4"{dashes}/>'
        )
    return "".join(drawn)


def _unbroken(points: Points) -> Iterator[Points]:
    times = [point[0] for point in points]
    step = min((b - a for a, b in pairwise(times)), default=60.0)
    begin = 0
    for index in range(1, len(points)):
        if times[index] - times[index - 1] > 2 * step:
            yield points[begin:index]
            begin = index
    yield points[begin:]


def _nice(value: float, settings: Mapping[str, Any]) -> float:
    """The end of an axis: a round number that is not below any value."""
    if settings.get("max") is not None:
        return float(settings["max"])
    if value <= 0 or not math.isfinite(value):
        return 1.0
    base: float = 1024.0 ** int(math.log(value, 1024)) if settings.get("unit") == "bytes" else 1.0
    power: float = 10.0 ** math.floor(math.log10(value / base))
    return base * power * next(step for step in (1, 2, 2.5, 5, 10) if step * power * base >= value)


def _value_axis(
    drawn: Drawn, settings: Mapping[str, Any], up: Pixels, top: float, right: float | None
) -> str:
    parts = []
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = up(value)
        text = look(value, {**settings, "mappings": (), "thresholds": {}}, drawn.end).text
        if right is None:
            parts.append(
                f'<line x1="{AXIS_PIXELS}" x2="{drawn.width:.0f}" y1="{y:.1f}" y2="{y:.1f}" '
                'stroke="#2c3235"/>'
            )
        x, anchor = (AXIS_PIXELS - 6, "end") if right is None else (right + 6, "start")
        parts.append(text_at(x, y + 4, text, anchor))
    return "".join(parts)
