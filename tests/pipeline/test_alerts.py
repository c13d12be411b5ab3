"""The alert rules: valid for Prometheus 2.42, tested one by one, and written as is usual."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from alerts.output import REASONS_PATH, RULES_PATH, generated_files, rules_text
from alerts.rules import Site, alert_rules
from dashboards.fleet import UID
from dashboards.output import stale_files
from tests.pipeline.catalogue import METRIC_LABELS
from tests.pipeline.promql import has_comparison, label_names, rate_arguments, selectors
from vllm_agent.lifecycle.reasons import Reason

ROOT = RULES_PATH.parents[1]
RUNBOOKS = ROOT / "docs" / "runbooks"
UNIT_TESTS = sorted((ROOT / "alerts" / "tests").glob("*.yml"))
RULES = [
    rule
    for group in yaml.safe_load(RULES_PATH.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]

each_rule = pytest.mark.parametrize("rule", RULES, ids=NAMES)


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
def test_rules_fire_as_their_unit_tests_say(path):
    promtool("test", "rules", path)


def test_committed_files_are_what_the_generator_writes():
    assert stale_files(generated_files()) == []


def test_pages_are_these_four():
    assert NAMES == [
        "VllmServerCrashed",
        "VllmServerRestartLimitReached",
        "VllmServerDown",
        "VllmAgentDown",
    ]


@each_rule
def test_alert_has_a_unit_test_where_it_fires_and_one_where_it_does_not(rule):
    checks = [
        bool(check["exp_alerts"])
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for check in test["alert_rule_test"]
        if check["alertname"] == rule["alert"]
    ]
    assert set(checks) == {True, False}


@each_rule
def test_alert_is_a_page_with_text_and_links(rule):
    assert rule["labels"] == {"severity": "critical"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert re.fullmatch(r"A [^{}]+\.", rule["annotations"]["summary"])
    assert "$labels" in rule["annotations"]["description"]
    assert UID in rule["annotations"]["dashboard_url"]


@each_rule
def test_no_label_changes_with_the_value(rule):
    """A label that changes makes a new alert, and `for` never ends."""
    assert not any("$value" in value for value in rule["labels"].values())


@each_rule
def test_expression_compares(rule):
    assert has_comparison(rule["expr"])


@each_rule
def test_expression_uses_metrics_and_labels_that_the_agent_declares(rule):
    used = selectors(rule["expr"])
    known = set().union(*(METRIC_LABELS[selector.metric] for selector in used))
    assert label_names(rule["expr"]) <= known
    for selector in used:
        assert set(selector.matchers) <= METRIC_LABELS[selector.metric]


@each_rule
def test_rates_are_of_counters_only(rule):
    assert all(metric.endswith("_total") for metric in rate_arguments(rule["expr"]))


@each_rule
def test_templates_use_labels_that_the_series_carry(rule):
    templates = " ".join(rule["annotations"].values())
    known = set().union(*(METRIC_LABELS[one.metric] for one in selectors(rule["expr"])))
    # The link to the dashboard is the same for all and leaves out what is not there.
    used = set(re.findall(r"\$labels\.(\w+)", templates)) - {"server"}
    assert used <= known


@each_rule
def test_template_queries_use_metrics_and_labels_that_the_agent_declares(rule):
    templates = " ".join(rule["annotations"].values())
    for metric, matchers, label in re.findall(
        r"printf `(\w+){(.*?)} == 1`.*?label `(\w+)`", templates
    ):
        assert set(re.findall(r"(\w+)=%q", matchers)) | {label} <= METRIC_LABELS[metric]


@each_rule
def test_reasons_in_matchers_exist(rule):
    for selector in selectors(rule["expr"]):
        reasons = selector.matchers.get("reason", "unknown").split("|")
        assert set(reasons) <= set(Reason)


@each_rule
def test_runbook_exists(rule):
    path = urlsplit(rule["annotations"]["runbook_url"]).path
    assert (RUNBOOKS / Path(path).name).is_file()


def test_every_runbook_belongs_to_an_alert():
    assert {path.stem for path in RUNBOOKS.glob("Vllm*.md")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_runbook_has_the_four_parts(name):
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##? (.+)$", text, flags=re.MULTILINE)
    assert headings == [name, "Meaning", "Confirm", "Likely causes", "What to do"]


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_links_of_runbooks_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_queries_of_runbooks_use_metrics_that_the_agent_declares(name):
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    queries = re.findall(r"^```promql\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert queries
    for line in "".join(queries).splitlines():
        for selector in selectors(line):
            assert set(selector.matchers) <= METRIC_LABELS[selector.metric]


def test_reasons_page_explains_every_reason():
    text = REASONS_PATH.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE) == list(Reason)


def test_links_and_job_of_a_site_are_set_in_one_place():
    site = Site("https://git.example.org/vllm-agent", "https://grafana.example.org", "gpu-hosts")
    rules: list[dict[str, Any]] = yaml.safe_load(rules_text(site))["groups"][0]["rules"]
    for rule in rules:
        assert rule["annotations"]["runbook_url"].startswith(site.repository_url)
        assert rule["annotations"]["dashboard_url"].startswith(site.grafana_url)
    assert 'up{job="gpu-hosts"}' in rules[-1]["expr"]
    assert len(rules) == len(alert_rules(site))
