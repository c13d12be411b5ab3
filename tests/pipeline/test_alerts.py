"""The alert rules as written: usual in form, and using only what the agent declares.

When each of them fires is in `alerts/tests/`, which promtool runs.
"""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from alerts.gpus import CRITICAL_XIDS, FOLLOWING_XID
from alerts.output import (
    PROMETHEUS_RULE_PATH,
    REASONS_PATH,
    RULES_PATH,
    generated_files,
)
from tests.pipeline.catalogue import COUNTERS, METRIC_LABELS
from tests.pipeline.promql import (
    has_comparison,
    label_names,
    range_seconds,
    rate_arguments,
    selectors,
)
from tests.pipeline.result_labels import result_labels
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ServerState

ROOT = RULES_PATH.parents[1]
BOARDS = ROOT / "dashboards" / "grafana"
UNIT_TESTS = sorted((ROOT / "alerts" / "tests").glob("*.yml"))
SLOW_SCRAPE_SECONDS = 60
"""Prometheus' own default interval; compose and the examples here scrape more often."""

ROUTING_PATH = RULES_PATH.with_name("alertmanager.yml")
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES_PATH.read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDS = [rule for rule in RULES if "record" in rule]
PAGES_WITH_A_TICKET = (
    "VllmServerCrashed",
    "VllmServerRestartLimitReached",
    "VllmServerFailed",
    "VllmServerLoadStalled",
)
"""Of a server of which nobody said whether it is wanted, the page is a ticket."""


def _name(rule: dict[str, Any]) -> str:
    labels = rule.get("labels", {})
    return "-".join(filter(None, [rule.get("alert", rule.get("record")), *labels.values()]))


def _known_labels() -> dict[str, frozenset[str]]:
    """The labels of every metric, those that the rules record included."""
    known = {metric: frozenset(labels) for metric, labels in METRIC_LABELS.items()}
    for rule in RECORDS:
        known[rule["record"]] = result_labels(rule["expr"], known)
    return known


KNOWN_LABELS = _known_labels()
NAMES = sorted({alert["alert"] for alert in ALERTS})
each_rule = pytest.mark.parametrize("rule", RULES, ids=map(_name, RULES))
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=map(_name, ALERTS))
each_record = pytest.mark.parametrize("rule", RECORDS, ids=map(_name, RECORDS))


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
def test_rules_are_valid():
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES_PATH)


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_rules_fire_as_their_unit_tests_say(path, tmp_path):
    """As `promtool test rules alerts/tests/*.yml`, but without other rules: a third of the time."""
    text = path.read_text(encoding="utf-8")
    (tmp_path / RULES_PATH.name).write_text(yaml.safe_dump({"groups": _groups_for(text)}))
    (tmp_path / "tests").mkdir()
    unit_test = tmp_path / "tests" / path.name
    unit_test.write_text(text)
    promtool("test", "rules", unit_test)


def _groups_for(unit_test: str) -> list[dict[str, Any]]:
    """The groups with the rules that the unit test names; with all where it has a pattern."""
    if "alertname=~" in unit_test:
        return GROUPS

    def is_named(rule: dict[str, Any]) -> bool:
        return rule.get("alert", "VllmServerAvailabilityBurn") in unit_test

    return [group | {"rules": [*filter(is_named, group["rules"])]} for group in GROUPS]


def test_committed_files_are_what_the_generator_writes():
    for path, text in generated_files().items():
        assert path.read_text(encoding="utf-8") == text, path


def test_operator_gets_the_same_groups():
    document = yaml.safe_load(PROMETHEUS_RULE_PATH.read_text(encoding="utf-8"))
    assert document["apiVersion"] == "monitoring.coreos.com/v1"
    assert document["kind"] == "PrometheusRule"
    assert document["metadata"]["name"] == "vllm-agent"
    assert document["spec"] == {"groups": GROUPS}


def test_groups_have_names_of_their_own():
    names = [group["name"] for group in GROUPS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"vllm-agent(-\w+)*", name) for name in names)


def test_what_is_silenced_is_evaluated_with_what_silences_it_and_ends_first():
    """Where it ended later, it would come up for a moment at the end of what silenced it."""
    group, *others = ([rule["alert"] for rule in one["rules"] if "alert" in rule] for one in GROUPS)
    subjects = re.findall(r"^Vllm(Agent|Gpu|Server)", "\n".join(group), re.MULTILINE)
    assert subjects == sorted(subjects, reverse=True)
    assert len(subjects) == len(group)
    assert {name for names in others for name in names} == {"VllmServerAvailabilityBurn"}
    of_servers = [
        (source, target)
        for rule in yaml.safe_load(ROUTING_PATH.read_text(encoding="utf-8"))["inhibit_rules"]
        for source in set(group)
        for target in set(group) - {source}
        if source.startswith("VllmServer")
        and re.search(rf"\b{source}\b", " ".join(rule["source_matchers"]))
        and re.search(rf"\b{target}\b", " ".join(rule["target_matchers"]))
    ]
    assert len(of_servers) == 10
    for source, target in of_servers:
        assert group.index(target) < group.index(source), (source, target)


