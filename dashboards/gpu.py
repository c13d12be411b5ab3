"""The GPU dashboard: who holds the memory of each GPU, how hard it works, and what went wrong."""

from __future__ import annotations

from functools import partial
from typing import Final

from dashboards import links, queries
from dashboards.board import (
    BAR_INTERVAL,
    GOOD_WHEN_ZERO,
    annotation,
    board,
    query_variable,
    to_gpu,
    to_server,
)
from dashboards.panels import (
    AREAS,
    BARS,
    LINES,
    Area,
    Column,
    Json,
    Look,
    Panel,
    dashed,
    fixed_color,
    instant_table,
    number,
    of_query,
    over_time,
    row,
    table,
    timeseries,
    value_of,
)

_TO_SERVER: Final = to_server("__data.fields.Instance", "__data.fields.Server")
_TO_GPU: Final = to_gpu("__data.fields.Instance", "__data.fields.GPU")
_NAME: Final = "GPU {{gpu}} ({{instance}})"

metric = partial(queries.metric, chosen=("gpu",))
events = partial(queries.events, chosen=("gpu",))


def dashboard() -> Json:
    """The dashboard in Grafana's classic JSON model."""
    return board(
        links.GPU_UID,
        "vLLM / GPU",
        "GPUs of the hosts that vllm-agent watches: memory by holder, load, power and faults.",
        [
            *_stat_row(),
            _holders(),
            _orphans(),
            _servers(),
            _gpus(),
            row(100, "Load", 31),
            _utilization(),
            _temperature(),
            _power(),
            row(101, "Faults", 48),
            _xids(),
            _ecc(),
        ],
        variables=[
            query_variable(
                "gpu",
                "GPU",
                queries.label_values("gpu_info", "gpu", "job", "instance"),
                all_value=".+",
            )
        ],
        annotations=[
            annotation(
                "XIDs",
                # Two intervals: the moment itself is seen a scrape later.
                f"{metric('gpu_last_xid_timestamp_seconds')} > time() - 2 * $__interval_ms / 1000",
                "red",
                "XID {{xid}} on GPU {{gpu}}",
            )
        ],
    )


def _stat_row() -> list[Json]:
    used, total = metric("gpu_memory_used_bytes"), metric("gpu_memory_total_bytes")
    recent = f"time() - {metric('gpu_last_xid_timestamp_seconds')} < bool $__range_s"
    collector = metric("collector_up", collector="gpu")
    return [
        number(
            Panel(
                1,
                "GPUs",
                "GPUs and MIG instances that answer (`vllm_agent_gpu_info`).",
                Area(0, 0, 4, 4),
                "none",
                "No GPUs",
            ),
            f"count({metric('gpu_info')})",
        ),
        number(
            Panel(
                2,
                "Memory in use",
                "Of the memory of all chosen GPUs together (`vllm_agent_gpu_memory_used_bytes` by "
                "`vllm_agent_gpu_memory_total_bytes`). Full is no fault: vLLM takes what it may.",
                Area(4, 0, 4, 4),
                "percentunit",
                "No GPUs",
            ),
            f"sum({used}) / (sum({total}) > 0)",
        ),
        number(
            Panel(
                3,
                "Held by orphans",
                "Memory that components hold which outlived their vLLM "
                "(`vllm_agent_gpu_orphan_memory_bytes`). No server gets it before they are killed.",
                Area(8, 0, 4, 4),
                "bytes",
                "No GPUs",
                thresholds=GOOD_WHEN_ZERO,
            ),
            f"sum({metric('gpu_orphan_memory_bytes')})",
        ),
        number(
            Panel(
                4,
                "Hottest GPU",
                "The highest temperature (`vllm_agent_gpu_temperature_celsius`).",
                Area(12, 0, 4, 4),
                "celsius",
                "No GPUs",
            ),
            f"max({metric('gpu_temperature_celsius')})",
        ),
        number(
            Panel(
                5,
                "Kinds of XID in this range",
                "Errors that the NVIDIA driver told of, by GPU and number "
                "(`vllm_agent_gpu_last_xid_timestamp_seconds`).",
                Area(16, 0, 4, 4),
                "none",
                "No GPUs",
                thresholds=GOOD_WHEN_ZERO,
            ),
            f"sum({recent}) or 0 * count({metric('gpu_info')})",
        ),
        number(
            Panel(
                6,
                "GPU collectors down",
                "Agents that cannot ask the GPU driver (`vllm_agent_collector_up`). "
                "What this page would show of their GPUs is missing, not 0.",
                Area(20, 0, 4, 4),
                "none",
                "No GPUs",
                thresholds=GOOD_WHEN_ZERO,
            ),
            f"sum(1 - {collector})",
        ),
    ]


