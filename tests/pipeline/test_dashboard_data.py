"""Each panel of the Fleet dashboard, asked of a real Prometheus that holds a known history."""

from __future__ import annotations

import math
import re

import pytest

from dashboards.states import STATE_STYLES
from tests.pipeline import scenario
from tests.pipeline.boards import ALL_SELECTED, PANELS, TARGETS, VARIABLES, Target
from tests.pipeline.processes import Prometheus
from tests.pipeline.promql import with_variables
from vllm_agent.lifecycle.states import ServerState

pytestmark = pytest.mark.needs("promtool", "prometheus")

CODE = {style.state: style.code for style in STATE_STYLES}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fleet")
    with Prometheus(directory, storage=scenario.write_blocks(directory)) as running:
        yield running


def _targets(panel_id: int) -> list[Target]:
    return [target for target in TARGETS if target.panel["id"] == panel_id]


def _now(prometheus: Prometheus, target: Target) -> list[tuple[dict[str, str], float]]:
    series = prometheus.query(target.sent, scenario.END)
    return [(one["metric"], float(one["value"][1])) for one in series]


def _over_time(prometheus: Prometheus, target: Target) -> dict[str, list[float]]:
    """Legend → values, one per minute."""
    series = prometheus.query_range(target.sent, scenario.START, scenario.END, 60)
    legend = target.target["legendFormat"]
    return {
        _legend(legend, one["metric"]): [float(value) for _, value in one["values"]]
        for one in series
    }


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels[found[1]], template)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.title)
def test_panel_has_data(prometheus, target):
    values = (
        [value for _, value in _now(prometheus, target)]
        if target.target["instant"]
        else [value for series in _over_time(prometheus, target).values() for value in series]
    )
    assert values
    assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize(
    ("panel_id", "shown"), [(1, [2, 3]), (2, [1]), (3, [1]), (4, [1]), (6, [1])]
)
def test_number_is_right(prometheus, panel_id, shown):
    """Whole fleet at the end: two of three run, one failed for good, one agent is down."""
    values = [value for target in _targets(panel_id) for _, value in _now(prometheus, target)]
    assert values == shown


def test_availability_is_a_share_of_the_desired_time(prometheus):
    [(_, share)] = _now(prometheus, _targets(5)[0])
    # llama lost 5 of 120 minutes, qwen all, remote none.
    assert share == pytest.approx((115 + 0 + 120) / 360, abs=0.01)


def test_timeline_has_a_row_per_server_with_its_states(prometheus):
    rows = _over_time(prometheus, _targets(10)[0])
    assert rows == {
        "llama (gpu1:10060)": [CODE[scenario.llama_state(minute)] for minute in range(121)],
        "qwen (gpu1:10060)": [CODE[ServerState.FAILED]] * 121,
        "remote (gpu1:10060)": [CODE[ServerState.RUNNING]] * 121,
    }


def test_table_has_a_row_per_server_with_all_its_columns(prometheus):
    rows = {labels["server"]: (labels, at) for labels, at in _now(prometheus, _targets(11)[0])}
    assert set(rows) == {"llama", "qwen", "remote"}
    labels, since = rows["qwen"]
    assert (labels["state"], labels["reason"]) == ("failed", "gpu_oom")
    assert "model_name" not in labels  # an empty label, which Prometheus does not keep
    assert since == scenario.START * 1000
    labels, since = rows["llama"]
    assert labels["state"] == "running"
    assert "reason" not in labels
    assert labels["model_name"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert since == (scenario.START + 65 * 60) * 1000
    [rename] = [
        step["options"]["renameByName"]
        for step in PANELS[11]["transformations"]
        if step["id"] == "organize"
    ]
    assert set(rename) == set(labels | {"reason": ""}) - {"job"} | {"Value"}


def test_graphs_count_whole_events(prometheus):
    assert set(_over_time(prometheus, _targets(20)[0])) == {"engine_died"}
    assert set(_over_time(prometheus, _targets(20)[0])["engine_died"]) == {1}
    assert set(_over_time(prometheus, _targets(21)[0])) == {"llama by outside"}
    assert set(_over_time(prometheus, _targets(23)[0])) == {"qwen health: refused"}


def test_last_crash_is_when_it_happened(prometheus):
    [(labels, crashed)] = _now(prometheus, _targets(22)[0])
    assert (labels["server"], labels["reason"]) == ("llama", "engine_died")
    assert crashed == (scenario.CRASHED_AT - 5) * 1000


def test_a_collector_that_is_down_shows(prometheus):
    rows = _over_time(prometheus, _targets(30)[0])
    assert len(rows) == 6
    assert rows["gpu (gpu1:10060)"] == [1] * 30 + [0] * 91


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("job", ["vllm-agent"]),
        ("model_name", ["meta-llama/Llama-3.1-8B-Instruct"]),
        ("instance", ["gpu1:10060"]),
        ("server", ["llama", "qwen", "remote"]),
    ],
)
def test_variable_offers_what_there_is(prometheus, name, values):
    query = with_variables(VARIABLES[name]["definition"], ALL_SELECTED)
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found
    window = {"match[]": found[1], "start": scenario.START, "end": scenario.END}
    assert prometheus.get(f"/api/v1/label/{found[2]}/values", window)["data"] == values


def test_choosing_a_model_narrows_the_servers(prometheus):
    chosen = ALL_SELECTED | {"model_name": "meta-llama/.*"}
    query = with_variables(VARIABLES["server"]["definition"], chosen)
    match = query.removeprefix("label_values(").removesuffix(", server)")
    window = {"match[]": match, "start": scenario.START, "end": scenario.END}
    assert prometheus.get("/api/v1/label/server/values", window)["data"] == ["llama", "remote"]
