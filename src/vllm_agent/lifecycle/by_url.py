"""Guards for a server of which only HTTP is seen: what a look at it triggers. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.check import (
    CheckVerdict,
    Outcome,
    judge_look,
    look_again_after_reset,
    told_sleeping,
)
from vllm_agent.lifecycle.events import KeepConnection
from vllm_agent.lifecycle.guarded import Guarded
from vllm_agent.lifecycle.launches import account_served
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Ending
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.lifecycle.transitions import TRANSITIONS, Trigger

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Policy, ServerLife
    from vllm_agent.observations import Instant, ProbeRound

CRASH_AFTER_SECONDS: Final = 10.0
"""A port that refuses this long after it served is called a crash, not a blip."""


def looked(life: ServerLife, look: ProbeRound, policy: Policy, now: Instant) -> Guarded:
    """What a round of probes means."""
    life = told_sleeping(life, look)
    verdict = judge_look(look, expected_model=policy.expected_model, has_served=life.is_proven)
    if verdict.outcome is Outcome.PASSED:
        return _passed(life, look, now)
    life = replace(life, consecutive_failures=life.consecutive_failures + 1)
    if verdict.outcome is Outcome.REFUSED:
        return _refused(replace(life, failing_looks=0), verdict, now)
    life = replace(life, failing_looks=life.failing_looks + 1)
    is_failed = life.failing_looks >= policy.failure_threshold
    return Guarded(
        life,
        Trigger.FAILED if is_failed else Trigger.FAILING,
        verdict.reason,
        verdict.detail,
        effects=look_again_after_reset(life, look),
    )


def _passed(life: ServerLife, look: ProbeRound, now: Instant) -> Guarded:
    start = look.metrics.process_start_time_seconds if look.metrics is not None else None
    was_failing = life.consecutive_failures > 0
    if was_failing:
        life = replace(life, consecutive_failures=0, failing_looks=0)
    account = account_served(life, start, now, was_failing=was_failing)
    return Guarded(
        account.life,
        Trigger.PASSED,
        effects=(KeepConnection(),),
        launch=account.launch,
        ending=account.ending,
    )


def _refused(life: ServerLife, verdict: CheckVerdict, now: Instant) -> Guarded:
    detail = verdict.detail
    if life.phase is Phase.UNOBSERVED and life.remembered_phase is Phase.CRASHED:
        return Guarded(life, Trigger.GONE, life.reason, "it was crashed before the agent started")
    if life.is_in_maintenance:
        return Guarded(life, Trigger.QUIET, ending=_ending_in_maintenance(life, now))
    if life.phase is Phase.UNOBSERVED and life.remembered_phase is Phase.LOST:
        return _gone(life, now, "it was lost before the agent started, and still refuses")
    refused_seconds = now.since(life.phase_entered)
    if life.phase is Phase.LOST and refused_seconds >= CRASH_AFTER_SECONDS:
        detail = f"its port has refused connections for {refused_seconds:.0f} s"
        return _gone(life, life.phase_entered, detail)
    served = life.has_served and life.phase is not Phase.UNOBSERVED
    return Guarded(life, Trigger.LOST if served else Trigger.REFUSED, Reason.UNREACHABLE, detail)


def _ending_in_maintenance(life: ServerLife, now: Instant) -> Ending | None:
    is_gone = TRANSITIONS[life.phase, Trigger.QUIET] is Phase.ABSENT
    if not is_gone or life.launch is None or life.is_launch_over:
        return None
    evidence = ("it was in maintenance",)
    return Ending(life.launch.number, now, ServerState.STOPPED, None, 1, evidence)


def _gone(life: ServerLife, at: Instant, detail: str) -> Guarded:
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
    return Guarded(life, Trigger.GONE, Reason.UNREACHABLE, detail, ending=ending)
