"""Guards for a managed server: what an operator's wishes, and what came of the agent's acts, mean.

What the agent does by itself, and when, is `supervision`'s. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.events import KeepEvidence, KillAll
from vllm_agent.lifecycle.guarded import Guarded
from vllm_agent.lifecycle.management import Replacement, StopOutcome, Trouble, Wish
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.restart_budget import RestartBudget
from vllm_agent.lifecycle.states import ALIVE_PHASES, Initiator, Phase, ServerState
from vllm_agent.lifecycle.transitions import Trigger

if TYPE_CHECKING:
    from vllm_agent.lifecycle.events import Effect, StartRefused
    from vllm_agent.lifecycle.management import Management
    from vllm_agent.lifecycle.server_life import Ending, Policy, ServerLife
    from vllm_agent.observations import Instant, ProcessId

STOPPING_PHASES: Final = frozenset({Phase.TERMINATING, Phase.KILLING, Phase.OVERDUE})
"""Phases in which a launch is on its way out and the agent sees to it."""

AGENTS_STOP_RULE: Final = 1
"""The ending rule for the agent's own stop, and for maintenance."""

OUTSIDE_STOP_RULE: Final = 3
"""The ending rule that knows of a stop sign. An end in order (rule 6) is nobody's wish."""

_THERE: Final = ALIVE_PHASES - STOPPING_PHASES | {Phase.PREPARING, Phase.UNOBSERVED}


def is_being_stopped(life: ServerLife) -> bool:
    """Whether the agent ends it: however it answers meanwhile, it will be gone."""
    management = life.management
    if management is None or life.phase not in STOPPING_PHASES:
        return False
    return life.phase is not Phase.OVERDUE or management.is_clearing


def asked(life: ServerLife, wish: Wish, model: str | None, policy: Policy) -> Guarded:
    """What an operator's wish changes; what follows from it is due at once."""
    management = life.management
    if management is None:
        return Guarded(life)
    management = replace(management, requests=management.requests + 1, is_dry_run_told=False)
    if wish is Wish.STOP:
        management = replace(management, is_goal_up=False, replacement=None)
        return Guarded(replace(life, management=management))
    serving = management.model or policy.model
    is_other = model is not None and model != serving
    if is_other:
        chosen = None if model == policy.model else model
        # One that has not served is nothing to come back to.
        before = management.model_before or serving
        before = None if before == model else before
        management = replace(management, model=chosen, model_before=before)
    is_there = life.phase in _THERE
    is_wanted = management.is_goal_up and management.replacement is None
    if wish is Wish.RESTART or is_other or not (is_there and is_wanted):
        management = replace(management, replacement=Replacement(Initiator.OPERATOR))
    if life.remembered_phase is Phase.GAVE_UP:
        life = replace(life, remembered_phase=Phase.ABSENT)
    return Guarded(
        replace(
            life,
            management=replace(management, is_goal_up=True, trouble=None),
            budget=RestartBudget.full(life.budget.limit),
        )
    )


def leaving(life: ServerLife) -> Guarded:
    """The agent ends, and the server with it; the next agent will want it up again."""
    if life.management is None:
        return Guarded(life)
    return Guarded(replace(life, management=replace(life.management, is_leaving=True)))


def refused(life: ServerLife, event: StartRefused, now: Instant) -> Guarded:
    """What a start that came to nothing means."""
    management, reason, detail = life.management, event.reason, event.detail
    is_late = management is None or event.attempt != management.attempts
    if management is None or is_late or life.phase is not Phase.PREPARING:
        return Guarded(life)
    management = replace(management, stop=None, gone_since=now)
    if reason is None:
        return Guarded(replace(life, management=management), Trigger.CALLED_OFF)
    trouble = _again(management.trouble, Trouble(reason, detail, holder=event.holder))
    life = replace(life, management=replace(management, trouble=trouble))
    return Guarded(life, Trigger.START_REFUSED, reason, detail)


def appeared(life: ServerLife) -> ServerLife:
    """A launch of it is there."""
    if life.management is None:
        return life
    management = replace(
        life.management, stop=None, is_clear=False, is_clearing=False, gone_since=None
    )
    return replace(life, management=management)


def end_began(life: ServerLife, now: Instant) -> ServerLife:
    """Its main process is gone: the delay of a restart counts from here."""
    if life.management is None:
        return life
    return replace(life, management=replace(life.management, gone_since=now))


def settled(life: ServerLife, process: ProcessId, ending: Ending, now: Instant) -> Guarded:
    """What the verdict on an end of the newest launch means for what is asked of the server."""
    management = life.management
    if management is None:
        return Guarded(life)
    is_stopping = is_being_stopped(life)
    is_done = management.is_clear or management.is_clearing
    effects: tuple[Effect, ...] = () if is_done else (KillAll(process),)
    management, is_worth_keeping = _accounted(life, management, ending)
    if is_worth_keeping:
        effects = (*effects, KeepEvidence(ending))
    management = replace(management, is_clearing=True, gone_since=management.gone_since or now)
    life = replace(life, management=management)
    if is_stopping:
        life = replace(life, last_ending=ending)
        done = _stopped(life, now) if management.is_clear else Guarded(life)
        return replace(done, effects=effects, ending=ending)
    if ending.state is ServerState.CRASHED:
        why = (ending.reason, ending.evidence[0])
        return Guarded(life, Trigger.BACKING_OFF, *why, effects=effects, ending=ending)
    return Guarded(life, Trigger.ENDED_STOPPED, effects=effects, ending=ending)


