"""How a value looks: its text in the panel's unit or mapping, and its colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLORS: Final = {
    "text": "#ccccdc",
    "transparent": "transparent",
    "green": "#73bf69",
    "light-green": "#96d98d",
    "semi-dark-green": "#56a64b",
    "dark-green": "#37872d",
    "yellow": "#fade2a",
    "light-yellow": "#ffee52",
    "semi-dark-yellow": "#f2cc0c",
    "red": "#f2495c",
    "light-red": "#ff7383",
    "semi-dark-red": "#e02f44",
    "dark-red": "#c4162a",
    "blue": "#5794f2",
    "light-blue": "#8ab8ff",
    "semi-dark-blue": "#3274d9",
    "dark-blue": "#1f60c4",
    "orange": "#ff9830",
    "light-orange": "#ffb357",
    "semi-dark-orange": "#ff780a",
    "dark-orange": "#fa6400",
    "purple": "#b877d9",
    "light-purple": "#ca95e5",
    "semi-dark-purple": "#a352cc",
}
"""The named colours of Grafana's dark theme that dashboards may use."""

PALETTE: Final = (
    *("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0"),
    *("#37872d", "#fade2a", "#447ebc", "#c15c17", "#890f02", "#0a437c", "#6d1f62", "#584477"),
)
"""Grafana's classic palette, as far as a panel here has series."""

_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SECONDS: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))
_AGO: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))


@dataclass(frozen=True, slots=True)
class Look:
    """A value as a reader sees it; no colour where nothing judges it."""

    text: str
    color: str | None


def look(value: float, settings: Mapping[str, Any], now: float) -> Look:
    """The value by the settings of its field (Grafana's `fieldConfig.defaults`)."""
    for mapping in settings.get("mappings", ()):
        found = _mapped(mapping, value)
        if found is not None:
            return Look(found.get("text", _number(value)), _color(found.get("color")))
    unit = settings.get("unit", "none")
    return Look(in_unit(value, unit, now, settings.get("decimals")), _judged(value, settings))


def word(text: str, settings: Mapping[str, Any]) -> Look:
    """A label's text by the mappings of its column."""
    for mapping in settings.get("mappings", ()):
        found = mapping.get("options", {}).get(text) if mapping["type"] == "value" else None
        if found is not None:
            return Look(found.get("text", text), _color(found.get("color")))
    return Look(text, None)


def series_color(name: str, index: int, settings: Mapping[str, Any]) -> str:
    """The colour of a series: its own by an override, the panel's fixed one, or the palette's."""
    color = settings.get("color", {})
    if color.get("mode") == "fixed" and color.get("fixedColor") not in (None, "text"):
        return _color(color["fixedColor"]) or PALETTE[0]
    if color.get("mode") == "palette-classic-by-name":
        return PALETTE[sum(name.encode()) % len(PALETTE)]
    return PALETTE[index % len(PALETTE)]


def in_unit(value: float, unit: str, now: float, decimals: int | None = None) -> str:
    """The value with its unit, as Grafana abbreviates it."""
    if math.isnan(value):
        return "NaN"
    if unit == "bytes":
        return _bytes(value, decimals)
    if unit == "s":
        return _duration(value)
    if unit == "percentunit":
        return f"{_number(value * 100, decimals)}%"
    if unit in {"dateTimeFromNow", "dateTimeAsIso"}:
        return _from_now(value / 1000 - now)
    suffix = {"celsius": " °C", "watt": " W", "cps": " c/s", "reqps": " req/s"}.get(unit, "")
    return _number(value, decimals) + suffix


def _mapped(mapping: Mapping[str, Any], value: float) -> Mapping[str, Any] | None:
    options = mapping["options"]
    if mapping["type"] == "value":
        found: Mapping[str, Any] | None = options.get(_number(value))
        return found
    if mapping["type"] == "range":
        low = -math.inf if options.get("from") is None else options["from"]
        high = math.inf if options.get("to") is None else options["to"]
        return options["result"] if low <= value <= high else None
    if mapping["type"] == "special" and options["match"] in {"nan", "null+nan"}:
        return options["result"] if math.isnan(value) else None
    return None


def _judged(value: float, settings: Mapping[str, Any]) -> str | None:
    steps: Sequence[Mapping[str, Any]] = settings.get("thresholds", {}).get("steps", ())
    color = None
    for step in steps:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return None if color == "text" else _color(color)


def _color(name: str | None) -> str | None:
    if name is None:
        return None
    return name if name.startswith("#") else COLORS[name]


def _number(value: float, decimals: int | None = None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _bytes(value: float, decimals: int | None) -> str:
    power = 0 if value == 0 else min(int(math.log(abs(value), 1024)), len(_BINARY) - 1)
    return f"{_number(value / 1024**power, decimals)} {_BINARY[power]}"


def _duration(value: float) -> str:
    for seconds, name in _SECONDS:
        if abs(value) >= seconds:
            count = value / seconds
            plural = "s" if name in {"day", "hour", "min"} and round(count, 1) != 1 else ""
            return f"{_number(count)} {name}{plural}"
    return f"{_number(value)} s"


def _from_now(seconds: float) -> str:
    for size, name in _AGO:
        if abs(seconds) >= size:
            count = round(abs(seconds) / size)
            text = f"{count} {name}{'' if count == 1 else 's'}"
            return f"{text} ago" if seconds < 0 else f"in {text}"
    return "a moment ago"
