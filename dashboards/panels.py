"""Grafana panels as plain dictionaries, in the classic dashboard schema.

Nothing here knows a metric: the dashboards say what to draw, this says how Grafana spells it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Json: TypeAlias = dict[str, Any]
Threshold: TypeAlias = tuple[float | None, str]

DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
ROWS_PER_PAGE: Final = 20
"""More rows of a timeline than this are thinner than their text; the others go on a next page."""
_EMPTY_CELL: Final = "-"
"""Without one, a cell without a value would show the text for a table without rows."""

_MERGE_KEYS: Final = ("Time", "job")
"""Fields that every row has beside its columns. An empty result has the time alone, and Grafana
merges nothing without a field that all results have; the metric's name would keep rows apart."""


@dataclass(frozen=True, slots=True)
class Area:
    """The place of a panel on the grid of 24 columns; a row of the grid is 30 pixels high."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Panel:
    """What every panel has; the kinds below add how it is drawn.

    `panel_id` is the number in `viewPanel` links, so it never changes for a panel that exists.
    """

    panel_id: int
    title: str
    description: str
    area: Area
    unit: str
    no_value: str
    mappings: list[Json] = field(default_factory=list)
    thresholds: Sequence[Threshold] = ()
    interval: str | None = None
    links: Sequence[Json] = ()
    overrides: Sequence[Json] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: the field it shows, and how.

    `source` is the name of a label, or `value_of` a query. `is_bar` draws a ratio as a bar.
    """

    source: str
    title: str
    unit: str | None = None
    mappings: list[Json] = field(default_factory=list)
    links: Sequence[Json] = ()
    thresholds: Sequence[Threshold] = ()
    is_bar: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """How a graph draws its series: lines unless it says otherwise."""

    is_bars: bool = False
    is_stacked: bool = False
    is_stepped: bool = False
    highest: float | None = None
    has_threshold_line: bool = False


LINES: Final = Look()
BARS: Final = Look(is_bars=True, is_stacked=True)
"""Counts per interval."""
STEPS: Final = Look(is_stepped=True)
"""Whole numbers that hold until they change."""
AREAS: Final = Look(is_stacked=True)
"""Parts of a whole."""


def value_of(ref_id: str) -> str:
    """The field with the value of one of several queries of a table."""
    return f"Value #{ref_id}"


VALUE: Final = "Value"
"""The field with the value of the only query of a table."""


def instant(ref_id: str, expr: str, legend: str = "__auto") -> Json:
    """A target that asks for the newest value only."""
    return _target(ref_id, expr, legend) | {
        "instant": True,
        "range": False,
        "format": "time_series",
    }


def instant_table(ref_id: str, expr: str) -> Json:
    """A target that asks for the newest value of each series as a row with its labels."""
    return _target(ref_id, expr, "__auto") | {"instant": True, "range": False, "format": "table"}


def over_time(ref_id: str, expr: str, legend: str) -> Json:
    """A target over the whole time range."""
    return _target(ref_id, expr, legend) | {
        "instant": False,
        "range": True,
        "format": "time_series",
    }


def row(panel_id: int, title: str, y: int) -> Json:
    """A heading between panels, always open: a link to a panel in a closed row shows nothing."""
    return {
        "id": panel_id,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        "panels": [],
    }


def stat(panel: Panel, targets: list[Json], *, text_mode: str = "value_and_name") -> Json:
    """A big number; coloured by value only where the panel has thresholds or mappings."""
    judged = bool(panel.thresholds or panel.mappings)
    return _panel("stat", panel, targets, color={"mode": "thresholds"}) | {
        "options": {
            "colorMode": "value" if judged else "none",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": text_mode,
            "wideLayout": True,
        },
    }


def number(panel: Panel, expr: str) -> Json:
    """One big number, without a name beside it."""
    return stat(panel, [instant("A", expr)], text_mode="value")


