"""The Fleet dashboard as a file: generated, well formed, and using only what the agent declares."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import import_module
from itertools import combinations
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.fleet import UID, generated_files
from dashboards.output import stale_files, write_or_check
from dashboards.states import STATE_STYLES
from tests.pipeline.boards import ALL_SELECTED, BOARD, PANELS, TARGETS, VARIABLES
from tests.pipeline.catalogue import COUNTERS, METRIC_LABELS, TARGET_LABELS
from tests.pipeline.promql import (
    aggregated_labels,
    label_names,
    rate_arguments,
    selectors,
    with_variables,
)
from vllm_agent.lifecycle.states import ServerState

each_panel = pytest.mark.parametrize("panel", PANELS.values(), ids=lambda panel: panel["title"])
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.title)
# Units of Grafana's own list that panels here have a use for.
UNITS = {"none", "percentunit", "cps"}


def test_committed_file_is_what_the_generator_writes():
    assert stale_files(generated_files()) == []


def test_check_names_a_stale_file_and_leaves_it_alone(tmp_path, capsys):
    path = tmp_path / "board.json"
    path.write_text("edited by hand")
    assert write_or_check({path: "generated"}, check=True) == 1
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == "edited by hand"
    assert write_or_check({path: "generated"}, check=False) == 0
    assert write_or_check({path: "generated"}, check=True) == 0


def test_identity_is_stable():
    assert BOARD["uid"] == UID == "vllm-agent-fleet"
    assert BOARD["editable"] is False
    assert "vllm" in BOARD["tags"]
    assert "id" not in BOARD
    assert "__inputs" not in BOARD


def test_panel_ids_are_unique():
    assert len(PANELS) == len(BOARD["panels"])
    assert min(PANELS) > 0


def test_panels_fit_the_grid_and_do_not_overlap():
    areas = [panel["gridPos"] for panel in PANELS.values()]
    assert all(area["x"] + area["w"] <= 24 for area in areas)
    for one, other in combinations(areas, 2):
        apart_in_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_in_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_in_x or apart_in_y, (one, other)


@each_panel
def test_panel_explains_itself(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["targets"]
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["noValue"]
    assert defaults["unit"] in UNITS


@each_panel
def test_description_names_the_metric(panel):
    named = set(re.findall(r"`(\w+)`", panel["description"]))
    used = {one.metric for target in panel["targets"] for one in selectors(_parsable(target))}
    assert named & used
    assert named <= used


@each_panel
def test_panel_asks_the_chosen_data_source(panel):
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == chosen
    assert all(target["datasource"] == chosen for target in panel["targets"])
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


def test_timeline_draws_every_state_once():
    assert {style.state for style in STATE_STYLES} == set(ServerState)
    for attribute in ("code", "color"):
        assert len({getattr(style, attribute) for style in STATE_STYLES}) == len(STATE_STYLES)
    [mapping] = PANELS[10]["fieldConfig"]["defaults"]["mappings"]
    assert {int(code): drawn["text"] for code, drawn in mapping["options"].items()} == {
        style.code: style.state for style in STATE_STYLES
    }
    assert PANELS[10]["fieldConfig"]["defaults"]["color"]["mode"] == "fixed"


@each_target
def test_query_parses_and_uses_declared_metrics_and_labels(target):
    used = selectors(target.sent)
    for selector in used:
        assert set(selector.matchers) <= METRIC_LABELS[selector.metric]
    known = set().union(*(METRIC_LABELS[selector.metric] for selector in used))
    assert label_names(target.sent) <= known


@each_target
def test_query_follows_the_variables(target):
    for selector in selectors(_parsable(target.target)):
        assert selector.matchers["job"] == "chosen_job"
        assert selector.matchers["instance"] == "chosen_instance"
        if "server" in METRIC_LABELS[selector.metric]:
            assert selector.matchers["server"] == "chosen_server"


@each_target
def test_counters_are_shown_as_rates_and_nothing_else_is(target):
    used = {selector.metric for selector in selectors(target.sent)}
    assert used & COUNTERS == rate_arguments(target.sent)


@each_target
def test_rates_follow_the_zoom(target):
    """A fixed window is right only where the title states it."""
    windows = set(re.findall(r"\[(.*?)\]", target.expr))
    fixed = {"1h"} if "last hour" in target.panel["title"] else set()
    allowed = {"$__range"} if target.panel["type"] == "stat" else {"$__rate_interval"}
    assert windows <= fixed | allowed


@each_target
def test_legend_uses_labels_of_the_result(target):
    used = set(re.findall(r"{{(\w+)}}", target.target["legendFormat"]))
    grouped_by = aggregated_labels(target.sent)
    everything = set().union(*(METRIC_LABELS[one.metric] for one in selectors(target.sent)))
    assert used <= (everything if grouped_by is None else grouped_by)


@pytest.mark.needs("promtool")
def test_queries_are_valid_for_the_oldest_supported_prometheus(tmp_path):
    """promql-parser knows a newer grammar than Prometheus 2.42."""
    rules = [
        {"record": f"panel:{number}", "expr": target.sent} for number, target in enumerate(TARGETS)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_are_the_usual_ones_in_the_usual_order():
    assert list(VARIABLES) == ["datasource", "job", "model_name", "instance", "server"]
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for name in ("job", "instance"):
        assert VARIABLES[name]["allValue"] == ".+"
    # An unknown model is an empty label, and "All" models must not hide its server.
    assert VARIABLES["model_name"]["allValue"] == ".*"
    assert "allValue" not in VARIABLES["server"]


@pytest.mark.parametrize("name", ["job", "model_name", "instance", "server"])
def test_variable_reads_a_label_that_its_metric_has(name):
    variable = VARIABLES[name]
    assert variable["refresh"] == 2
    query = with_variables(variable["definition"], ALL_SELECTED)
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found
    [selector] = selectors(found[1])
    assert {found[2], *selector.matchers} <= METRIC_LABELS[selector.metric] | TARGET_LABELS


@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_grafana_knows_every_field():
    """Grafana ignores a misplaced option silently; its SDK drops it in a round trip."""
    # The import itself warns: the SDK prefers a schema that Grafana 10 to 12 cannot load.
    model = import_module("grafana_foundation_sdk.models.dashboard").Dashboard
    plugins.register_default_plugins()
    read_back = json.loads(json.dumps(model.from_json(BOARD), cls=JSONEncoder))
    lost = {path: value for path, value in _leaves(BOARD).items() if value is not None}
    kept = _leaves(read_back)
    assert {path for path, value in lost.items() if kept.get(path) != value} == set()


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


def _parsable(target: Any) -> str:
    chosen = {name: f"chosen_{name}" for name in ("job", "instance", "server", "model_name")}
    return with_variables(target["expr"], ALL_SELECTED | chosen)
