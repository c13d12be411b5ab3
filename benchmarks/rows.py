"""The rows of the table: what is measured, in which unit, and the bar it has to meet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

FLAT_COST_RATIO: Final = 1.25
"""Cost per server at 1,000 over that at 200 that still counts as flat: two windows on a shared
machine differ by up to a fifth without any change in the program."""

FLAT_MEMORY_MIB: Final = 1.0
"""Growth that allocators and caches show in minutes; a leak of 1 % of a day's probes is more."""


class Judged(StrEnum):
    """Which number of a row is held against its bar."""

    MEDIAN = "median"
    P99 = "p99"
    RATIO = "ratio"


@dataclass(frozen=True, slots=True)
class Bar:
    """The largest value that meets the bar; a ratio is ours over the peer's."""

    limit: float
    judged: Judged
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; without a bar it is shown for information."""

    name: str
    what: str
    unit: str
    bar: Bar | None


START: Final = Row(
    "start",
    "process start to first complete scrape, 8 servers",
    "s",
    Bar(1.0, Judged.P99, "p99 <= 1 s"),
)
EXTERNAL_DEATH: Final = Row(
    "external-death",
    "SIGKILL of an external server to state failed on /metrics",
    "ms",
    Bar(100.0, Judged.P99, "p99 <= 100 ms"),
)
LOCAL_DEATH: Final = Row(
    "local-death",
    "death (SIGKILL) of a local server to not running on /metrics",
    "ms",
    Bar(20.0, Judged.P99, "p99 <= 20 ms"),
)
LOCAL_VERDICT: Final = Row(
    "local-verdict",
    "death (SIGKILL) of a local server to crashed on /metrics",
    "s",
    Bar(2.0, Judged.P99, "p99 <= 2 s"),
)
ALERT_PAGE: Final = Row(
    "page",
    "SIGKILL of a local server to its page at a webhook, 1 s scrapes and rules",
    "s",
    Bar(5.0, Judged.P99, "p99 <= 5 s"),
)
NEW_SERVER: Final = Row(
    "new-server",
    "exec of a vLLM nobody configured to starting on the API",
    "s",
    Bar(1.0, Judged.P99, "p99 <= 1 s"),
)
PROBE_CPU: Final = Row(
    "probe-cpu",
    "CPU per HTTP probe, 10 s interval, 1,000 servers",
    "µs",
    Bar(1 / 4, Judged.RATIO, "<= 1/4 of blackbox_exporter"),
)
SERIES_CPU: Final = Row(
    "series-cpu",
    "CPU of a scrape per exposed series, 8 servers, gzip",
    "µs",
    Bar(1 / 3, Judged.RATIO, "<= 1/3 of node_exporter"),
)
PAGE_8: Final = Row(
    "page-8",
    "/metrics of 8 servers, gzip",
    "ms",
    Bar(5.0, Judged.P99, "p99 <= 5 ms"),
)
LOCAL_PAGE_8: Final = Row(
    "local-page-8",
    "/metrics of 8 local servers, 8 GPUs (fake driver), gzip",
    "ms",
    Bar(5.0, Judged.P99, "p99 <= 5 ms"),
)
MEMORY_8: Final = Row(
    "memory-8",
    "resident memory, 8 servers, after scrapes",
    "MiB",
    Bar(60.0, Judged.MEDIAN, "<= 60 MiB (stretch 50)"),
)
REST_CPU_8: Final = Row(
    "rest-cpu-8",
    "CPU at rest, 8 servers, scraped every 15 s",
    "% of a core",
    Bar(0.5, Judged.MEDIAN, "<= 0.5 %"),
)
LOCAL_MEMORY_8: Final = Row(
    "local-memory-8",
    "resident memory, 8 local servers, 8 GPUs (fake driver), after scrapes",
    "MiB",
    Bar(60.0, Judged.MEDIAN, "<= 60 MiB (stretch 50)"),
)
LOCAL_REST_CPU_8: Final = Row(
    "local-rest-cpu-8",
    "CPU at rest, 8 local servers, 8 GPUs (fake driver), 1,000 other processes",
    "% of a core",
    Bar(0.5, Judged.MEDIAN, "<= 0.5 %"),
)
GPU_PASS: Final = Row(
    "gpu-pass",
    "CPU of one look at 8 GPUs with 64 processes (fake driver)",
    "ms",
    Bar(5.0, Judged.P99, "p99 <= 5 ms"),
)
GPU_CPU: Final = Row(
    "gpu-cpu",
    "CPU, 8 GPUs with 64 processes (fake driver), no server",
    "% of a core",
    Bar(1.0, Judged.RATIO, "less than nvitop-exporter"),
)
GPU_MEMORY: Final = Row(
    "gpu-memory",
    "resident memory, 8 GPUs with 64 processes (fake driver), no server",
    "MiB",
    Bar(1.0, Judged.RATIO, "less than nvitop-exporter"),
)
ENSURE_HEALTHY: Final = Row(
    "ensure-healthy",
    "ensure-healthy of a managed server that runs, over the control socket",
    "ms",
    Bar(5.0, Judged.P99, "p99 <= 5 ms"),
)
MANAGED_RESTART: Final = Row(
    "managed-restart",
    "SIGKILL of a managed server to its next process, beyond the delay",
    "ms",
    Bar(100.0, Judged.P99, "p99 <= 100 ms"),
)
MANAGED_50_CPU: Final = Row(
    "managed-50-cpu",
    "CPU at rest, 50 managed servers, scraped every 15 s",
    "% of a core",
    Bar(50 / 8 * 0.5, Judged.MEDIAN, "<= 3.1 % (0.5 % for 8)"),
)
MANAGED_50_MEMORY: Final = Row(
    "managed-50-memory",
    "resident memory, 50 managed servers, after scrapes",
    "MiB",
    Bar(60.0, Judged.MEDIAN, "<= 60 MiB"),
)
MANAGED_50_PAGE: Final = Row(
    "managed-50-page",
    "/metrics of 50 managed servers, gzip",
    "ms",
    Bar(50.0, Judged.P99, "p99 <= 50 ms"),
)
LAUNCH_CPU: Final = Row(
    "launch-cpu",
    "CPU to find one more local server and follow it until it serves",
    "ms",
    None,
)
LAUNCH_MEMORY: Final = Row(
    "launch-memory",
    "resident memory for one more local server",
    "KiB",
    None,
)
LOAD_WATCH: Final = Row(
    "load-watch",
    "CPU to watch one local server load, beyond CPU at rest",
    "% of a core",
    Bar(1.0, Judged.MEDIAN, "<= 1 %"),
)
CLASSIFIER: Final = Row(
    "classifier",
    "CPU to read a log and find the causes of failures in it",
    "ms per MB",
    Bar(20.0, Judged.MEDIAN, "<= 20 ms per MB (50 MB/s)"),
)
FLEET_200_CPU: Final = Row(
    "fleet-200-cpu",
    "CPU with 200 servers, 10 s interval, scraped every 15 s",
    "% of a core",
    Bar(8.0, Judged.MEDIAN, "<= 8 %"),
)
FLEET_200_PAGE: Final = Row(
    "fleet-200-page",
    "/metrics of 200 servers, gzip",
    "ms",
    Bar(50.0, Judged.P99, "p99 <= 50 ms"),
)
FLEET_1000_CPU: Final = Row(
    "fleet-1000-cpu",
    "CPU per server, 1,000 servers over 200",
    "times",
    Bar(FLAT_COST_RATIO, Judged.MEDIAN, f"flat (<= {FLAT_COST_RATIO} times)"),
)
FLEET_1000_PAGE: Final = Row(
    "fleet-1000-page",
    "/metrics of 1,000 servers, gzip",
    "ms",
    None,
)
FLAT_MEMORY: Final = Row(
    "flat-memory",
    "growth of resident memory, 8 servers, 1 s interval",
    "MiB",
    Bar(FLAT_MEMORY_MIB, Judged.MEDIAN, f"<= {FLAT_MEMORY_MIB:g} MiB (a sign only)"),
)

ROWS: Final = (
    START,
    EXTERNAL_DEATH,
    LOCAL_DEATH,
    LOCAL_VERDICT,
    ALERT_PAGE,
    NEW_SERVER,
    ENSURE_HEALTHY,
    MANAGED_RESTART,
    PROBE_CPU,
    SERIES_CPU,
    PAGE_8,
    LOCAL_PAGE_8,
    MEMORY_8,
    LOCAL_MEMORY_8,
    REST_CPU_8,
    LOCAL_REST_CPU_8,
    GPU_PASS,
    GPU_CPU,
    GPU_MEMORY,
    LAUNCH_CPU,
    LAUNCH_MEMORY,
    LOAD_WATCH,
    CLASSIFIER,
    FLEET_200_CPU,
    FLEET_200_PAGE,
    FLEET_1000_CPU,
    FLEET_1000_PAGE,
    MANAGED_50_CPU,
    MANAGED_50_MEMORY,
    MANAGED_50_PAGE,
    FLAT_MEMORY,
)
