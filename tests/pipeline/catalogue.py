"""The metrics that alerts and dashboards may use, with their labels: what the agent declares."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from vllm_agent.expose.family import Family, MetricType
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET_LABELS: Final = frozenset({"job", "instance"})

_FAMILIES: Final[tuple[Family[Any], ...]] = (
    *SERVER_FAMILIES,
    *MOMENT_FAMILIES,
    *GPU_FAMILIES,
    *AGENT_FAMILIES,
)


def _series(family: Family[Any]) -> Iterator[tuple[str, frozenset[str]]]:
    """The names that series of the family have, and their labels."""
    labels = TARGET_LABELS | set(family.all_labels)
    if family.type is not MetricType.HISTOGRAM:
        yield family.name, labels
        return
    yield f"{family.name}_bucket", labels | {"le"}
    yield f"{family.name}_sum", labels
    yield f"{family.name}_count", labels


COUNTERS: Final = frozenset(
    name
    for family in _FAMILIES
    if family.type in {MetricType.COUNTER, MetricType.HISTOGRAM}
    for name, _ in _series(family)
)
"""The series that only grow, those of histograms included."""

_OF_PROCESS: Final = MappingProxyType(
    {
        "process_start_time_seconds": TARGET_LABELS,
        "process_resident_memory_bytes": TARGET_LABELS,
    }
)
"""What is used of the agent's own process, beside its families."""

_OF_PROMETHEUS: Final = MappingProxyType(
    {
        "up": TARGET_LABELS,
        # Of the pages about servers; one per pending or firing alert, with all labels that it has.
        "ALERTS": TARGET_LABELS | {"alertname", "alertstate", "severity", "server", "long"},
    }
)
"""What Prometheus itself records."""

METRIC_LABELS: Final = MappingProxyType(
    {name: labels for family in _FAMILIES for name, labels in _series(family)}
    | _OF_PROCESS
    | _OF_PROMETHEUS
)
"""Name → every label a series of it has in Prometheus."""