def test_restart_is_judged_after_the_crash_that_explains_it():
    names = [rule["alert"] for rule in GROUPS[0]["rules"]]
    for ended in ("VllmServerCrashed", "VllmServerRestartLimitReached"):
        assert names.index(ended) < names.index("VllmServerRestarted")


def test_page_of_a_burn_knows_every_other_page_of_a_server():
    """But for itself and slower burns, by their label: it would end itself."""
    pages = {alert["alert"] for alert in ALERTS if alert["labels"]["severity"] == "critical"}
    burns = [alert for alert in ALERTS if alert["alert"] == "VllmServerAvailabilityBurn"]
    told = [
        selector.matchers
        for alert in burns
        for selector in selectors(alert["expr"])
        if selector.metric == "ALERTS"
    ]
    assert [alert["labels"]["severity"] for alert in burns[: len(told)]] == ["critical"] * 2
    assert [matchers["long"] for matchers in told] == ["", "|1h"]
    for matchers in told:
        known = {name for name in pages if re.fullmatch(matchers["alertname"], name)}
        assert known == {name for name in pages if name.startswith("VllmServer")}


@each_alert
def test_alert_says_what_is_needed_and_no_more(alert):
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["alert"].startswith(("VllmServer", "VllmGpu", "VllmAgent"))


@each_alert
def test_summary_is_one_sentence_for_all(alert):
    assert re.fullmatch(r"[A-Z][^{}.]+\.", alert["annotations"]["summary"])


@each_alert
def test_description_says_who_and_what_to_do(alert):
    description = alert["annotations"]["description"]
    assert "$labels" in description
    assert description.endswith((".", "why.", "reason."))
    assert re.search(r"'vllm-agent \w|Look |systemctl|reset it|says what to do", description)


@each_alert
def test_no_label_changes_with_the_value(alert):
    """A label that changes makes a new alert, and `for` never ends."""
    assert not any("{{" in value for value in alert["labels"].values())


@each_alert
def test_expression_compares(alert):
    assert has_comparison(alert["expr"])


@each_rule
def test_expression_uses_metrics_and_labels_that_the_agent_declares(rule):
    used = selectors(rule["expr"])
    known = frozenset().union(*(KNOWN_LABELS[selector.metric] for selector in used))
    assert label_names(rule["expr"]) <= known
    for selector in used:
        assert set(selector.matchers) <= KNOWN_LABELS[selector.metric]


@each_rule
def test_rates_are_of_counters_only(rule):
    assert rate_arguments(rule["expr"]) <= COUNTERS


@each_rule
def test_windows_hold_enough_scrapes(rule):
    assert all(window >= 4 * SLOW_SCRAPE_SECONDS for window in range_seconds(rule["expr"]))


@pytest.mark.parametrize("name", ["VllmAgentDown", "VllmAgentAbsent"])
def test_loss_of_an_agent_outlasts_a_restart_of_prometheus(name):
    [alert] = [alert for alert in ALERTS if alert["alert"] == name]
    assert alert["for"] == "2m"


@each_alert
def test_alert_goes_on_until_a_lost_agent_is_told(alert):
    is_loss = alert["alert"] in {"VllmAgentDown", "VllmAgentAbsent"}
    assert alert.get("keep_firing_for") == (None if is_loss else "3m")


@each_alert
def test_templates_use_labels_that_the_result_has(alert):
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
    assert used <= result_labels(alert["expr"], KNOWN_LABELS)


@each_alert
def test_template_queries_use_metrics_and_labels_that_the_agent_declares(alert):
    description = alert["annotations"]["description"]
    queries = re.findall(r"printf `(?:\w+\((?:\d+, )?)?(\w+){(.*?)}.*?` (.*?)\| query", description)
    assert len(queries) == description.count("| query")
    for metric, matchers, arguments in queries:
        named = re.findall(r"(\w+)=%q", matchers)
        assert re.findall(r"\$labels\.(\w+)", arguments) == named
        assert set(named) <= METRIC_LABELS[metric]
    looked_up = r"printf `(?:topk\(1, )?(\w+){[^`]*` [^`]*label `(\w+)`"
    for metric, label in re.findall(looked_up, description):
        assert label in METRIC_LABELS[metric]


@each_rule
def test_values_in_matchers_exist(rule):
    closed: dict[str, set[str]] = {"reason": set(Reason), "state": set(ServerState)}
    for selector in selectors(rule["expr"]):
        for label in closed.keys() & selector.matchers.keys():
            assert set(selector.matchers[label].split("|")) <= closed[label]


@each_alert
def test_runbook_is_that_of_the_alert(alert):
    path = urlsplit(alert["annotations"]["runbook_url"]).path
    assert path.endswith(f"/blob/main/docs/runbooks/{alert['alert']}.md")


