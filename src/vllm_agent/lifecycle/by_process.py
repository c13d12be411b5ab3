"""Guards for a local server: what its processes, and looks at it, trigger. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle import managed
from vllm_agent.lifecycle.by_load import stall_before_end, waiting
from vllm_agent.lifecycle.check import Outcome, judge_look, look_again_after_reset, told_sleeping
from vllm_agent.lifecycle.ending import exit_code, exit_signal, judge
from vllm_agent.lifecycle.events import AskEngine, Follow, KeepConnection, LookNow
from vllm_agent.lifecycle.guarded import Guarded
from vllm_agent.lifecycle.launches import (
    SAME_START_SECONDS,
    account_local_served,
    account_process,
    unjudged_ending,
)
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Ending
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.lifecycle.transitions import Trigger
from vllm_agent.observations import Listener, Probe, ProbeCause

if TYPE_CHECKING:
    from vllm_agent.lifecycle.check import CheckVerdict
    from vllm_agent.lifecycle.ending import EndingEvidence
    from vllm_agent.lifecycle.server_life import Launch, Policy, ServerLife
    from vllm_agent.observations import (
        EngineFacts,
        Instant,
        Knock,
        ProbeRound,
        ProcessId,
        ProcessTree,
        Sighting,
    )

NEW_PROCESS_SECONDS: Final = 5.0
"""A process older than this when it is first seen may serve already: it is looked at before it is
called starting. A vLLM needs longer to serve."""

ENGINE_GONE_SECONDS: Final = 1.0
"""A server that answers 503 this long after an EngineCore ended is failed without more looks: a
stop closes its listener 0.6 s after its engine's end at most (measured on vLLM 0.32)."""

NO_PROOF_REASONS: Final = frozenset({Reason.UNRESPONSIVE, Reason.UNREACHABLE})
"""Failed checks that say nothing of the engine: it may be busy, or the way to it broken."""

DYING_SECONDS: Final = 15.0
"""After an EngineCore ended the server ends within 7 s (measured on vLLM 0.32), or stays
(`VLLM_KEEP_ALIVE_ON_ENGINE_DEATH`, elastic scaling)."""

_LEAVING: Final = frozenset({Phase.ENDING, Phase.OVERDUE})
_UP: Final = frozenset({Phase.READY, Phase.UNREADY})


def appeared(life: ServerLife, sighting: Sighting, now: Instant) -> Guarded:
    """What a main process means: the launch that is known, or another one."""
    if any(launch.process == sighting.process for launch in life.unsettled):
        return Guarded(life)
    if life.launch is not None and life.launch.process == sighting.process:
        return _seen_again(life, life.launch, sighting)
    account = account_process(life, sighting.process, sighting.start_seconds, now)
    is_new = now.unix_seconds - sighting.start_seconds < NEW_PROCESS_SECONDS
    is_looked_at_first = life.phase is Phase.UNOBSERVED and not is_new
    life = replace(
        managed.appeared(account.life),
        engine=None,
        engine_progress=None,
        engine_gone_since=None,
        is_main_gone=False,
        consecutive_failures=0,
        failing_looks=0,
    )
    if life.phase is Phase.UNOBSERVED:
        # What the agent before it left is not of this launch.
        life = replace(
            life, remembered_phase=None, remembered_entered_unix_seconds=None, reason=None
        )
    return Guarded(
        life,
        None if is_looked_at_first else Trigger.APPEARED,
        effects=(Follow(sighting), LookNow()),
        launch=account.launch,
        ending=account.ending,
    )


def _seen_again(life: ServerLife, launch: Launch, sighting: Sighting) -> Guarded:
    effects = (Follow(sighting), LookNow())
    if life.phase is Phase.UNOBSERVED:
        launch = replace(launch, start_seconds=sighting.start_seconds)
        return Guarded(managed.appeared(replace(life, launch=launch)), effects=effects)
    ending = life.last_ending
    if life.is_launch_over and ending is not None and ending.rule == 0:
        return Guarded(replace(life, last_ending=None), Trigger.APPEARED, effects=effects)
    return Guarded(life)


def missing(life: ServerLife, now: Instant) -> Guarded:
    """What it means that no process of it was there when the agent began to watch."""
    if life.phase is not Phase.UNOBSERVED:
        return Guarded(life)
    if life.management is not None:
        return managed.missing(life, unjudged_ending(life, now), now)
    if life.remembered_phase is Phase.CRASHED:
        return Guarded(life, Trigger.GONE, life.reason, "it was crashed before the agent started")
    return Guarded(life, Trigger.ENDED_STOPPED, ending=unjudged_ending(life, now))


