"""Families on what the agent asks a server over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.expose.family import PREFIX, Family, MetricType
from vllm_agent.expose.metric_families.declare import counter, gauge, one
from vllm_agent.observations import Probe

if TYPE_CHECKING:
    from vllm_agent.expose.family import Samples
    from vllm_agent.snapshot import ServerSnapshot

_LATENCY_PROBES: Final = frozenset({Probe.HEALTH})


def _success(server: ServerSnapshot) -> Samples:
    return [
        ((probe,), float(stats.last_result is not None and stats.last_result.is_success))
        for probe, stats in server.probes.items()
    ]


def _failures(server: ServerSnapshot) -> Samples:
    return [
        ((probe, cause), count)
        for probe, stats in server.probes.items()
        for cause, count in stats.failures.items()
    ]


def _last_success(server: ServerSnapshot) -> Samples:
    return [
        ((probe,), stats.last_success_unix_seconds)
        for probe, stats in server.probes.items()
        if stats.last_success_unix_seconds is not None
    ]


PROBE_FAMILIES: Final[tuple[Family[ServerSnapshot], ...]] = (
    gauge(
        "probe_success",
        "Whether the last probe of this kind succeeded; 0 before the first result.",
        _success,
        "probe",
    ),
    counter(
        "probe_requests_total",
        "Probes sent.",
        lambda server: [((probe,), stats.requests) for probe, stats in server.probes.items()],
        "probe",
    ),
    Family(
        PREFIX + "probe_duration_seconds",
        MetricType.HISTOGRAM,
        "How long probes took, failed ones included.",
        ("server",),
        ("probe",),
        lambda server: [
            ((probe,), stats.durations)
            for probe, stats in server.probes.items()
            if probe in _LATENCY_PROBES
        ],
    ),
    counter(
        "probe_failures_total",
        "Probes that failed, by cause.",
        _failures,
        *("probe", "cause"),
    ),
    gauge(
        "probe_consecutive_failures",
        "Failed checks in a row; the server is failed once they reach its threshold.",
        lambda server: one(server.life.consecutive_failures),
    ),
    gauge(
        "probe_last_success_timestamp_seconds",
        "When a probe of this kind last succeeded, in unix time.",
        _last_success,
        "probe",
    ),
)