@each_alert
def test_dashboard_has_the_panel_and_the_variables_of_the_link(alert):
    link = urlsplit(re.sub(r"{{.*?}}", "value", alert["annotations"]["dashboard_url"]))
    board = json.loads((BOARDS / f"{Path(link.path).name}.json").read_text(encoding="utf-8"))
    chosen = parse_qs(link.query)
    assert int(chosen.pop("viewPanel")[0]) in {panel["id"] for panel in board["panels"]}
    variables = {f"var-{variable['name']}" for variable in board["templating"]["list"]}
    assert {"var-job"} <= chosen.keys() <= variables


@each_record
def test_record_is_named_for_its_level_and_what_it_was_made_by(rule):
    level, metric, operation = rule["record"].split(":")
    kept = result_labels(rule["expr"], KNOWN_LABELS)
    assert set(level.split("_")) <= kept <= {"job", *level.split("_")}
    assert metric.startswith("vllm_agent_")
    assert "_total" not in metric
    windows = {f"{window:g}" for window in range_seconds(rule["expr"])}
    assert len(windows) == (1 if operation.startswith("ratio_rate") else 0)


def test_every_record_is_used_or_is_for_overviews():
    used = {selector.metric for rule in RULES for selector in selectors(rule["expr"])}
    overviews = {rule["record"] for rule in GROUPS[-1]["rules"]}
    assert {rule["record"] for rule in RECORDS} - used == overviews


@each_alert
def test_alert_has_a_unit_test_where_it_fires_and_one_where_it_does_not(alert):
    """Those that fire are of this severity, and of the same window where there are several."""
    checks = [
        check["exp_alerts"] or []
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for check in test.get("alert_rule_test", [])
        if check["alertname"] == alert["alert"]
    ]
    fired = [one["exp_labels"] for expected in checks for one in expected]
    assert any(alert["labels"].items() <= labels.items() for labels in fired)
    assert [] in checks


def _severities(name: str) -> list[str]:
    return [alert["labels"]["severity"] for alert in ALERTS if alert["alert"] == name]


def test_ticket_takes_the_place_of_these_pages_only():
    both = {name for name in NAMES if _severities(name) == ["critical", "warning"]}
    assert both == {*PAGES_WITH_A_TICKET, "VllmGpuXid", "VllmServerRestarted"}
    assert _severities("VllmServerAvailabilityBurn") == ["critical"] * 2 + ["warning"] * 2


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("name", PAGES_WITH_A_TICKET)
def test_no_server_has_the_page_and_the_ticket(name, tmp_path):
    """Of servers that have every symptom: one is wanted, one is not, of one nobody said."""
    page, ticket = (alert["expr"] for alert in ALERTS if alert["alert"] == name)
    symptoms = (
        'vllm_agent_server_state{job="a", instance="i", server="SERVER", state="failed"}',
        'vllm_agent_server_state{job="a", instance="i", server="SERVER", state="crashed"}',
        'vllm_agent_server_failure_reason{job="a", instance="i", server="SERVER", reason="nccl"}',
        'vllm_agent_server_restart_limit_reached{job="a", instance="i", server="SERVER"}',
        'vllm_agent_load_stalled{job="a", instance="i", server="SERVER"}',
    )
    series = {
        symptom.replace("SERVER", server): 1
        for symptom in symptoms
        for server in ("wanted", "parked", "shell")
    }
    for server, is_wanted in (("wanted", 1), ("parked", 0)):
        series[f'vllm_agent_server_desired_up{{job="a", instance="i", server="{server}"}}'] = (
            is_wanted
        )

    def who(server: str) -> dict[str, Any]:
        return {"labels": f'{{server="{server}"}}', "value": 1}

    by_server = "count by (server) ({})"
    document = {
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": one, "values": f"{value}x5"} for one, value in series.items()
                ],
                "promql_expr_test": [
                    {"expr": by_server.format(expr), "eval_time": "2m", "exp_samples": [who(one)]}
                    for expr, one in ((page, "wanted"), (ticket, "shell"))
                ],
            }
        ]
    }
    path = tmp_path / "twins.yml"
    path.write_text(yaml.safe_dump(document))
    promtool("test", "rules", path)


def test_every_xid_is_a_page_or_a_ticket_but_the_one_that_only_follows():
    page, ticket = (alert["expr"] for alert in ALERTS if alert["alert"] == "VllmGpuXid")
    paged = re.findall(r'xid=~"(.*?)"', page)
    spared = re.findall(r'xid!~"(.*?)"', ticket)
    assert set(paged) == {"|".join(map(str, CRITICAL_XIDS))}
    assert set(spared) == {"|".join(map(str, (FOLLOWING_XID, *CRITICAL_XIDS)))}
    assert FOLLOWING_XID not in CRITICAL_XIDS
    # Those that docs/gpu.md says come from the program, and one that is a warning by NVIDIA.
    assert not {13, 31, 43, 63, 92, 94} & set(CRITICAL_XIDS)


def test_reasons_page_explains_every_reason():
    text = REASONS_PATH.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE) == list(Reason)


def test_descriptions_of_different_alerts_differ():
    texts = {alert["alert"]: alert["annotations"]["summary"] for alert in ALERTS}
    assert all(one != other for one, other in combinations(texts.values(), 2))
