"""What the agent does to a managed server by itself, and when. Pure.

`due` says what comes next, from the phase and what is asked of the server; `acted` is what doing it
changes. There are no timers: whoever owns the server asks again after each event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.by_process import DYING_SECONDS, NO_PROOF_REASONS
from vllm_agent.lifecycle.events import (
    CancelStart,
    KillAll,
    NoteDryRun,
    StartServer,
    Terminate,
)
from vllm_agent.lifecycle.guarded import Guarded
from vllm_agent.lifecycle.launches import needs_unit
from vllm_agent.lifecycle.managed import is_being_stopped
from vllm_agent.lifecycle.management import Replacement, Stop, Trouble
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import IDLE_PHASES, SERVABLE_PHASES, Initiator, Phase
from vllm_agent.lifecycle.transitions import Trigger

if TYPE_CHECKING:
    from vllm_agent.lifecycle.management import Management
    from vllm_agent.lifecycle.server_life import Policy, ServerLife
    from vllm_agent.observations import Instant

MAX_DELAY_SECONDS: Final = 300.0
"""The longest delay that doubling leads to: as systemd's users set RestartMaxDelaySec, minutes."""

GRAIN_SECONDS: Final = 0.001
"""What is due within this time is done: timers fire a little early, and sums of times round."""

MAX_DOUBLINGS: Final = 16
"""Enough for the shortest delay to become the longest."""

REPEAT_SECONDS: Final = 7.0
"""SIGTERM is sent again to a server that loads: it swallows those that come before it has loaded
(seen on vLLM 0.32), and the one that comes first after that is the one that counts. Longer than
the 5 s in which vLLM waits for its EngineCore: another signal then leaves that behind."""

ENDING_SECONDS: Final = 120.0
"""The longest that an end may take: vLLM waits for streaming clients, but nobody waits longer."""

UNKILLABLE_SECONDS: Final = 120.0
"""A server that is still there this long after SIGKILL is failed: its driver holds it."""

QUIET_ENGINE_SECONDS: Final = 120.0
"""Checks that time out are a reason to restart only after this long without any progress of the
engine: a busy server must never be killed."""

SAME_ENDINGS: Final = 2
"""Endings in a row, for a reason that no further start heals, before the agent gives up."""

HOPELESS_REASONS: Final = frozenset(
    {
        Reason.BAD_ARGUMENTS,
        Reason.MODEL_NOT_FOUND,
        Reason.HF_AUTH,
        Reason.CONTEXT_TOO_LONG,
        Reason.UNSUPPORTED_MODEL,
        Reason.AIRGAPPED,
    }
)
"""Reasons that starting again does not heal."""

_RETRIED: Final = frozenset({Phase.BACKOFF, Phase.REFUSED, Phase.CRASHED})


class Act(StrEnum):
    """What the agent does to a managed server by itself."""

    START = "start"
    CANCEL = "cancel"
    STOP = "stop"
    REPEAT = "repeat"
    KILL = "kill"
    CALL_OVERDUE = "call_overdue"
    REPLACE = "replace"
    GIVE_UP = "give_up"
    CALL_OFF = "call_off"
    NOTE_DRY_RUN = "note_dry_run"


@dataclass(frozen=True, slots=True)
class Due:
    """What comes next, and in how many seconds: 0 for at once."""

    act: Act
    in_seconds: float = 0.0


def due(life: ServerLife, policy: Policy, now: Instant) -> Due | None:
    """What comes next if nothing else happens; None if nothing does."""
    management = life.management
    if management is None:
        return None
    if life.phase in IDLE_PHASES:
        return _due_idle(life, management, policy, now)
    if life.phase is Phase.PREPARING:
        is_unwanted = _is_to_end(management) and management.stop is None
        return Due(Act.CANCEL) if is_unwanted else None
    if is_being_stopped(life):
        return _due_stopping(life, management, policy, now)
    if life.phase in SERVABLE_PHASES:
        return _due_alive(life, management, policy, now)
    is_ending = life.phase in {Phase.ENDING, Phase.OVERDUE}
    return _due_ending(life, management, policy, now) if is_ending else None


def next_restart(life: ServerLife, policy: Policy, now: Instant) -> Instant | None:
    """When the agent will start it again; None while no restart is planned."""
    management = life.management
    if management is None or life.phase not in IDLE_PHASES or management.gone_since is None:
        return None
    planned = due(replace(life, management=replace(management, is_clear=True)), policy, now)
    if planned is None or planned.act is not Act.START:
        return None
    delay, gone = delay_seconds(life, policy), management.gone_since
    return replace(
        gone,
        monotonic_seconds=gone.monotonic_seconds + delay,
        unix_seconds=gone.unix_seconds + delay,
    )


