"""The dashboards as files: generated, well formed, and leading where they say."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import links
from dashboards.output import generated_files, stale_files, write_or_check
from dashboards.panels import ROWS_PER_PAGE
from dashboards.states import STAGE_STYLES, STATE_STYLES
from tests.pipeline.boards import BOARDS, Target
from tests.pipeline.catalogue import METRIC_LABELS
from tests.pipeline.result_labels import result_labels
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import Stage

GRID_COLUMNS = 24
LINKED = [one for one in vars(links).values() if isinstance(one, links.PanelLink)]
PANELS = [(board, panel) for board in BOARDS.values() for panel in board.panels.values()]

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
each_panel = pytest.mark.parametrize(
    ("board", "panel"), PANELS, ids=[f"{board.uid}-{panel['id']}" for board, panel in PANELS]
)


def _of_type(*kinds: str):
    found = [(board, panel) for board, panel in PANELS if panel["type"] in kinds]
    names = [f"{board.uid}-{panel['id']}" for board, panel in found]
    return pytest.mark.parametrize(("board", "panel"), found, ids=names)


def test_committed_files_are_what_the_generator_writes():
    assert stale_files(generated_files()) == []
    assert {path.stem for path in generated_files()} == set(BOARDS)


def test_check_names_a_stale_file_and_leaves_it_alone(tmp_path, capsys):
    path = tmp_path / "board.json"
    path.write_text("edited by hand")
    assert write_or_check({path: "generated"}, check=True) == 1
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == "edited by hand"
    assert write_or_check({path: "generated"}, check=False) == 0
    assert write_or_check({path: "generated"}, check=True) == 0


@pytest.mark.parametrize("uid", BOARDS)
def test_identity_is_stable(uid):
    board = BOARDS[uid].json
    assert board["uid"] == uid
    assert "vllm" in board["tags"]
    assert "id" not in board
    assert "__inputs" not in board
    assert board["schemaVersion"] == 39


@pytest.mark.parametrize("link", LINKED, ids=str)
def test_what_others_link_to_is_there(link):
    assert link.panel_id in BOARDS[link.uid].panels


@each_board
def test_ids_are_unique(board):
    ids = [panel["id"] for panel in board.json["panels"]]
    assert len(ids) == len(set(ids))
    assert min(ids) > 0


@each_board
def test_panels_tile_the_grid(board):
    areas = [panel["gridPos"] for panel in board.json["panels"]]
    taken = Counter(
        (x, y)
        for area in areas
        for x in range(area["x"], area["x"] + area["w"])
        for y in range(area["y"], area["y"] + area["h"])
    )
    assert set(taken.values()) == {1}, "two panels overlap"
    height = max(y for _, y in taken) + 1
    assert set(taken) == {(x, y) for x in range(GRID_COLUMNS) for y in range(height)}


@each_board
def test_panels_are_written_from_top_to_bottom(board):
    """A heading owns what follows it in the file."""
    tops = [panel["gridPos"]["y"] for panel in board.json["panels"]]
    assert tops == sorted(tops)


@each_panel
def test_panel_explains_itself(board, panel):
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["noValue"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


@each_panel
def test_overrides_are_for_queries_and_columns_that_exist(board, panel):
    titles = set(_columns(panel).values())
    references = {target["refId"] for target in panel["targets"]}
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        if matcher["id"] == "byFrameRefID":
            assert matcher["options"] in references
        elif matcher["id"] == "byName":
            assert matcher["options"] in titles
        else:
            assert matcher == {"id": "byRegexp", "options": ".*"}


@_of_type("table")
def test_table_has_the_columns_it_names(board, panel):
    """A column that no query brings would silently be missing."""
    targets = [one for one in board.targets if one.panel is panel]
    values = {f"Value #{one.target['refId']}" for one in targets} if len(targets) > 1 else {"Value"}
    columns = _columns(panel)
    keys = {"Time", "job"} if len(targets) > 1 else set()
    first, *others = panel["transformations"]
    assert first["id"] == "filterFieldsByName"
    assert set(first["options"]["include"]["names"]) == keys | set(columns)
    assert [step["id"] for step in others] == ["merge", "organize"][-len(others) :]
    assert set(others[-1]["options"]["excludeByName"]) == keys
    assert set(columns) <= values | set().union(*map(_labels, targets))
    assert len(set(columns.values())) == len(columns)
    assert {one["displayName"] for one in panel["options"]["sortBy"]} <= set(columns.values())
    assert len(others) == (2 if len(targets) > 1 else 1)


@_of_type("table")
def test_an_empty_cell_does_not_say_that_the_table_is_empty(board, panel):
    first = panel["fieldConfig"]["overrides"][0]
    assert first["matcher"]["options"] == ".*"
    assert [one["id"] for one in first["properties"]] == ["noValue"]


@_of_type("state-timeline")
def test_timeline_names_its_values_and_turns_pages(board, panel):
    """With colours by threshold Grafana would draw ranges and ignore the words."""
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["color"]["mode"] == "fixed"
    [mapping] = defaults["mappings"]
    assert mapping["options"]
    assert panel["options"]["perPage"] == ROWS_PER_PAGE


@pytest.mark.parametrize("link", [links.FLEET_TIMELINE, links.SERVER_TIMELINE], ids=str)
def test_timeline_draws_every_state_once(link):
    assert {style.state for style in STATE_STYLES} == set(ServerState)
    for attribute in ("code", "color"):
        assert len({getattr(style, attribute) for style in STATE_STYLES}) == len(STATE_STYLES)
    assert _words(BOARDS[link.uid].panels[link.panel_id]) == {
        str(style.code): style.state for style in STATE_STYLES
    }


def test_waterfall_draws_every_stage_in_the_order_of_a_start():
    assert {style.stage for style in STAGE_STYLES} == set(Stage) - {Stage.NONE}
    panel = BOARDS[links.SERVER_UID].panels[links.SERVER_STAGES.panel_id]
    assert _words(panel) == {str(style.code): style.title for style in STAGE_STYLES}
    drawn = [
        (int(target["expr"].split(" ", 1)[0]), stage)
        for target in panel["targets"]
        for stage in re.findall(r'stage="(\w+)"', target["expr"])
    ]
    assert drawn == [(style.code, style.stage) for style in STAGE_STYLES]


@each_board
def test_boards_lead_to_each_other_and_to_those_of_vllm(board):
    assert all(link["keepTime"] for link in board.json["links"])
    takes_variables = {
        link["tags"][0]: link["includeVars"]
        for link in board.json["links"]
        if link["type"] == "dashboards"
    }
    # The job and instance of an agent are not those of a vLLM.
    assert takes_variables == {"vllm": False, "vllm-agent": True}
    assert set(takes_variables) == set(board.json["tags"])
    to_vllm = [link for link in board.json["links"] if link["type"] == "link"]
    assert {urlsplit(link["url"]).path for link in to_vllm} == {
        "/d/vllm-overview",
        "/d/vllm-instances",
    }
    for link in to_vllm:
        names = set(re.findall(r"\$\{(\w+):queryparam\}", link["url"]))
        assert names == {"datasource", "model_name"} <= set(board.variables)


@each_panel
def test_links_lead_to_boards_and_take_values_that_are_there(board, panel):
    from_series = panel["fieldConfig"]["defaults"].get("links", [])
    from_columns = [
        link
        for override in panel["fieldConfig"]["overrides"]
        for one in override["properties"]
        if one["id"] == "links"
        for link in one["value"]
    ]
    targets = [one for one in board.targets if one.panel is panel]
    titles = {title.replace(" ", "") for title in _columns(panel).values()}
    for link in [*from_series, *from_columns]:
        found = re.fullmatch(r"/d/([\w-]+)\?(.+)", link["url"])
        assert found
        chosen = set(re.findall(r"var-(\w+)=", found[2]))
        chosen |= set(re.findall(r"\$\{(\w+):queryparam\}", found[2]))
        assert {"datasource", "job", "instance"} < chosen <= set(BOARDS[found[1]].variables)
        assert "${__url_time_range}" in found[2]
        assert set(re.findall(r"\$\{__data\.fields\.(\w+)\}", found[2])) <= titles
        labels = set(re.findall(r"\$\{__field\.labels\.(\w+)\}", found[2]))
        assert all(labels <= _labels(target) for target in targets)


def test_the_ways_between_the_boards():
    def leads(uid: str) -> set[str]:
        return set(re.findall(r"/d/([\w-]+)", json.dumps(BOARDS[uid].json)))

    own = {links.FLEET_UID, links.SERVER_UID, links.GPU_UID}
    assert leads(links.FLEET_UID) & own == {links.SERVER_UID}
    assert links.GPU_UID in leads(links.SERVER_UID)
    assert links.SERVER_UID in leads(links.GPU_UID)


@each_board
def test_variables_are_the_usual_ones_in_the_usual_order(board):
    own = ["gpu"] if board.uid == links.GPU_UID else []
    usual = ["datasource", "job", "model_name", "instance", "server"]
    assert list(board.variables) == usual + own
    assert board.variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance", *own):
        assert board.variables[name]["allValue"] == ".+"
    # An unknown model is an empty label, and "All" models must not hide its server.
    assert board.variables["model_name"]["allValue"] == ".*"
    # "All" servers are those of the chosen models.
    assert "allValue" not in board.variables["server"]


@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
@each_board
def test_grafana_knows_every_field(board):
    """Grafana ignores a misplaced option silently; its SDK drops it in a round trip."""
    read_back = _leaves(_round_trip(board.json))
    lost = {
        path
        for path, value in _leaves(board.json).items()
        if value is not None and read_back.get(path) != value
    }
    assert lost == set()


@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_a_misplaced_option_would_be_seen():
    board = json.loads(json.dumps(BOARDS[links.SERVER_UID].json))
    [graph] = [one for one in board["panels"] if one["id"] == links.SERVER_PROBES.panel_id]
    graph["options"]["spanNulls"] = True
    assert (
        _leaves(_round_trip(board)).get(f"/panels/{board['panels'].index(graph)}/options/spanNulls")
        is None
    )


def _round_trip(board: Any) -> Any:
    # The import itself warns: the SDK prefers a schema that Grafana 10 to 12 cannot load.
    model = import_module("grafana_foundation_sdk.models.dashboard").Dashboard
    plugins.register_default_plugins()
    return json.loads(json.dumps(model.from_json(board), cls=JSONEncoder))


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {path: value}
    return {
        leaf: found
        for key, child in value.items()
        for leaf, found in _leaves(child, f"{path}/{key}").items()
    }


def _columns(panel: Any) -> dict[str, str]:
    """Field → title of a table's columns; nothing of other panels."""
    for step in panel.get("transformations", []):
        if step["id"] == "organize":
            renamed: dict[str, str] = step["options"]["renameByName"]
            return renamed
    return {}


def _words(panel: Any) -> dict[str, str]:
    [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
    return {value: drawn["text"] for value, drawn in mapping["options"].items()}


def _labels(target: Target) -> frozenset[str]:
    return result_labels(target.sent, METRIC_LABELS)
