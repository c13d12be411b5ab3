"""Grafana panels as plain dictionaries, in the classic dashboard schema.

Nothing here knows a metric: `fleet` says what to draw, this says how Grafana spells it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Json: TypeAlias = dict[str, Any]
Threshold: TypeAlias = tuple[float | None, str]

DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}


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


def state_timeline(panel: Panel, targets: list[Json]) -> Json:
    """One coloured row per series.

    The colour mode is fixed: with threshold colours Grafana draws ranges and ignores mappings.
    """
    drawn = _panel("state-timeline", panel, targets, color={"mode": "fixed", "fixedColor": "text"})
    drawn["fieldConfig"]["defaults"]["custom"] = {
        "fillOpacity": 80,
        "lineWidth": 0,
        "spanNulls": False,
    }
    return drawn | {
        "options": {
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "mergeValues": True,
            "rowHeight": 0.85,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def timeseries(panel: Panel, targets: list[Json], *, bars: bool = False) -> Json:
    """Lines, or stacked bars for counts per interval."""
    drawn = _panel("timeseries", panel, targets, color={"mode": "palette-classic-by-name"})
    drawn["fieldConfig"]["defaults"] |= {
        "min": 0,
        "custom": {
            "drawStyle": "bars" if bars else "line",
            "fillOpacity": 80 if bars else 10,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if bars else "none"},
        },
    }
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


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: the label it shows, and how. `value` is the query's own value."""

    label: str
    title: str
    unit: str | None = None
    mappings: list[Json] = field(default_factory=list)


def table(panel: Panel, target: Json, columns: list[Column], *, newest_first: str = "") -> Json:
    """One row per series of one query, with exactly the given columns in that order."""
    drawn = _panel("table", panel, [target], color={"mode": "fixed", "fixedColor": "text"})
    drawn["fieldConfig"]["defaults"]["custom"] = {"align": "left", "filterable": True}
    drawn["fieldConfig"]["overrides"] = [_override(column) for column in columns if _styled(column)]
    fields = {_field_name(column): column for column in columns}
    return drawn | {
        "options": {
            "cellHeight": "sm",
            "showHeader": True,
            "sortBy": [{"displayName": newest_first, "desc": True}] if newest_first else [],
        },
        "transformations": [
            {"id": "filterFieldsByName", "options": {"include": {"names": list(fields)}}},
            {
                "id": "organize",
                "options": {
                    "indexByName": {name: index for index, name in enumerate(fields)},
                    "renameByName": {name: column.title for name, column in fields.items()},
                },
            },
        ],
    }


def query_variable(name: str, label: str, query: str, *, all_value: str | None) -> Json:
    """A multi-value variable filled from label values; starts with everything selected."""
    variable: Json = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "regex": "",
        "options": [],
        "skipUrlSync": False,
    }
    return variable if all_value is None else variable | {"allValue": all_value}


def datasource_variable() -> Json:
    """The choice of the Prometheus that all panels ask."""
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "current": {},
        "hide": 0,
        "regex": "",
        "options": [],
        "skipUrlSync": False,
    }


def _panel(kind: str, panel: Panel, targets: list[Json], *, color: Json) -> Json:
    defaults: Json = {
        "color": color,
        "unit": panel.unit,
        "noValue": panel.no_value,
        "mappings": panel.mappings,
        "thresholds": {
            "mode": "absolute",
            "steps": [
                {"value": value, "color": name}
                for value, name in panel.thresholds or ((None, "text"),)
            ],
        },
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
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }
    return drawn if panel.interval is None else drawn | {"interval": panel.interval}


def _target(ref_id: str, expr: str, legend: str) -> Json:
    return {
        "refId": ref_id,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend,
    }


def _field_name(column: Column) -> str:
    return "Value" if column.label == "value" else column.label


def _styled(column: Column) -> bool:
    return column.unit is not None or bool(column.mappings)


def _override(column: Column) -> Json:
    properties: list[Json] = []
    if column.unit is not None:
        properties.append({"id": "unit", "value": column.unit})
    if column.mappings:
        properties.append({"id": "mappings", "value": column.mappings})
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    return {
        "matcher": {"id": "byName", "options": column.title},
        "properties": properties,
    }