def delay_seconds(life: ServerLife, policy: Policy) -> float:
    """Seconds from an end to the restart: twice as long for each unit of the budget in use."""
    first = policy.restart_delay_seconds
    used = life.budget.limit - life.budget.remaining
    # No float holds two to the power of the largest limits.
    return max(first, min(first * 2.0 ** min(used, MAX_DOUBLINGS), MAX_DELAY_SECONDS))


def acted(life: ServerLife, policy: Policy, now: Instant) -> Guarded | None:
    """What is due now, done; None if nothing is."""
    next_act, management = due(life, policy, now), life.management
    if next_act is None or management is None or next_act.in_seconds > GRAIN_SECONDS:
        return None
    return _DO[next_act.act](life, management, now)


def _is_to_end(management: Management) -> bool:
    return not management.is_goal_up or management.is_leaving or management.replacement is not None


# When.


def _due_idle(life: ServerLife, management: Management, policy: Policy, now: Instant) -> Due | None:
    if not management.is_goal_up:
        return None if life.phase is Phase.ABSENT else Due(Act.CALL_OFF)
    if management.is_leaving or not management.is_clear:
        return None
    if _is_asked(management):
        return Due(Act.START)
    if life.is_in_maintenance or life.phase is Phase.GAVE_UP:
        return None
    return _due_again(life, management, policy, now)


def _due_again(
    life: ServerLife, management: Management, policy: Policy, now: Instant
) -> Due | None:
    trouble, gone_since = management.trouble, management.gone_since
    if trouble is not None and _is_hopeless(trouble):
        return Due(Act.GIVE_UP)
    is_retry = life.phase in _RETRIED or trouble is not None
    if is_retry and policy.is_dry_run:
        return None if management.is_dry_run_told else Due(Act.NOTE_DRY_RUN)
    if _takes_unit(life, management) and life.budget.remaining == 0:
        return Due(Act.GIVE_UP)
    if not is_retry or gone_since is None:
        return Due(Act.START)
    return Due(Act.START, max(0.0, delay_seconds(life, policy) - now.since(gone_since)))


def _due_alive(
    life: ServerLife, management: Management, policy: Policy, now: Instant
) -> Due | None:
    if _is_to_end(management):
        return Due(Act.STOP)
    if not policy.restarts_unhealthy or life.is_in_maintenance:
        return None
    left = _patience_seconds(life, management, now)
    if left is None:
        return None
    if policy.is_dry_run:
        return None if management.is_dry_run_told else Due(Act.NOTE_DRY_RUN, left)
    return Due(Act.REPLACE, left)


def _patience_seconds(life: ServerLife, management: Management, now: Instant) -> float | None:
    """How long one that failed is left alone; None where a restart would not mend it."""
    if life.phase is Phase.STALLED:
        return 0.0
    if life.phase is not Phase.UNREADY:
        return None
    trouble = management.trouble
    if life.reason is Reason.MODEL_MISSING:
        # One restart; a server that then still lacks it will lack it again.
        is_known = trouble is not None and trouble.reason is Reason.MODEL_MISSING
        return None if is_known else 0.0
    if life.reason is Reason.ENGINE_DIED:
        # vLLM ends by itself when its engine died, and its own end tells more.
        return max(0.0, DYING_SECONDS - now.since(life.phase_entered))
    if life.reason not in NO_PROOF_REASONS:
        return 0.0
    quiet_since = life.phase_entered
    if life.engine_progress is not None and life.engine_progress.since(quiet_since) > 0:
        quiet_since = life.engine_progress
    return max(0.0, QUIET_ENGINE_SECONDS - now.since(quiet_since))


def _due_ending(
    life: ServerLife, management: Management, policy: Policy, now: Instant
) -> Due | None:
    """One whose end has begun by itself: it gets the time of a stop, where it may be restarted."""
    if _is_to_end(management) and not life.is_main_gone:
        return Due(Act.STOP)
    is_left_alone = not policy.restarts_unhealthy or policy.is_dry_run or life.is_in_maintenance
    if life.phase is Phase.OVERDUE or (is_left_alone and not life.is_main_gone):
        return None
    limit = min(policy.stop_timeout_seconds, ENDING_SECONDS)
    return Due(Act.KILL, max(0.0, limit - now.since(life.phase_entered)))


def _due_stopping(
    life: ServerLife, management: Management, policy: Policy, now: Instant
) -> Due | None:
    in_phase = now.since(life.phase_entered)
    if life.phase is Phase.OVERDUE:
        return None
    if life.phase is Phase.KILLING:
        return Due(Act.CALL_OVERDUE, max(0.0, UNKILLABLE_SECONDS - in_phase))
    kill = Due(Act.KILL, max(0.0, policy.stop_timeout_seconds - in_phase))
    stop = management.stop
    if stop is None or life.has_served_now or life.is_main_gone:
        return kill
    pause = min(REPEAT_SECONDS, policy.stop_timeout_seconds / 2)
    repeat = Due(Act.REPEAT, max(0.0, pause - now.since(stop.signalled)))
    return min(kill, repeat, key=lambda next_act: next_act.in_seconds)


