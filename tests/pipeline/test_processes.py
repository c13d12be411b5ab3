"""The fixtures that run real Prometheus and Alertmanager do what their users rely on."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.pipeline.processes import (
    Alertmanager,
    ProgramError,
    Prometheus,
    Target,
    Webhook,
    shipped_config_for,
)


def _post(url: str, payload: object) -> None:
    with urllib.request.urlopen(url, data=json.dumps(payload).encode(), timeout=5):
        pass


def test_webhook_returns_a_delivery_that_came_before_it_was_asked_for():
    with Webhook() as webhook:
        _post(f"{webhook.url}/page", {"alerts": [{"labels": {"alertname": "VllmAgentDown"}}]})
        delivery = webhook.wait_for(lambda one: "VllmAgentDown" in one.alert_names)
    assert delivery.path == "/page"
    assert webhook.deliveries == [delivery]


def test_webhook_wakes_a_waiter_when_the_delivery_comes():
    with Webhook() as webhook, ThreadPoolExecutor() as pool:
        waiter = pool.submit(webhook.wait_for, lambda one: one.path == "/second", 10)
        _post(f"{webhook.url}/first", {})
        _post(f"{webhook.url}/second", {})
        assert waiter.result(5).path == "/second"


def test_webhook_names_what_came_instead():
    with Webhook() as webhook:
        _post(f"{webhook.url}/ticket", {})
        with pytest.raises(TimeoutError, match="/ticket"):
            webhook.wait_for(lambda one: one.path == "/page", 0.05)


@pytest.mark.needs("prometheus")
def test_prometheus_scrapes_its_jobs(tmp_path):
    # Port 9 (discard) of loopback: nobody serves HTTP there.
    jobs = {"gone": ["127.0.0.1:9"]}
    with Prometheus(tmp_path, scrape_interval="100ms", jobs=jobs) as prometheus:
        [series] = prometheus.wait_for('up{job="gone"}')
        assert series["metric"]["instance"] == "127.0.0.1:9"
        assert series["value"][1] == "0"
        assert prometheus.alerts() == []


@pytest.mark.needs("prometheus")
def test_prometheus_scrapes_a_target_under_its_name_and_at_its_pace(tmp_path):
    often, seldom = (
        Target(address="127.0.0.1:9", job="gone", instance=name, scrape_interval=interval)
        for name, interval in (("often", "100ms"), ("seldom", "1h"))
    )
    with Prometheus(tmp_path, scrape_interval="1h", targets=[often, seldom]) as prometheus:
        prometheus.wait_for('count_over_time(up{job="gone", instance="often"}[1m]) > 2')
        assert len(prometheus.query('count_over_time(up{instance="seldom"}[1m]) > 1')) == 0


@pytest.mark.needs("prometheus")
def test_prometheus_that_does_not_start_shows_its_log(tmp_path):
    rules = tmp_path / "broken.yml"
    rules.write_text("groups: [{name: a, rules: [{alert: A, expr: '1 +'}]}]")
    with (
        pytest.raises(ProgramError, match="parse error"),
        Prometheus(tmp_path / "run", rule_files=[rules]),
    ):
        pass


@pytest.mark.needs("prometheus")
def test_prometheus_ends_with_its_block(tmp_path):
    with Prometheus(tmp_path) as prometheus:
        process = prometheus._process
        assert process is not None
        assert process.poll() is None
    assert process.poll() is not None


@pytest.mark.needs("prometheus-alertmanager")
def test_alertmanager_delivers_to_the_webhook(tmp_path):
    with (
        Webhook() as webhook,
        Alertmanager(tmp_path / "run", shipped_config_for(webhook, tmp_path)) as alertmanager,
    ):
        alertmanager.post_alerts({"alertname": "VllmServerCrashed", "severity": "critical"})
        delivery = webhook.wait_for(lambda one: one.path == "/page")
    assert delivery.alert_names == {"VllmServerCrashed"}
    assert delivery.payload["receiver"] == "page"
