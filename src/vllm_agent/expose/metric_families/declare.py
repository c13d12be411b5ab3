"""How a family is declared: short forms of `Family`, and what several families need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.expose.family import PREFIX, Family, MetricType
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.expose.family import Samples, ServerMoment
    from vllm_agent.snapshot import AgentSnapshot, GpuSnapshot, ServerSnapshot

EVERY_MODE: Final = tuple(LifecycleMode)
LOCAL_MODES: Final = (LifecycleMode.MONITORED, LifecycleMode.MANAGED)
"""Modes in which the agent sees the server's processes."""


def one(value: float | None) -> Samples:
    """The only sample of a family without labels of its own; none where it is unknown."""
    return () if value is None else (((), value),)


def gauge(
    name: str,
    text: str,
    samples: Callable[[ServerSnapshot], Samples],
    *labels: str,
    modes: tuple[LifecycleMode, ...] = EVERY_MODE,
) -> Family[ServerSnapshot]:
    """A gauge of a server."""
    return Family(PREFIX + name, MetricType.GAUGE, text, ("server",), labels, samples, modes)


def counter(
    name: str,
    text: str,
    samples: Callable[[ServerSnapshot], Samples],
    *labels: str,
    modes: tuple[LifecycleMode, ...] = EVERY_MODE,
) -> Family[ServerSnapshot]:
    """A counter of a server."""
    return Family(PREFIX + name, MetricType.COUNTER, text, ("server",), labels, samples, modes)


def running_counter(
    name: str, text: str, samples: Callable[[ServerMoment], Samples], *labels: str
) -> Family[ServerMoment]:
    """A counter of a server that grows with the clock."""
    return Family(PREFIX + name, MetricType.COUNTER, text, ("server",), labels, samples)


def running_gauge(
    name: str,
    text: str,
    samples: Callable[[ServerMoment], Samples],
    *labels: str,
    modes: tuple[LifecycleMode, ...] = EVERY_MODE,
) -> Family[ServerMoment]:
    """A gauge of a server that changes with the clock."""
    return Family(PREFIX + name, MetricType.GAUGE, text, ("server",), labels, samples, modes)


def of_gpu(
    name: str,
    kind: MetricType,
    text: str,
    samples: Callable[[GpuSnapshot], Samples],
    *labels: str,
) -> Family[GpuSnapshot]:
    """A family of a GPU, or of a MIG instance."""
    return Family(PREFIX + name, kind, text, ("gpu", "uuid"), labels, samples)


def of_agent(
    name: str,
    kind: MetricType,
    text: str,
    samples: Callable[[AgentSnapshot], Samples],
    *labels: str,
) -> Family[AgentSnapshot]:
    """A family of the agent itself."""
    return Family(PREFIX + name, kind, text, (), labels, samples)
