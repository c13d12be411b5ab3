"""What `step` is told and what it asks for: events in, effects out. Frozen values.

Events are in the past tense, effects in the imperative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.lifecycle.management import Wish
    from vllm_agent.lifecycle.reasons import Reason
    from vllm_agent.lifecycle.server_life import Ending
    from vllm_agent.observations import (
        ComponentRole,
        EngineFacts,
        Knock,
        LoadLook,
        ProbeRound,
        ProcessId,
        ProcessTree,
        Sighting,
    )


@dataclass(frozen=True, slots=True)
class Looked:
    """A round of probes came back."""

    look: ProbeRound


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """The peer closed the idle connection. Only a reason to look, never a verdict."""


@dataclass(frozen=True, slots=True)
class MaintenanceSet:
    """An operator began maintenance, or ended it (None). Infinity means without an end."""

    until_unix_seconds: float | None


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed; a deadline may have."""


@dataclass(frozen=True, slots=True)
class ProcessAppeared:
    """A main process of a local server was seen, new or not."""

    sighting: Sighting


@dataclass(frozen=True, slots=True)
class ProcessMissing:
    """The first look at the processes of this host found none of a local server.

    `is_blind`: it could not have found any, for instance in a container with PIDs of its own.
    """

    is_blind: bool = False


@dataclass(frozen=True, slots=True)
class Knocked:
    """A local server that has not served yet was knocked at, and what listens there is not it."""

    process: ProcessId
    knock: Knock


@dataclass(frozen=True, slots=True)
class TreeSeen:
    """What runs for a local server was looked at."""

    tree: ProcessTree


@dataclass(frozen=True, slots=True)
class ComponentEnded:
    """A process of a local server's tree, other than the main one, has ended."""

    process: ProcessId
    role: ComponentRole


@dataclass(frozen=True, slots=True)
class LoadLooked:
    """The witnesses of a local load were asked what they see."""

    look: LoadLook


@dataclass(frozen=True, slots=True)
class EndBegan:
    """A main process is gone."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class EndSettled:
    """All that will be known in time of the end of a launch is known, maybe of an older launch."""

    process: ProcessId
    evidence: EndingEvidence


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator asked something of a managed server; `model` is the one to serve from now on."""

    wish: Wish
    model: str | None = None


@dataclass(frozen=True, slots=True)
class StartRefused:
    """A start of a managed server came to nothing: no process of it is there.

    `reason` is None where the start was cancelled. `holder` is who has what it needs, its port or
    GPU memory; empty where nobody is known to.
    """

    attempt: int
    reason: Reason | None
    detail: str = ""
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Cleared:
    """No process is left of the launch that had this main process."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class EngineSeen:
    """A server that answers no check told, in its own time, what its engine has done."""

    process: ProcessId
    engine: EngineFacts


@dataclass(frozen=True, slots=True)
class EvidenceKept:
    """What is known of the end of a launch is in a file now."""

    launch_number: int
    path: str


@dataclass(frozen=True, slots=True)
class AgentLeaving:
    """The agent ends, and takes a managed server along."""


ManagedEvent: TypeAlias = Asked | StartRefused | Cleared | EngineSeen | EvidenceKept | AgentLeaving

ProcessEvent: TypeAlias = (
    ProcessAppeared
    | ProcessMissing
    | Knocked
    | TreeSeen
    | LoadLooked
    | ComponentEnded
    | EndBegan
    | EndSettled
)

Event: TypeAlias = Looked | ConnectionClosed | MaintenanceSet | Ticked | ProcessEvent | ManagedEvent


@dataclass(frozen=True, slots=True)
class LookNow:
    """Look at the server at once."""


@dataclass(frozen=True, slots=True)
class AskEngine:
    """Ask this launch, and it alone, what its engine has done, with patience."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class KeepConnection:
    """Hold an idle connection to the server."""


@dataclass(frozen=True, slots=True)
class DropConnection:
    """Close the idle connection."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Follow the processes of this launch until the last has ended."""

    sighting: Sighting


@dataclass(frozen=True, slots=True)
class WatchLoad:
    """Ask the witnesses of the load again and again."""


@dataclass(frozen=True, slots=True)
class LeaveLoad:
    """Ask the witnesses of the load no more."""


@dataclass(frozen=True, slots=True)
class StartServer:
    """Check what a start needs, then start the managed server; `model` None is the configured one.

    It is answered by `ProcessAppeared` or by `StartRefused`.
    """

    attempt: int
    model: str | None


@dataclass(frozen=True, slots=True)
class CancelStart:
    """Give up a start that has not come to a process yet; it is answered as any start is."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send SIGTERM to the main process."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class KillAll:
    """Kill whatever is left of a launch, until `Cleared` can be told."""

    process: ProcessId


@dataclass(frozen=True, slots=True)
class KeepEvidence:
    """Keep what is known of this end in a file, and tell `EvidenceKept`."""

    ending: Ending


@dataclass(frozen=True, slots=True)
class NoteDryRun:
    """Log and count what `restart.dry_run` keeps the agent from doing."""

    what: str


LaunchEffect: TypeAlias = StartServer | CancelStart | Terminate | KillAll | KeepEvidence
"""What is done to a managed server itself."""

Effect: TypeAlias = (
    LookNow
    | AskEngine
    | KeepConnection
    | DropConnection
    | Follow
    | WatchLoad
    | LeaveLoad
    | NoteDryRun
    | LaunchEffect
)
