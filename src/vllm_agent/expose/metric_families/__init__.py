"""Every metric family of the agent, declared once: name, type, help, labels and samples.

The page, its documentation and its tests read these tables. A new family is one entry in the module
of its subject. Label values that others choose pass `label_value`; what is unknown yields no
sample, never 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.expose.metric_families.agent import AGENT_FAMILIES
from vllm_agent.expose.metric_families.gpus import GPU_FAMILIES
from vllm_agent.expose.metric_families.launches import LAUNCH_FAMILIES
from vllm_agent.expose.metric_families.load import LOAD_FAMILIES, LOAD_TIME_FAMILIES
from vllm_agent.expose.metric_families.probes import PROBE_FAMILIES
from vllm_agent.expose.metric_families.processes import PROCESS_FAMILIES
from vllm_agent.expose.metric_families.state import STATE_FAMILIES, STATE_TIME_FAMILIES

if TYPE_CHECKING:
    from vllm_agent.expose.family import Family, ServerMoment
    from vllm_agent.snapshot import ServerSnapshot

__all__ = ["AGENT_FAMILIES", "GPU_FAMILIES", "MOMENT_FAMILIES", "SERVER_FAMILIES"]

SERVER_FAMILIES: Final[tuple[Family[ServerSnapshot], ...]] = (
    *STATE_FAMILIES,
    *LAUNCH_FAMILIES,
    *LOAD_FAMILIES,
    *PROCESS_FAMILIES,
    *PROBE_FAMILIES,
)
"""What a server says; it changes only with its snapshot."""

MOMENT_FAMILIES: Final[tuple[Family[ServerMoment], ...]] = (
    *STATE_TIME_FAMILIES,
    *LOAD_TIME_FAMILIES,
)
"""What grows with the clock."""
