"""What `step` is told and what it asks for: events in, effects out. Frozen values.

Events are in the past tense, effects in the imperative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.observations import ProbeRound


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
    """A main process of a local server was seen; `start_seconds` is unix time."""

    start_seconds: float


@dataclass(frozen=True, slots=True)
class LoadStalled:
    """A local load has made no progress for load_timeout."""


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    """A local load that had stalled moves again."""


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """A local server listens where the agent cannot connect to."""

    detail: str


@dataclass(frozen=True, slots=True)
class EndBegan:
    """A local server's listener closed, or its main process is gone."""


@dataclass(frozen=True, slots=True)
class EndSettled:
    """All that will be known in time of a local server's end is known."""

    evidence: EndingEvidence


Event: TypeAlias = (
    Looked
    | ConnectionClosed
    | MaintenanceSet
    | Ticked
    | ProcessAppeared
    | LoadStalled
    | LoadProgressed
    | OutOfReach
    | EndBegan
    | EndSettled
)


@dataclass(frozen=True, slots=True)
class LookNow:
    """Look at the server at once."""


@dataclass(frozen=True, slots=True)
class KeepConnection:
    """Hold an idle connection to the server."""


@dataclass(frozen=True, slots=True)
class DropConnection:
    """Close the idle connection."""


Effect: TypeAlias = LookNow | KeepConnection | DropConnection
