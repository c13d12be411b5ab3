"""The Fleet dashboard: every vLLM server the agents watch, what it does now and why it ended."""

from __future__ import annotations

from typing import Final

from dashboards import fleet_agents, links
from dashboards.board import (
    BAR_INTERVAL,
    GOOD_WHEN_ZERO,
    SERVER_NAME,
    board,
    to_server,
)
from dashboards.panels import (
    BARS,
    VALUE,
    Area,
    Column,
    Json,
    Panel,
    instant,
    instant_table,
    number,
    over_time,
    row,
    stat,
    state_timeline,
    table,
    timeseries,
    value_of,
    words,
)
from dashboards.queries import (
    AVAILABILITY_TARGET,
    SAME_SERVER,
    available_seconds,
    desired_seconds,
    events,
    metric,
    state_since,
    target_up,
)
from dashboards.states import state_code_query, state_codes, state_words

_TO_SERVER: Final = to_server("__data.fields.Instance", "__data.fields.Server")


def dashboard() -> Json:
    """The dashboard in Grafana's classic JSON model."""
    return board(
        links.FLEET_UID,
        "vLLM / Fleet",
        "State, crashes and restarts of vLLM servers, as vllm-agent sees them.",
        [
            *_stat_row(),
            _timeline(),
            _loads(),
            _server_table(),
            row(100, "Crashes, restarts and availability", 31),
            _crashes(),
            _restarts(),
            _last_crashes(),
            _availability_table(),
            _probe_failures(),
            *fleet_agents.panels(),
        ],
    )


def _stat_row() -> list[Json]:
    return [
        _running_and_desired(),
        number(
            Panel(
                2,
                "Crashed or failed now",
                "Servers in state crashed or failed (`vllm_agent_server_state`).",
                Area(6, 0, 4, 4),
                "none",
                "No servers",
                thresholds=GOOD_WHEN_ZERO,
            ),
            f"sum({metric('server_state', state=('crashed', 'failed'))})",
        ),
        number(
            Panel(
                3,
                "Restarts in the last hour",
                "Launches after a server's first, whoever caused them "
                "(`vllm_agent_server_restarts_total`).",
                Area(10, 0, 4, 4),
                "none",
                "No servers",
            ),
            f"round(sum(increase({metric('server_restarts_total')}[1h])))",
        ),
        number(
            Panel(
                4,
                "Restart limit reached",
                "Servers that need more restarts than their budget allows "
                "(`vllm_agent_server_restart_limit_reached`).",
                Area(14, 0, 4, 4),
                "none",
                "No servers",
                thresholds=GOOD_WHEN_ZERO,
            ),
            f"sum({metric('server_restart_limit_reached')})",
        ),
        _availability(),
        number(
            Panel(
                links.FLEET_AGENTS_DOWN.panel_id,
                "Agents down",
                "Agents that Prometheus cannot scrape (`up`). "
                "What the panels below show of their servers ends there.",
                Area(21, 0, 3, 4),
                "none",
                "No agents",
                thresholds=GOOD_WHEN_ZERO,
            ),
            f"sum(1 - {target_up()})",
        ),
    ]


def _running_and_desired() -> Json:
    panel = Panel(
        1,
        "Servers running",
        "Of the servers that should run (`vllm_agent_server_desired_up`), those in state running "
        "(`vllm_agent_server_state`). One started by hand in a shell runs without being desired, "
        "and counts in neither.",
        Area(0, 0, 6, 4),
        "none",
        "None",
    )
    desired = metric("server_desired_up")
    running = f"sum({metric('server_state', state='running')} * {SAME_SERVER} {desired})"
    desired = f"sum({desired})"
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
        thresholds=((None, "red"), (AVAILABILITY_TARGET, "green")),
    )
    expr = f"sum({available_seconds('$__range')}) / sum({desired_seconds('$__range')})"
    return stat(panel, [instant("A", expr)], text_mode="value")


def _timeline() -> Json:
    panel = Panel(
        links.FLEET_TIMELINE.panel_id,
        "State of each server",
        "One row per server from `vllm_agent_server_state`. "
        "A gap means that the agent was not scraped, not that the server was down.",
        Area(0, 4, 24, 11),
        "none",
        "No servers",
        mappings=state_codes(),
        links=[to_server("__field.labels.instance", "__field.labels.server")],
    )
    return state_timeline(panel, [over_time("A", state_code_query(), SERVER_NAME)])


def _loads() -> Json:
    panel = Panel(
        links.FLEET_LOADS.panel_id,
        "Loads in progress",
        "Servers that start now: the stage they are in and for how long "
        "(`vllm_agent_load_stage_seconds`), how much of it is done "
        "(`vllm_agent_load_progress_ratio`), when they began "
        "(`vllm_agent_server_state_entered_timestamp_seconds`) and when they last moved "
        "(`vllm_agent_load_last_progress_timestamp_seconds`). `vllm_agent_load_stalled` says that "
        "one has not moved for longer than it may.",
        Area(0, 15, 24, 6),
        "none",
        "Nothing loads",
    )
    is_starting = f"{metric('server_state', state='starting')} == 1"
    entered = metric("server_state_entered_timestamp_seconds")
    in_stage = f"{metric('load_stage')} == 1"
    targets = [
        instant_table("A", f"1000 * {entered} and {SAME_SERVER} {is_starting}"),
        instant_table("B", f"{metric('load_stage_seconds')} and {in_stage}"),
        instant_table("C", metric("load_progress_ratio")),
        instant_table("D", f"1000 * {metric('load_last_progress_timestamp_seconds')}"),
        instant_table("E", metric("load_stalled")),
    ]
    columns = [
        Column("server", "Server", links=[_TO_SERVER]),
        Column("instance", "Instance"),
        Column("stage", "Stage"),
        Column(value_of("C"), "Done", unit="percentunit", is_bar=True),
        Column(value_of("B"), "In this stage for", unit="s"),
        Column(value_of("A"), "Starting since", unit="dateTimeFromNow"),
        Column(value_of("D"), "Last moved", unit="dateTimeFromNow"),
        Column(value_of("E"), "Stalled", mappings=words((0, "no", "green"), (1, "yes", "red"))),
    ]
    return table(panel, targets, columns, sorted_by="Starting since")


