"""Frozen facts from outside: what a probe, a connection or a process told the agent.

No judgement here, and no I/O. Unknown is None, never 0.
"""

from vllm_agent.observations.gpus import Gpu, GpuFault, GpuProcess, GpuVendor
from vllm_agent.observations.instant import Instant
from vllm_agent.observations.loading import (
    Download,
    LoadLook,
    LogProgress,
    Shard,
    Stage,
    Witness,
)
from vllm_agent.observations.probes import (
    EngineFacts,
    Knock,
    Listener,
    MetricsFacts,
    Probe,
    ProbeCause,
    ProbeResult,
    ProbeRound,
)
from vllm_agent.observations.processes import (
    Component,
    ComponentAtClose,
    ComponentExit,
    ComponentRole,
    Orphan,
    ProcessId,
    ProcessTree,
    Sight,
    Sighting,
    SightKind,
    VllmCommand,
)

__all__ = [
    "Component",
    "ComponentAtClose",
    "ComponentExit",
    "ComponentRole",
    "Download",
    "EngineFacts",
    "Gpu",
    "GpuFault",
    "GpuProcess",
    "GpuVendor",
    "Instant",
    "Knock",
    "Listener",
    "LoadLook",
    "LogProgress",
    "MetricsFacts",
    "Orphan",
    "Probe",
    "ProbeCause",
    "ProbeResult",
    "ProbeRound",
    "ProcessId",
    "ProcessTree",
    "Shard",
    "Sight",
    "SightKind",
    "Sighting",
    "Stage",
    "VllmCommand",
    "Witness",
]
