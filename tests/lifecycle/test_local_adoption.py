"""A new agent finds the servers of this host: the same launches, others, or none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.lifecycle.local_scene import HEADLESS, LocalScene
from tests.lifecycle.looks import STARTED, serving
from tests.lifecycle.sightings import EXITED_1, KILLED, NEXT_BOOT, ORDERLY, sighting
from vllm_agent.lifecycle.events import Follow, LookNow
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Initiator, Phase, ServerState
from vllm_agent.observations import Listener, ProbeCause

UNKNOWN, STARTING, RUNNING = ServerState.UNKNOWN, ServerState.STARTING, ServerState.RUNNING
STOPPING, STOPPED = ServerState.STOPPING, ServerState.STOPPED
FAILED, CRASHED = ServerState.FAILED, ServerState.CRASHED


@pytest.fixture
def running() -> LocalScene:
    return LocalScene().run()


def agent_away(scene: LocalScene, seconds: float = 300.0) -> LocalScene:
    """The agent ends, and another one begins that much later."""
    scene.wait(seconds).restart_agent()
    return scene


# The same process.


def test_a_new_agent_follows_and_looks_at_a_process_it_remembers(running: LocalScene) -> None:
    done = agent_away(running).sight_again()
    assert done.effects == (Follow(running.newest), LookNow())
    assert running.seen() == (UNKNOWN, None)
    assert done.launch is None


def test_the_same_process_that_serves_was_never_starting(running: LocalScene) -> None:
    since, tally = running.life.entered, running.life.tally
    agent_away(running).sight_again()
    running.answer()
    assert running.seen() == (RUNNING, None)
    assert running.life.entered.unix_seconds == since.unix_seconds
    assert running.life.tally == tally.with_transition(UNKNOWN, RUNNING)
    assert (running.launches, running.restarts, running.crashes) == (1, 0, 0)


def test_the_same_process_that_still_loads_goes_on_starting() -> None:
    scene = LocalScene().load()
    since = scene.life.entered
    agent_away(scene).sight_again()
    assert scene.seen() == (UNKNOWN, None)
    scene.knock()
    assert scene.seen() == (STARTING, None)
    assert scene.life.entered.unix_seconds == since.unix_seconds
    scene.answer()
    assert scene.seen() == (RUNNING, None)
    assert (scene.launches, scene.restarts) == (1, 0)


def test_the_same_process_that_began_to_serve_meanwhile_is_running_from_now_on() -> None:
    scene = LocalScene().load()
    agent_away(scene).sight_again()
    scene.answer()
    assert scene.seen() == (RUNNING, None)
    assert scene.life.entered == scene.now
    assert scene.launches == 1


@pytest.mark.parametrize("how", ["knock", "look"])
def test_the_same_process_that_served_and_listens_no_more_is_ending(
    running: LocalScene, how: str
) -> None:
    agent_away(running).sight_again()
    if how == "knock":
        running.knock()
    else:
        running.close_port()
    assert running.seen() == (STOPPING, None)
    running.settle(ORDERLY)
    assert running.seen() == (STOPPED, None)


def test_the_same_process_that_is_gone_before_the_first_look_is_judged(
    running: LocalScene,
) -> None:
    agent_away(running).sight_again()
    running.end()
    running.settle(KILLED)
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    assert running.crashes == 1


def test_the_same_process_that_answers_wrongly_stays_unknown_until_the_threshold(
    running: LocalScene,
) -> None:
    agent_away(running).sight_again()
    running.answer_wrongly(2, ProbeCause.TIMEOUT)
    assert running.seen() == (UNKNOWN, None)
    running.answer_wrongly(1, ProbeCause.TIMEOUT)
    assert running.seen() == (FAILED, Reason.UNRESPONSIVE)


def test_a_failure_of_the_same_process_goes_on(running: LocalScene) -> None:
    running.answer_wrongly(3)
    since = running.life.entered
    agent_away(running).sight_again()
    running.answer_wrongly(3)
    assert running.seen() == (FAILED, Reason.UNHEALTHY)
    assert running.life.entered.unix_seconds == since.unix_seconds


def test_an_end_that_lasts_over_a_restart_of_the_agent_goes_on(running: LocalScene) -> None:
    running.close_port()
    since = running.life.entered
    agent_away(running, 10.0).sight_again()
    running.knock()
    assert running.seen() == (STOPPING, None)
    assert running.life.entered.unix_seconds == since.unix_seconds


def test_a_process_of_a_new_agent_is_known_by_its_start_time_though_an_older_one_was_newer(
    running: LocalScene,
) -> None:
    """The clock was set back between two launches, and nobody may read whose the port is."""
    running.crash()
    running.set_wall_clock(-3600.0)
    running.run(2)
    agent_away(running).sight_again()
    running.answer(by=None)
    assert running.seen() == (RUNNING, None)


def test_a_process_that_was_overlooked_at_first_is_not_stopped(running: LocalScene) -> None:
    """The first look at a busy host may miss it; what is alive is not stopped."""
    agent_away(running).miss()
    assert running.seen() == (STOPPED, None)
    running.wait(1.0).sight_again()
    running.answer()
    assert running.seen() == (RUNNING, None)


# Another process.


def test_an_agent_that_starts_long_after_a_server_finds_it_running() -> None:
    scene = LocalScene()
    scene.appear(age_seconds=86_400.0)
    scene.answer()
    assert scene.seen() == (RUNNING, None)
    assert scene.life.entered == scene.now
    assert (scene.launches, scene.restarts, scene.crashes) == (1, 0, 0)


@pytest.mark.parametrize("boot_id", [None, NEXT_BOOT], ids=["replaced", "rebooted"])
@pytest.mark.parametrize("age_seconds", [1.0, 250.0])
def test_a_process_that_was_replaced_unwatched_is_a_restart_and_no_crash(
    running: LocalScene, boot_id: str | None, age_seconds: float
) -> None:
    agent_away(running)
    if boot_id is None:
        done = running.appear(2, age_seconds=age_seconds)
    else:
        done = running.appear(1, age_seconds=age_seconds, boot_id=boot_id)
    assert done.launch is not None
    assert done.launch.number == 2
    assert done.ending is not None
    assert (done.ending.launch_number, done.ending.state, done.ending.rule) == (1, STOPPED, 0)
    assert done.ending.evidence == ("it ended while no agent watched",)
    assert running.life.tally.restarts == {Initiator.OUTSIDE: 1}
    assert (running.crashes, running.life.budget.remaining) == (0, 3)
    running.answer()
    assert running.seen() == (RUNNING, None)


def test_running_begins_anew_with_another_process(running: LocalScene) -> None:
    agent_away(running).appear(2, age_seconds=250.0)
    running.answer()
    assert running.seen() == (RUNNING, None)
    assert running.life.entered == running.now


def test_starting_begins_anew_with_another_process() -> None:
    scene = LocalScene().load()
    agent_away(scene).appear(2, age_seconds=250.0)
    scene.knock()
    assert scene.seen() == (STARTING, None)
    assert scene.life.entered == scene.now


def test_failing_begins_anew_with_another_process(running: LocalScene) -> None:
    running.answer_wrongly(3)
    agent_away(running).appear(2, age_seconds=250.0)
    running.answer_wrongly(3)
    assert running.seen() == (FAILED, Reason.UNHEALTHY)
    assert running.life.entered == running.now


def test_a_launch_that_never_served_and_was_replaced_unwatched_costs_a_unit() -> None:
    scene = LocalScene().load()
    agent_away(scene).appear(2)
    assert (scene.launches, scene.life.budget.remaining) == (2, 2)


@pytest.mark.parametrize("age_seconds", [1.0, 250.0])
def test_a_crash_before_the_agent_restarted_still_costs_a_unit(
    running: LocalScene, age_seconds: float
) -> None:
    running.crash()
    done = agent_away(running).appear(2, age_seconds=age_seconds)
    assert done.ending is None
    assert running.life.budget.remaining == 2
    assert running.crashes == 1


def test_one_process_more_after_a_new_one_was_adopted_waits_for_its_verdict(
    running: LocalScene,
) -> None:
    agent_away(running).appear(2, age_seconds=250.0)
    running.answer()
    assert running.load(3).steps[-1].ending is None
    running.settle(KILLED, number=2)
    assert running.crashes == 1


def test_a_crash_of_before_is_not_that_of_a_process_found_since(running: LocalScene) -> None:
    """Two agents in a row: the one between saw a new process, and did not get to look at it."""
    running.crash()
    agent_away(running).appear(2, age_seconds=250.0)
    done = agent_away(running).miss()
    assert running.seen() == (STOPPED, None)
    assert done.ending is not None
    assert (done.ending.launch_number, done.ending.rule) == (2, 0)


# No process.


@pytest.mark.parametrize("phase", ["loading", "running", "failed", "stopping", "overdue"])
def test_an_end_that_nobody_watched_is_stopped(phase: str) -> None:
    scene = LocalScene().load()
    if phase != "loading":
        scene.wait(50.0).answer()
    match phase:
        case "failed":
            scene.answer_wrongly(3)
        case "stopping":
            scene.end()
        case "overdue":
            scene.close_port()
            scene.wait(120.0).tick()
    done = agent_away(scene).miss()
    assert scene.seen() == (STOPPED, None)
    assert done.ending is not None
    assert (done.ending.launch_number, done.ending.state, done.ending.rule) == (1, STOPPED, 0)
    assert scene.crashes == 0
    assert scene.life.is_desired


def test_the_next_process_after_an_end_that_nobody_watched(running: LocalScene) -> None:
    agent_away(running).miss()
    running.wait(60.0).load(2)
    assert running.seen() == (STARTING, None)
    assert (running.launches, running.restarts, running.life.budget.remaining) == (2, 1, 3)


def test_a_crashed_server_stays_crashed_and_is_not_counted_again(running: LocalScene) -> None:
    running.crash()
    since = running.life.entered
    for _ in range(3):
        done = agent_away(running).miss()
        assert done.ending is None
        assert running.seen() == (CRASHED, Reason.SIGNAL)
        assert running.life.entered.unix_seconds == since.unix_seconds
    assert running.crashes == 1
    running.load(2)
    assert running.life.budget.remaining == 2


@pytest.mark.parametrize("evidence", [ORDERLY])
def test_a_stopped_server_stays_stopped_and_unwanted(running: LocalScene, evidence) -> None:
    running.end()
    running.settle(evidence)
    since = running.life.entered
    done = agent_away(running).miss()
    assert done.ending is None
    assert running.seen() == (STOPPED, None)
    assert running.life.entered.unix_seconds == since.unix_seconds
    assert not running.life.is_desired


def test_a_crash_of_an_older_launch_that_was_told_late_is_not_the_state_of_the_newest(
    running: LocalScene,
) -> None:
    running.run(2)
    running.settle(KILLED, number=1)
    agent_away(running).miss()
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 1


def test_a_verdict_that_the_agent_before_did_not_live_to_hear_is_not_told_to_this_one(
    running: LocalScene,
) -> None:
    running.run(2)
    agent_away(running).sight_again()
    assert running.life.unsettled == ()
    assert running.settle(KILLED, number=1).ending is None
    assert running.crashes == 0


def test_only_the_first_look_for_processes_says_that_there_is_none(running: LocalScene) -> None:
    before = running.life
    running.miss()
    assert running.life == before


# What else is remembered.


def test_maintenance_is_remembered(running: LocalScene) -> None:
    running.maintain(math.inf)
    agent_away(running).sight_again()
    running.answer()
    running.crash()
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 0


def test_the_budget_outlives_the_agent(running: LocalScene) -> None:
    for number in range(2, 6):
        running.crash()
        running.run(number)
    assert running.life.budget.is_limit_reached
    agent_away(running).sight_again()
    running.answer()
    assert running.life.budget.is_limit_reached
    running.wait(59.9).answer()
    assert running.life.budget.is_limit_reached
    running.wait(0.1).tick()
    assert (running.life.budget.remaining, running.life.budget.is_limit_reached) == (3, False)


def test_that_a_launch_served_is_remembered(running: LocalScene) -> None:
    assert running.life.memory.launch_has_served
    agent_away(running)
    assert running.life.launch is not None
    assert running.life.launch.has_served
    assert running.life.launch.process == running.newest.process
    assert running.life.launch.number == 1


def test_a_headless_server_is_adopted_by_its_engines() -> None:
    scene = LocalScene(HEADLESS).load()
    scene.see_tree()
    assert scene.seen() == (RUNNING, None)
    since = scene.life.entered
    agent_away(scene).sight_again()
    scene.knock()
    assert scene.seen() == (UNKNOWN, None)
    scene.see_tree()
    assert scene.seen() == (RUNNING, None)
    assert scene.life.entered.unix_seconds == since.unix_seconds
    assert scene.launches == 1


def test_a_state_does_not_begin_in_the_future_after_the_clock_was_set_back(
    running: LocalScene,
) -> None:
    running.set_wall_clock(-3600.0)
    agent_away(running).sight_again()
    running.answer()
    assert running.life.entered == running.now


def test_a_stranger_on_the_port_of_a_launch_that_served_means_the_end_of_it(
    running: LocalScene,
) -> None:
    agent_away(running).sight_again()
    running.answer(serving(STARTED - 5000.0), by=Listener.STRANGER)
    assert running.seen() == (STOPPING, None)


def test_the_same_pid_with_another_start_is_another_process(running: LocalScene) -> None:
    same_pid = replace(running.newest.process, start_ticks=running.newest.process.start_ticks + 1)
    reborn = replace(sighting(start_seconds=running.now.unix_seconds), process=same_pid)
    agent_away(running, 0.0).sight(reborn)
    assert running.launches == 2
    assert running.phase is Phase.LOADING
    running.settle(EXITED_1)
    assert running.seen() == (CRASHED, Reason.EXIT_NONZERO)