def state_timeline(panel: Panel, targets: list[Json]) -> Json:
    """One coloured row per series.

    The colour mode is fixed: with threshold colours Grafana draws ranges and ignores mappings.
    """
    drawn = _panel("state-timeline", panel, targets, color={"mode": "fixed", "fixedColor": "text"})
    drawn["fieldConfig"]["defaults"]["custom"] = {
        "fillOpacity": 80,
        "lineWidth": 0,
    }
    return drawn | {
        "options": {
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "mergeValues": True,
            "perPage": ROWS_PER_PAGE,
            "rowHeight": 0.85,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def timeseries(panel: Panel, targets: list[Json], look: Look = LINES) -> Json:
    """A graph over time."""
    drawn = _panel("timeseries", panel, targets, color={"mode": "palette-classic-by-name"})
    drawn["fieldConfig"]["defaults"] |= {"min": 0, "custom": _drawing(look)}
    if look.highest is not None:
        drawn["fieldConfig"]["defaults"]["max"] = look.highest
    return drawn | {
        "options": {
            "legend": {
                "calcs": [],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def table(
    panel: Panel,
    targets: list[Json],
    columns: Sequence[Column],
    *,
    sorted_by: str = "",
    is_descending: bool = False,
) -> Json:
    """Exactly the given columns in that order, of the rows of one query or of several merged.

    Grafana merges rows that agree in all fields they share.
    """
    drawn = _panel("table", panel, targets, color={"mode": "fixed", "fixedColor": "text"})
    drawn["fieldConfig"]["defaults"]["custom"] = {"align": "left", "filterable": True}
    drawn["fieldConfig"]["overrides"] = [
        override("byRegexp", ".*", noValue=_EMPTY_CELL),
        *(one for column in columns if (one := _column_override(column))["properties"]),
    ]
    is_merged = len(targets) > 1
    keys = _MERGE_KEYS if is_merged else ()
    names = [column.source for column in columns]
    return drawn | {
        "options": {
            "cellHeight": "sm",
            "showHeader": True,
            "sortBy": [{"displayName": sorted_by, "desc": is_descending}] if sorted_by else [],
        },
        "transformations": [
            {"id": "filterFieldsByName", "options": {"include": {"names": [*keys, *names]}}},
            *([{"id": "merge", "options": {}}] if is_merged else []),
            {
                "id": "organize",
                "options": {
                    "excludeByName": dict.fromkeys(keys, True),
                    "indexByName": {name: index for index, name in enumerate(names)},
                    "renameByName": {column.source: column.title for column in columns},
                },
            },
        ],
    }


def override(matcher: str, matched: str, **properties: Any) -> Json:
    """Settings for some series or columns; `__` in the name of a property stands for a dot."""
    return {
        "matcher": {"id": matcher, "options": matched},
        "properties": [
            {"id": name.replace("__", "."), "value": value} for name, value in properties.items()
        ],
    }


def of_query(ref_id: str, **properties: Any) -> Json:
    """Settings for the series of one query."""
    return override("byFrameRefID", ref_id, **properties)


def dashed(ref_id: str, **properties: Any) -> Json:
    """Draws the series of one query as limits: dashed, and not as a part of a stack."""
    return of_query(
        ref_id,
        custom__lineStyle={"fill": "dash", "dash": [8, 8]},
        custom__fillOpacity=0,
        custom__stacking={"group": "A", "mode": "none"},
        **properties,
    )


def fixed_color(ref_id: str, name: str) -> Json:
    """Draws the series of one query in a colour that has a meaning."""
    return of_query(ref_id, color={"mode": "fixed", "fixedColor": name})


def link(title: str, url: str) -> Json:
    """A link from a value; Grafana fills in the fields and labels of what was clicked."""
    return {"title": title, "url": url, "targetBlank": False}


def words(*meanings: tuple[object, str, str]) -> list[Json]:
    """Value mappings from numbers or texts to a word and its colour."""
    return [
        {
            "type": "value",
            "options": {
                str(value): {"text": str(text), "color": color, "index": index}
                for index, (value, text, color) in enumerate(meanings)
            },
        }
    ]


def _drawing(look: Look) -> Json:
    drawing: Json = {
        "drawStyle": "bars" if look.is_bars else "line",
        "fillOpacity": 80 if look.is_bars else 40 if look.is_stacked else 10,
        "lineWidth": 1,
        "lineInterpolation": "stepAfter" if look.is_stepped else "linear",
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if look.is_stacked else "none"},
    }
    return drawing | ({"thresholdsStyle": {"mode": "dashed"}} if look.has_threshold_line else {})


def _panel(kind: str, panel: Panel, targets: list[Json], *, color: Json) -> Json:
    defaults: Json = {
        "color": color,
        "unit": panel.unit,
        "noValue": panel.no_value,
        "mappings": panel.mappings,
        "thresholds": _thresholds(panel.thresholds),
    }
    drawn: Json = {
        "id": panel.panel_id,
        "type": kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {
            "x": panel.area.x,
            "y": panel.area.y,
            "w": panel.area.width,
            "h": panel.area.height,
        },
        "fieldConfig": {
            "defaults": defaults | ({"links": list(panel.links)} if panel.links else {}),
            "overrides": list(panel.overrides),
        },
        "targets": targets,
    }
    return drawn if panel.interval is None else drawn | {"interval": panel.interval}


def _thresholds(steps: Sequence[Threshold]) -> Json:
    return {
        "mode": "absolute",
        "steps": [{"value": value, "color": name} for value, name in steps or ((None, "text"),)],
    }


def _target(ref_id: str, expr: str, legend: str) -> Json:
    return {
        "refId": ref_id,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend,
    }


def _column_override(column: Column) -> Json:
    properties: Json = {}
    if column.unit is not None:
        properties["unit"] = column.unit
    if column.mappings:
        properties["mappings"] = column.mappings
        properties["custom__cellOptions"] = {"type": "color-text"}
    if column.thresholds:
        properties["thresholds"] = _thresholds(column.thresholds)
        properties["color"] = {"mode": "thresholds"}
        properties["custom__cellOptions"] = {"type": "color-text"}
    if column.is_bar:
        properties |= {"min": 0, "max": 1}
        properties["custom__cellOptions"] = {"type": "gauge", "mode": "basic"}
    if column.links:
        properties["links"] = list(column.links)
    return override("byName", column.title, **properties)