def _holders() -> Json:
    panel = Panel(
        links.GPU_HOLDERS.panel_id,
        "Memory by holder",
        "Memory of all chosen GPUs together: what servers hold "
        "(`vllm_agent_server_gpu_memory_used_bytes`), orphans "
        "(`vllm_agent_gpu_orphan_memory_bytes`), everything else "
        "(`vllm_agent_gpu_other_memory_bytes`) and what is free "
        "(`vllm_agent_gpu_memory_free_bytes`), up to `vllm_agent_gpu_memory_total_bytes` (dashed). "
        "What is missing up to there the driver reserves, or servers hold that are not chosen.",
        Area(0, 4, 16, 10),
        "bytes",
        "No GPUs",
        overrides=[
            fixed_color("B", "red"),
            fixed_color("C", "purple"),
            fixed_color("D", "transparent"),
            dashed("E", color={"mode": "fixed", "fixedColor": "text"}),
        ],
    )
    held = f"sum by (job, instance, server) ({metric('server_gpu_memory_used_bytes')})"
    targets = [
        over_time("A", held, "{{server}} ({{instance}})"),
        over_time("B", f"sum({metric('gpu_orphan_memory_bytes')})", "orphans"),
        over_time("C", f"sum({metric('gpu_other_memory_bytes')})", "other"),
        over_time("D", f"sum({metric('gpu_memory_free_bytes')})", "free"),
        over_time("E", f"sum({metric('gpu_memory_total_bytes')})", "all"),
    ]
    return timeseries(panel, targets, AREAS)


def _orphans() -> Json:
    panel = Panel(
        links.GPU_ORPHANS.panel_id,
        "Orphans",
        "Memory that components hold which outlived their vLLM "
        "(`vllm_agent_gpu_orphan_memory_bytes`), and on the right how many they are "
        "(`vllm_agent_gpu_orphan_processes`).",
        Area(16, 4, 8, 10),
        "bytes",
        "No orphans",
        overrides=[
            of_query(
                "B",
                unit="none",
                custom__axisPlacement="right",
                custom__lineInterpolation="stepAfter",
                custom__fillOpacity=0,
            )
        ],
    )
    targets = [
        over_time("A", f"{metric('gpu_orphan_memory_bytes')} > 0", f"memory: {_NAME}"),
        over_time("B", f"{metric('gpu_orphan_processes')} > 0", f"processes: {_NAME}"),
    ]
    return timeseries(panel, targets)


def _servers() -> Json:
    panel = Panel(
        links.GPU_SERVERS.panel_id,
        "Servers on each GPU",
        "Which server holds memory of which GPU, how much "
        "(`vllm_agent_server_gpu_memory_used_bytes`), and which part of it that is "
        "(`vllm_agent_gpu_memory_total_bytes`).",
        Area(0, 14, 24, 8),
        "none",
        "No server on a GPU",
    )
    used, total = metric("server_gpu_memory_used_bytes"), metric("gpu_memory_total_bytes")
    targets = [
        instant_table("A", used),
        instant_table("B", f"{used} / {queries.SAME_GPU} group_left () {total}"),
    ]
    columns = [
        Column("gpu", "GPU", links=[_TO_GPU]),
        Column("instance", "Instance"),
        Column("server", "Server", links=[_TO_SERVER]),
        Column(value_of("A"), "Memory", unit="bytes"),
        Column(value_of("B"), "Share of the GPU", unit="percentunit", is_bar=True),
    ]
    return table(panel, targets, columns, sorted_by="GPU")