def _server_table() -> Json:
    panel = Panel(
        links.FLEET_SERVERS.panel_id,
        "Servers",
        "What each server is and does now: `vllm_agent_server_info` with the state, "
        "the reason while it is failed or crashed, and when the state was entered.",
        Area(0, 21, 24, 10),
        "none",
        "No servers",
    )
    columns = [
        Column("server", "Server", links=[_TO_SERVER]),
        Column("state", "State", mappings=state_words()),
        Column("reason", "Reason"),
        Column(VALUE, "Since", unit="dateTimeFromNow"),
        Column("model_name", "Model"),
        Column("version", "Version"),
        Column("mode", "Mode"),
        Column("url", "URL"),
        Column("instance", "Instance"),
    ]
    # In the alphabet crashed and failed come first.
    return table(panel, [instant_table("A", state_since())], columns, sorted_by="State")


def _crashes() -> Json:
    panel = Panel(
        20,
        "Crashes by reason",
        "Crashes per interval (`vllm_agent_server_crashes_total`). "
        "The runbook of VllmServerCrashed says what each reason means.",
        Area(0, 32, 12, 8),
        "none",
        "No crashes",
        interval=BAR_INTERVAL,
    )
    expr = events("server_crashes_total", "reason")
    return timeseries(panel, [over_time("A", expr, "{{reason}}")], BARS)


def _restarts() -> Json:
    panel = Panel(
        21,
        "Restarts by initiator",
        "Launches after the first, per interval, by who caused them "
        "(`vllm_agent_server_restarts_total`); outside is systemd, Docker, "
        "Kubernetes or a person.",
        Area(12, 32, 12, 8),
        "none",
        "No restarts",
        interval=BAR_INTERVAL,
    )
    expr = events("server_restarts_total", "job, instance, server, initiator")
    return timeseries(panel, [over_time("A", expr, f"{SERVER_NAME} by {{{{initiator}}}}")], BARS)


def _last_crashes() -> Json:
    panel = Panel(
        22,
        "Last crash of each server and reason",
        "When a server last crashed for a reason, kept across restarts of the agent "
        "(`vllm_agent_server_last_crash_timestamp_seconds`).",
        Area(0, 40, 12, 9),
        "none",
        "No crashes",
    )
    expr = f"1000 * {metric('server_last_crash_timestamp_seconds')}"
    columns = [
        Column(VALUE, "Crashed", unit="dateTimeFromNow"),
        Column("server", "Server", links=[_TO_SERVER]),
        Column("reason", "Reason"),
        Column("instance", "Instance"),
    ]
    return table(
        panel, [instant_table("A", expr)], columns, sorted_by="Crashed", is_descending=True
    )


def _availability_table() -> Json:
    panel = Panel(
        links.FLEET_AVAILABILITY.panel_id,
        "Availability by server",
        "Share of the time in the chosen range in which a server that should run did, and how "
        "long it did not (`vllm_agent_server_available_seconds_total`, "
        "`vllm_agent_server_desired_seconds_total`). Planned stops do not count.",
        Area(12, 40, 12, 9),
        "none",
        "Nothing desired",
    )
    desired, available = desired_seconds("$__range"), available_seconds("$__range")
    targets = [
        instant_table("A", f"{available} / {desired}"),
        # Two increases are extrapolated apart by a little.
        instant_table("B", f"clamp_min({desired} - {available}, 0)"),
    ]
    columns = [
        Column("server", "Server", links=[_TO_SERVER]),
        Column(
            value_of("A"),
            "Availability",
            unit="percentunit",
            thresholds=((None, "red"), (AVAILABILITY_TARGET, "green")),
        ),
        Column(value_of("B"), "Not running", unit="s"),
        Column("instance", "Instance"),
    ]
    return table(panel, targets, columns, sorted_by="Availability")


def _probe_failures() -> Json:
    panel = Panel(
        23,
        "Probe failures by cause",
        "Failed checks per second (`vllm_agent_probe_failures_total`). "
        "Three in a row make a server failed; timeouts alone also come from a busy one.",
        Area(0, 49, 24, 9),
        "cps",
        "No failures",
    )
    expr = (
        "sum by (job, instance, server, probe, cause)"
        f" (rate({metric('probe_failures_total')}[$__rate_interval])) > 0"
    )
    legend = f"{SERVER_NAME} {{{{probe}}}}: {{{{cause}}}}"
    return timeseries(panel, [over_time("A", expr, legend)])
