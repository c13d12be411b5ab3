"""What the dashboards ask: only what the agent declares, as the viewer chose, in 2.42's grammar."""

from __future__ import annotations

import re
import subprocess
from itertools import chain
from types import MappingProxyType

import promql_parser
import pytest
import yaml

from dashboards.queries import label_values, metric
from tests.pipeline.boards import ALL_SELECTED, BOARDS, TARGETS, Annotation, Target
from tests.pipeline.catalogue import COUNTERS, METRIC_LABELS, TARGET_LABELS
from tests.pipeline.linter import FROM_FIRST_EVENT
from tests.pipeline.promql import label_names, nodes, rate_arguments, selectors, with_variables
from tests.pipeline.result_labels import result_labels
from vllm_agent.expose.family import PREFIX

CHOSEN = MappingProxyType(
    dict(ALL_SELECTED)
    | {name: f"chosen_{name}" for name in ("job", "instance", "server", "model_name", "gpu")}
)
LIFETIME = frozenset(
    {"vllm_agent_load_duration_seconds_sum", "vllm_agent_load_duration_seconds_count"}
)
"""A server loads once in days: its mean load is one of all its loads, as in the alert on it."""
NOT_SHOWN = MappingProxyType(
    {
        "vllm_agent_collector_last_success_timestamp_seconds": "the timeline shows when it stopped",
        "vllm_agent_load_duration_seconds_bucket": "too few loads for quantiles",
        "vllm_agent_probe_last_success_timestamp_seconds": "the timeline shows when it failed",
        "vllm_agent_probe_requests_total": "the configuration says how often",
        "vllm_agent_server_state_seconds_total": "the timeline shows it",
        "vllm_agent_server_state_transitions_total": "the timeline shows them",
    }
)
"""Metrics that no dashboard shows, and why."""
ANNOTATIONS = list(chain.from_iterable(board.annotations for board in BOARDS.values()))
QUERIES: list[Target | Annotation] = [*TARGETS, *ANNOTATIONS]
PANELS = [panel for board in BOARDS.values() for panel in board.panels.values()]

each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.title)
each_query = pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.title)
each_variable = pytest.mark.parametrize(
    ("board", "name"),
    [
        (board, name)
        for board in BOARDS.values()
        for name, variable in board.variables.items()
        if variable["type"] == "query"
    ],
)


def test_a_metric_or_label_that_is_not_declared_stops_the_generator():
    with pytest.raises(KeyError, match="server_sate"):
        metric("server_sate")
    with pytest.raises(KeyError, match="load_duration_seconds"):
        metric("load_duration_seconds")
    with pytest.raises(ValueError, match=r"stat$"):
        metric("server_state", stat="running")
    with pytest.raises(KeyError, match="build"):
        label_values("build", "job")
    with pytest.raises(ValueError, match=r"server$"):
        label_values("build_info", "job", "server")


def test_a_selector_follows_the_variables_that_its_metric_has():
    assert metric("server_state", state=("failed", "crashed")) == (
        'vllm_agent_server_state{job=~"$job", instance=~"$instance", server=~"$server", '
        'state=~"failed|crashed"}'
    )
    assert metric("gpu_power_watts", chosen=("gpu",)) == (
        'vllm_agent_gpu_power_watts{job=~"$job", instance=~"$instance", gpu=~"$gpu"}'
    )


@each_query
def test_query_uses_declared_metrics_and_labels(query):
    used = selectors(query.sent)
    for selector in used:
        assert set(selector.matchers) <= METRIC_LABELS[selector.metric]
    known = set().union(*(METRIC_LABELS[selector.metric] for selector in used))
    assert label_names(query.sent) <= known


@each_query
def test_query_follows_the_variables(query):
    for selector in selectors(with_variables(query.expr, CHOSEN)):
        for label in {"job", "instance", "server", "gpu"} & METRIC_LABELS[selector.metric]:
            if label in query.board.variables:
                assert selector.matchers[label] == f"chosen_{label}"


@each_query
def test_counters_are_shown_as_rates_and_nothing_else_is(query):
    used = {selector.metric for selector in selectors(query.sent)}
    assert (used & COUNTERS) - LIFETIME - {*FROM_FIRST_EVENT} == rate_arguments(query.sent)


@each_target
def test_windows_follow_the_zoom(target):
    """A fixed window is right only where the title states it."""
    windows = set(re.findall(r"\[(.*?)\]", target.expr))
    if "last hour" in target.panel["title"]:
        assert windows == {"1h"}
    else:
        assert windows <= {"$__range" if target.target["instant"] else "$__rate_interval"}


@each_target
def test_query_asks_for_what_its_panel_draws(target):
    is_over_time = target.panel["type"] in {"timeseries", "state-timeline"}
    assert target.target["range"] is is_over_time
    assert target.target["instant"] is not is_over_time
    assert (target.target["format"] == "table") == (target.panel["type"] == "table")


@each_target
def test_legend_uses_labels_of_the_result(target):
    used = set(re.findall(r"{{(\w+)}}", target.target["legendFormat"]))
    assert used <= _result_labels(target.sent)


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=lambda annotation: annotation.title)
def test_annotation_names_labels_of_the_result(annotation):
    drawn = annotation.json
    used = set(re.findall(r"{{(\w+)}}", drawn["titleFormat"] + drawn["textFormat"]))
    assert used | {drawn["tagKeys"]} - {"server"} <= _result_labels(annotation.sent)


@each_query
def test_no_sum_of_ratios(query):
    """Two servers at 40 % are not one at 80 %."""
    for node in nodes(query.sent):
        if isinstance(node, promql_parser.AggregateExpr) and str(node.op).startswith("sum"):
            names = {one.metric for one in selectors(node.prettify())}
            assert not {name for name in names if name.endswith("_ratio")}


@each_query
def test_nothing_is_filled_with_zero(query):
    """Where there is no data a graph has a gap, and a number says so: 0 would be a measurement."""
    assert "vector(" not in query.expr


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_description_names_the_metrics(panel):
    named = set(re.findall(r"`(\w+)`", panel["description"]))
    used = {
        one.metric
        for target in panel["targets"]
        for one in selectors(with_variables(target["expr"], ALL_SELECTED))
    }
    assert named & used
    assert named <= used


def test_every_metric_is_shown_somewhere():
    """What nobody can look at need not be measured; what is left out here has a reason."""
    used = {selector.metric for query in QUERIES for selector in selectors(query.sent)}
    own = {name for name in METRIC_LABELS if name.startswith(PREFIX)}
    assert own - used == NOT_SHOWN.keys()


@each_variable
def test_variable_reads_a_label_that_its_metric_has(board, name):
    variable = board.variables[name]
    assert variable["definition"] == variable["query"]["query"]
    query = with_variables(variable["definition"], ALL_SELECTED)
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found
    [selector] = selectors(found[1])
    assert {found[2], *selector.matchers} <= METRIC_LABELS[selector.metric] | TARGET_LABELS


@each_variable
def test_variable_depends_on_earlier_ones_only(board, name):
    names = list(board.variables)
    used = set(re.findall(r"\$(\w+)", board.variables[name]["definition"]))
    assert used <= set(names[: names.index(name)])


@pytest.mark.needs("promtool")
def test_queries_are_valid_for_the_oldest_supported_prometheus(tmp_path):
    """promql-parser knows a newer grammar than Prometheus 2.42."""
    rules = [
        {"record": f"query:{number}", "expr": query.sent} for number, query in enumerate(QUERIES)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _result_labels(expr: str) -> frozenset[str]:
    return result_labels(expr, METRIC_LABELS)
