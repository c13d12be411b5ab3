"""Families on the agent itself."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

import vllm_agent
from vllm_agent.expose.family import MetricType
from vllm_agent.expose.metric_families.declare import of_agent, one

if TYPE_CHECKING:
    from vllm_agent.expose.family import Family, Samples
    from vllm_agent.snapshot import AgentSnapshot


def _build(_agent: AgentSnapshot) -> Samples:
    return (((vllm_agent.__version__, platform.python_version()), 1.0),)


AGENT_FAMILIES: Final[tuple[Family[AgentSnapshot], ...]] = (
    of_agent(
        "discovery_servers",
        MetricType.GAUGE,
        "vLLM servers that the last look at the host's processes found; absent where it is blind "
        "or off.",
        lambda agent: one(agent.discovered),
    ),
    of_agent(
        "collector_up",
        MetricType.GAUGE,
        "Whether this source of the agent works.",
        lambda agent: [((source.name,), source.is_up) for source in agent.collectors],
        "collector",
    ),
    of_agent(
        "collector_duration_seconds",
        MetricType.GAUGE,
        "How long this source took the last time.",
        lambda agent: [
            ((source.name,), source.duration_seconds)
            for source in agent.collectors
            if source.duration_seconds is not None
        ],
        "collector",
    ),
    of_agent(
        "collector_last_success_timestamp_seconds",
        MetricType.GAUGE,
        "When this source last worked, in unix time.",
        lambda agent: [
            ((source.name,), source.last_success_unix_seconds)
            for source in agent.collectors
            if source.last_success_unix_seconds is not None
        ],
        "collector",
    ),
    of_agent(
        "dropped_total",
        MetricType.COUNTER,
        "What a bound or an error made the agent leave out, by kind.",
        lambda agent: [((kind,), count) for kind, count in agent.dropped.items()],
        "kind",
    ),
    of_agent(
        "build_info",
        MetricType.GAUGE,
        "The version of the agent and of the Python that runs it; always 1.",
        _build,
        *("version", "python_version"),
    ),
    of_agent(
        "config_last_reload_successful",
        MetricType.GAUGE,
        "Whether the configuration was accepted the last time it was read.",
        lambda agent: one(agent.is_config_load_successful),
    ),
    of_agent(
        "config_last_reload_success_timestamp_seconds",
        MetricType.GAUGE,
        "When a configuration was last accepted, in unix time.",
        lambda agent: one(agent.config_load_unix_seconds),
    ),
)
