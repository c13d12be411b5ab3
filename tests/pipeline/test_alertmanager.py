"""The shipped Alertmanager configuration: who is told, and what is silenced by what."""

from __future__ import annotations

import subprocess

import pytest

from tests.pipeline.processes import (
    SHIPPED_CONFIG,
    Alertmanager,
    Webhook,
    shipped_config_for,
    wait_until,
)

HOST = {"job": "vllm-agent", "instance": "gpu1:10060", "severity": "critical"}
AGENT_DOWN = HOST | {"alertname": "VllmAgentDown"}
CRASHED = HOST | {"alertname": "VllmServerCrashed", "server": "llama", "reason": "engine_died"}
LIMIT = HOST | {"alertname": "VllmServerRestartLimitReached", "server": "llama"}
DOWN = HOST | {"alertname": "VllmServerDown", "server": "llama"}
OTHER_HOST = {"instance": "gpu2:10060"}
OTHER_SERVER = {"server": "qwen"}


def amtool(*arguments: str) -> str:
    done = subprocess.run(["amtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alertmanager")
    with (
        Webhook() as webhook,
        Alertmanager(directory / "run", shipped_config_for(webhook, directory)) as running,
    ):
        yield running


@pytest.mark.needs("amtool")
def test_configuration_is_valid():
    amtool("check-config", str(SHIPPED_CONFIG))


@pytest.mark.needs("amtool")
@pytest.mark.parametrize(
    ("severity", "receiver"),
    [("critical", "page"), ("warning", "ticket"), ("info", "ticket"), ("", "ticket")],
)
def test_severity_decides_who_is_told(severity, receiver):
    route = ("config", "routes", "test", f"--config.file={SHIPPED_CONFIG}")
    told = amtool(*route, "alertname=VllmServerDown", f"severity={severity}")
    assert told == receiver


@pytest.mark.needs("prometheus-alertmanager")
@pytest.mark.parametrize(
    ("source", "target", "is_silenced"),
    [
        pytest.param(AGENT_DOWN, CRASHED, True, id="agent down, a crash behind it"),
        pytest.param(AGENT_DOWN, DOWN, True, id="agent down, a server down behind it"),
        pytest.param(AGENT_DOWN, CRASHED | OTHER_HOST, False, id="agent down, another host"),
        pytest.param(AGENT_DOWN, AGENT_DOWN | OTHER_HOST, False, id="agent down, other agent"),
        pytest.param(CRASHED, DOWN, True, id="crashed, same server down"),
        pytest.param(LIMIT, DOWN, True, id="limit reached, same server down"),
        pytest.param(CRASHED, DOWN | OTHER_SERVER, False, id="crashed, another server down"),
        pytest.param(CRASHED, DOWN | OTHER_HOST, False, id="crashed, same name elsewhere"),
        pytest.param(DOWN, CRASHED, False, id="down never silences the crash"),
        pytest.param(CRASHED, LIMIT, False, id="a crash leaves the limit page alone"),
    ],
)
def test_page_silences(alertmanager, request, source, target, is_silenced):
    case = request.node.callspec.id
    source, target = (_of_case(case, alert) for alert in (source, target))
    assert _silenced(alertmanager, case, source, target) is is_silenced


@pytest.mark.needs("prometheus-alertmanager")
def test_absent_agents_silence_no_host(alertmanager):
    """The alert of absent() has no instance; it must not match hosts that have one."""
    absent = {"alertname": "VllmAgentDown", "job": "vllm-agent", "severity": "critical"}
    assert not _silenced(alertmanager, "absent", absent, _of_case("absent", CRASHED))


def _of_case(case: str, alert: dict[str, str]) -> dict[str, str]:
    """One Alertmanager serves all cases, so each has hosts of its own."""
    return alert | {"instance": f"{case}: {alert['instance']}"}


def _silenced(alertmanager, case, source, target) -> bool:
    """Whether the target is silenced, once Alertmanager has surely seen the source.

    It takes alerts in order and in its own time: a pair that comes after them tells when it has.
    """
    alertmanager.post_alerts(source, target)
    last = [_of_case(f"after {case}", alert) for alert in (AGENT_DOWN, CRASHED)]
    alertmanager.post_alerts(*last)
    wait_until(lambda: _inhibited_by(alertmanager, last[1]), "the last pair is seen", 10)
    return bool(_inhibited_by(alertmanager, target))


def _inhibited_by(alertmanager, labels: dict[str, str]) -> list[str]:
    [found] = [alert for alert in alertmanager.alerts() if alert["labels"] == labels]
    inhibitors: list[str] = found["status"]["inhibitedBy"]
    return inhibitors
