"""What the log says of a server: one line for each committed change that an operator cares for."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.load_summary import SUMMARY_SECONDS, summary
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import ServerLife
    from vllm_agent.lifecycle.step import Step

_LOGGER: Final = logging.getLogger(__name__)
_LEVEL_OF_STATE: Final = MappingProxyType(
    {ServerState.FAILED: logging.WARNING, ServerState.CRASHED: logging.ERROR}
)


class RunnerLog:
    """The log lines on one server."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._load_told_seconds = 0.0

    def committed(self, before: ServerLife, result: Step) -> None:
        """Tells what a step changed."""
        life = result.life
        self._tell_transition(result)
        self._tell_load(before, life)
        if result.launch is not None and result.launch.number > 1:
            self._tell(logging.WARNING, "restarted", launch=result.launch.number)
        if life.budget.is_limit_reached and not before.budget.is_limit_reached:
            self._tell(logging.ERROR, "restart limit reached")
        if life.is_load_balanced and not before.is_load_balanced:
            text = "a load balancer answers here: restarts are no longer compared by start time"
            self._tell(logging.WARNING, text)
        if life.is_in_maintenance != before.is_in_maintenance:
            text = "maintenance began" if life.is_in_maintenance else "maintenance ended"
            self._tell(logging.INFO, text)
        self._tell_management(before, life)

    def adopted(self) -> None:
        """Tells that a launch goes on which this agent did not start."""
        self._tell(logging.INFO, "goes on with the launch of the agent before")

    def noted_dry_run(self, what: str) -> None:
        """Tells what was not done."""
        self._tell(logging.WARNING, "restart.dry_run: nothing is done", would=what)

    def _tell(self, level: int, text: str, **facts: object) -> None:
        _LOGGER.log(level, text, extra={"server": self._server, **facts})

    def _tell_transition(self, result: Step) -> None:
        transition = result.transition
        if transition is None or not transition.is_change_of_state:
            return
        self._tell(
            _LEVEL_OF_STATE.get(transition.to_state, logging.INFO),
            "state changed",
            **{
                "from": transition.from_state,
                "to": transition.to_state,
                "reason": transition.reason,
                "detail": transition.detail,
            },
        )

    def _tell_load(self, before: ServerLife, life: ServerLife) -> None:
        """A line each SUMMARY_SECONDS on a load that goes on."""
        load = life.load
        if load is None or load is before.load or load.ended is not None:
            return
        now = load.look.at
        is_due = now.monotonic_seconds >= self._load_told_seconds + SUMMARY_SECONDS
        if load.watched is now:
            # Before there is something to tell.
            self._load_told_seconds = now.monotonic_seconds
        elif is_due:
            self._load_told_seconds = now.monotonic_seconds
            self._tell(logging.INFO, "loading", **summary(load, life.load_history, now))

    def _tell_management(self, before: ServerLife, life: ServerLife) -> None:
        was, management = before.management, life.management
        if was is None or management is None or was is management:
            return
        if management.requests != was.requests:
            wanted = "up" if management.is_goal_up else "down"
            self._tell(logging.INFO, "an operator asked", wanted=wanted, model=management.model)
        if management.last_stop is not None and management.last_stop is not was.last_stop:
            stop = management.last_stop
            how = "forced" if stop.is_forced else "graceful"
            self._tell(logging.INFO, "stopped", how=how, seconds=round(stop.seconds, 1))
        if was.is_goal_up and not management.is_goal_up and management.requests == was.requests:
            self._tell(logging.WARNING, "somebody else stopped it: it stays down until it is asked")
