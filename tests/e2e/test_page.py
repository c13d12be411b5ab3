"""From the death of a server to the page: real Prometheus, real Alertmanager, a webhook."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.pipeline.processes import (
    ROOT,
    Alertmanager,
    Prometheus,
    Webhook,
    shipped_config_for,
)
from vllm_agent.demo.launch import StandIn, free_port

if TYPE_CHECKING:
    from pathlib import Path

RULES = ROOT / "alerts" / "vllm-agent.rules.yml"
# Prometheus 2.42 as operators run it, but for the intervals: a second instead of 15.
INTERVAL = "1s"


@pytest.mark.needs("prometheus", "prometheus-alertmanager")
def test_a_killed_server_pages_and_a_planned_quiet_does_not(tmp_path: Path, record_property):
    """Two servers end in the same second: one is killed, one is stopped in maintenance."""
    ports = {"killed": free_port(), "planned": free_port()}
    servers = "".join(
        f"  - {{name: {name}, match: {{port: {port}}}}}\n" for name, port in ports.items()
    )
    with (
        StandIn.start(port=ports["killed"]) as killed,
        StandIn.start(port=ports["planned"]) as planned,
        AgentProcess(tmp_path, servers) as agent,
        Webhook() as webhook,
        Alertmanager(tmp_path / "am", shipped_config_for(webhook, tmp_path)) as alertmanager,
        Prometheus(
            tmp_path / "prometheus",
            scrape_interval=INTERVAL,
            evaluation_interval=INTERVAL,
            jobs={"vllm-agent": [f"127.0.0.1:{agent.port}"]},
            rule_files=[RULES],
            alertmanagers=[alertmanager.address],
        ) as prometheus,
    ):
        for name in ports:
            agent.wait_state(name, "running")
        prometheus.wait_for('vllm_agent_server_state{state="running"} == 1', 20)
        assert agent.cli("maintenance", "planned", "on").returncode == 0
        planned.terminate()
        killed.kill()
        killed_at = time.time()
        page = webhook.wait_for(lambda one: "VllmServerCrashed" in one.alert_names, 60)
        delay = page.arrived_at - killed_at
        print(f"SIGKILL to webhook: {delay:.2f} s at an interval of {INTERVAL}")
        record_property("SIGKILL to webhook, seconds", f"{delay:.2f}")
        assert page.path == "/page"
        [alert] = page.payload["alerts"]
        assert alert["labels"]["server"] == "killed"
        assert alert["labels"]["reason"] == "signal"
        assert "killed" in alert["annotations"]["description"]
        agent.wait_state("planned", "stopped")
        prometheus.wait_for('vllm_agent_server_state{server="planned",state="stopped"} == 1')
        firing = {alert["labels"].get("server") for alert in prometheus.alerts()}
        assert "planned" not in firing
        told = {a["labels"].get("server") for d in webhook.deliveries for a in d.payload["alerts"]}
        assert told == {"killed"}


@pytest.mark.needs("prometheus", "promtool")
def test_prometheus_stores_all_of_the_page_which_says_the_same_in_either_format(tmp_path: Path):
    """Prometheus 2.42 asks for OpenMetrics first."""
    with StandIn.start() as server:
        url = f"  - {{name: a, mode: external, url: '{server.url}'}}\n"
        with AgentProcess(tmp_path, url) as agent:
            agent.wait_state("a", "running")
            counts = []
            for accept in ("text/plain;version=0.0.4", "application/openmetrics-text"):
                status, headers, body = agent.get("/metrics", {"Accept": accept})
                assert status == 200
                assert headers["Content-Type"].startswith(accept.partition(";")[0])
                lines = body.decode().splitlines()
                counts.append(sum(line.startswith("vllm_agent_") for line in lines))
            jobs = {"vllm-agent": [f"127.0.0.1:{agent.port}"]}
            with Prometheus(tmp_path / "p", scrape_interval="500ms", jobs=jobs) as prometheus:
                prometheus.wait_for("up == 1", 20)
                stored = prometheus.query("count({job='vllm-agent', __name__=~'vllm_agent_.*'})")
                assert [int(stored[0]["value"][1])] * 2 == counts
                assert not prometheus.query("{__name__=~'.*_created'}")
