"""What the store gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Ending, Launch, Transition


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One launch and how it ended; `ending` is None while it runs, or if nobody saw its end."""

    launch: Launch
    ending: Ending | None


@dataclass(frozen=True, slots=True)
class History:
    """What is known of one server's past, newest first.

    Its instants have a monotonic part of 0.0: they may be older than this boot's clock.
    """

    transitions: tuple[Transition, ...] = ()
    launches: tuple[LaunchRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Whether commits reach the disk. `detail` is empty, or says what is wrong and what to do.

    `duration_seconds` is how long the last write took, None before the first.
    """

    is_up: bool
    detail: str
    duration_seconds: float | None
    last_success_unix_seconds: float | None
