"""What the agent says of a server it knows by URL only."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.lifecycle.looks import (
    REFUSED,
    STARTED,
    failing,
    result,
    serving,
    with_metrics,
    with_models,
)
from tests.lifecycle.scene import Scene
from vllm_agent.lifecycle.events import (
    ConnectionClosed,
    DropConnection,
    KeepConnection,
    LookNow,
)
from vllm_agent.lifecycle.launches import CONFIRMING_LOOKS
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import Initiator, Phase, ServerState
from vllm_agent.observations import Probe, ProbeCause, ProbeRound

UNKNOWN, RUNNING, STOPPED, FAILED, CRASHED = (
    ServerState.UNKNOWN,
    ServerState.RUNNING,
    ServerState.STOPPED,
    ServerState.FAILED,
    ServerState.CRASHED,
)
DAMPED = [cause for cause in ProbeCause if cause is not ProbeCause.REFUSED]


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def running() -> Scene:
    scene = Scene()
    scene.serve()
    return scene


def restarted(scene: Scene, start_seconds: float | None) -> None:
    """Serves as a process that started then, without ever having been seen down."""
    for _ in range(CONFIRMING_LOOKS):
        scene.wait(1.0).serve(start_seconds)


# First sight.


def test_before_the_first_look_nothing_is_known(scene: Scene) -> None:
    assert scene.seen() == (UNKNOWN, None)


def test_a_port_that_refuses_and_never_served_is_stopped(scene: Scene) -> None:
    for _ in range(20):
        scene.wait(1.0).refuse()
    assert scene.seen() == (STOPPED, None)
    assert scene.crashes == scene.launches == 0


def test_it_runs_once_everything_answered(scene: Scene) -> None:
    done = scene.serve()
    assert scene.seen() == (RUNNING, None)
    assert done.launch is not None
    assert (done.launch.number, done.launch.start_seconds) == (1, STARTED)
    assert (scene.launches, scene.restarts, scene.crashes) == (1, 0, 0)
    assert done.effects == (KeepConnection(),)


def test_it_runs_after_having_been_refused_before(scene: Scene) -> None:
    scene.refuse()
    scene.wait(60.0).serve()
    assert scene.seen() == (RUNNING, None)
    assert (scene.launches, scene.restarts) == (1, 0)


@pytest.mark.parametrize("cause", DAMPED)
def test_one_that_answers_wrongly_from_the_first_is_unknown_then_failed(
    scene: Scene, cause: ProbeCause
) -> None:
    scene.fail(2, cause)
    assert scene.seen() == (UNKNOWN, None)
    scene.fail(1, cause)
    assert scene.state_is_failed_for(cause)


def test_one_that_answered_wrongly_and_then_refuses_is_stopped(scene: Scene) -> None:
    scene.fail(3)
    scene.refuse()
    assert scene.seen() == (STOPPED, None)


# A port that refuses after it served.


def test_the_first_refusal_after_running_is_a_failure_at_once(running: Scene) -> None:
    done = running.wait(5.0).refuse()
    assert running.seen() == (FAILED, Reason.UNREACHABLE)
    assert running.crashes == 0
    assert DropConnection() in done.effects


def test_a_refusal_by_a_later_probe_of_the_same_look_counts_too(running: Scene) -> None:
    running.look(with_models(ProbeCause.REFUSED))
    assert running.seen() == (FAILED, Reason.UNREACHABLE)


def test_it_crashed_when_its_port_refuses_for_ten_seconds(running: Scene) -> None:
    lost_at = running.wait(5.0).now
    running.refuse()
    running.wait(9.9).refuse()
    assert running.seen() == (FAILED, Reason.UNREACHABLE)
    done = running.wait(0.1).refuse()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    assert done.ending is not None
    assert (done.ending.at, done.ending.launch_number) == (lost_at, 1)
    assert done.ending.state is CRASHED
    assert running.life.tally.crashes == {Reason.UNREACHABLE: 1}
    assert running.life.tally.last_crash_unix_seconds == {Reason.UNREACHABLE: lost_at.unix_seconds}


def test_time_alone_makes_no_crash(running: Scene) -> None:
    running.refuse()
    running.wait(60.0).tick()
    assert running.seen() == (FAILED, Reason.UNREACHABLE)


def test_a_crash_is_counted_once(running: Scene) -> None:
    running.crash()
    for _ in range(30):
        running.wait(5.0).refuse()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    assert running.crashes == 1


def test_the_same_process_back_within_ten_seconds_was_an_outage(running: Scene) -> None:
    running.refuse()
    running.wait(9.0).serve()
    assert running.seen() == (RUNNING, None)
    assert (running.launches, running.crashes) == (1, 0)
    assert running.life.launch_end is None


def test_the_same_process_back_after_a_crash_can_crash_again(running: Scene) -> None:
    running.crash()
    running.wait(60.0).serve()
    assert (running.launches, running.crashes) == (1, 1)
    running.crash()
    assert running.crashes == 2


def test_a_failed_one_that_refuses_is_lost(running: Scene) -> None:
    running.fail(3)
    done = running.refuse()
    assert running.phase is Phase.LOST
    assert running.seen() == (FAILED, Reason.UNREACHABLE)
    assert DropConnection() in done.effects


def test_one_that_comes_back_broken_after_a_crash_is_failed_and_no_second_crash(
    running: Scene,
) -> None:
    running.crash()
    running.wait(5.0).fail(3, ProbeCause.HTTP_5XX)
    assert running.seen() == (FAILED, Reason.UNHEALTHY)
    running.crash()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    assert running.crashes == 1


# Busy is not dead.


@pytest.mark.parametrize("cause", DAMPED)
def test_failed_checks_are_damped_by_the_threshold(running: Scene, cause: ProbeCause) -> None:
    running.fail(2, cause)
    assert running.seen() == (RUNNING, None)
    assert running.life.consecutive_failures == 2
    running.fail(1, cause)
    assert running.state_is_failed_for(cause)


def test_one_success_recovers_at_once(running: Scene) -> None:
    running.fail(30)
    running.serve()
    assert running.seen() == (RUNNING, None)
    assert running.life.consecutive_failures == 0
    assert (running.launches, running.crashes) == (1, 0)


def test_a_success_between_failures_starts_the_count_again(running: Scene) -> None:
    for _ in range(5):
        running.fail(2)
        running.serve()
    assert running.seen() == (RUNNING, None)
    assert running.life.tally.transitions == {(UNKNOWN, RUNNING): 1}


def test_the_threshold_is_the_operators() -> None:
    scene = Scene(Policy(failure_threshold=1))
    scene.serve()
    scene.fail()
    assert scene.seen() == (FAILED, Reason.UNRESPONSIVE)


def test_refusals_do_not_use_up_the_damping_of_later_timeouts(scene: Scene) -> None:
    """A server that just opened its port may be slow to answer."""
    for _ in range(5):
        scene.wait(1.0).refuse()
    scene.fail(2)
    assert scene.seen() == (STOPPED, None)
    assert scene.life.consecutive_failures == 7
    scene.fail(1)
    assert scene.seen() == (FAILED, Reason.UNRESPONSIVE)


def test_a_failure_tells_its_newest_reason(running: Scene) -> None:
    running.fail(3, ProbeCause.TIMEOUT)
    entered = running.life.entered
    running.wait(10.0).fail(1, ProbeCause.HTTP_5XX)
    assert running.seen() == (FAILED, Reason.UNHEALTHY)
    assert running.life.entered == entered


def test_a_crash_keeps_its_own_reason(running: Scene) -> None:
    running.crash()
    running.fail(2, ProbeCause.HTTP_5XX)
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)


def test_a_reset_asks_for_another_look_at_once_but_only_once(running: Scene) -> None:
    assert running.fail(1, ProbeCause.RESET).effects == (LookNow(),)
    assert running.fail(1, ProbeCause.RESET).effects == ()


def test_a_reset_by_a_server_that_is_not_running_asks_for_nothing(scene: Scene) -> None:
    assert scene.fail(1, ProbeCause.RESET).effects == ()


def test_a_timeout_asks_for_nothing(running: Scene) -> None:
    assert running.fail().effects == ()


def test_a_look_that_did_not_ask_for_health_is_no_proof(scene: Scene) -> None:
    """It can only come from a fault of the prober, and must not look like a healthy server."""
    look = ProbeRound(scene.now, scene.now, (result(Probe.METRICS),))
    for _ in range(3):
        scene.look(look)
    assert scene.seen() == (FAILED, Reason.UNKNOWN)


# What it serves.


@pytest.mark.parametrize("status", [401, 403])
def test_a_list_of_models_that_is_withheld_is_no_evidence(status: int) -> None:
    scene = Scene(Policy(expected_model="tiny"))
    scene.look(with_models(ProbeCause.HTTP_4XX, status))
    assert scene.seen() == (RUNNING, None)


@pytest.mark.parametrize("status", [401, 403])
def test_where_the_list_is_withheld_a_name_in_the_metrics_is_no_evidence_either(
    status: int,
) -> None:
    """They tell one of several served names; the expected one may be another."""
    scene = Scene(Policy(expected_model="huge"))
    for _ in range(3):
        scene.look(with_models(ProbeCause.HTTP_4XX, status))
    assert scene.seen() == (RUNNING, None)


def test_where_nobody_tells_the_name_it_is_taken_at_its_word() -> None:
    scene = Scene(Policy(expected_model="huge"))
    scene.look(with_models(ProbeCause.HTTP_4XX, 401, label=()))
    assert scene.seen() == (RUNNING, None)


@pytest.mark.parametrize("status", [404, 500])
def test_a_list_of_models_that_fails_otherwise_is_a_failed_check(
    running: Scene, status: int
) -> None:
    cause = ProbeCause.HTTP_4XX if status == 404 else ProbeCause.HTTP_5XX
    for _ in range(3):
        running.look(with_models(cause, status))
    assert running.seen() == (FAILED, Reason.UNHEALTHY)


def test_another_model_than_expected_is_a_failure() -> None:
    scene = Scene(Policy(expected_model="huge"))
    for _ in range(3):
        scene.serve()
    assert scene.seen() == (FAILED, Reason.MODEL_MISSING)
    assert scene.life.detail == "serves tiny, not huge"


def test_no_model_at_all_is_a_failure_whatever_is_expected(scene: Scene) -> None:
    for _ in range(3):
        scene.look(serving(names=()))
    assert scene.seen() == (FAILED, Reason.MODEL_MISSING)


def test_the_expected_model_may_be_any_of_several() -> None:
    scene = Scene(Policy(expected_model="alias"))
    scene.look(serving(names=("tiny", "alias")))
    assert scene.seen() == (RUNNING, None)


def test_an_alias_stays_found_between_two_lists_of_models() -> None:
    """The metrics tell the first of the served names only; they cannot contradict the list."""
    scene = Scene(Policy(expected_model="alias"))
    scene.look(serving(names=("tiny", "alias")))
    for _ in range(10):
        scene.look(serving(names=None))
    assert scene.seen() == (RUNNING, None)
    assert scene.life.consecutive_failures == 0


# A hostile or broken server.

BROKEN_METRICS = [
    ProbeCause.TIMEOUT,
    ProbeCause.TOO_LARGE,
    ProbeCause.BAD_BODY,
    ProbeCause.RESET,
]


@pytest.mark.parametrize("cause", BROKEN_METRICS)
def test_metrics_without_an_end_before_it_served_are_never_running(
    scene: Scene, cause: ProbeCause
) -> None:
    for _ in range(20):
        scene.wait(10.0).look(with_metrics(cause))
        assert scene.life.state is not RUNNING
    assert scene.state_is_failed_for(cause)


@pytest.mark.parametrize("cause", BROKEN_METRICS)
@pytest.mark.parametrize("down_seconds", [3.0, 60.0])
def test_nor_are_they_when_another_server_had_served_before_it(
    running: Scene, cause: ProbeCause, down_seconds: float
) -> None:
    """Whatever is behind a port that had refused must prove itself from the start."""
    running.refuse()
    running.wait(down_seconds).refuse()
    for _ in range(20):
        running.wait(10.0).look(with_metrics(cause))
        assert running.life.state is not RUNNING


@pytest.mark.parametrize("cause", BROKEN_METRICS)
def test_afterwards_they_are_tolerated(running: Scene, cause: ProbeCause) -> None:
    for _ in range(5):
        running.look(with_metrics(cause))
    assert running.seen() == (RUNNING, None)
    assert running.life.consecutive_failures == 0


def test_a_busy_server_recovers_with_slow_metrics(running: Scene) -> None:
    running.fail(3)
    running.look(with_metrics(ProbeCause.TIMEOUT))
    assert running.seen() == (RUNNING, None)


@pytest.mark.parametrize("cause", [ProbeCause.HTTP_4XX, ProbeCause.HTTP_5XX])
def test_metrics_that_are_switched_off_are_no_obstacle(scene: Scene, cause: ProbeCause) -> None:
    scene.look(with_metrics(cause))
    assert scene.seen() == (RUNNING, None)


def test_metrics_that_refuse_are_a_refusal(scene: Scene) -> None:
    scene.look(with_metrics(ProbeCause.REFUSED))
    assert scene.seen() == (STOPPED, None)


def test_the_first_proof_needs_the_list_of_models(scene: Scene) -> None:
    for _ in range(3):
        scene.look(serving(names=None))
    assert scene.seen() == (FAILED, Reason.UNRESPONSIVE)


def test_a_running_server_need_not_list_its_models_every_time(running: Scene) -> None:
    running.look(serving(names=None))
    assert running.life.consecutive_failures == 0


# The idle connection.


def test_an_idle_close_is_only_a_reason_to_look(running: Scene) -> None:
    done = running.send(ConnectionClosed())
    assert done.effects == (LookNow(),)
    assert running.seen() == (RUNNING, None)
    running.serve()
    assert running.seen() == (RUNNING, None)
    assert running.life.tally.transitions == {(UNKNOWN, RUNNING): 1}


def test_the_connection_is_kept_while_it_is_there(running: Scene) -> None:
    done = running.fail(3)
    assert running.phase is Phase.UNREADY
    assert done.effects == ()


# Restarts.


def test_a_newer_start_time_is_a_restart(running: Scene) -> None:
    restarted(running, STARTED + 100.0)
    assert running.seen() == (RUNNING, None)
    assert (running.launches, running.crashes) == (2, 0)
    assert running.life.tally.restarts == {Initiator.OUTSIDE: 1}
    ended = running.steps[-1].ending
    assert ended is not None
    assert (ended.launch_number, ended.state) == (1, STOPPED)


@pytest.mark.parametrize("moved", [-1.0, 0.0, 1.0])
def test_a_start_time_that_was_only_rounded_is_the_same_launch(
    running: Scene, moved: float
) -> None:
    restarted(running, STARTED + moved)
    assert running.launches == 1
    assert not running.life.is_load_balanced


def test_a_restart_is_newer_than_every_start_seen(running: Scene) -> None:
    restarted(running, STARTED + 100.0)
    restarted(running, STARTED + 100.0)
    restarted(running, STARTED + 200.0)
    assert running.launches == 3


def test_a_crash_then_a_newer_start_is_one_restart(running: Scene) -> None:
    running.crash()
    running.wait(60.0).serve(STARTED + 70.0)
    assert (running.launches, running.restarts, running.crashes) == (2, 1, 1)
    assert running.steps[-1].ending is None


def test_a_newer_start_time_counts_once_it_was_seen_often_enough(running: Scene) -> None:
    for _ in range(CONFIRMING_LOOKS - 1):
        running.serve(STARTED + 100.0)
        assert running.launches == 1
    running.serve(STARTED + 100.0)
    assert running.launches == 2


def test_a_newer_start_time_after_a_failed_look_counts_at_once(running: Scene) -> None:
    running.fail(1)
    running.serve(STARTED + 100.0)
    assert running.launches == 2


def test_two_servers_of_different_age_behind_one_address_are_no_restart(running: Scene) -> None:
    for _ in range(10):
        running.wait(10.0).serve(STARTED + 100.0)
        running.wait(10.0).serve(STARTED)
    assert running.life.is_load_balanced
    assert (running.launches, running.restarts) == (1, 0)


def test_an_older_start_time_means_a_load_balancer(running: Scene) -> None:
    restarted(running, STARTED - 50.0)
    assert running.life.is_load_balanced
    assert running.life.launch is not None
    assert running.life.launch.start_seconds is None
    assert running.launches == 1


def test_behind_a_load_balancer_start_times_are_no_longer_compared(running: Scene) -> None:
    restarted(running, STARTED - 50.0)
    for start in (STARTED + 500.0, STARTED, STARTED + 900.0):
        restarted(running, start)
    assert running.launches == 1
    assert running.seen() == (RUNNING, None)


def test_without_start_times_a_launch_is_told_by_having_been_down() -> None:
    """Several API servers of one vLLM export no process start."""
    scene = Scene()
    scene.serve(None)
    scene.wait(5.0).serve(None)
    scene.fail(3)
    scene.serve(None)
    assert scene.launches == 1
    scene.refuse()
    scene.wait(5.0).serve(None)
    assert (scene.launches, scene.crashes) == (2, 0)
    scene.crash()
    scene.wait(60.0).serve(None)
    assert (scene.launches, scene.restarts, scene.crashes) == (3, 2, 1)


def test_a_start_time_that_is_told_later_belongs_to_the_launch() -> None:
    scene = Scene()
    scene.serve(None)
    scene.serve(STARTED)
    assert scene.launches == 1
    assert scene.life.launch is not None
    assert scene.life.launch.start_seconds == STARTED
    restarted(scene, STARTED + 100.0)
    assert scene.launches == 2


def test_a_look_without_metrics_tells_nothing_of_restarts(running: Scene) -> None:
    running.look(with_metrics(ProbeCause.TIMEOUT))
    running.serve()
    assert running.launches == 1


# The agent restarts.


def test_a_new_agent_knows_nothing_before_its_first_look(running: Scene) -> None:
    running.restart_agent()
    assert running.seen() == (UNKNOWN, None)


def test_the_same_process_after_a_restart_of_the_agent_counts_nothing(running: Scene) -> None:
    running.restart_agent()
    running.serve()
    assert running.seen() == (RUNNING, None)
    assert (running.launches, running.restarts, running.crashes) == (1, 0, 0)


def test_a_restart_while_the_agent_was_away_is_counted(running: Scene) -> None:
    running.restart_agent()
    running.serve(STARTED + 100.0)
    assert (running.launches, running.restarts, running.crashes) == (2, 1, 0)


def test_an_end_that_nobody_watched_is_stopped(running: Scene) -> None:
    running.restart_agent()
    running.refuse()
    running.wait(60.0).refuse()
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 0


def test_a_crashed_server_stays_crashed_and_is_not_counted_again(running: Scene) -> None:
    running.crash()
    for _ in range(3):
        running.restart_agent()
        running.wait(20.0).refuse()
        assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    assert running.crashes == 1


def test_a_server_lost_when_the_agent_ended_is_crashed_when_it_still_refuses(
    running: Scene,
) -> None:
    running.refuse()
    running.restart_agent()
    running.wait(5.0).refuse()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    assert running.crashes == 1
    running.wait(60.0).serve()
    assert running.launches == 1
    running.crash()
    assert running.crashes == 2


def test_a_server_lost_when_the_agent_ended_and_back_is_no_crash(running: Scene) -> None:
    running.refuse()
    running.restart_agent()
    running.wait(5.0).serve()
    assert (running.launches, running.crashes) == (1, 0)


def test_a_crash_before_the_agent_restarted_still_costs_a_unit(running: Scene) -> None:
    running.crash()
    running.restart_agent()
    running.refuse()
    running.wait(60.0).serve(STARTED + 70.0)
    assert running.life.budget.remaining == 2


def test_a_crash_is_remembered_through_a_broken_comeback(running: Scene) -> None:
    """What never served is not taken for the launch whose crash was counted already."""
    running.crash()
    running.fail(3, ProbeCause.HTTP_5XX)
    running.restart_agent()
    running.fail(3, ProbeCause.HTTP_5XX)
    running.crash()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    assert running.crashes == 1
    running.wait(60.0).serve(STARTED + 200.0)
    assert (running.launches, running.life.budget.remaining) == (2, 2)


def test_a_stop_is_remembered_through_a_broken_comeback(running: Scene) -> None:
    running.maintain(math.inf)
    running.refuse()
    running.maintain(None)
    running.fail(3, ProbeCause.HTTP_5XX)
    running.restart_agent()
    running.refuse()
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 0


def test_without_start_times_having_been_down_is_remembered_too() -> None:
    scene = Scene()
    scene.serve(None)
    scene.crash()
    scene.restart_agent()
    scene.serve(None)
    assert (scene.launches, scene.life.budget.remaining) == (2, 2)
    scene.serve(None)
    assert scene.launches == 2


def test_without_start_times_a_new_agent_that_saw_it_down_counts_a_launch() -> None:
    scene = Scene()
    scene.serve(None)
    scene.restart_agent()
    scene.refuse()
    scene.wait(60.0).serve(None)
    assert scene.launches == 2


def test_without_start_times_a_restart_of_the_agent_is_no_restart_of_the_server() -> None:
    scene = Scene()
    scene.serve(None)
    scene.restart_agent()
    scene.serve(None)
    assert scene.launches == 1


def test_a_load_balancer_is_remembered(running: Scene) -> None:
    restarted(running, STARTED - 50.0)
    running.restart_agent()
    running.serve(STARTED + 500.0)
    assert running.launches == 1


# Maintenance.


def test_an_end_in_maintenance_is_stopped(running: Scene) -> None:
    running.maintain(math.inf)
    assert not running.life.is_desired
    done = running.refuse()
    assert running.seen() == (STOPPED, None)
    assert done.ending is not None
    assert (done.ending.state, done.ending.reason) == (STOPPED, None)
    running.wait(60.0).refuse()
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 0


def test_a_start_after_maintenance_costs_no_unit(running: Scene) -> None:
    running.maintain(math.inf)
    running.refuse()
    running.maintain(None)
    assert running.life.is_desired
    running.wait(60.0).serve(STARTED + 70.0)
    assert (running.launches, running.life.budget.remaining) == (2, 3)


def test_a_server_runs_on_in_maintenance(running: Scene) -> None:
    running.maintain(60.0)
    running.serve()
    assert running.seen() == (RUNNING, None)


def test_an_outage_that_began_before_maintenance_ends_as_stopped(running: Scene) -> None:
    running.refuse()
    running.maintain(math.inf)
    running.refuse()
    assert running.seen() == (STOPPED, None)


def test_a_crash_before_maintenance_stays_a_crash(running: Scene) -> None:
    running.crash()
    running.maintain(math.inf)
    running.refuse()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    running.restart_agent()
    running.refuse()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)
    assert running.crashes == 1


def test_maintenance_is_noted_when_it_begins_and_however_it_ends(running: Scene) -> None:
    notes = [running.maintain(60.0).transition, running.wait(61.0).tick().transition]
    notes += [running.maintain(math.inf).transition, running.maintain(None).transition]
    assert [note.detail for note in notes if note is not None] == [
        "maintenance began, for 60 s",
        "maintenance ended",
        "maintenance began",
        "maintenance ended",
    ]


def test_maintenance_ends_by_itself(running: Scene) -> None:
    running.maintain(60.0)
    running.wait(59.9).tick()
    assert not running.life.is_desired
    running.wait(0.1).tick()
    assert running.life.is_desired


def test_maintenance_is_by_the_wall_clock(running: Scene) -> None:
    running.maintain(60.0)
    running.set_wall_clock(3600.0)
    running.tick()
    assert running.life.is_desired


def test_maintenance_is_remembered(running: Scene) -> None:
    running.maintain(math.inf)
    running.restart_agent()
    running.refuse()
    assert running.seen() == (STOPPED, None)
    assert not running.life.is_desired


# Sleeping.


@pytest.mark.parametrize("is_sleeping", [True, False, None])
def test_a_sleeping_server_runs(scene: Scene, *, is_sleeping: bool | None) -> None:
    scene.look(serving(is_sleeping=is_sleeping))
    assert scene.seen() == (RUNNING, None)
    assert scene.life.is_sleeping is is_sleeping


def test_a_look_that_saw_no_metrics_leaves_sleeping_as_it_was(scene: Scene) -> None:
    scene.look(serving(is_sleeping=True))
    scene.look(with_metrics(ProbeCause.TIMEOUT))
    assert scene.life.is_sleeping is True


# The restart budget.


def crash_and_return(scene: Scene, number: int, run_seconds: float = 5.0) -> None:
    """Crashes, comes back as another process, and runs for a while."""
    scene.crash()
    scene.wait(50.0).serve(STARTED + 100.0 * number)
    scene.wait(run_seconds).serve(STARTED + 100.0 * number)


def test_the_limit_is_reached_by_the_fourth_restart_after_a_crash(running: Scene) -> None:
    left = []
    for number in range(1, 5):
        crash_and_return(running, number)
        left.append((running.life.budget.remaining, running.life.budget.is_limit_reached))
    assert left == [(2, False), (1, False), (0, False), (0, True)]


def test_the_crash_itself_uses_nothing(running: Scene) -> None:
    running.crash()
    running.wait(300.0).refuse()
    assert running.life.budget.remaining == 3


def test_a_restart_that_nobody_saw_crash_uses_nothing(running: Scene) -> None:
    for number in range(1, 9):
        restarted(running, STARTED + 100.0 * number)
    assert running.life.budget.remaining == 3


def test_the_budget_is_full_after_the_window_of_running(running: Scene) -> None:
    for number in range(1, 5):
        crash_and_return(running, number)
    running.wait(54.9).tick()
    assert running.life.budget.is_limit_reached
    running.wait(0.1).tick()
    assert running.life.budget.remaining == 3
    assert not running.life.budget.is_limit_reached


def test_flapping_refills_nothing(running: Scene) -> None:
    crash_and_return(running, 1)
    for _ in range(10):
        running.wait(50.0).fail(3)
        running.wait(50.0).serve(STARTED + 100.0)
    assert running.life.budget.remaining == 2


def test_a_restart_unseen_begins_the_window_again(running: Scene) -> None:
    crash_and_return(running, 1)
    running.wait(47.0)
    restarted(running, STARTED + 200.0)
    running.wait(50.0).serve(STARTED + 200.0)
    assert running.life.budget.remaining == 2
    running.wait(10.0).serve(STARTED + 200.0)
    assert running.life.budget.remaining == 3


def test_damped_failures_do_not_interrupt_the_running(running: Scene) -> None:
    crash_and_return(running, 1)
    running.wait(30.0).fail(2)
    running.wait(30.0).serve(STARTED + 100.0)
    assert running.life.budget.remaining == 3


def test_being_down_or_failed_refills_nothing(running: Scene) -> None:
    crash_and_return(running, 1)
    running.fail(3)
    running.wait(600.0).fail(1)
    running.crash()
    running.wait(600.0).refuse()
    assert running.life.budget.remaining == 2


def test_the_budget_outlives_the_agent(running: Scene) -> None:
    for number in range(1, 5):
        crash_and_return(running, number)
    running.restart_agent()
    assert running.life.budget.is_limit_reached
    running.serve(STARTED + 400.0)
    running.wait(59.0).serve(STARTED + 400.0)
    assert running.life.budget.is_limit_reached
    running.wait(1.0).tick()
    assert not running.life.budget.is_limit_reached


@pytest.mark.parametrize(("limit", "left"), [(5, 4), (3, 2), (1, 0), (0, 0)])
def test_another_limit_keeps_what_was_used(running: Scene, limit: int, left: int) -> None:
    crash_and_return(running, 1)
    running.policy = replace(running.policy, max_restarts=limit)
    running.tick()
    assert (running.life.budget.limit, running.life.budget.remaining) == (limit, left)


def test_without_a_single_unit_the_first_restart_reaches_the_limit() -> None:
    scene = Scene(Policy(max_restarts=0))
    scene.serve()
    crash_and_return(scene, 1)
    assert scene.life.budget.is_limit_reached


# Time.


def test_the_time_of_every_state_is_kept(scene: Scene) -> None:
    scene.wait(1.0).serve()
    scene.wait(20.0).refuse()
    scene.wait(10.0).refuse()
    scene.wait(300.0).serve(STARTED + 320.0)
    scene.wait(4.0).tick()
    seconds = {state.value: spent for state, spent in scene.life.state_time.seconds.items()}
    assert seconds == {
        "unknown": 1.0,
        "starting": 0.0,
        "running": 24.0,
        "stopping": 0.0,
        "stopped": 0.0,
        "failed": 10.0,
        "crashed": 300.0,
    }
    assert scene.life.state_time.desired_seconds == 335.0
    assert scene.life.state_time.available_seconds == 24.0


def test_time_in_maintenance_is_neither_wanted_nor_available(running: Scene) -> None:
    running.wait(10.0).maintain(math.inf)
    running.wait(30.0).maintain(None)
    running.wait(5.0).tick()
    assert running.life.state_time.desired_seconds == 15.0
    assert running.life.state_time.available_seconds == 15.0
    assert running.life.state_time.seconds[RUNNING] == 45.0


def test_a_wall_clock_that_steps_back_takes_no_time_away(running: Scene) -> None:
    running.set_wall_clock(-86_400.0)
    running.wait(10.0).tick()
    assert running.life.state_time.seconds[RUNNING] == 10.0
    running.refuse()
    running.set_wall_clock(-86_400.0)
    running.wait(10.0).refuse()
    assert running.seen() == (CRASHED, Reason.UNREACHABLE)


def test_the_state_is_as_old_as_its_first_phase(running: Scene) -> None:
    running.wait(5.0).fail(3)
    failed_at = running.now
    running.wait(5.0).look(REFUSED)
    assert running.phase is Phase.LOST
    assert running.life.entered == failed_at
    assert running.life.phase_entered == running.now
    running.wait(5.0).look(failing())
    assert running.phase is Phase.LOST