def _accounted(life: ServerLife, management: Management, ending: Ending) -> tuple[Management, bool]:
    """What an ending says of the server, and whether its evidence is worth keeping."""
    trouble = Trouble(
        ending.reason or Reason.UNKNOWN, ending.evidence[0], has_served=life.has_served_now
    )
    if ending.state is ServerState.CRASHED:
        return replace(management, trouble=_again(management.trouble, trouble)), True
    if ending.rule == AGENTS_STOP_RULE:
        replacement = management.replacement
        if replacement is not None and replacement.trouble is not None:
            return management, True
        return replace(management, trouble=None), False
    if ending.rule == OUTSIDE_STOP_RULE:
        # Somebody else stopped it: as systemd, the agent does not start what was asked to end.
        is_goal_up = management.is_goal_up and management.is_leaving
        return replace(management, trouble=None, is_goal_up=is_goal_up), False
    # It looked like a stop, and nobody is known to have asked for one.
    return replace(management, trouble=_again(management.trouble, trouble)), False


def cleared(life: ServerLife, process: ProcessId, now: Instant) -> Guarded:
    """Nothing of a launch is left."""
    management, launch = life.management, life.launch
    if management is None or (launch is not None and launch.process != process):
        return Guarded(life)
    life = replace(life, management=replace(management, is_clear=True))
    if is_being_stopped(life) and life.is_launch_over:
        return _stopped(life, now)
    return Guarded(life)


def missing(life: ServerLife, ending: Ending | None, now: Instant) -> Guarded:
    """What it means that nothing of it was there when the agent began to watch."""
    management, launch = life.management, life.launch
    if management is None:
        return Guarded(life)
    known = None if launch is None else launch.process
    effects = () if management.is_clear or known is None else (KillAll(known),)
    # What was being stopped is gone by now.
    management = replace(management, replacement=None, is_clearing=bool(effects))
    life = replace(life, management=management)
    match life.remembered_phase:
        case Phase.GAVE_UP:
            trigger, detail = Trigger.GIVE_UP, _remembered_detail(life)
        case Phase.BACKOFF | Phase.CRASHED:
            life = replace(life, management=replace(management, gone_since=now))
            trigger, detail = Trigger.BACKING_OFF, "it was crashed before the agent started"
        case _:
            return Guarded(life, Trigger.ENDED_STOPPED, effects=effects, ending=ending)
    return Guarded(life, trigger, life.reason, detail, effects=effects)


def _remembered_detail(life: ServerLife) -> str:
    text, ending = "the agent before this one had given it up", life.last_ending
    if ending is None or ending.reason is not life.reason or not ending.evidence:
        return text
    return f"{text}: {ending.evidence[0]}"


def evidence_kept(life: ServerLife, launch_number: int, path: str) -> Guarded:
    """Where the evidence of an end is."""
    ending = life.last_ending
    if ending is None or ending.launch_number != launch_number:
        return Guarded(life)
    ending = replace(ending, bundle=path)
    return Guarded(replace(life, last_ending=ending), ending=ending, is_amended=True)


def has_run_on(life: ServerLife) -> ServerLife:
    """It has run without interruption for as long as makes its restarts forgotten."""
    management = life.management
    if management is None or management.trouble is None:
        return life
    return replace(life, management=replace(management, trouble=None))


def served(life: ServerLife) -> ServerLife:
    """It serves the model that was asked for."""
    management = life.management
    if management is None or management.model_before is None:
        return life
    return replace(life, management=replace(management, model_before=None))


def how_stopped(life: ServerLife, now: Instant) -> str:
    """A sentence on the agent's stop, for the ending that it led to; empty where there is none."""
    management = life.management
    if management is None or management.stop is None or life.phase is Phase.PREPARING:
        return ""
    stop, replacement = management.stop, management.replacement
    trouble = None if replacement is None else replacement.trouble
    if trouble is not None and trouble.reason is Reason.ENGINE_DIED:
        # What ended it came before the agent: it is judged by what was seen.
        return ""
    ended = now if management.gone_since is None else management.gone_since
    seconds = ended.since(stop.since)
    how = f"with SIGKILL after {seconds:.1f} s" if stop.is_forced else f"in {seconds:.1f} s"
    if trouble is not None:
        return f"the agent stopped it, {how}: {trouble.reason}: {trouble.detail}"
    return f"the agent stopped it, {how}"


def _stopped(life: ServerLife, now: Instant) -> Guarded:
    """Its end is judged and nothing of it is left."""
    management, ending = life.management, life.last_ending
    if management is None or ending is None:
        return Guarded(life)
    stop = management.stop
    last = management.last_stop
    if stop is not None:
        last = StopOutcome(ending.launch_number, now.since(stop.since), stop.is_forced)
    management = replace(
        management, stop=None, last_stop=last, gone_since=management.gone_since or now
    )
    life = replace(life, management=management)
    if ending.state is ServerState.CRASHED:
        return Guarded(life, Trigger.BACKING_OFF, ending.reason, ending.evidence[0])
    return Guarded(life, Trigger.ENDED_STOPPED)


def _again(before: Trouble | None, trouble: Trouble) -> Trouble:
    """The same trouble as before counts on, while no launch served in between."""
    is_same = (
        before is not None
        and before.reason is trouble.reason
        and not (before.has_served or trouble.has_served)
    )
    return replace(trouble, times=before.times + 1) if is_same and before is not None else trouble
