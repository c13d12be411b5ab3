"""The metrics that alerts and dashboards may use, with their labels: what the agent declares."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from vllm_agent.expose.family import Family, MetricType
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)

TARGET_LABELS: Final = frozenset({"job", "instance"})

_FAMILIES: Final[tuple[Family[Any], ...]] = (
    *SERVER_FAMILIES,
    *MOMENT_FAMILIES,
    *GPU_FAMILIES,
    *AGENT_FAMILIES,
)

COUNTERS: Final = frozenset(
    family.name for family in _FAMILIES if family.type is MetricType.COUNTER
)

METRIC_LABELS: Final = MappingProxyType(
    {family.name: TARGET_LABELS | set(family.all_labels) for family in _FAMILIES}
    | {"up": TARGET_LABELS}  # Prometheus' own, one per target
)
"""Name → every label a series of it has in Prometheus. Histograms are under their base name."""
