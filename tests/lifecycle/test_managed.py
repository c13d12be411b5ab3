"""What the agent does to a managed server, told as stories."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.lifecycle.managed_scene import MANAGED, ManagedScene
from tests.lifecycle.sightings import EXITED_1, KILLED, ORDERLY, TOLD_TO_STOP
from vllm_agent.lifecycle.by_process import DYING_SECONDS, ENGINE_GONE_SECONDS
from vllm_agent.lifecycle.events import (
    AgentLeaving,
    AskEngine,
    CancelStart,
    Cleared,
    EngineSeen,
    EvidenceKept,
    KeepEvidence,
    KillAll,
    NoteDryRun,
    StartRefused,
    StartServer,
    Terminate,
)
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.operations import Outcome, Request, answer, needs_start
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Initiator, Phase, ServerState
from vllm_agent.lifecycle.supervision import (
    ENDING_SECONDS,
    HOPELESS_REASONS,
    MAX_DELAY_SECONDS,
    QUIET_ENGINE_SECONDS,
    REPEAT_SECONDS,
    UNKILLABLE_SECONDS,
    delay_seconds,
    next_restart,
)
from vllm_agent.observations import EngineFacts, ProbeCause

if TYPE_CHECKING:
    from vllm_agent.lifecycle.server_life import Policy

STOP_SECONDS = MANAGED.stop_timeout_seconds


def scene(policy: Policy = MANAGED) -> ManagedScene:
    return ManagedScene(policy)


# Start.


def test_it_is_started_when_the_agent_finds_nothing_of_it() -> None:
    told = scene().start_of_agent()
    assert told.taken(StartServer) == [StartServer(1, None)]
    assert told.is_now(Phase.PREPARING)
    assert told.is_now(ServerState.STARTING)


def test_the_first_launch_is_no_restart() -> None:
    told = scene().running()
    assert (told.launches, told.restarts) == (1, 0)
    assert told.life.budget.remaining == 3


def test_one_that_was_stopped_on_request_stays_down_under_the_next_agent() -> None:
    told = scene().running()
    told.ask(Wish.STOP)
    told.end()
    told.settle()
    told.cleared()
    told.restart_agent()
    told.effects.clear()
    told.miss()
    assert told.taken(StartServer) == []
    assert told.is_now(Phase.ABSENT)
    assert not told.life.is_desired


def test_a_start_that_is_refused_is_tried_again_after_the_delay_for_a_unit() -> None:
    told = scene().start_of_agent()
    told.refused(Reason.GPU_MEMORY_TAKEN)
    assert told.seen() == (ServerState.FAILED, "gpu_memory_taken")
    told.effects.clear()
    told.wait(1.9)
    assert told.taken(StartServer) == []
    told.wait(0.2)
    assert told.taken(StartServer) == [StartServer(2, None)]
    assert told.life.budget.remaining == 2


def test_a_late_answer_of_a_start_before_changes_nothing() -> None:
    told = scene().start_of_agent()
    told.refused(Reason.PORT_IN_USE)
    told.wait(2.0)
    life = told.life
    told.send(StartRefused(1, Reason.PORT_IN_USE))
    assert told.life.phase is life.phase is Phase.PREPARING


@pytest.mark.parametrize("reason", sorted(HOPELESS_REASONS))
def test_a_refusal_that_no_start_heals_is_given_up_the_second_time(reason: Reason) -> None:
    told = scene().start_of_agent()
    told.refused(reason)
    told.wait(2.0)
    told.refused(reason)
    assert told.is_now(Phase.GAVE_UP)
    assert told.seen() == (ServerState.FAILED, reason)
    assert not told.life.budget.is_limit_reached
    told.effects.clear()
    told.wait(3600.0)
    assert told.taken(StartServer) == []


def test_two_refusals_for_different_reasons_are_not_given_up() -> None:
    told = scene().start_of_agent()
    told.refused(Reason.MODEL_NOT_FOUND)
    told.wait(2.0)
    told.refused(Reason.HF_AUTH)
    assert told.is_now(Phase.REFUSED)


# Restart.


def test_a_crash_is_restarted_after_the_delay_and_counted_once() -> None:
    told = scene().running()
    told.effects.clear()
    told.end()
    told.wait(0.5)
    told.settle(KILLED)
    assert told.is_now(ServerState.CRASHED)
    assert told.taken(KillAll) == [KillAll(told.newest.process)]
    told.cleared()
    told.wait(1.4)
    assert told.taken(StartServer) == []
    told.wait(0.2)
    assert told.is_now(Phase.PREPARING)
    told.launched().serves()
    assert (told.crashes, told.restarts) == (1, 1)
    assert told.life.tally.restarts == {Initiator.AGENT: 1}
    assert told.life.budget.remaining == 2


def test_nothing_is_started_while_something_of_the_launch_before_is_left() -> None:
    told = scene().running()
    told.end()
    told.settle(KILLED)
    told.effects.clear()
    told.wait(600.0)
    assert told.taken(StartServer) == []
    told.cleared()
    assert told.taken(StartServer) == [StartServer(2, None)]


def test_the_evidence_of_a_crash_is_kept_and_its_file_told_without_a_second_crash() -> None:
    told = scene().running()
    told.effects.clear()
    told.end()
    told.settle(KILLED)
    kept = told.taken(KeepEvidence)
    assert [effect.ending.launch_number for effect in kept] == [1]
    told.send(EvidenceKept(1, "evidence.json"))
    assert told.life.last_ending is not None
    assert told.life.last_ending.bundle == "evidence.json"
    assert told.crashes == 1


def test_delays_double_with_each_unit_and_are_bounded() -> None:
    policy = replace(MANAGED, max_restarts=1000)
    told = scene(policy).running()
    delays = []
    for _ in range(12):
        told.crashes_now()
        delays.append(delay_seconds(told.life, policy))
        told.wait(MAX_DELAY_SECONDS)
        told.launched()
    assert delays[:4] == [2.0, 4.0, 8.0, 16.0]
    assert delays[-1] == MAX_DELAY_SECONDS
    assert delay_seconds(told.life, replace(policy, restart_delay_seconds=900.0)) == 900.0


def test_the_restart_is_told_of_while_it_is_planned() -> None:
    told = scene().running()
    assert next_restart(told.life, told.policy, told.now) is None
    told.end()
    ended = told.now.unix_seconds
    told.wait(0.3)
    told.settle(KILLED)
    planned = next_restart(told.life, told.policy, told.now)
    assert planned is not None
    assert planned.unix_seconds == ended + 2.0
    told.cleared()
    told.wait(2.0)
    assert next_restart(told.life, told.policy, told.now) is None


def test_beyond_the_budget_it_is_given_up_with_the_reason_of_the_last_end() -> None:
    told = scene().running()
    for _ in range(3):
        told.crashes_now()
        told.wait(MAX_DELAY_SECONDS)
        told.launched()
    assert not told.life.budget.is_limit_reached
    told.crashes_now()
    assert told.is_now(Phase.GAVE_UP)
    assert told.seen() == (ServerState.FAILED, "signal")
    assert told.life.budget.is_limit_reached
    assert (told.launches, told.crashes) == (4, 4)
    told.effects.clear()
    told.wait(24 * 3600.0)
    assert told.taken(StartServer) == []
    told.restart_agent()
    told.miss()
    assert told.is_now(Phase.GAVE_UP)
    assert told.seen() == (ServerState.FAILED, "signal")
    told.cleared()
    assert told.taken(StartServer) == []
    told.ask(Wish.START)
    assert told.taken(StartServer) == [StartServer(1, None)]
    assert not told.life.budget.is_limit_reached
    assert told.life.budget.remaining == 3


def test_the_budget_is_full_again_after_running_for_the_window() -> None:
    told = scene().running()
    told.crashes_now().wait(2.0)
    told.launched().serves().wait(MANAGED.restart_window_seconds)
    assert told.life.budget.remaining == 3
    told.crashes_now()
    assert delay_seconds(told.life, told.policy) == 2.0


def test_endings_that_no_start_heals_are_given_up_the_second_time() -> None:
    told = scene().start_of_agent().launched()
    told.crashes_now(replace(EXITED_1, main_wait_status=2 << 8))
    assert told.seen() == (ServerState.CRASHED, "bad_arguments")
    told.wait(2.0)
    told.launched()
    told.crashes_now(replace(EXITED_1, main_wait_status=2 << 8))
    assert told.is_now(Phase.GAVE_UP)
    assert told.life.budget.remaining == 2
    assert not told.life.budget.is_limit_reached


def test_one_that_somebody_else_stopped_stays_down() -> None:
    told = scene().running()
    told.end()
    told.settle(TOLD_TO_STOP)
    told.cleared()
    told.effects.clear()
    told.wait(3600.0)
    assert told.is_now(ServerState.STOPPED)
    assert not told.life.is_desired
    assert told.taken(StartServer) == []
    told.ask(Wish.START)
    assert told.taken(StartServer)


def test_a_dry_run_only_tells_once_of_each_end() -> None:
    told = scene(replace(MANAGED, is_dry_run=True)).running()
    told.effects.clear()
    told.crashes_now().wait(600.0)
    assert told.taken(NoteDryRun) == [NoteDryRun("restart")]
    assert told.is_now(ServerState.CRASHED)
    assert next_restart(told.life, told.policy, told.now) is None
    told.ask(Wish.START)
    assert told.taken(StartServer)


def test_a_dry_run_stops_nothing_that_is_unhealthy() -> None:
    told = scene(replace(MANAGED, is_dry_run=True)).running()
    told.effects.clear()
    told.answer_wrongly(3)
    told.wait(600.0)
    assert told.is_now(ServerState.FAILED)
    effects = list(told.effects)
    assert NoteDryRun("stop and restart") in effects
    assert not [effect for effect in effects if isinstance(effect, Terminate)]


# Health.


def test_one_that_fails_its_checks_is_stopped_and_restarted_for_a_unit() -> None:
    told = scene().running()
    told.effects.clear()
    told.answer_wrongly(3)
    assert told.taken(Terminate) == [Terminate(told.newest.process)]
    assert told.is_now(ServerState.STOPPING)
    told.wait(1.0)
    told.end()
    told.settle()
    ending = told.life.last_ending
    assert ending is not None
    assert (ending.state, ending.rule) == (ServerState.STOPPED, 1)
    assert "unhealthy" in ending.evidence[0]
    told.cleared()
    told.wait(2.0)
    told.launched().serves()
    assert told.life.tally.restarts == {Initiator.AGENT: 1}
    assert told.life.budget.remaining == 2
    assert told.crashes == 0


def test_one_whose_engine_died_is_given_time_to_end_by_itself_and_crashed_either_way() -> None:
    told = scene().running()
    told.engine_dies()
    told.wait(ENGINE_GONE_SECONDS)
    told.answer_wrongly(1)
    assert told.seen() == (ServerState.FAILED, "engine_died")
    told.effects.clear()
    told.wait(DYING_SECONDS - 0.5)
    assert told.taken(Terminate) == []
    told.wait(0.5)
    assert told.taken(Terminate)
    told.end()
    told.settle(KILLED)
    told.cleared()
    assert told.is_now(ServerState.CRASHED)
    assert told.crashes == 1
    told.wait(2.0)
    assert told.taken(StartServer)
    assert told.life.budget.remaining == 2


def test_an_end_in_order_that_nobody_asked_for_is_restarted_for_a_unit() -> None:
    told = scene().running()
    told.end()
    told.settle(ORDERLY)
    told.cleared()
    told.effects.clear()
    told.wait(1.9)
    assert told.taken(StartServer) == []
    told.wait(0.1)
    assert told.taken(StartServer)
    assert told.life.budget.remaining == 2


def test_unhealthy_ones_are_left_alone_where_that_is_configured() -> None:
    told = scene(replace(MANAGED, restarts_unhealthy=False)).running()
    told.effects.clear()
    told.answer_wrongly(3)
    told.wait(3600.0)
    assert told.taken(Terminate) == []


def test_timeouts_alone_stop_nothing_before_its_engine_was_quiet_for_long() -> None:
    told = scene().running()
    told.effects.clear()
    told.answer_wrongly(3, ProbeCause.TIMEOUT)
    assert told.is_now(ServerState.FAILED)
    told.wait(QUIET_ENGINE_SECONDS - 1.0)
    assert told.taken(Terminate) == []
    told.wait(1.0)
    assert told.taken(Terminate)


def test_an_engine_that_works_is_never_stopped_for_timeouts() -> None:
    told = scene().running()
    told.effects.clear()
    told.answer_wrongly(3, ProbeCause.TIMEOUT)
    assert told.taken(AskEngine) == [AskEngine(told.newest.process)] * 3
    process = told.newest.process
    for count in range(20):
        told.send(EngineSeen(process, EngineFacts(iterations=count)))
        told.wait(QUIET_ENGINE_SECONDS - 1)
    assert told.is_now(ServerState.FAILED)
    assert told.taken(Terminate) == []
    told.send(EngineSeen(process, EngineFacts(iterations=19)))
    told.send(EngineSeen(replace(process, pid=1), EngineFacts(iterations=99)))
    told.wait(1.0)
    assert told.taken(Terminate)


def test_only_a_managed_server_is_asked_for_its_engine() -> None:
    told = scene(replace(MANAGED, is_managed=False))
    told.run()
    told.answer_wrongly(3, ProbeCause.TIMEOUT)
    assert told.taken(AskEngine) == []


def test_a_load_that_stalls_is_stopped_and_restarted() -> None:
    told = scene().start_of_agent().launched()
    told.stall()
    assert told.taken(Terminate) == [Terminate(told.newest.process)]
    told.wait(STOP_SECONDS)
    assert told.is_now(Phase.KILLING)
    told.end()
    told.settle()
    told.cleared()
    told.wait(2.0)
    assert told.is_now(Phase.PREPARING)
    assert told.life.budget.remaining == 2


def test_a_missing_model_is_worth_one_restart() -> None:
    told = scene(replace(MANAGED, expected_model="other")).start_of_agent().launched()
    told.effects.clear()
    for _ in range(3):
        told.answer()
    assert told.taken(Terminate)
    told.end()
    told.settle()
    told.cleared()
    told.wait(2.0)
    told.launched()
    for _ in range(3):
        told.answer()
    told.wait(600.0)
    assert told.seen() == (ServerState.FAILED, "model_missing")
    assert told.taken(Terminate) == []


# Stop.


def test_a_stop_is_over_when_nothing_of_it_is_left() -> None:
    told = scene().running()
    told.effects.clear()
    told.ask(Wish.STOP)
    assert told.taken(Terminate) == [Terminate(told.newest.process)]
    assert not told.life.is_desired
    told.wait(1.5)
    told.end()
    told.settle()
    assert told.is_now(ServerState.STOPPING)
    assert told.taken(KillAll) == [KillAll(told.newest.process)]
    told.cleared()
    assert told.is_now(ServerState.STOPPED)
    stopped = told.management.last_stop
    assert stopped is not None
    assert (stopped.seconds, stopped.is_forced) == (1.5, False)
    assert told.life.last_ending is not None
    assert "in 1.5 s" in told.life.last_ending.evidence[0]


def test_a_stop_while_it_loads_is_repeated_and_then_forced() -> None:
    told = scene().start_of_agent().launched()
    told.effects.clear()
    told.ask(Wish.STOP)
    told.wait(2 * REPEAT_SECONDS)
    assert len(told.taken(Terminate)) == 3
    told.wait(STOP_SECONDS - 2 * REPEAT_SECONDS)
    assert told.is_now(Phase.KILLING)
    assert KillAll(told.newest.process) in told.effects
    told.end()
    told.settle()
    told.cleared()
    assert told.is_now(ServerState.STOPPED)
    assert told.management.last_stop is not None
    assert told.management.last_stop.is_forced


def test_a_short_stop_still_repeats_its_signal_once() -> None:
    told = scene(replace(MANAGED, stop_timeout_seconds=4.0)).start_of_agent().launched()
    told.effects.clear()
    told.ask(Wish.STOP)
    told.wait(3.9)
    assert len(told.taken(Terminate)) == 2


def test_a_stop_of_one_that_serves_sends_one_signal() -> None:
    told = scene().running()
    told.effects.clear()
    told.ask(Wish.STOP)
    told.wait(STOP_SECONDS - 1)
    assert len(told.taken(Terminate)) == 1


def test_one_that_is_gone_before_it_is_judged_ends_once_both_are_known() -> None:
    told = scene().running()
    told.ask(Wish.STOP)
    told.wait(STOP_SECONDS)
    told.end()
    told.cleared()
    assert told.is_now(ServerState.STOPPING)
    told.settle()
    assert told.is_now(ServerState.STOPPED)


def test_one_that_survives_sigkill_is_failed_until_it_is_gone() -> None:
    told = scene().running()
    told.ask(Wish.STOP)
    told.wait(STOP_SECONDS + UNKILLABLE_SECONDS)
    assert told.seen() == (ServerState.FAILED, "unresponsive")
    told.end()
    told.settle()
    told.cleared()
    assert told.is_now(ServerState.STOPPED)


def test_an_end_that_takes_too_long_is_forced_and_stays_a_crash() -> None:
    told = scene().running()
    told.close_port()
    assert told.is_now(Phase.ENDING)
    told.effects.clear()
    told.wait(STOP_SECONDS)
    assert told.taken(KillAll)
    told.end()
    told.settle(KILLED)
    told.cleared()
    assert told.is_now(ServerState.CRASHED)
    assert told.crashes == 1


def test_a_stop_of_a_start_that_has_no_process_yet_cancels_it() -> None:
    told = scene().start_of_agent()
    told.effects.clear()
    told.ask(Wish.STOP)
    assert told.taken(CancelStart) == [CancelStart()]
    told.refused(None)
    assert told.is_now(ServerState.STOPPED)
    assert told.taken(StartServer) == []


def test_a_process_that_came_before_its_start_was_cancelled_is_stopped() -> None:
    told = scene().start_of_agent()
    told.ask(Wish.STOP)
    told.number = 1
    told.effects.clear()
    told.appear(1, age_seconds=0.0)
    assert told.taken(Terminate) == [Terminate(told.newest.process)]


def test_a_stop_of_one_that_waits_for_its_restart_calls_that_off() -> None:
    told = scene().running().crashes_now()
    told.effects.clear()
    told.ask(Wish.STOP)
    assert told.is_now(ServerState.STOPPED)
    told.wait(600.0)
    assert told.taken(StartServer) == []


def test_an_end_that_nobody_may_restart_is_left_alone() -> None:
    for policy in (replace(MANAGED, restarts_unhealthy=False), replace(MANAGED, is_dry_run=True)):
        told = scene(policy).running()
        told.close_port()
        told.effects.clear()
        told.wait(ENDING_SECONDS + 600)
        assert told.taken(KillAll) == []
        assert told.seen() == (ServerState.FAILED, "unresponsive")
        told.answer()
        assert told.is_now(ServerState.RUNNING)


def test_an_end_is_forced_after_two_minutes_however_long_a_stop_may_take() -> None:
    told = scene(replace(MANAGED, stop_timeout_seconds=600.0)).running()
    told.close_port()
    told.effects.clear()
    told.wait(ENDING_SECONDS)
    assert told.taken(KillAll)
    told.crashes_now()
    assert told.is_now(ServerState.CRASHED)


def test_an_operators_stop_of_one_that_is_ending_is_a_stop() -> None:
    told = scene().running()
    told.close_port()
    told.effects.clear()
    told.ask(Wish.STOP)
    assert told.taken(Terminate) == [Terminate(told.newest.process)]
    told.crashes_now()
    assert told.is_now(ServerState.STOPPED)
    assert told.crashes == 0


def test_a_crash_whose_end_was_forced_keeps_its_evidence_and_its_trouble() -> None:
    told = scene().running()
    told.close_port()
    told.wait(STOP_SECONDS)
    told.effects.clear()
    told.end()
    told.settle(KILLED)
    assert told.taken(KeepEvidence)
    told.cleared()
    assert told.management.trouble is not None


def test_somebody_elses_stop_that_takes_long_is_one_too() -> None:
    told = scene().running()
    told.close_port()
    told.wait(STOP_SECONDS)
    told.end()
    told.settle(TOLD_TO_STOP)
    told.cleared()
    assert not told.management.is_goal_up


def test_a_stop_of_everything_with_the_agent_is_nobodys_wish() -> None:
    told = scene().running()
    told.close_port()
    told.send(AgentLeaving())
    told.end()
    told.settle(TOLD_TO_STOP)
    told.cleared()
    assert told.management.is_goal_up


@pytest.mark.parametrize("cause", [ProbeCause.DNS, ProbeCause.TLS, ProbeCause.RESET])
def test_checks_that_fail_on_the_way_stop_nothing_at_once(cause: ProbeCause) -> None:
    told = scene().running()
    told.effects.clear()
    told.answer_wrongly(3, cause)
    told.wait(QUIET_ENGINE_SECONDS - 1)
    assert told.taken(Terminate) == []


# Requests.


def test_a_request_for_one_model_is_not_answered_by_another() -> None:
    told = scene().running()
    told.ask(Wish.RESTART, "org/a")
    first = Request.made(Wish.RESTART, told.life)
    told.ask(Wish.RESTART, "org/b")
    second = Request.made(Wish.RESTART, told.life)
    told.end()
    told.settle()
    told.cleared()
    told.launched()
    outcomes = [answer(told.life, request) for request in (first, second)]
    assert [one and one.outcome for one in outcomes] == [Outcome.SUPERSEDED, Outcome.DONE]


def test_what_comes_up_by_itself_needs_no_start() -> None:
    told = scene()
    assert not needs_start(told.life)
    told.running()
    assert not needs_start(told.life)
    told.crashes_now()
    assert not needs_start(told.life)
    told.wait(2.0)
    told.refused(Reason.PORT_IN_USE)
    assert not needs_start(told.life)
    told.ask(Wish.STOP)
    assert needs_start(told.life)


def test_what_was_given_up_needs_a_start() -> None:
    told = scene().start_of_agent()
    for _ in range(2):
        told.refused(Reason.AIRGAPPED)
        told.wait(2.0)
    assert needs_start(told.life)


def test_what_is_down_for_maintenance_needs_a_start() -> None:
    told = scene().running()
    told.maintain(600.0)
    told.crashes_now()
    assert needs_start(told.life)


# Restart and another model.


def test_a_restart_uses_no_unit_and_is_the_operators() -> None:
    told = scene().running()
    told.ask(Wish.RESTART)
    told.wait(1.0)
    told.end()
    told.settle()
    told.cleared()
    told.launched().serves()
    assert told.life.tally.restarts == {Initiator.OPERATOR: 1}
    assert told.life.budget.remaining == 3


def test_another_model_replaces_the_launch_and_is_remembered() -> None:
    told = scene().running()
    told.effects.clear()
    told.ask(Wish.RESTART, "org/other")
    assert told.management.model_before == "tiny"
    told.end()
    told.settle()
    told.cleared()
    assert told.taken(StartServer) == [StartServer(2, "org/other")]
    assert told.life.memory.chosen_model == "org/other"
    told.number = 2
    told.appear(2, age_seconds=0.0)
    told.serves()
    assert told.management.model_before is None


def test_the_model_to_come_back_to_is_the_last_that_served() -> None:
    told = scene().running()
    told.ask(Wish.RESTART, "org/bad")
    told.ask(Wish.RESTART, "org/worse")
    assert told.management.model_before == "tiny"
    told.ask(Wish.RESTART, "tiny")
    assert told.management.model_before is None


def test_the_configured_model_again_is_no_choice() -> None:
    told = scene().running()
    told.ask(Wish.RESTART, "org/other")
    told.ask(Wish.RESTART, "tiny")
    assert told.management.model is None


def test_a_start_of_one_that_runs_does_nothing_to_it() -> None:
    told = scene().running()
    told.effects.clear()
    told.ask(Wish.START)
    told.ask(Wish.START, "tiny")
    told.wait(60.0)
    assert told.effects == []
    assert told.is_now(ServerState.RUNNING)


def test_a_start_while_it_stops_follows_the_stop() -> None:
    told = scene().running()
    told.ask(Wish.STOP)
    told.ask(Wish.START)
    told.end()
    told.settle()
    told.effects.clear()
    told.cleared()
    assert told.taken(StartServer)


# The agent goes and comes.


def test_the_next_agent_goes_on_with_one_that_lives() -> None:
    told = scene().running()
    told.restart_agent()
    told.effects.clear()
    told.sight_again()
    told.answer()
    assert told.is_now(ServerState.RUNNING)
    assert (told.launches, told.restarts) == (1, 0)
    told.wait(60.0)
    assert told.taken(StartServer) == []


def test_the_next_agent_stops_one_that_was_being_stopped() -> None:
    told = scene().running()
    told.ask(Wish.STOP)
    told.restart_agent()
    told.effects.clear()
    told.sight_again()
    told.answer()
    assert told.taken(Terminate) == [Terminate(told.newest.process)]


def test_the_next_agent_finishes_a_restart_whose_stop_had_begun() -> None:
    told = scene().running()
    told.ask(Wish.RESTART)
    told.restart_agent()
    told.sight_again()
    told.effects.clear()
    told.answer()
    assert told.taken(Terminate)
    told.end()
    told.settle()
    told.cleared()
    assert told.taken(StartServer)


def test_the_next_agent_clears_what_a_crash_left_before_it_restarts() -> None:
    told = scene().running()
    told.end()
    told.settle(KILLED)
    told.restart_agent()
    told.effects.clear()
    told.miss()
    assert told.is_now(ServerState.CRASHED)
    assert told.taken(KillAll) == [KillAll(told.newest.process)]
    told.wait(60.0)
    assert told.taken(StartServer) == []
    told.cleared()
    assert told.taken(StartServer)
    assert told.life.budget.remaining == 2


def test_a_launch_that_was_somebody_elses_is_not_touched() -> None:
    theirs = ManagedScene(replace(MANAGED, is_managed=False))
    theirs.life = replace(theirs.life)
    theirs.run()
    ours = ManagedScene()
    ours.life = type(ours.life).begun(MANAGED, theirs.life.memory, ours.now)
    ours.miss()
    assert not [effect for effect in ours.effects if isinstance(effect, KillAll)]
    assert ours.taken(StartServer)


def test_a_server_that_ends_with_its_agent_is_wanted_up_by_the_next_one() -> None:
    told = scene().running()
    told.effects.clear()
    told.send(AgentLeaving())
    assert told.taken(Terminate)
    told.end()
    told.settle()
    told.cleared()
    told.wait(600.0)
    assert told.is_now(ServerState.STOPPED)
    assert told.taken(StartServer) == []
    told.restart_agent()
    told.miss()
    told.cleared()
    assert told.taken(StartServer)
    assert told.life.budget.remaining == 3


# Maintenance.


def test_nothing_is_restarted_in_maintenance_and_everything_after_it() -> None:
    told = scene().running()
    told.maintain(600.0)
    told.crashes_now()
    told.effects.clear()
    told.wait(599.0)
    assert told.is_now(ServerState.STOPPED)
    assert told.taken(StartServer) == []
    told.wait(1.0)
    assert told.taken(StartServer)
    assert told.life.budget.remaining == 3


def test_nothing_unhealthy_is_stopped_in_maintenance() -> None:
    told = scene().running()
    told.maintain(600.0)
    told.effects.clear()
    told.answer_wrongly(3)
    told.wait(300.0)
    assert told.taken(Terminate) == []


def test_what_is_cleared_of_another_process_is_not_of_this_launch() -> None:
    told = scene().running()
    told.end()
    told.settle(KILLED)
    told.send(Cleared(replace(told.newest.process, pid=1)))
    assert not told.management.is_clear
