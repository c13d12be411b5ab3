"""The rules for another installation, or another pace: the generator and its command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alerts.__main__ import main
from alerts.output import RULES_PATH, generated_files, prometheus_rule_text, rules_text
from alerts.rules import rule_groups
from alerts.site import Site
from alerts.timing import Timing, duration
from tests.pipeline.test_alerts import ROOT, promtool
from vllm_agent.host.gpu.faults import FAULT_SECONDS

OTHER = Site(
    "https://git.example.org/vllm-agent",
    "https://grafana.example.org",
    "gpu-hosts",
    0.999,
    {"release": "monitoring"},
)
NO_LABELS = (
    "re lease=monitoring",
    ".release=monitoring",
    "Example.org/release=monitoring",
    "a/b/release=monitoring",
    "/release=monitoring",
    f"{'a' * 254}/release=monitoring",
    f"{'a' * 64}=monitoring",
    "release=monitoring stack",
    "release=monitoring-",
    "release=größe",
    f"release={'a' * 64}",
)
UNIT_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1, "ms": 0.001}


def _alerts(text: str) -> list[dict]:
    groups = yaml.safe_load(text)["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_links_of_a_site_are_its_own():
    for alert in _alerts(rules_text(OTHER)):
        assert alert["annotations"]["runbook_url"].startswith(OTHER.repository_url)
        assert alert["annotations"]["dashboard_url"].startswith(OTHER.grafana_url)


def test_job_of_a_site_is_its_own():
    expressions = "\n".join(alert["expr"] for alert in _alerts(rules_text(OTHER)))
    assert set(re.findall(r'job="(.*?)"', expressions)) == {"gpu-hosts"}


def test_target_of_a_site_decides_how_fast_it_burns():
    burn, *_ = (
        alert
        for alert in _alerts(rules_text(OTHER))
        if alert["alert"] == "VllmServerAvailabilityBurn"
    )
    assert "ratio_rate1h > 0.0144" in burn["expr"]
    assert "99.9%" in burn["annotations"]["description"]


@pytest.mark.parametrize("target", [0.0, 1.0, 99.0])
def test_target_leaves_something_to_burn(target):
    with pytest.raises(ValueError, match="availability target"):
        Site(availability_target=target)


def test_labels_of_a_site_are_those_of_the_object():
    document = yaml.safe_load(prometheus_rule_text(OTHER))
    assert document["metadata"]["labels"] == {
        "app.kubernetes.io/name": "vllm-agent",
        "release": "monitoring",
    }
    assert all("release" not in alert["labels"] for alert in _alerts(rules_text(OTHER)))


@pytest.mark.parametrize("name", ["grafana_url", "repository_url"])
@pytest.mark.parametrize("url", ["", "example.org", "https://example.org/", "https://a b"])
def test_links_of_a_site_lead_somewhere(name, url):
    with pytest.raises(ValueError, match="is not http"):
        Site(**{name: url})


def test_counts_are_not_scaled():
    assert Timing().scaled(1 / 60).agent_restart_count == Timing().agent_restart_count


def test_as_shipped_is_scaled_by_one():
    assert Timing().scaled(1) == Timing()


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("factor", [1 / 60, 1 / 120, 2.5])
def test_scaled_rules_are_valid(factor, tmp_path):
    path = tmp_path / "rules.yml"
    path.write_text(rules_text(Site(), Timing().scaled(factor)))
    promtool("check", "rules", "--lint=all", "--lint-fatal", path)


def test_every_length_of_time_is_scaled():
    text = rules_text(Site(), Timing().scaled(1 / 60))
    lengths = re.findall(r"(?:for|interval): (\S+)|\[(\w+)\]|ratio_rate(\w+)", text)
    windows = {"5s", "30s", "1m", "2m", "6m", "24m", "1h12m"}
    others = {"1s", "2s", "3s", "10s", "15s", "20s", "3m"}
    assert {one for found in lengths for one in found if one} == windows | others
    assert re.findall(r"< (\d+)$", text, re.MULTILINE) == ["5", "5", "15", "5"]
    assert ", 1)" in text


def test_page_of_a_fault_outlasts_those_of_the_crashes_that_are_ascribed_to_it():
    timing = Timing()
    assert timing.xid_window_seconds > timing.crash_window_seconds + FAULT_SECONDS


def test_scaled_rules_are_the_same_otherwise():
    shipped, scaled = (
        [rule for group in rule_groups(Site(), timing) for rule in group.rules]
        for timing in (Timing(), Timing().scaled(1 / 60))
    )
    assert [type(rule) for rule in shipped] == [type(rule) for rule in scaled]
    assert [getattr(rule, "name", "") for rule in shipped] == [
        getattr(rule, "name", "") for rule in scaled
    ]


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(300, "5m"), (5400, "1h30m"), (86_400, "1d"), (2.5, "2s500ms"), (0.05, "50ms")],
)
def test_duration_is_written_as_prometheus_does(seconds, written):
    assert duration(seconds) == written


@given(st.integers(1, 10**10))
def test_duration_loses_nothing(milliseconds):
    parts = re.findall(r"(\d+)(ms|[dhms])", duration(milliseconds / 1000))
    total = sum(int(count) * UNIT_SECONDS[unit] for count, unit in parts)
    assert round(total * 1000) == milliseconds


def test_duration_of_nothing_is_refused():
    with pytest.raises(ValueError, match="too short"):
        duration(0.0004)


def test_command_prints_the_rules_of_a_site(capsys):
    assert main(["--stdout", "--job", "gpu-hosts", "--availability-target", "0.999"]) == 0
    assert capsys.readouterr().out == rules_text(Site(job="gpu-hosts", availability_target=0.999))


def test_command_prints_the_object_of_a_site(capsys):
    label = ["--label", "release=monitoring"]
    assert main(["--stdout", "--format", "prometheusrule", *label]) == 0
    expected = prometheus_rule_text(Site(labels={"release": "monitoring"}))
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("path", ["", "/grafana", "/team/grafana"])
def test_command_takes_urls_with_a_slash_at_the_end(capsys, path):
    url = f"https://example.org:3000{path}"
    assert main(["--stdout", "--grafana-url", f"{url}/"]) == 0
    assert capsys.readouterr().out == rules_text(Site(grafana_url=url))


@pytest.mark.parametrize(
    "label", ["release=", "release=a", "prometheus.io/Rule_set.1=kube-prometheus-stack"]
)
def test_command_takes_labels_that_kubernetes_does(capsys, label):
    assert main(["--stdout", "--format", "prometheusrule", "--label", label]) == 0
    name, _, value = label.partition("=")
    labels = yaml.safe_load(capsys.readouterr().out)["metadata"]["labels"]
    assert labels[name] == value


def test_command_ends_quietly_when_nobody_reads_on():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        command = [sys.executable, "-m", "alerts", "--stdout"]
        done = subprocess.run(
            command, cwd=ROOT, stdout=nobody, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_command_checks_the_committed_files():
    assert main(["--check"]) == 0
    assert RULES_PATH in generated_files()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--job", "gpu-hosts"], "goes with --stdout"),
        (["--format", "prometheusrule"], "goes with --stdout"),
        (["--stdout", "--label", "release"], "not NAME=VALUE"),
        (["--stdout", "--label", "release=monitoring"], "goes with a prometheusrule"),
        (["--stdout", "--availability-target", "99"], "not in (0, 1)"),
        (["--stdout", "--job", ""], "is empty"),
        (["--stdout", "--job", 'gpu"hosts'], "has a quote"),
        (["--stdout", "--job", "gpu\\hosts"], "a backslash"),
        (["--stdout", "--job", "gpu\nhosts"], "or a control"),
        (["--stdout", "--grafana-url", ""], "is not http(s)://"),
        (["--stdout", "--grafana-url", "grafana.example.org"], "is not http(s)://"),
        (["--stdout", "--grafana-url", "https://"], "is not http(s)://"),
        (["--stdout", "--grafana-url", "https://example.org//"], "is not http(s)://"),
        (["--stdout", "--grafana-url", "https://example.org/{{ $labels.job }}"], "without ? # { }"),
        (["--stdout", "--grafana-url", "https://example.org/?orgId=1"], "without ? # { }"),
        (["--stdout", "--repository-url", "https://example.org/{{"], "without ? # { }"),
        (["--stdout", "--repository-url", "ssh://example.org"], "is not http(s)://"),
        *(
            (["--stdout", "--format", "prometheusrule", "--label", label], "label of Kubernetes")
            for label in NO_LABELS
        ),
    ],
)
def test_command_refuses(capsys, arguments, complaint):
    with pytest.raises(SystemExit):
        main(arguments)
    assert complaint in capsys.readouterr().err
