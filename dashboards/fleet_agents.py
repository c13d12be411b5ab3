"""The part of the Fleet dashboard on the agents themselves."""

from __future__ import annotations

from dashboards import links
from dashboards.panels import (
    STEPS,
    Area,
    Column,
    Json,
    Panel,
    instant_table,
    over_time,
    row,
    state_timeline,
    table,
    timeseries,
    value_of,
    words,
)
from dashboards.queries import metric


def panels() -> list[Json]:
    """The heading and the panels below it."""
    return [row(101, "Agents", 58), _collectors(), _agents(), _dropped(), _collector_seconds()]


def _collectors() -> Json:
    panel = Panel(
        links.FLEET_COLLECTORS.panel_id,
        "Collectors of each agent",
        "Whether each source of an agent works (`vllm_agent_collector_up`). "
        "What a collector that is down would have measured is missing, not 0.",
        Area(0, 59, 24, 12),
        "none",
        "No agents",
        mappings=words((0, "down", "red"), (1, "up", "green")),
    )
    expr = metric("collector_up")
    return state_timeline(panel, [over_time("A", expr, "{{collector}} ({{instance}})")])


def _agents() -> Json:
    panel = Panel(
        links.FLEET_CONFIGURATION.panel_id,
        "Configuration of each agent",
        "Whether the configuration was accepted the last time it was read "
        "(`vllm_agent_config_last_reload_successful`) and when one last was "
        "(`vllm_agent_config_last_reload_success_timestamp_seconds`); a refused one leaves the one "
        "before in force. With the version of the agent (`vllm_agent_build_info`), the servers it "
        "found (`vllm_agent_discovery_servers`) and how much it left out since it started "
        "(`vllm_agent_dropped_total`).",
        Area(0, 71, 12, 8),
        "none",
        "No agents",
    )
    dropped = f"sum by (job, instance) ({metric('dropped_total')})"
    accepted = metric("config_last_reload_success_timestamp_seconds")
    targets = [
        instant_table("A", metric("build_info")),
        instant_table("B", metric("config_last_reload_successful")),
        instant_table("C", f"1000 * {accepted}"),
        instant_table("D", metric("discovery_servers")),
        instant_table("E", dropped),
    ]
    columns = [
        Column("instance", "Instance"),
        Column("version", "Version"),
        Column(
            value_of("B"),
            "Configuration",
            mappings=words((0, "refused", "red"), (1, "accepted", "green")),
        ),
        Column(value_of("C"), "Last accepted", unit="dateTimeFromNow"),
        Column(value_of("D"), "Servers found"),
        Column(value_of("E"), "Left out since start"),
    ]
    return table(panel, targets, columns, sorted_by="Instance")


def _dropped() -> Json:
    panel = Panel(
        32,
        "Left out by kind",
        "What a bound or an error made an agent leave out since it started "
        "(`vllm_agent_dropped_total`).",
        Area(12, 71, 12, 8),
        "none",
        "Nothing left out",
    )
    # As counted: the first of a kind makes its series, so a rate would never show it.
    targets = [over_time("A", metric("dropped_total"), "{{kind}} ({{instance}})")]
    return timeseries(panel, targets, STEPS)


def _collector_seconds() -> Json:
    panel = Panel(
        33,
        "Time of each collector",
        "How long each source of an agent took the last time "
        "(`vllm_agent_collector_duration_seconds`). A driver that hangs shows here first.",
        Area(0, 79, 24, 8),
        "s",
        "No agents",
    )
    expr = metric("collector_duration_seconds")
    return timeseries(panel, [over_time("A", expr, "{{collector}} ({{instance}})")])
