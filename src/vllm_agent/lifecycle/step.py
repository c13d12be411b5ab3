"""The one place that decides: (life, event, policy, now) → the next life and what to do. Pure.

Each event is turned into a trigger by a guard below; the table says where the trigger leads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.check import CheckVerdict, Outcome, judge_look
from vllm_agent.lifecycle.ending import exit_code, exit_signal, judge
from vllm_agent.lifecycle.events import (
    ConnectionClosed,
    DropConnection,
    EndBegan,
    EndSettled,
    KeepConnection,
    LoadProgressed,
    LoadStalled,
    Looked,
    LookNow,
    MaintenanceSet,
    OutOfReach,
    ProcessAppeared,
    Ticked,
)
from vllm_agent.lifecycle.launches import LaunchAccount, account_launch, account_served
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Ending, Launch, Transition
from vllm_agent.lifecycle.states import PHASE_STATE, Phase, ServerState
from vllm_agent.lifecycle.transitions import TRANSITIONS, Trigger
from vllm_agent.observations import Probe, ProbeCause

if TYPE_CHECKING:
    from vllm_agent.lifecycle.events import Effect, Event
    from vllm_agent.lifecycle.server_life import Policy, ServerLife
    from vllm_agent.observations import Instant, ProbeRound

CRASH_AFTER_SECONDS: Final = 10.0
"""External: a port that refuses this long after it served is called a crash, not a blip."""

ENDING_SECONDS: Final = 120.0
"""The longest that an end may take: vLLM waits for streaming clients, but nobody waits longer."""

_REASONED_STATES: Final = frozenset({ServerState.FAILED, ServerState.CRASHED})
_CONNECTED_PHASES: Final = frozenset({Phase.READY, Phase.UNREADY})


@dataclass(frozen=True, slots=True)
class Step:
    """What one event led to; whatever is not None has to be committed together with `life`."""

    life: ServerLife
    effects: tuple[Effect, ...] = ()
    transition: Transition | None = None
    launch: Launch | None = None
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class _Guarded:
    """An event as the table sees it: the trigger, and what else the guard found out."""

    life: ServerLife
    trigger: Trigger | None = None
    reason: Reason | None = None
    detail: str = ""
    effects: tuple[Effect, ...] = ()
    launch: Launch | None = None
    ending: Ending | None = None


def step(life: ServerLife, event: Event, policy: Policy, now: Instant) -> Step:
    """The successor of `life` after `event`."""
    guarded = _guard(_aged(life, policy, now), event, policy, now)
    result = _moved(guarded, now)
    if result.transition is None and result.life.is_desired is not life.is_desired:
        return replace(result, transition=_maintenance_note(result.life, now))
    return result


def _aged(life: ServerLife, policy: Policy, now: Instant) -> ServerLife:
    """What the mere passing of time changes."""
    until = life.maintenance_until_unix_seconds
    budget = life.budget
    if budget.limit != policy.max_restarts:
        budget = budget.with_limit(policy.max_restarts)
    if life.phase is Phase.READY and life.running_since is not None:
        budget = budget.after_running(now.since(life.running_since), policy.restart_window_seconds)
    return replace(
        life,
        budget=budget,
        state_time=life.state_time.advanced(life.state, is_desired=life.is_desired, now=now),
        maintenance_until_unix_seconds=(
            None if until is not None and until <= now.unix_seconds else until
        ),
    )


def _maintenance_note(life: ServerLife, now: Instant) -> Transition:
    """An entry of the history: no phase changes, but who reads it later has to know."""
    until = life.maintenance_until_unix_seconds
    if until is None:
        detail = "maintenance ended"
    elif until == float("inf"):
        detail = "maintenance began"
    else:
        detail = f"maintenance began, for {until - now.unix_seconds:.0f} s"
    number = life.launch.number if life.launch is not None else None
    return Transition(now, life.phase, life.phase, None, detail, number)


def _guard(  # noqa: PLR0911 - one return per kind of event
    life: ServerLife, event: Event, policy: Policy, now: Instant
) -> _Guarded:
    match event:
        case Looked(look):
            return _looked(life, look, policy, now)
        case ConnectionClosed():
            return _Guarded(life, effects=(LookNow(),))
        case MaintenanceSet(until):
            return _Guarded(replace(life, maintenance_until_unix_seconds=until))
        case Ticked():
            overdue = life.phase is Phase.ENDING and now.since(life.phase_entered) >= ENDING_SECONDS
            if not overdue:
                return _Guarded(life)
            detail = f"its end began more than {ENDING_SECONDS:.0f} s ago and is not over"
            return _Guarded(life, Trigger.OVERDUE, Reason.UNRESPONSIVE, detail)
        case ProcessAppeared(start_seconds):
            account = account_launch(life, start_seconds, now, has_served=False)
            return _Guarded(
                account.life, Trigger.APPEARED, launch=account.launch, ending=account.ending
            )
        case LoadStalled():
            detail = "its load made no progress for load_timeout"
            return _Guarded(life, Trigger.STALLED, Reason.LOAD_STALLED, detail)
        case LoadProgressed():
            return _Guarded(life, Trigger.PROGRESSED)
        case OutOfReach(detail):
            return _Guarded(life, Trigger.UNREACHED, Reason.UNREACHABLE, detail)
        case EndBegan():
            return _Guarded(life, Trigger.END_BEGAN)
        case EndSettled():
            return _settled(life, event, now)


def _looked(life: ServerLife, look: ProbeRound, policy: Policy, now: Instant) -> _Guarded:
    verdict = judge_look(look, expected_model=policy.expected_model, has_served=life.is_proven)
    if look.metrics is not None and look.metrics.is_sleeping != life.is_sleeping:
        life = replace(life, is_sleeping=look.metrics.is_sleeping)
    if verdict.outcome is Outcome.PASSED:
        if TRANSITIONS[life.phase, Trigger.PASSED] is not Phase.READY:
            return _Guarded(life, Trigger.PASSED)
        start = look.metrics.process_start_time_seconds if look.metrics is not None else None
        was_failing = life.consecutive_failures > 0
        if was_failing:
            life = replace(life, consecutive_failures=0, failing_looks=0)
        account = account_served(life, start, now, was_failing=was_failing)
        return _served(account)
    life = replace(life, consecutive_failures=life.consecutive_failures + 1)
    if verdict.outcome is Outcome.REFUSED:
        return _refused(replace(life, failing_looks=0), verdict, now)
    life = replace(life, failing_looks=life.failing_looks + 1)
    is_failed = life.failing_looks >= policy.failure_threshold
    return _Guarded(
        life,
        Trigger.FAILED if is_failed else Trigger.FAILING,
        verdict.reason,
        verdict.detail,
        effects=_look_again_after_reset(life, look),
    )


def _served(account: LaunchAccount) -> _Guarded:
    return _Guarded(
        account.life,
        Trigger.PASSED,
        effects=(KeepConnection(),),
        launch=account.launch,
        ending=account.ending,
    )


def _look_again_after_reset(life: ServerLife, look: ProbeRound) -> tuple[Effect, ...]:
    """A reset is often the last word of a server that goes: the next look will tell."""
    health = look.result(Probe.HEALTH)
    is_reset = health is not None and health.cause is ProbeCause.RESET
    is_first = life.consecutive_failures == 1 and life.phase is Phase.READY
    return (LookNow(),) if is_reset and is_first else ()


def _refused(life: ServerLife, verdict: CheckVerdict, now: Instant) -> _Guarded:
    detail = verdict.detail
    if life.phase is Phase.UNOBSERVED and life.remembered_phase is Phase.CRASHED:
        return _Guarded(life, Trigger.GONE, life.reason, "it was crashed before the agent started")
    if not life.is_desired:
        return _Guarded(life, Trigger.QUIET, ending=_ending_in_maintenance(life, now))
    if life.phase is Phase.UNOBSERVED and life.remembered_phase is Phase.LOST:
        return _gone(life, now, "it was lost before the agent started, and still refuses")
    refused_seconds = now.since(life.phase_entered)
    if life.phase is Phase.LOST and refused_seconds >= CRASH_AFTER_SECONDS:
        detail = f"its port has refused connections for {refused_seconds:.0f} s"
        return _gone(life, life.phase_entered, detail)
    served = life.has_served and life.phase is not Phase.UNOBSERVED
    return _Guarded(life, Trigger.LOST if served else Trigger.REFUSED, Reason.UNREACHABLE, detail)


def _ending_in_maintenance(life: ServerLife, now: Instant) -> Ending | None:
    is_gone = TRANSITIONS[life.phase, Trigger.QUIET] is Phase.ABSENT
    if not is_gone or life.launch is None or life.is_launch_over:
        return None
    evidence = ("it was in maintenance",)
    return Ending(life.launch.number, now, ServerState.STOPPED, None, 1, evidence)


def _gone(life: ServerLife, at: Instant, detail: str) -> _Guarded:
    """A crash of which only the refused port was seen."""
    ending = None
    if not life.is_launch_over:
        ending = Ending(
            launch_number=life.launch.number if life.launch else life.tally.launches,
            at=at,
            state=ServerState.CRASHED,
            reason=Reason.UNREACHABLE,
            rule=0,
            evidence=(detail,),
        )
    return _Guarded(life, Trigger.GONE, Reason.UNREACHABLE, detail, ending=ending)


def _settled(life: ServerLife, event: EndSettled, now: Instant) -> _Guarded:
    seen = event.evidence
    verdict = judge(seen)
    ending = Ending(
        launch_number=life.launch.number if life.launch else life.tally.launches,
        at=now,
        state=verdict.state,
        reason=verdict.reason,
        rule=verdict.rule,
        evidence=verdict.evidence,
        exit_code=exit_code(seen.main_wait_status),
        signal=exit_signal(seen.main_wait_status),
    )
    crashed = verdict.state is ServerState.CRASHED
    return _Guarded(
        life,
        Trigger.ENDED_CRASHED if crashed else Trigger.ENDED_STOPPED,
        verdict.reason,
        "; ".join(verdict.evidence),
        # Settled once: what is told later of the same end is not counted again.
        ending=None if life.is_launch_over else ending,
    )


def _moved(guarded: _Guarded, now: Instant) -> Step:
    life, ending = guarded.life, guarded.ending
    if ending is not None:
        life = replace(life, last_ending=ending)
        if ending.state is ServerState.CRASHED and ending.reason is not None:
            life = replace(life, tally=life.tally.with_crash(ending.reason, ending.at))
    if guarded.trigger is None:
        return Step(life, guarded.effects)
    target = TRANSITIONS[life.phase, guarded.trigger]
    if target is life.phase:
        life = _explained(life, guarded)
        return Step(life, guarded.effects, launch=guarded.launch, ending=ending)
    return _entered(life, target, guarded, now)


def _entered(life: ServerLife, target: Phase, guarded: _Guarded, now: Instant) -> Step:
    is_reasoned = PHASE_STATE[target] in _REASONED_STATES or target is Phase.UNREACHED
    transition = Transition(
        at=now,
        from_phase=life.phase,
        to_phase=target,
        reason=guarded.reason if is_reasoned else None,
        detail=guarded.detail if is_reasoned else "",
        launch_number=life.launch.number if life.launch is not None else None,
    )
    tally = life.tally
    if transition.is_change_of_state:
        tally = tally.with_transition(transition.from_state, transition.to_state)
    drops = life.phase in _CONNECTED_PHASES and target not in _CONNECTED_PHASES
    life = replace(
        life,
        phase=target,
        phase_entered=now,
        entered=_state_entered(life, target, guarded, now),
        reason=transition.reason,
        detail=transition.detail,
        running_since=now if target is Phase.READY else None,
        is_proven=target is Phase.READY or (life.is_proven and target is Phase.UNREADY),
        tally=tally,
    )
    effects = (*guarded.effects, DropConnection()) if drops else guarded.effects
    return Step(life, effects, transition, guarded.launch, guarded.ending)


def _state_entered(life: ServerLife, target: Phase, guarded: _Guarded, now: Instant) -> Instant:
    """When the state of `target` was entered, maybe under the agent before this one.

    The monotonic part is of this agent's time, for it cannot know another.
    """
    state, since = PHASE_STATE[target], life.remembered_entered_unix_seconds
    if state is life.state:
        return life.entered
    is_as_remembered = (
        life.phase is Phase.UNOBSERVED
        and life.remembered_phase is not None
        and state is PHASE_STATE[life.remembered_phase]
        and guarded.launch is None
    )
    if not is_as_remembered or since is None:
        return now
    # The wall clock may have been set back meanwhile.
    return replace(now, unix_seconds=min(since, now.unix_seconds))


def _explained(life: ServerLife, guarded: _Guarded) -> ServerLife:
    """A failed server may fail for another reason than before; a crash keeps its own."""
    if guarded.trigger is Trigger.FAILED and life.phase is Phase.UNREADY:
        return replace(life, reason=guarded.reason, detail=guarded.detail)
    return life
