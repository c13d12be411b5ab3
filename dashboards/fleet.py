"""The Fleet dashboard: every vLLM server the agents watch, what it does now and why it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dashboards.panels import (
    Area,
    Column,
    Json,
    Panel,
    Threshold,
    datasource_variable,
    instant,
    instant_table,
    over_time,
    query_variable,
    stat,
    state_timeline,
    table,
    timeseries,
)
from dashboards.states import code_mappings, state_code_query, word_mappings

if TYPE_CHECKING:
    from collections.abc import Sequence

# Links in alerts and runbooks lead here, so it stays when the title changes.
UID: Final = "vllm-agent-fleet"
PATH: Final = Path(__file__).parent / "grafana" / f"{UID}.json"
# vLLM's own dashboards have this classic schema and are tested with Grafana 10.4, 11.6 and 13.2.
SCHEMA_VERSION: Final = 39

_AGENTS = 'job=~"$job", instance=~"$instance"'
_SERVERS = f'{_AGENTS}, server=~"$server"'
_SAME_SERVER = "on (job, instance, server)"
_GOOD_WHEN_ZERO: Final[Sequence[Threshold]] = ((None, "green"), (1.0, "red"))
# Bars count events per interval; narrower ones would be shorter than a scrape can resolve.
_BAR_INTERVAL = "5m"


def generated_files() -> dict[Path, str]:
    """Every file of this package and the text that belongs into it."""
    return {PATH: text()}


def text() -> str:
    """The dashboard's file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def dashboard() -> Json:
    """The dashboard in Grafana's classic JSON model."""
    return {
        "uid": UID,
        "title": "vLLM / Fleet",
        "description": "State, crashes and restarts of vLLM servers, as vllm-agent sees them.",
        "tags": ["vllm", "vllm-agent"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "vLLM dashboards",
                "tags": ["vllm"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": [*_stat_row(), *_states(), *_endings(), _collectors()],
    }


def _variables() -> list[Json]:
    # A server whose model is not known yet has an empty model_name; ".*" keeps it, ".+" would not.
    # `server` has no such pattern: its "All" has to be the servers of the chosen models.
    return [
        datasource_variable(),
        query_variable("job", "Job", "label_values(vllm_agent_build_info, job)", all_value=".+"),
        query_variable(
            "model_name",
            "Model",
            'label_values(vllm_agent_server_info{job=~"$job"}, model_name)',
            all_value=".*",
        ),
        query_variable(
            "instance",
            "Instance",
            'label_values(vllm_agent_build_info{job=~"$job"}, instance)',
            all_value=".+",
        ),
        query_variable(
            "server",
            "Server",
            f'label_values(vllm_agent_server_info{{{_AGENTS}, model_name=~"$model_name"}}, server)',
            all_value=None,
        ),
    ]


def _stat_row() -> list[Json]:
    return [
        _running_and_desired(),
        _number(
            2,
            "Crashed or failed now",
            "Servers in state crashed or failed (`vllm_agent_server_state`).",
            Area(6, 0, 4, 4),
            f'sum(vllm_agent_server_state{{state=~"crashed|failed", {_SERVERS}}})',
            thresholds=_GOOD_WHEN_ZERO,
        ),
        _number(
            3,
            "Restarts in the last hour",
            "Launches after a server's first, whoever caused them "
            "(`vllm_agent_server_restarts_total`).",
            Area(10, 0, 4, 4),
            f"round(sum(increase(vllm_agent_server_restarts_total{{{_SERVERS}}}[1h])))",
        ),
        _number(
            4,
            "Restart limit reached",
            "Servers that need more restarts than their budget allows "
            "(`vllm_agent_server_restart_limit_reached`).",
            Area(14, 0, 4, 4),
            f"sum(vllm_agent_server_restart_limit_reached{{{_SERVERS}}})",
            thresholds=_GOOD_WHEN_ZERO,
        ),
        _availability(),
        _number(
            6,
            "Agents down",
            "Agents that Prometheus cannot scrape (`up`). "
            "What the panels below show of their servers ends there.",
            Area(21, 0, 3, 4),
            f"sum(1 - up{{{_AGENTS}}})",
            no_value="No agents",
            thresholds=_GOOD_WHEN_ZERO,
        ),
    ]


def _number(
    panel_id: int,
    title: str,
    description: str,
    area: Area,
    expr: str,
    *,
    no_value: str = "No servers",
    thresholds: Sequence[Threshold] = (),
) -> Json:
    panel = Panel(panel_id, title, description, area, "none", no_value, thresholds=thresholds)
    return stat(panel, [instant("A", expr)], text_mode="value")


def _running_and_desired() -> Json:
    panel = Panel(
        1,
        "Servers running",
        "Servers in state running, beside those that should be "
        "(`vllm_agent_server_state`, `vllm_agent_server_desired_up`). "
        "A server started by hand in a shell runs without being desired.",
        Area(0, 0, 6, 4),
        "none",
        "None",
    )
    running = f'sum(vllm_agent_server_state{{state="running", {_SERVERS}}})'
    desired = f"sum(vllm_agent_server_desired_up{{{_SERVERS}}})"
    return stat(panel, [instant("A", running, "Running"), instant("B", desired, "Desired")])


def _availability() -> Json:
    panel = Panel(
        5,
        "Availability",
        "Share of the desired time in the chosen range in which the servers ran "
        "(`vllm_agent_server_available_seconds_total` by "
        "`vllm_agent_server_desired_seconds_total`).",
        Area(18, 0, 3, 4),
        "percentunit",
        "Nothing desired",
    )
    available = f"sum(increase(vllm_agent_server_available_seconds_total{{{_SERVERS}}}[$__range]))"
    desired = f"sum(increase(vllm_agent_server_desired_seconds_total{{{_SERVERS}}}[$__range]))"
    return stat(panel, [instant("A", f"{available} / ({desired} > 0)")], text_mode="value")


def _states() -> list[Json]:
    return [_timeline(), _server_table()]


def _timeline() -> Json:
    panel = Panel(
        10,
        "State of each server",
        "One row per server from `vllm_agent_server_state`. "
        "A gap means that the agent was not scraped, not that the server was down.",
        Area(0, 4, 24, 8),
        "none",
        "No servers",
        mappings=code_mappings(),
    )
    legend = "{{server}} ({{instance}})"
    return state_timeline(panel, [over_time("A", state_code_query(_SERVERS), legend)])


def _server_table() -> Json:
    panel = Panel(
        11,
        "Servers",
        "What each server is and does now: `vllm_agent_server_info` with the state, "
        "the reason while it is failed or crashed, and when the state was entered.",
        Area(0, 12, 24, 8),
        "none",
        "No servers",
    )
    columns = [
        Column("server", "Server"),
        Column("state", "State", mappings=word_mappings()),
        Column("reason", "Reason"),
        Column("value", "Since", unit="dateTimeFromNow"),
        Column("model_name", "Model"),
        Column("version", "Version"),
        Column("mode", "Mode"),
        Column("url", "URL"),
        Column("instance", "Instance"),
    ]
    return table(panel, instant_table("A", _servers()), columns)


def _servers() -> str:
    # A healthy server has no reason series; its state series stands in, which has no such label.
    state = f"vllm_agent_server_state{{{_SERVERS}}} == 1"
    reason = f"vllm_agent_server_failure_reason{{{_SERVERS}}} == 1"
    return (
        f"1000 * vllm_agent_server_state_entered_timestamp_seconds{{{_SERVERS}}}"
        f" * {_SAME_SERVER} group_left (mode, model_name, version, url)"
        f" vllm_agent_server_info{{{_SERVERS}}}"
        f" * {_SAME_SERVER} group_left (state) ({state})"
        f" * {_SAME_SERVER} group_left (reason) ({reason} or {_SAME_SERVER} {state})"
    )


def _endings() -> list[Json]:
    return [_crashes(), _restarts(), _last_crashes(), _probe_failures()]


def _crashes() -> Json:
    panel = Panel(
        20,
        "Crashes by reason",
        "Crashes per interval (`vllm_agent_server_crashes_total`). "
        "The runbook of VllmServerCrashed says what each reason means.",
        Area(0, 20, 12, 8),
        "none",
        "No crashes",
        interval=_BAR_INTERVAL,
    )
    expr = _events("vllm_agent_server_crashes_total", "reason")
    return timeseries(panel, [over_time("A", expr, "{{reason}}")], bars=True)


def _restarts() -> Json:
    panel = Panel(
        21,
        "Restarts by initiator",
        "Launches after the first, per interval, by who caused them "
        "(`vllm_agent_server_restarts_total`); outside is systemd, Docker, "
        "Kubernetes or a person.",
        Area(12, 20, 12, 8),
        "none",
        "No restarts",
        interval=_BAR_INTERVAL,
    )
    expr = _events("vllm_agent_server_restarts_total", "server, initiator")
    return timeseries(panel, [over_time("A", expr, "{{server}} by {{initiator}}")], bars=True)


def _last_crashes() -> Json:
    panel = Panel(
        22,
        "Last crash of each server and reason",
        "When a server last crashed for a reason, kept across restarts of the agent "
        "(`vllm_agent_server_last_crash_timestamp_seconds`).",
        Area(0, 28, 12, 8),
        "none",
        "No crashes",
    )
    expr = f"1000 * vllm_agent_server_last_crash_timestamp_seconds{{{_SERVERS}}}"
    columns = [
        Column("value", "Crashed", unit="dateTimeFromNow"),
        Column("server", "Server"),
        Column("reason", "Reason"),
        Column("instance", "Instance"),
    ]
    return table(panel, instant_table("A", expr), columns, newest_first="Crashed")


def _probe_failures() -> Json:
    panel = Panel(
        23,
        "Probe failures by cause",
        "Failed checks per second (`vllm_agent_probe_failures_total`). "
        "Three in a row make a server failed; timeouts alone also come from a busy one.",
        Area(12, 28, 12, 8),
        "cps",
        "No failures",
    )
    expr = (
        "sum by (server, probe, cause)"
        f" (rate(vllm_agent_probe_failures_total{{{_SERVERS}}}[$__rate_interval])) > 0"
    )
    return timeseries(panel, [over_time("A", expr, "{{server}} {{probe}}: {{cause}}")])


def _events(counter: str, labels: str) -> str:
    # Whole events: increase() extrapolates to the window's edges and would draw 1.02 crashes.
    return f"round(sum by ({labels}) (increase({counter}{{{_SERVERS}}}[$__rate_interval]))) > 0"


def _collectors() -> Json:
    mappings: list[Json] = [
        {
            "type": "value",
            "options": {
                "0": {"text": "down", "color": "red", "index": 0},
                "1": {"text": "up", "color": "green", "index": 1},
            },
        }
    ]
    panel = Panel(
        30,
        "Collectors of each agent",
        "Whether each source of an agent works (`vllm_agent_collector_up`). "
        "What a collector that is down would have measured is missing, not 0.",
        Area(0, 36, 24, 7),
        "none",
        "No agents",
        mappings=mappings,
    )
    expr = f"vllm_agent_collector_up{{{_AGENTS}}}"
    return state_timeline(panel, [over_time("A", expr, "{{collector}} ({{instance}})")])
