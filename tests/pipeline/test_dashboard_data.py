"""Every query of every dashboard, asked of a real Prometheus that holds a known history."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from dashboards.links import GPU_UID
from tests.pipeline import story, story_blocks
from tests.pipeline.boards import BOARDS, TARGETS
from tests.pipeline.grafana import LEGEND_LABEL, Viewer, Window, legend_text
from tests.pipeline.views import (
    ABSENT,
    CHOSEN,
    EARLIER,
    EVERYTHING,
    NO_VALUE,
    ROWS,
    SERIES,
    SERVERS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.pipeline.boards import Target

pytestmark = pytest.mark.needs("promtool", "prometheus")

each_view = pytest.mark.parametrize("view", CHOSEN)
each_board = pytest.mark.parametrize("uid", BOARDS)
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.title)


def _key(target: Target) -> str:
    return f"{target.panel['id']}{target.target['refId']}"


def _absent(view: str, uid: str) -> list[str]:
    return ABSENT[view].get(uid, "").split()


def _no_value(view: str, uid: str) -> Mapping[int, str]:
    return NO_VALUE.get(view, {}).get(uid, {})


def _values(series: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(value) for one in series for _, value in one["values"]]


def _unit(target: Target) -> str:
    """The unit of the values of a query: the panel's, or its own."""
    config = target.panel["fieldConfig"]
    unit: str = config["defaults"]["unit"]
    for override in config["overrides"]:
        if override["matcher"] == {"id": "byFrameRefID", "options": target.target["refId"]}:
            own = {one["id"]: one["value"] for one in override["properties"]}
            unit = own.get("unit", unit)
    return unit


def _columns_with(unit: str, panel: Mapping[str, Any]) -> list[str]:
    """The columns of a table that say that they have this unit."""
    return [
        override["matcher"]["options"]
        for override in panel["fieldConfig"]["overrides"]
        if {"id": "unit", "value": unit} in override["properties"]
    ]


# Every query, in every view.


@each_view
@each_target
def test_query_finds_what_there_is(looking, view, target):
    viewer = looking(target.board.uid, view)
    is_absent = _key(target) in _absent(view, target.board.uid)
    is_absent |= target.panel["id"] in _no_value(view, target.board.uid)
    for copy in viewer.copies(target.panel):
        series = copy.ask(target.target, target.panel)
        assert bool(series) is not is_absent
        assert all(math.isfinite(value) for value in _values(series))
        if _unit(target) == "percentunit":
            assert all(0 <= value <= 1 for value in _values(series))
        for name, value in copy.chosen.items():
            assert {one["metric"].get(name, value) for one in series} <= {value}


@each_view
@each_board
def test_empty_panel_says_why(looking, view, uid):
    """What a viewer reads on a panel that has nothing to show."""
    viewer = looking(uid, view)
    empty = {
        panel_id: panel["fieldConfig"]["defaults"]["noValue"]
        for panel_id, panel in viewer.board.panels.items()
        if not any(viewer.ask(target, panel) for target in panel["targets"])
    }
    assert empty == _no_value(view, uid)


@each_board
def test_number_of_series_is_right(looking, uid):
    viewer = looking(uid)
    found = {
        panel_id: tuple(len(viewer.ask(target, panel)) for target in panel["targets"])
        for panel_id, panel in viewer.board.panels.items()
    }
    assert found == SERIES[uid]


@pytest.mark.parametrize(("uid", "key"), [(uid, key) for uid in EARLIER for key in EARLIER[uid]])
def test_query_that_is_empty_at_the_end_is_not_so_earlier(stored, uid, key):
    (target,) = (one for one in TARGETS if (one.board.uid, _key(one)) == (uid, key))
    window = Window(story_blocks.START, EARLIER[uid][key], story_blocks.STEP_SECONDS)
    series = Viewer(BOARDS[uid], stored, window).ask(target.target, target.panel)
    assert series
    assert all(math.isfinite(value) for value in _values(series))


@each_target
def test_legend_tells_series_apart(looking, target):
    """By labels that they have; two lines of one name could not be told apart."""
    template = target.target["legendFormat"]
    series = looking(target.board.uid).ask(target.target, target.panel)
    if template == "__auto":
        assert target.panel["type"] == "table" or len(series) <= 1
        return
    labels = set(LEGEND_LABEL.findall(template))
    # The only one of its kind has no rank.
    assert all(labels - {"rank"} <= set(one["metric"]) for one in series)
    legends = [legend_text(template, one["metric"]) for one in series]
    assert len(set(legends)) == len(legends)


@each_board
def test_rows_of_tables_join(looking, uid):
    """One row per server, agent or device, with a value in every column that somebody has."""
    viewer = looking(uid)
    tables = {key: one for key, one in viewer.board.panels.items() if one["type"] == "table"}
    rows = {key: viewer.rows(panel) for key, panel in tables.items()}
    assert {key: len(found) for key, found in rows.items()} == ROWS[uid]
    for key, panel in tables.items():
        organize = panel["transformations"][-1]["options"]
        shown = {column for row in rows[key] for column in row}
        for column in _columns_with("percentunit", panel):
            assert all(0 <= row[column] <= 1 for row in rows[key] if column in row)
        absent = [one for one in _absent(EVERYTHING, uid) if one[:-1] == str(key)]
        assert len(set(organize["renameByName"].values()) - shown) == len(absent)


@each_board
def test_annotations_mark_what_happened(looking, uid):
    viewer = looking(uid)
    for annotation in viewer.board.annotations:
        series = viewer.ask_annotation(annotation.json)
        assert series, annotation.title
        text = annotation.json["titleFormat"] + annotation.json.get("textFormat", "")
        labels = set(LEGEND_LABEL.findall(text))
        assert all(labels <= set(one["metric"]) for one in series)
        assert all(value for value in _values(series))


# Variables.


@each_board
def test_variables_offer_what_there_is(looking, uid):
    options = looking(uid).options
    assert options["job"] == ["vllm-agent"]
    assert options["instance"] == sorted(story.INSTANCES)
    assert options["server"] == list(SERVERS)
    # A server that never came up has no model yet.
    models = (story.LLAMA, story.QWEN, story.PHI, story.GEMMA, story.MISTRAL, story.EMBED)
    assert options["model_name"] == sorted({story.QWEN_BEFORE.name, *(one.name for one in models)})
    assert options.get("gpu", list("01234567")) == list("01234567")


@pytest.mark.parametrize(
    ("view", "servers"),
    [
        ("a model", ["llama", "remote"]),
        ("an instance", ["embed@8001", "mistral"]),
        ("one of each", ["qwen"]),
    ],
)
def test_a_choice_narrows_the_servers(looking, view, servers):
    assert all(looking(uid, view).options["server"] == servers for uid in BOARDS)


def test_an_instance_narrows_the_gpus(looking):
    assert looking(GPU_UID, "an instance").options["gpu"] == list("0123")
    assert looking(GPU_UID, "a server by URL").options["gpu"] == []
