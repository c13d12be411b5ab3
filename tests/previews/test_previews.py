"""The pictures of the dashboards show what their files say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.previews.canvas import Drawn, Series
from tests.previews.drawing import draw
from tests.previews.looks import COLORS, in_unit, look, word
from tests.previews.page import html_of

BOARDS = [
    json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parents[2] / "dashboards" / "grafana").glob("*.json"))
]
NOW = 10_000.0

each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "bytes", "0 B"),
        (80 * 2**30, "bytes", "80 GiB"),
        (0.0042, "s", "4.2 ms"),
        (90.0, "s", "1.5 mins"),
        (60.0, "s", "1 min"),
        (0.125, "percentunit", "12.5%"),
        (61.0, "celsius", "61 °C"),
        (1234.0, "watt", "1234 W"),
        ((NOW - 3600) * 1000, "dateTimeFromNow", "1 hour ago"),
        ((NOW + 90) * 1000, "dateTimeFromNow", "in 2 minutes"),
        (math.nan, "s", "NaN"),
    ],
)
def test_values_have_their_unit(value: float, unit: str, text: str) -> None:
    assert in_unit(value, unit, NOW) == text


def test_a_mapping_goes_before_unit_and_thresholds() -> None:
    settings = {
        "unit": "bytes",
        "mappings": [{"type": "value", "options": {"1": {"text": "up", "color": "green"}}}],
        "thresholds": {"steps": [{"value": None, "color": "blue"}, {"value": 2, "color": "red"}]},
    }
    assert look(1, settings, NOW).text == "up"
    assert look(1, settings, NOW).color == COLORS["green"]
    assert look(3, settings, NOW).color == COLORS["red"]
    assert word("else", settings).color is None


def answered(panel: dict[str, Any], name: str) -> Drawn:
    """The panel as if each of its queries had found two series of that name."""
    points = [(0.0, 1.0), (60.0, 2.0), (600.0, 1.0)]
    if panel["type"] == "table":
        titles = panel["transformations"][-1]["options"]["renameByName"].values()
        return Drawn(panel, (), 0.0, 900.0, [dict.fromkeys(titles, name)])
    series = [Series(one["refId"], name, {}, points) for one in panel.get("targets", ())]
    return Drawn(panel, 2 * series, 0.0, 900.0)


@each_board
def test_every_panel_can_be_drawn(board: dict[str, Any]) -> None:
    for panel in board["panels"]:
        if panel["type"] != "row":
            nothing = draw(Drawn(panel, (), 0.0, 900.0))
            assert panel["fieldConfig"]["defaults"]["noValue"] in nothing
            assert draw(answered(panel, "name")) not in {"", nothing}


@each_board
def test_a_page_shows_every_title_and_no_label_as_html(board: dict[str, Any]) -> None:
    page = html_of(board, {}, [answered(panel, "<u>") for panel in board["panels"]])
    assert "<u>" not in page
    assert "&lt;u&gt;" in page
    for panel in board["panels"]:
        assert panel["title"] in page


def test_a_gap_in_the_samples_is_a_gap_in_the_picture() -> None:
    panel = {
        "type": "state-timeline",
        "gridPos": {"x": 0, "y": 0, "w": 24, "h": 8},
        "fieldConfig": {"defaults": {}, "overrides": []},
    }
    whole = [(60.0 * step, 1.0) for step in range(20)]
    for points, bars in ((whole, 1), (whole[:5] + whole[12:], 2)):
        drawn = draw(Drawn(panel, [Series("A", "row", {}, points)], 0.0, 1200.0))
        assert drawn.count("<rect") == bars
