"""The same families written by prometheus_client: slow, and right by definition."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics

from vllm_agent.expose.family import MetricType, ServerMoment, label_value
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)
from vllm_agent.expose.text_format import TextFormat
from vllm_agent.snapshot import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.registry import Collector

    from vllm_agent.expose.family import Family, Subject
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import AgentSnapshot, GpuSnapshot

WRITERS: dict[TextFormat, Callable[[Collector], bytes]] = {
    TextFormat.PROMETHEUS: generate_latest,
    TextFormat.OPENMETRICS: openmetrics.generate_latest,
}
_CLASSES: dict[MetricType, Any] = {
    MetricType.GAUGE: GaugeMetricFamily,
    MetricType.COUNTER: CounterMetricFamily,
    MetricType.HISTOGRAM: HistogramMetricFamily,
}


class OwnProcess:
    """Stands for the collector of the agent's own process, whose numbers never hold still."""

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("process_open_fds", "Number of open file descriptors.", value=9)
        yield CounterMetricFamily("process_cpu_seconds_total", "CPU time spent.", value=1.25)


class Reference:
    """A collector over one snapshot, as prometheus_client wants it."""

    def __init__(self, snapshot: AgentSnapshot, now: Instant) -> None:
        self._snapshot = snapshot
        self._now = now

    def collect(self) -> Iterator[Metric]:
        servers = [((label_value(s.name),), s) for s in self._snapshot.servers]
        moments = [(labels, ServerMoment(s, self._now)) for labels, s in servers]
        yield from (_metric(family, servers) for family in SERVER_FAMILIES)
        yield from (_metric(family, moments) for family in MOMENT_FAMILIES)
        gpus: dict[tuple[str, ...], GpuSnapshot] = {}
        for device in self._snapshot.gpus:
            labels = (label_value(device.gpu.index), label_value(device.gpu.uuid))
            gpus.setdefault(labels, device)
        yield from (_metric(family, gpus.items()) for family in GPU_FAMILIES)
        yield from (_metric(family, [((), self._snapshot)]) for family in AGENT_FAMILIES)
        yield from OwnProcess().collect()

    def page(self, text_format: TextFormat) -> bytes:
        return WRITERS[text_format](self)


def _metric(family: Family[Subject], subjects: Iterable[tuple[tuple[str, ...], Subject]]) -> Any:
    metric = _CLASSES[family.type](family.name, family.help, labels=family.all_labels)
    for subject_values, subject in subjects:
        for values, value in family.samples(subject):
            arguments = (
                _buckets(value, family.buckets) if isinstance(value, Histogram) else (value,)
            )
            metric.add_metric((*subject_values, *values), *arguments)
    return metric


def _buckets(
    histogram: Histogram, buckets: tuple[float, ...]
) -> tuple[list[tuple[str, int]], float]:
    bounds = (*map(str, buckets), "+Inf")
    cumulative = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return cumulative, histogram.sum_seconds