def knocked(life: ServerLife, process: ProcessId, knock: Knock, policy: Policy) -> Guarded:
    """What a knock that it did not answer means."""
    if not policy.has_http or life.launch is None or life.launch.process != process:
        return Guarded(life)
    if knock.out_of_reach is not None:
        return Guarded(life, Trigger.UNREACHED, Reason.UNREACHABLE, knock.out_of_reach)
    if life.phase in {Phase.UNOBSERVED, Phase.UNREACHED} and life.launch.has_served:
        return Guarded(life, Trigger.END_BEGAN)
    return waiting(life)


def tree_seen(life: ServerLife, tree: ProcessTree, policy: Policy, now: Instant) -> Guarded:
    """What the processes of a launch mean, HTTP apart."""
    is_of_newest = life.launch is not None and life.launch.process == tree.process
    if not is_of_newest or not tree.is_main_alive or life.is_launch_over:
        return Guarded(life)
    if not tree.is_engine_gone:
        life = replace(life, engine_gone_since=None)
    elif life.engine_gone_since is None:
        life = replace(life, engine_gone_since=now)
    if policy.has_http or life.phase in _LEAVING or managed.is_being_stopped(life):
        return Guarded(life)
    if tree.is_engine_gone or (tree.engines_alive == 0 and life.has_served_now):
        return Guarded(life, Trigger.FAILED, Reason.ENGINE_DIED, "one of its EngineCores is gone")
    if tree.engines_alive == 0:
        return waiting(life)
    if life.phase is Phase.READY:
        return Guarded(life)
    return Guarded(account_local_served(life, now), Trigger.PASSED)


def component_ended(life: ServerLife, process: ProcessId) -> Guarded:
    """The end of an engine or a worker is only a reason to look, never a verdict."""
    if life.launch is None or life.launch.process != process or life.phase not in _UP:
        return Guarded(life)
    return Guarded(life, effects=(LookNow(),))


def looked(life: ServerLife, look: ProbeRound, policy: Policy, now: Instant) -> Guarded:
    """What a round of probes means, given whose socket answered it."""
    if not policy.has_http or life.launch is None or life.is_launch_over:
        return Guarded(life)
    if look.started.since(life.launch.first_seen) < 0 or managed.is_being_stopped(life):
        # It was answered by the launch before, or by one of which the outcome is decided.
        return Guarded(life)
    if _listener(life.launch, look) is Listener.STRANGER:
        return _not_listening(life)
    engine = None if look.metrics is None else look.metrics.engine
    life = engine_seen(told_sleeping(life, look), engine, now)
    verdict = judge_look(look, expected_model=policy.expected_model, has_served=life.is_proven)
    match verdict.outcome:
        case Outcome.PASSED:
            return _passed(life, now)
        case Outcome.REFUSED:
            return _not_listening(life)
        case Outcome.FAILED:
            return _failing(life, look, verdict, policy, now)


def engine_seen(life: ServerLife, engine: EngineFacts | None, now: Instant) -> ServerLife:
    """Books whether the engine of a managed server has worked since it was seen last."""
    if engine is None or life.management is None:
        return life
    known = life.engine
    has_worked = known is not None and (
        engine.iterations != known.iterations
        or engine.prompt_tokens != known.prompt_tokens
        or engine.generation_tokens != known.generation_tokens
    )
    return replace(life, engine=engine, engine_progress=now if has_worked else life.engine_progress)


def end_began(life: ServerLife, process: ProcessId, now: Instant) -> Guarded:
    """What the end of a main process means."""
    if life.launch is None or life.launch.process != process or life.is_launch_over:
        return Guarded(life)
    life = managed.end_began(replace(life, is_main_gone=True), now)
    return Guarded(life, Trigger.END_BEGAN)


def settled(
    life: ServerLife, process: ProcessId, evidence: EndingEvidence, now: Instant
) -> Guarded:
    """The verdict on an ending, be it that of the newest launch or of one before it."""
    if life.is_in_maintenance:
        evidence = replace(evidence, is_in_maintenance=True)
    older = next((launch for launch in life.unsettled if launch.process == process), None)
    if older is not None:
        return _settled_late(life, older, _ending(older, evidence, now))
    if life.launch is None or life.launch.process != process or life.is_launch_over:
        # Settled once: what is told later of the same end is not counted again.
        return Guarded(life)
    evidence = replace(
        evidence,
        load_stall=stall_before_end(life),
        asked=evidence.asked or managed.how_stopped(life, now),
    )
    ending = _ending(life.launch, evidence, now)
    if life.management is not None:
        return managed.settled(life, process, ending, now)
    crashed = ending.state is ServerState.CRASHED
    return Guarded(
        life,
        Trigger.ENDED_CRASHED if crashed else Trigger.ENDED_STOPPED,
        ending.reason,
        ending.evidence[0],
        ending=ending,
    )


