"""The part of the Server dashboard on probes: what failed, and how late the answers are."""

from __future__ import annotations

from dashboards import links
from dashboards.board import SERVER_NAME
from dashboards.panels import (
    BARS,
    Area,
    Json,
    Panel,
    dashed,
    of_query,
    over_time,
    row,
    state_timeline,
    timeseries,
    words,
)
from dashboards.queries import events, metric


def panels() -> list[Json]:
    """The heading and the panels below it."""
    return [
        row(101, "Probes", 41),
        _probes(),
        _latency(),
        _last_results(),
    ]


def _probes() -> Json:
    panel = Panel(
        links.SERVER_PROBES.panel_id,
        "Failed checks",
        "Bars: probes that failed per interval, by cause (`vllm_agent_probe_failures_total`). "
        "Line, on the right: failed checks in a row (`vllm_agent_probe_consecutive_failures`); the "
        "server is failed once they reach its threshold, three unless configured otherwise.",
        Area(0, 42, 12, 9),
        "none",
        "No failures",
        overrides=[
            of_query(
                "B",
                custom__axisPlacement="right",
                custom__drawStyle="line",
                custom__lineInterpolation="stepAfter",
                custom__fillOpacity=0,
                custom__stacking={"group": "A", "mode": "none"},
            )
        ],
    )
    failures = events("probe_failures_total", "job, instance, server, probe, cause")
    targets = [
        over_time("A", failures, f"{{{{probe}}}} {{{{cause}}}}: {SERVER_NAME}"),
        over_time("B", f"{metric('probe_consecutive_failures')} > 0", f"in a row: {SERVER_NAME}"),
    ]
    return timeseries(panel, targets, BARS)


def _latency() -> Json:
    panel = Panel(
        links.SERVER_PROBE_LATENCY.panel_id,
        "Probe latency",
        "Mean time of a probe, failed ones included (`vllm_agent_probe_duration_seconds_sum` by "
        "`vllm_agent_probe_duration_seconds_count`), and the 95th percentile, dashed "
        "(`vllm_agent_probe_duration_seconds_bucket`). A busy server answers late before it fails.",
        Area(12, 42, 12, 9),
        "s",
        "No probes",
        overrides=[dashed("B")],
    )
    by = "job, instance, server, probe"
    total = f"sum by ({by}) (rate({metric('probe_duration_seconds_sum')}[$__rate_interval]))"
    count = f"sum by ({by}) (rate({metric('probe_duration_seconds_count')}[$__rate_interval]))"
    bucket = metric("probe_duration_seconds_bucket")
    slow = f"histogram_quantile(0.95, sum by ({by}, le) (rate({bucket}[$__rate_interval])))"
    targets = [
        over_time("A", f"{total} / ({count} > 0)", f"{{{{probe}}}}: {SERVER_NAME}"),
        # Without probes in the window the quantile is NaN, which is no time.
        over_time("B", f"{slow} >= 0", f"95 % of {{{{probe}}}}: {SERVER_NAME}"),
    ]
    return timeseries(panel, targets)


def _last_results() -> Json:
    panel = Panel(
        32,
        "Last result of each probe",
        "Whether the newest probe of each kind succeeded (`vllm_agent_probe_success`); "
        "failed before the first result.",
        Area(0, 51, 24, 6),
        "none",
        "No probes",
        mappings=words((0, "failed", "orange"), (1, "ok", "green")),
    )
    return state_timeline(
        panel, [over_time("A", metric("probe_success"), f"{{{{probe}}}}: {SERVER_NAME}")]
    )
