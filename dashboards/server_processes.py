"""The part of the Server dashboard on what a server takes: GPUs, processes, memory, CPU."""

from __future__ import annotations

from typing import Final

from dashboards import links
from dashboards.board import SERVER_NAME, to_gpu
from dashboards.panels import (
    Area,
    Json,
    Look,
    Panel,
    fixed_color,
    of_query,
    over_time,
    row,
    state_timeline,
    timeseries,
    words,
)
from dashboards.queries import SAME_GPU, metric

_TO_GPU: Final = to_gpu("__field.labels.instance", "__field.labels.gpu")


def panels() -> list[Json]:
    """The heading and the panels below it."""
    return [
        row(103, "GPUs and processes", 74),
        _gpu_share(),
        _gpu_memory(),
        _processes(),
        _components(),
        _cpu(),
        _descriptors(),
    ]


def _gpu_share() -> Json:
    panel = Panel(
        links.SERVER_GPUS.panel_id,
        "Share of GPU memory",
        "How much of each GPU's memory the server's processes hold "
        "(`vllm_agent_server_gpu_memory_used_bytes` by `vllm_agent_gpu_memory_total_bytes`). "
        "Full is by design: vLLM takes what it is allowed to.",
        Area(0, 75, 12, 8),
        "percentunit",
        "On no GPU",
        links=[_TO_GPU],
    )
    used, total = metric("server_gpu_memory_used_bytes"), metric("gpu_memory_total_bytes")
    expr = f"{used} / {SAME_GPU} group_left () {total}"
    return timeseries(
        panel, [over_time("A", expr, f"GPU {{{{gpu}}}}: {SERVER_NAME}")], Look(highest=1)
    )


def _gpu_memory() -> Json:
    panel = Panel(
        52,
        "GPU memory",
        "Memory of each GPU that the server's processes hold "
        "(`vllm_agent_server_gpu_memory_used_bytes`).",
        Area(12, 75, 12, 8),
        "bytes",
        "On no GPU",
        links=[_TO_GPU],
    )
    expr = metric("server_gpu_memory_used_bytes")
    return timeseries(panel, [over_time("A", expr, f"GPU {{{{gpu}}}}: {SERVER_NAME}")])


def _processes() -> Json:
    panel = Panel(
        links.SERVER_PROCESSES.panel_id,
        "Processes and memory",
        "Processes of the server (`vllm_agent_server_processes`), red the components that "
        "outlived their main process (`vllm_agent_orphan_processes`), and on the right their "
        "resident memory (`vllm_agent_server_resident_memory_bytes`; shared pages count several "
        "times).",
        Area(0, 83, 12, 8),
        "none",
        "No processes seen",
        overrides=[
            fixed_color("B", "red"),
            of_query("C", unit="bytes", custom__axisPlacement="right"),
        ],
    )
    targets = [
        over_time("A", metric("server_processes"), f"processes: {SERVER_NAME}"),
        over_time("B", metric("orphan_processes"), f"orphans: {SERVER_NAME}"),
        over_time("C", metric("server_resident_memory_bytes"), f"memory: {SERVER_NAME}"),
    ]
    return timeseries(panel, targets)


def _components() -> Json:
    panel = Panel(
        53,
        "Components",
        "Whether each part of the newest launch lives (`vllm_agent_server_component_up`): "
        "API servers, engine cores and workers with their rank.",
        Area(12, 83, 12, 8),
        "none",
        "No components seen",
        mappings=words((0, "ended", "red"), (1, "alive", "green")),
    )
    legend = f"{{{{component}}}} {{{{rank}}}}: {SERVER_NAME}"
    return state_timeline(panel, [over_time("A", metric("server_component_up"), legend)])


def _cpu() -> Json:
    panel = Panel(
        54,
        "CPU",
        "Cores that the server's processes keep busy (`vllm_agent_server_cpu_seconds_total`). "
        "One whole core is normal for an engine; none while it loads is a sign of a hang.",
        Area(0, 91, 12, 8),
        "short",
        "No processes seen",
    )
    expr = f"rate({metric('server_cpu_seconds_total')}[$__rate_interval])"
    return timeseries(panel, [over_time("A", expr, SERVER_NAME)])


def _descriptors() -> Json:
    panel = Panel(
        55,
        "Threads and file descriptors",
        "Threads (`vllm_agent_server_threads`) and open file descriptors "
        "(`vllm_agent_server_open_fds`) of the server's processes.",
        Area(12, 91, 12, 8),
        "none",
        "No processes seen",
    )
    targets = [
        over_time("A", metric("server_threads"), f"threads: {SERVER_NAME}"),
        over_time("B", metric("server_open_fds"), f"descriptors: {SERVER_NAME}"),
    ]
    return timeseries(panel, targets)