def _settled_late(life: ServerLife, older: Launch, ending: Ending) -> Guarded:
    """The next launch runs already; what it follows is known only now."""
    # A launch that never served has cost the next one its unit when that appeared.
    needs_unit = ending.state is ServerState.CRASHED and older.has_served
    life = replace(
        life,
        unsettled=tuple(launch for launch in life.unsettled if launch is not older),
        budget=life.budget.after_launch(needs_unit=needs_unit),
    )
    return Guarded(life, ending=ending)


def _ending(launch: Launch, evidence: EndingEvidence, now: Instant) -> Ending:
    verdict = judge(replace(evidence, has_served=launch.has_served))
    return Ending(
        launch_number=launch.number,
        at=now,
        state=verdict.state,
        reason=verdict.reason,
        rule=verdict.rule,
        evidence=verdict.evidence,
        exit_code=exit_code(evidence.main_wait_status),
        signal=exit_signal(evidence.main_wait_status),
        holder=_holder(verdict.reason, evidence),
        log=evidence.log if verdict.state is ServerState.CRASHED else (),
    )


def _holder(reason: Reason | None, evidence: EndingEvidence) -> str:
    """Who held what the launch needed; for other reasons it does not matter."""
    if reason is Reason.PORT_IN_USE:
        return evidence.port_holder
    return evidence.gpu_holder if reason is Reason.GPU_MEMORY_TAKEN else ""


def _listener(launch: Launch, look: ProbeRound) -> Listener | None:
    """Whose socket answered: by its owner, else by the start time that the answer tells."""
    told = look.metrics.process_start_time_seconds if look.metrics is not None else None
    if look.listener is not None or told is None or launch.start_seconds is None:
        return look.listener
    is_same = abs(told - launch.start_seconds) <= 2 * SAME_START_SECONDS
    return Listener.OWN if is_same else Listener.STRANGER


def _not_listening(life: ServerLife) -> Guarded:
    """Its process is there and its port is closed, or another's."""
    is_new_here = life.phase in {Phase.UNOBSERVED, Phase.UNREACHED}
    if life.phase in _UP or (is_new_here and life.has_served_now):
        return Guarded(life, Trigger.END_BEGAN)
    return Guarded(life, Trigger.WAITING)


def _passed(life: ServerLife, now: Instant) -> Guarded:
    is_leaving = life.phase in _LEAVING
    if is_leaving and life.is_main_gone:
        return Guarded(life)
    if life.consecutive_failures:
        life = replace(life, consecutive_failures=0, failing_looks=0)
    return Guarded(
        account_local_served(life, now),
        Trigger.REOPENED if is_leaving else Trigger.PASSED,
        effects=(KeepConnection(),),
    )


def _failing(
    life: ServerLife, look: ProbeRound, verdict: CheckVerdict, policy: Policy, now: Instant
) -> Guarded:
    life = replace(
        life,
        consecutive_failures=life.consecutive_failures + 1,
        failing_looks=life.failing_looks + 1,
    )
    is_failed = life.failing_looks >= policy.failure_threshold
    gone_since = life.engine_gone_since
    if gone_since is not None:
        health = look.result(Probe.HEALTH)
        is_5xx = health is not None and health.cause is ProbeCause.HTTP_5XX
        # A busy server may be slow in the moment in which it scales down; it does not say 503.
        is_failed |= is_5xx and now.since(gone_since) >= ENGINE_GONE_SECONDS
        detail = f"an EngineCore is gone: {verdict.detail}"
        trigger = Trigger.FAILED if is_failed else Trigger.FAILING
        return Guarded(life, trigger, Reason.ENGINE_DIED, detail)
    effects = look_again_after_reset(life, look)
    if life.management is not None and verdict.reason in NO_PROOF_REASONS and life.launch:
        effects = (*effects, *_ask_engine(life.launch))
    return Guarded(
        life,
        Trigger.FAILED if is_failed else Trigger.FAILING,
        verdict.reason,
        verdict.detail,
        effects=effects,
    )


def _ask_engine(launch: Launch) -> tuple[AskEngine, ...]:
    """A busy server must not be taken for a dead one: its engine tells, if it can."""
    return () if launch.process is None else (AskEngine(launch.process),)
