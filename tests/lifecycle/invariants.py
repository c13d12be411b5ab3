"""What holds after every step, whatever the event was. Every test of `step` goes through here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import pytest

from vllm_agent.lifecycle.launches import MAX_UNSETTLED
from vllm_agent.lifecycle.server_life import ServerLife
from vllm_agent.lifecycle.states import PHASE_STATE, Phase, ServerState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_agent.lifecycle.server_life import Ending, Policy, Tally, Transition
    from vllm_agent.lifecycle.step import Step
    from vllm_agent.observations import Instant

_Key = TypeVar("_Key")

REASONED_STATES = {ServerState.FAILED, ServerState.CRASHED}


def check_step(before: ServerLife, step: Step, policy: Policy, now: Instant) -> None:
    """Raises AssertionError where the step from `before` broke a law."""
    check_life(step.life, policy, now)
    check_counters(before.tally, step.life.tally)
    check_transition(before, step)
    check_ending(before, step)
    check_launch(before, step)


def check_life(life: ServerLife, policy: Policy, now: Instant) -> None:
    assert life.state is PHASE_STATE[life.phase]
    assert life.phase_entered.since(life.entered) >= 0.0
    assert now.since(life.phase_entered) >= 0.0
    assert life.budget.limit == policy.max_restarts
    assert 0 <= life.budget.remaining <= life.budget.limit
    assert (life.running_since is not None) == (life.phase is Phase.READY)
    assert sum(life.tally.restarts.values()) == max(0, life.tally.launches - 1)
    if life.phase is Phase.READY:
        assert life.launch is not None
        assert life.launch.has_served
        assert not life.is_launch_over
        assert life.consecutive_failures < policy.failure_threshold
    check_unsettled(life)
    check_reason(life)
    check_memory(life, policy, now)


def check_unsettled(life: ServerLife) -> None:
    """Launches whose verdict is awaited: few, in order, all before the newest, none of them it."""
    numbers = [launch.number for launch in life.unsettled]
    assert len(numbers) <= MAX_UNSETTLED
    assert numbers == sorted(set(numbers))
    if numbers:
        assert life.launch is not None
        assert numbers[-1] < life.launch.number
        assert life.launch.process not in {launch.process for launch in life.unsettled}


def check_reason(life: ServerLife) -> None:
    """A reason exactly where one is owed; before the first look, the remembered one."""
    if life.phase is Phase.UNOBSERVED:
        assert life.remembered_phase is not None or life.reason is None
    else:
        is_owed = life.state in REASONED_STATES or life.phase is Phase.UNREACHED
        assert (life.reason is not None) == is_owed


def check_memory(life: ServerLife, policy: Policy, now: Instant) -> None:
    """An agent that restarts twice in a row remembers what the first one did."""
    assert ServerLife.begun(policy, life.memory, now).memory == life.memory


def check_counters(before: Tally, after: Tally) -> None:
    assert after.launches - before.launches in {0, 1}
    assert growth(before.restarts, after.restarts) in {0, 1}
    assert growth(before.crashes, after.crashes) in {0, 1}
    assert growth(before.transitions, after.transitions) in {0, 1}


def growth(before: Mapping[_Key, int], after: Mapping[_Key, int]) -> int:
    """By how much the counters of a family grew together; none of them may shrink."""
    assert all(after[key] >= count for key, count in before.items())
    return sum(after.values()) - sum(before.values())


def check_transition(before: ServerLife, step: Step) -> None:
    moved = step.transition
    counted = growth(before.tally.transitions, step.life.tally.transitions)
    if moved is not None and moved.is_note:
        assert before.is_in_maintenance is not step.life.is_in_maintenance
        assert "maintenance" in moved.detail
    if moved is None or moved.is_note:
        assert step.life.phase is before.phase
        assert step.life.entered == before.entered
        assert counted == 0
        return
    assert (moved.from_phase, moved.to_phase) == (before.phase, step.life.phase)
    assert before.phase is not step.life.phase
    assert moved.is_change_of_state == (before.state is not step.life.state)
    assert counted == moved.is_change_of_state
    assert step.life.phase_entered == moved.at
    check_entered(before, step, moved)
    assert moved.reason == step.life.reason


def check_entered(before: ServerLife, step: Step, moved: Transition) -> None:
    """A state is entered by its transition, or goes on from the agent before, never later."""
    life, since = step.life, before.remembered_entered_unix_seconds
    remembered = before.remembered_phase
    if not moved.is_change_of_state:
        assert life.entered == before.entered
    elif before.phase is Phase.UNOBSERVED and remembered is not None and step.launch is None:
        known = moved.at.unix_seconds
        if since is not None and life.state is PHASE_STATE[remembered]:
            known = min(since, known)
        assert life.entered.monotonic_seconds == moved.at.monotonic_seconds
        assert life.entered.unix_seconds == known
    else:
        assert life.entered == moved.at


def check_ending(before: ServerLife, step: Step) -> None:
    ended = step.ending
    known = before.last_ending
    if ended is not None and known is not None and replace(known, bundle=ended.bundle) == ended:
        assert ended.bundle, "an ending was settled twice"
        assert growth(before.tally.crashes, step.life.tally.crashes) == 0
        return
    is_crash = ended is not None and ended.state is ServerState.CRASHED
    assert growth(before.tally.crashes, step.life.tally.crashes) == is_crash
    if ended is None:
        return
    assert ended.state in {ServerState.CRASHED, ServerState.STOPPED}
    if ended.launch_number in {launch.number for launch in before.unsettled}:
        check_late_ending(before, ended, step)
        return
    assert not before.is_launch_over, "an ending was settled twice"
    newest = before.tally.launches if before.launch is None else before.launch.number
    assert ended.launch_number == newest
    assert step.life.last_ending == ended


def check_late_ending(before: ServerLife, ended: Ending, step: Step) -> None:
    """What becomes known of an older launch is booked, and moves the newest one nowhere."""
    assert ended.launch_number not in {launch.number for launch in step.life.unsettled}
    if step.launch is None:
        assert step.transition is None or step.transition.is_note
    known = before.last_ending
    is_newer = known is None or known.launch_number < ended.launch_number
    assert step.life.last_ending == (ended if is_newer else known)


def check_launch(before: ServerLife, step: Step) -> None:
    grew = step.life.tally.launches - before.tally.launches
    assert (step.launch is not None) == bool(grew)
    if step.launch is not None:
        assert step.life.launch == step.launch
        assert step.launch.number == step.life.tally.launches


def check_state_time(life: ServerLife, elapsed_seconds: float) -> None:
    """The seconds of all states are the time that passed; available ≤ desired ≤ all."""
    spent = life.state_time
    assert sum(spent.seconds.values()) == pytest.approx(elapsed_seconds, abs=1e-6)
    assert 0 <= spent.available_seconds <= spent.desired_seconds + 1e-9
    assert spent.desired_seconds <= elapsed_seconds + 1e-6
    assert spent.available_seconds <= spent.seconds[ServerState.RUNNING] + 1e-9
