"""When a server is looked at next, and what it is asked then."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.pace import next_look_seconds
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Probe

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Policy, ServerLife
    from vllm_agent.observations import Instant, ProbeRound

MODELS_INTERVAL_SECONDS: Final = 60.0
"""Models are listed again after this long: the list of a launch rarely changes."""

SLOTS_PER_INTERVAL: Final = 50
"""Steady looks begin in slots of this part of the interval, so that those of several servers share
a wake-up and warm caches: 1,000 servers at 10 s cost half the CPU of looks that are all alone."""


class LookPlan:
    """The plan for one server; `due_seconds` is on the monotonic clock, maybe infinite."""

    def __init__(self, interval_seconds: float, *, is_local: bool) -> None:
        self._interval_seconds = interval_seconds
        # A local server is looked at once there is a process to look at.
        self.due_seconds = math.inf if is_local else 0.0
        self._models_due_seconds = 0.0
        self._version_launch: int | None = None

    def asks_models(self, life: ServerLife, now: Instant) -> bool:
        """Whether the next look lists models.

        Every look does while checks fail, so that a missing model reaches the threshold.
        """
        is_due = now.monotonic_seconds >= self._models_due_seconds
        return is_due or life.phase is not Phase.READY or life.consecutive_failures > 0

    @property
    def asks_version(self) -> bool:
        """Whether the next look asks for the version."""
        return self._version_launch is None

    def spread(self, life: ServerLife) -> None:
        """Spreads looks over the interval, so that a thousand servers do not see one burst."""
        share = 0.0 if life.phase is Phase.LOST else random.random()  # noqa: S311 - no secret
        due = self.due_seconds - share * self._interval_seconds
        self.due_seconds = _in_slot(due, self._interval_seconds)

    def postpone(self, now: Instant) -> None:
        """Looks again an interval from now."""
        self.due_seconds = now.monotonic_seconds + self._interval_seconds

    def looked(self, life: ServerLife, policy: Policy, look: ProbeRound, now: Instant) -> None:
        """Plans the look after this one."""
        models = look.result(Probe.MODELS)
        if models is not None and models.is_success:
            self._models_due_seconds = now.monotonic_seconds + MODELS_INTERVAL_SECONDS
        launch = life.launch.number if life.launch is not None else None
        if launch != self._version_launch:
            # What a launch serves and which vLLM it is are asked once, by the next look.
            was_asked = self._version_launch is None
            self._version_launch = launch if was_asked else None
            self._models_due_seconds = self._models_due_seconds if was_asked else 0.0
        interval = self._interval_seconds
        wait = next_look_seconds(life, policy, interval, now)
        # A steady rhythm counts from the beginning of a look, a shorter pause from its end.
        since = look.started if wait >= interval else now
        due = since.monotonic_seconds + wait
        is_steady = interval <= wait < math.inf
        self.due_seconds = _in_slot(due, interval) if is_steady else due

    def paced(self, life: ServerLife, policy: Policy, now: Instant) -> None:
        """Plans anew after something other than a look changed the pace."""
        wait = next_look_seconds(life, policy, self._interval_seconds, now)
        self.due_seconds = now.monotonic_seconds + wait


def _in_slot(due_seconds: float, interval_seconds: float) -> float:
    """The nearest beginning of a slot, so that a rhythm neither drifts nor loses a slot."""
    slot_seconds = interval_seconds / SLOTS_PER_INTERVAL
    return round(due_seconds / slot_seconds) * slot_seconds
