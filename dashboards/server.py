"""The Server dashboard: one vLLM server, or a few: its life, its starts, its ends, its share."""

from __future__ import annotations

from typing import Final

from dashboards import links, server_checks, server_ends, server_processes, server_starts
from dashboards.board import (
    SERVER_NAME,
    annotation,
    board,
    to_server,
)
from dashboards.panels import (
    Area,
    Column,
    Json,
    Panel,
    instant_table,
    over_time,
    state_timeline,
    table,
    value_of,
    words,
)
from dashboards.queries import SAME_SERVER, metric, state_since
from dashboards.states import state_code_query, state_codes, state_words

_TO_SERVER: Final = to_server("__data.fields.Instance", "__data.fields.Server")


def dashboard() -> Json:
    """The dashboard in Grafana's classic JSON model."""
    return board(
        links.SERVER_UID,
        "vLLM / Server",
        "The life of a vLLM server as vllm-agent sees it: state, starts, probes, ends, processes.",
        [
            _now(),
            _about(),
            _timeline(),
            *server_starts.panels(),
            *server_checks.panels(),
            *server_ends.panels(),
            *server_processes.panels(),
        ],
        annotations=[
            annotation(
                "Launches",
                f"increase({metric('server_launches_total')}[$__rate_interval]) > 0",
                "blue",
                "{{server}} was launched",
            ),
            annotation(
                "Crashes",
                f"increase({metric('server_crashes_total')}[$__rate_interval]) > 0",
                "red",
                "{{server}} crashed: {{reason}}",
            ),
        ],
    )


def _now() -> Json:
    panel = Panel(
        1,
        "Now",
        "What each server does, since when "
        "(`vllm_agent_server_state_entered_timestamp_seconds`) and why, whether it should be up "
        "(`vllm_agent_server_desired_up`), restarts left "
        "(`vllm_agent_server_restart_budget_remaining`), when the next one is planned "
        "(`vllm_agent_server_next_restart_timestamp_seconds`), when the budget will be full "
        "again if it keeps running (`vllm_agent_server_restart_window_seconds`), and whether its "
        "engine sleeps (`vllm_agent_server_sleeping`).",
        Area(0, 0, 24, 4),
        "none",
        "No servers",
    )
    remaining = metric("server_restart_budget_remaining")
    entered = metric("server_state_entered_timestamp_seconds")
    window = metric("server_restart_window_seconds")
    is_short = f"{remaining} < {metric('server_restart_limit')}"
    is_running = f"{metric('server_state', state='running')} == 1"
    refilled = f"1000 * ({entered} + {window}) and ({is_short}) and {SAME_SERVER} {is_running}"
    targets = [
        instant_table("A", state_since()),
        instant_table("B", metric("server_desired_up")),
        instant_table("C", remaining),
        instant_table("D", f"1000 * {metric('server_next_restart_timestamp_seconds')}"),
        instant_table("E", refilled),
        instant_table("F", metric("server_sleeping")),
    ]
    columns = [
        Column("server", "Server", links=[_TO_SERVER]),
        Column("instance", "Instance"),
        Column("state", "State", mappings=state_words()),
        Column(value_of("A"), "Since", unit="dateTimeFromNow"),
        Column("reason", "Reason"),
        Column(
            value_of("B"), "Should be up", mappings=words((0, "no", "text"), (1, "yes", "text"))
        ),
        Column(value_of("F"), "Sleeping", mappings=words((0, "no", "text"), (1, "yes", "purple"))),
        Column(value_of("C"), "Restarts left"),
        Column(value_of("D"), "Next restart", unit="dateTimeFromNow"),
        Column(value_of("E"), "Restarts full again", unit="dateTimeFromNow"),
    ]
    return table(panel, targets, columns, sorted_by="Server")


def _about() -> Json:
    panel = Panel(
        2,
        "About",
        "What each server is (`vllm_agent_server_info`), when its process started "
        "(`vllm_agent_server_process_start_time_seconds`) and how the launch before ended "
        "(`vllm_agent_server_last_exit_info`).",
        Area(0, 4, 24, 4),
        "none",
        "No servers",
    )
    started = metric("server_process_start_time_seconds")
    targets = [
        instant_table("A", metric("server_info")),
        instant_table("B", f"1000 * {started}"),
        instant_table("C", metric("server_last_exit_info")),
    ]
    columns = [
        Column("server", "Server"),
        Column("instance", "Instance"),
        Column("model_name", "Model"),
        Column("version", "Version"),
        Column("mode", "Mode"),
        Column("url", "URL"),
        Column("discovered", "Discovered"),
        Column(value_of("B"), "Process started", unit="dateTimeFromNow"),
        Column("exit_code", "Last exit code"),
        Column("signal", "Last signal"),
        Column("asked", "Last end asked for"),
    ]
    return table(panel, targets, columns, sorted_by="Server")


def _timeline() -> Json:
    panel = Panel(
        links.SERVER_TIMELINE.panel_id,
        "State",
        "The state over time (`vllm_agent_server_state`). "
        "A gap means that the agent was not scraped, not that the server was down.",
        Area(0, 8, 24, 9),
        "none",
        "No servers",
        mappings=state_codes(),
    )
    return state_timeline(panel, [over_time("A", state_code_query(), SERVER_NAME)])