def _gpus() -> Json:
    panel = Panel(
        12,
        "GPUs",
        "What each GPU is (`vllm_agent_gpu_info`) and does now: memory "
        "(`vllm_agent_gpu_memory_used_bytes` of `vllm_agent_gpu_memory_total_bytes`), "
        "`vllm_agent_gpu_utilization_ratio`, `vllm_agent_gpu_temperature_celsius` and "
        "`vllm_agent_gpu_power_watts`. An empty cell is something it does not support.",
        Area(0, 22, 24, 9),
        "none",
        "No GPUs",
    )
    used, total = metric("gpu_memory_used_bytes"), metric("gpu_memory_total_bytes")
    targets = [
        instant_table("A", metric("gpu_info")),
        instant_table("B", f"{used} / ({total} > 0)"),
        instant_table("C", total),
        instant_table("D", metric("gpu_utilization_ratio")),
        instant_table("E", metric("gpu_temperature_celsius")),
        instant_table("F", metric("gpu_power_watts")),
    ]
    columns = [
        Column("gpu", "GPU", links=[_TO_GPU]),
        Column("instance", "Instance"),
        Column("name", "Name"),
        Column(value_of("B"), "Memory in use", unit="percentunit", is_bar=True),
        Column(value_of("C"), "Memory", unit="bytes"),
        Column(value_of("D"), "Utilisation", unit="percentunit", is_bar=True),
        Column(value_of("E"), "Temperature", unit="celsius"),
        Column(value_of("F"), "Power", unit="watt"),
        Column("driver_version", "Driver"),
        Column("pci_bus_id", "PCI"),
        Column("uuid", "UUID"),
    ]
    return table(panel, targets, columns, sorted_by="GPU")


def _utilization() -> Json:
    panel = Panel(
        links.GPU_UTILIZATION.panel_id,
        "Utilisation",
        "Part of the time in which something ran on the GPU "
        "(`vllm_agent_gpu_utilization_ratio`). It says nothing of how much ran.",
        Area(0, 32, 12, 8),
        "percentunit",
        "No GPUs, or not supported",
    )
    expr = metric("gpu_utilization_ratio")
    return timeseries(panel, [over_time("A", expr, _NAME)], Look(highest=1))


def _temperature() -> Json:
    panel = Panel(
        links.GPU_TEMPERATURE.panel_id,
        "Temperature",
        "Temperature of each GPU (`vllm_agent_gpu_temperature_celsius`).",
        Area(12, 32, 12, 8),
        "celsius",
        "No GPUs, or not supported",
    )
    return timeseries(panel, [over_time("A", metric("gpu_temperature_celsius"), _NAME)], LINES)


def _power() -> Json:
    panel = Panel(
        links.GPU_POWER.panel_id,
        "Power",
        "Power that each GPU draws (`vllm_agent_gpu_power_watts`) and may draw at most, dashed "
        "(`vllm_agent_gpu_power_limit_watts`). At its limit a GPU slows down.",
        Area(0, 40, 24, 8),
        "watt",
        "No GPUs, or not supported",
        overrides=[dashed("B")],
    )
    targets = [
        over_time("A", metric("gpu_power_watts"), _NAME),
        over_time("B", metric("gpu_power_limit_watts"), f"limit: {_NAME}"),
    ]
    return timeseries(panel, targets)


def _xids() -> Json:
    panel = Panel(
        links.GPU_XIDS.panel_id,
        "XIDs",
        "Errors that the NVIDIA driver told of: which, when last "
        "(`vllm_agent_gpu_last_xid_timestamp_seconds`) and how often since the agent started "
        "(`vllm_agent_gpu_xid_errors_total`). "
        "The runbook of VllmGpuXid says what they mean.",
        Area(0, 49, 12, 9),
        "none",
        "No XIDs",
    )
    seen = metric("gpu_last_xid_timestamp_seconds")
    targets = [
        instant_table("A", f"1000 * {seen}"),
        # As counted: the first of a kind makes its series, so a rate would never show it.
        instant_table("B", metric("gpu_xid_errors_total")),
    ]
    columns = [
        Column(value_of("A"), "Last", unit="dateTimeFromNow"),
        Column("xid", "XID"),
        Column("gpu", "GPU", links=[_TO_GPU]),
        Column("instance", "Instance"),
        Column(value_of("B"), "Since the agent started"),
        Column("uuid", "UUID"),
    ]
    return table(panel, targets, columns, sorted_by="Last", is_descending=True)


def _ecc() -> Json:
    panel = Panel(
        links.GPU_ECC.panel_id,
        "Memory errors",
        "ECC errors per interval, by kind (`vllm_agent_gpu_ecc_errors_total`). "
        "An uncorrected one ends what ran there.",
        Area(12, 49, 12, 9),
        "none",
        "No errors",
        interval=BAR_INTERVAL,
    )
    expr = events("gpu_ecc_errors_total", "job, instance, gpu, kind")
    return timeseries(panel, [over_time("A", expr, f"{{{{kind}}}}: {_NAME}")], BARS)
