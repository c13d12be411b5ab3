"""What `step` is told and what it asks for: events in, effects out. Frozen values.

Events are in the past tense, effects in the imperative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.observations import (
        ComponentRole,
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
    """The first look at the processes of this host found none of a local server."""


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

Event: TypeAlias = Looked | ConnectionClosed | MaintenanceSet | Ticked | ProcessEvent


@dataclass(frozen=True, slots=True)
class LookNow:
    """Look at the server at once."""


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


Effect: TypeAlias = LookNow | KeepConnection | DropConnection | Follow | WatchLoad | LeaveLoad
