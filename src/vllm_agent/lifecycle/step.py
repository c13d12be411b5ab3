"""The one place that decides: (life, event, policy, now) → the next life and what to do. Pure.

Each event is turned into a trigger by a guard below; the table says where the trigger leads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle import by_load, by_process, by_url, managed, supervision
from vllm_agent.lifecycle.events import (
    AgentLeaving,
    Asked,
    Cleared,
    ComponentEnded,
    ConnectionClosed,
    DropConnection,
    EndBegan,
    EndSettled,
    EngineSeen,
    EvidenceKept,
    Knocked,
    LeaveLoad,
    LoadLooked,
    Looked,
    LookNow,
    MaintenanceSet,
    ProcessAppeared,
    ProcessMissing,
    StartRefused,
    Ticked,
    TreeSeen,
    WatchLoad,
)
from vllm_agent.lifecycle.guarded import Guarded
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Transition
from vllm_agent.lifecycle.states import PHASE_STATE, Phase, ServerState
from vllm_agent.lifecycle.supervision import ENDING_SECONDS
from vllm_agent.lifecycle.transitions import TRANSITIONS, Trigger

if TYPE_CHECKING:
    from vllm_agent.lifecycle.events import Effect, Event, ManagedEvent, ProcessEvent
    from vllm_agent.lifecycle.server_life import Ending, Launch, Policy, ServerLife
    from vllm_agent.observations import Instant

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


def step(life: ServerLife, event: Event, policy: Policy, now: Instant) -> Step:
    """The successor of `life` after `event`."""
    guarded = _guard(_aged(life, policy, now), event, policy, now)
    result = _moved(guarded, now)
    is_noted = result.life.is_in_maintenance is not life.is_in_maintenance
    if result.transition is None and is_noted:
        return replace(result, transition=_maintenance_note(result.life, now))
    return result


def _aged(life: ServerLife, policy: Policy, now: Instant) -> ServerLife:
    """What the mere passing of time changes."""
    until = life.maintenance_until_unix_seconds
    budget = life.budget
    if budget.limit != policy.max_restarts:
        budget = budget.with_limit(policy.max_restarts)
    if life.phase is Phase.READY and life.running_since is not None:
        running_seconds = now.since(life.running_since)
        budget = budget.after_running(running_seconds, policy.restart_window_seconds)
        if running_seconds >= policy.restart_window_seconds:
            life = managed.has_run_on(life)
    return replace(
        life,
        budget=budget,
        state_time=life.state_time.advanced(
            life.state, is_desired=policy.is_wanted and life.is_desired, now=now
        ),
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


def _guard(life: ServerLife, event: Event, policy: Policy, now: Instant) -> Guarded:
    match event:
        case Looked(look):
            looked = by_process.looked if policy.is_local else by_url.looked
            return looked(life, look, policy, now)
        case ConnectionClosed():
            return Guarded(life, effects=(LookNow(),))
        case MaintenanceSet(until):
            return Guarded(replace(life, maintenance_until_unix_seconds=until))
        case Ticked():
            return _ticked(life, policy, now)
        case Asked() | StartRefused() | Cleared() | EngineSeen() | EvidenceKept() | AgentLeaving():
            return _guard_managed(life, event, policy, now)
        case _:
            return _guard_process(life, event, policy, now)


def _guard_process(  # noqa: PLR0911 - one return per kind of event
    life: ServerLife, event: ProcessEvent, policy: Policy, now: Instant
) -> Guarded:
    match event:
        case ProcessAppeared(sighting):
            return by_process.appeared(life, sighting, now)
        case ProcessMissing(is_blind):
            return Guarded(life) if is_blind else by_process.missing(life, now)
        case Knocked(process, knock):
            return by_process.knocked(life, process, knock, policy)
        case TreeSeen(tree):
            return by_process.tree_seen(life, tree, policy, now)
        case LoadLooked(look):
            return by_load.looked(life, look, policy)
        case ComponentEnded(process):
            return by_process.component_ended(life, process)
        case EndBegan(process):
            return by_process.end_began(life, process, now)
        case EndSettled(process, evidence):
            return by_process.settled(life, process, evidence, now)


def _guard_managed(life: ServerLife, event: ManagedEvent, policy: Policy, now: Instant) -> Guarded:
    match event:
        case Asked(wish, model):
            return managed.asked(life, wish, model, policy)
        case StartRefused():
            return managed.refused(life, event, now)
        case Cleared(process):
            return managed.cleared(life, process, now)
        case EngineSeen(process, engine):
            is_newest = life.launch is not None and life.launch.process == process
            return Guarded(by_process.engine_seen(life, engine, now) if is_newest else life)
        case EvidenceKept(launch_number, path):
            return managed.evidence_kept(life, launch_number, path)
        case AgentLeaving():
            return managed.leaving(life)


def _ticked(life: ServerLife, policy: Policy, now: Instant) -> Guarded:
    acted = supervision.acted(life, policy, now)
    if acted is not None:
        return acted
    overdue = life.phase is Phase.ENDING and now.since(life.phase_entered) >= ENDING_SECONDS
    if not overdue:
        return Guarded(life)
    detail = f"its end began more than {ENDING_SECONDS:.0f} s ago and is not over"
    return Guarded(life, Trigger.OVERDUE, Reason.UNRESPONSIVE, detail)


def _moved(guarded: Guarded, now: Instant) -> Step:
    life, ending = guarded.life, guarded.ending
    if ending is not None:
        known = life.last_ending
        if known is None or known.launch_number <= ending.launch_number:
            life = replace(life, last_ending=ending)
        # Of whichever launch it is: a crash counts, once.
        if (
            not guarded.is_amended
            and ending.state is ServerState.CRASHED
            and ending.reason is not None
        ):
            life = replace(life, tally=life.tally.with_crash(ending.reason, ending.at))
    if guarded.trigger is None:
        return Step(life, guarded.effects, launch=guarded.launch, ending=ending)
    target = TRANSITIONS[life.phase, guarded.trigger]
    if target is life.phase:
        life = _explained(life, guarded)
        return Step(life, guarded.effects, launch=guarded.launch, ending=ending)
    return _entered(life, target, guarded, now)


def _entered(life: ServerLife, target: Phase, guarded: Guarded, now: Instant) -> Step:
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
    was = life.phase
    if target is Phase.READY:
        life = managed.served(life)
    drops = was in _CONNECTED_PHASES and target not in _CONNECTED_PHASES
    life = replace(
        by_load.served_or_ended(life, target, now),
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
    if (target in by_load.LOADING_PHASES) is not (was in by_load.LOADING_PHASES):
        watching = WatchLoad() if target in by_load.LOADING_PHASES else LeaveLoad()
        effects = (*effects, watching)
    return Step(life, effects, transition, guarded.launch, guarded.ending)


def _state_entered(life: ServerLife, target: Phase, guarded: Guarded, now: Instant) -> Instant:
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


def _explained(life: ServerLife, guarded: Guarded) -> ServerLife:
    """A failed server may fail for another reason than before; a crash keeps its own."""
    if guarded.trigger is Trigger.FAILED and life.phase is Phase.UNREADY:
        return replace(life, reason=guarded.reason, detail=guarded.detail)
    return life
