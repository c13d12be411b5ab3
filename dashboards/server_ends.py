"""The part of the Server dashboard on ends: crashes, restarts, their budget, availability."""

from __future__ import annotations

from dashboards import links
from dashboards.board import BAR_INTERVAL, SERVER_NAME
from dashboards.panels import (
    BARS,
    STEPS,
    Area,
    Column,
    Json,
    Look,
    Panel,
    dashed,
    fixed_color,
    instant_table,
    over_time,
    row,
    table,
    timeseries,
    value_of,
)
from dashboards.queries import (
    AVAILABILITY_TARGET,
    available_seconds,
    desired_seconds,
    events,
    metric,
)


def panels() -> list[Json]:
    """The heading and the panels below it."""
    return [
        row(102, "Ends and restarts", 57),
        _endings(),
        _budget(),
        _availability(),
        _last_crashes(),
    ]


def _endings() -> Json:
    panel = Panel(
        links.SERVER_ENDINGS.panel_id,
        "Crashes and restarts",
        "Ends that nobody asked for, by reason (`vllm_agent_server_crashes_total`), and launches "
        "after the first, by who caused them (`vllm_agent_server_restarts_total`), per interval.",
        Area(0, 58, 12, 8),
        "none",
        "No crashes, no restarts",
        interval=BAR_INTERVAL,
    )
    crashes = events("server_crashes_total", "job, instance, server, reason")
    restarts = events("server_restarts_total", "job, instance, server, initiator")
    targets = [
        over_time("A", crashes, f"crash {{{{reason}}}}: {SERVER_NAME}"),
        over_time("B", restarts, f"restart by {{{{initiator}}}}: {SERVER_NAME}"),
    ]
    return timeseries(panel, targets, BARS)


def _budget() -> Json:
    panel = Panel(
        links.SERVER_RESTART_BUDGET.panel_id,
        "Restart budget",
        "Restarts left (`vllm_agent_server_restart_budget_remaining`) of the limit, dashed "
        "(`vllm_agent_server_restart_limit`). Red: a restart was needed that the budget did not "
        "hold (`vllm_agent_server_restart_limit_reached`), until it is full again. It fills when "
        "the server has run for its window, or when an operator starts it.",
        Area(12, 58, 12, 8),
        "none",
        "No servers",
        overrides=[dashed("B"), fixed_color("C", "red")],
    )
    targets = [
        over_time("A", metric("server_restart_budget_remaining"), f"left: {SERVER_NAME}"),
        over_time("B", metric("server_restart_limit"), f"limit: {SERVER_NAME}"),
        over_time(
            "C", f"{metric('server_restart_limit_reached')} > 0", f"limit reached: {SERVER_NAME}"
        ),
    ]
    return timeseries(panel, targets, STEPS)


def _availability() -> Json:
    panel = Panel(
        links.SERVER_AVAILABILITY.panel_id,
        "Availability",
        "Share of the time in each interval in which a server that should run did "
        "(`vllm_agent_server_available_seconds_total` by "
        "`vllm_agent_server_desired_seconds_total`), and the target, dashed. "
        "A planned stop is no gap in it: nothing was desired.",
        Area(0, 66, 12, 8),
        "percentunit",
        "Nothing desired",
        thresholds=((None, "red"), (AVAILABILITY_TARGET, "green")),
    )
    window = "$__rate_interval"
    expr = f"clamp_max({available_seconds(window)} / {desired_seconds(window)}, 1)"
    look = Look(highest=1, has_threshold_line=True)
    return timeseries(panel, [over_time("A", expr, SERVER_NAME)], look)


def _last_crashes() -> Json:
    panel = Panel(
        43,
        "Last crash of each reason",
        "When the server last crashed for a reason, kept across restarts of the agent "
        "(`vllm_agent_server_last_crash_timestamp_seconds`), and how often it did in the chosen "
        "range (`vllm_agent_server_crashes_total`).",
        Area(12, 66, 12, 8),
        "none",
        "No crashes",
    )
    crashed = metric("server_last_crash_timestamp_seconds")
    count = f"round(increase({metric('server_crashes_total')}[$__range]))"
    has_crashed = f"and on (job, instance, server, reason) {crashed}"
    targets = [
        instant_table("A", f"1000 * {crashed}"),
        instant_table("B", f"{count} {has_crashed}"),
    ]
    columns = [
        Column(value_of("A"), "Crashed", unit="dateTimeFromNow"),
        Column("reason", "Reason"),
        Column(value_of("B"), "In this range"),
        Column("server", "Server"),
        Column("instance", "Instance"),
    ]
    return table(panel, targets, columns, sorted_by="Crashed", is_descending=True)