def _is_asked(management: Management) -> bool:
    replacement = management.replacement
    return replacement is not None and replacement.initiator is Initiator.OPERATOR


def _is_hopeless(trouble: Trouble) -> bool:
    is_final = trouble.reason in HOPELESS_REASONS and not trouble.has_served
    return is_final and trouble.times >= SAME_ENDINGS


def _takes_unit(life: ServerLife, management: Management) -> bool:
    if life.tally.launches == 0 and management.trouble is None:
        return False
    return management.trouble is not None or needs_unit(life)


# What.


def _start(life: ServerLife, management: Management, now: Instant) -> Guarded:
    del now
    replacement = management.replacement
    takes_unit = not _is_asked(management) and _takes_unit(life, management)
    management = replace(
        management,
        attempts=management.attempts + 1,
        initiator=Initiator.AGENT if replacement is None else replacement.initiator,
        replacement=None,
        gone_since=None,
    )
    budget = life.budget.after_launch(needs_unit=takes_unit)
    return Guarded(
        replace(life, management=management, budget=budget),
        Trigger.START,
        effects=(StartServer(management.attempts, management.model),),
    )


def _cancel(life: ServerLife, management: Management, now: Instant) -> Guarded:
    management = replace(management, stop=Stop(now, now))
    return Guarded(replace(life, management=management), effects=(CancelStart(),))


def _stop(life: ServerLife, management: Management, now: Instant) -> Guarded:
    management = replace(management, stop=Stop(now, now))
    life = replace(life, management=management)
    return Guarded(life, Trigger.STOP, effects=_on_main(life, Terminate))


def _repeat(life: ServerLife, management: Management, now: Instant) -> Guarded:
    if management.stop is not None:
        management = replace(management, stop=replace(management.stop, signalled=now))
    life = replace(life, management=management)
    return Guarded(life, effects=_on_main(life, Terminate))


def _kill(life: ServerLife, management: Management, now: Instant) -> Guarded:
    del now
    if management.stop is not None:
        management = replace(management, stop=replace(management.stop, is_forced=True))
    life = replace(life, management=replace(management, is_clearing=True))
    return Guarded(life, Trigger.KILL, effects=_on_main(life, KillAll))


def _call_overdue(life: ServerLife, management: Management, now: Instant) -> Guarded:
    del management, now
    text = f"it is not gone {UNKILLABLE_SECONDS:.0f} s after SIGKILL"
    return Guarded(life, Trigger.OVERDUE, Reason.UNRESPONSIVE, text)


def _replace(life: ServerLife, management: Management, now: Instant) -> Guarded:
    del now
    trouble = Trouble(life.reason or Reason.UNKNOWN, life.detail, has_served=life.has_served_now)
    replacement = Replacement(Initiator.AGENT, trouble)
    management = replace(management, replacement=replacement, trouble=trouble)
    return Guarded(replace(life, management=management))


def _call_off(life: ServerLife, management: Management, now: Instant) -> Guarded:
    del management, now
    return Guarded(life, Trigger.CALLED_OFF)


def _note_dry_run(life: ServerLife, management: Management, now: Instant) -> Guarded:
    del now
    what = "restart" if life.phase in IDLE_PHASES else "stop and restart"
    management = replace(management, is_dry_run_told=True)
    return Guarded(replace(life, management=management), effects=(NoteDryRun(what),))


def _on_main(
    life: ServerLife, effect: type[Terminate | KillAll]
) -> tuple[Terminate | KillAll, ...]:
    launch = life.launch
    return () if launch is None or launch.process is None else (effect(launch.process),)


def _give_up(life: ServerLife, management: Management, now: Instant) -> Guarded:
    del now
    trouble = management.trouble
    if trouble is not None and _is_hopeless(trouble):
        text = f"{trouble.times} times in a row: {trouble.detail}"
        return Guarded(life, Trigger.GIVE_UP, trouble.reason, text)
    life = replace(life, budget=life.budget.after_launch(needs_unit=True))
    limit = f"the restart limit of {life.budget.limit} is reached"
    if trouble is None:
        ending = life.last_ending
        known = life.reason or (None if ending is None else ending.reason)
        return Guarded(life, Trigger.GIVE_UP, known or Reason.UNKNOWN, limit)
    return Guarded(life, Trigger.GIVE_UP, trouble.reason, f"{limit}; {trouble.detail}")


_DO: Final = MappingProxyType(
    {
        Act.START: _start,
        Act.CANCEL: _cancel,
        Act.STOP: _stop,
        Act.REPEAT: _repeat,
        Act.KILL: _kill,
        Act.CALL_OVERDUE: _call_overdue,
        Act.REPLACE: _replace,
        Act.GIVE_UP: _give_up,
        Act.CALL_OFF: _call_off,
        Act.NOTE_DRY_RUN: _note_dry_run,
    }
)
