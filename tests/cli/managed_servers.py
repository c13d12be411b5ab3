"""Managed servers, for the tests of commands."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tests.expose.snapshots import MANAGED, managed_life, managed_server, tree
from vllm_agent.lifecycle.management import Management, StopOutcome, Trouble
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Ending
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.observations import Instant

if TYPE_CHECKING:
    from vllm_agent.snapshot import ServerSnapshot

NO_SUCH: Final = "2 times in a row: no such repository"
BUNDLE: Final = "/state/evidence/llama-2.json"


def alive(phase: Phase = Phase.LOADING, **asked: Any) -> ServerSnapshot:
    """One whose process is there."""
    return managed_server(life=managed_life(phase, Management(attempts=1, **asked)))


def gone(phase: Phase, *, is_dry_run: bool = False, **of_life: Any) -> ServerSnapshot:
    """One without a process."""
    asked = of_life.pop("asked", Management())
    policy = replace(MANAGED, is_dry_run=is_dry_run, restart_delay_seconds=8.0)
    left = tree(is_main_alive=False, components=(), processes=0)
    return managed_server(policy=policy, tree=left, life=managed_life(phase, asked, **of_life))


def stopped(last_stop: StopOutcome | None = None) -> ServerSnapshot:
    """One that is wanted down, and is."""
    return gone(Phase.ABSENT, asked=Management(is_goal_up=False, last_stop=last_stop))


def backing_off(attempts: int = 1, *, is_dry_run: bool = False) -> ServerSnapshot:
    """One that crashed just now, and that the agent would start again."""
    now = Instant(10_000.0, time.time() + 0.5)
    trouble = Trouble(Reason.ENGINE_DIED, "it died")
    asked = Management(attempts=attempts, gone_since=now, trouble=trouble)
    told = {"reason": Reason.ENGINE_DIED, "detail": "it died"}
    return gone(Phase.BACKOFF, is_dry_run=is_dry_run, asked=asked, **told)


def given_up(**asked: Any) -> ServerSnapshot:
    """One that the agent starts no more."""
    reason = Reason.MODEL_NOT_FOUND
    at = Instant(1.0, 1_750_000_090.0)
    return gone(
        Phase.GAVE_UP,
        asked=Management(attempts=2, **asked),
        reason=reason,
        detail=NO_SUCH,
        last_ending=Ending(2, at, ServerState.CRASHED, reason, 2, bundle=BUNDLE),
    )
