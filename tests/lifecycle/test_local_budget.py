"""Restart budget, wish and time of a local server."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.lifecycle.local_scene import LOCAL, LocalScene
from tests.lifecycle.sightings import ASKED, EXITED_1, KILLED, ORDERLY, TOLD_TO_STOP, UNEXPLAINED
from vllm_agent.lifecycle.states import Initiator, ServerState


@pytest.fixture
def running() -> LocalScene:
    return LocalScene().run()


def budget(scene: LocalScene) -> tuple[int, bool]:
    return scene.life.budget.remaining, scene.life.budget.is_limit_reached


# What costs a unit.


def test_a_launch_after_a_crash_is_a_restart_and_costs_a_unit(running: LocalScene) -> None:
    running.crash()
    assert budget(running) == (3, False), "the crash itself uses nothing"
    running.wait(2.0).load(2)
    assert (running.launches, running.restarts) == (2, 1)
    assert running.life.tally.restarts == {Initiator.OUTSIDE: 1}
    assert budget(running) == (2, False)


@pytest.mark.parametrize("evidence", [ASKED, TOLD_TO_STOP, ORDERLY])
def test_a_launch_after_a_stop_costs_nothing(running: LocalScene, evidence) -> None:
    running.end()
    running.settle(evidence)
    running.load(2)
    assert (running.launches, running.life.budget.remaining) == (2, 3)


def test_a_launch_after_one_that_never_ran_costs_a_unit_even_when_it_was_stopped() -> None:
    scene = LocalScene().load()
    scene.end()
    scene.settle(ASKED)
    scene.load(2)
    assert (scene.launches, scene.life.budget.remaining) == (2, 2)


def test_one_that_ran_and_failed_before_its_stop_had_been_running(running: LocalScene) -> None:
    running.answer_wrongly(3)
    running.end()
    running.settle(TOLD_TO_STOP)
    running.load(2)
    assert running.life.budget.remaining == 3


def test_a_launch_after_a_stop_in_maintenance_costs_nothing(running: LocalScene) -> None:
    running.maintain(math.inf)
    running.crash()
    running.maintain(None)
    running.load(2)
    assert running.life.budget.remaining == 3


# A verdict that falls when the next launch is there.


def test_a_late_crash_costs_its_unit_when_the_verdict_falls(running: LocalScene) -> None:
    running.load(2)
    assert running.life.budget.remaining == 3
    running.settle(KILLED, number=1)
    assert running.life.budget.remaining == 2
    running.wait(50.0).answer()
    running.crash()
    running.load(3)
    assert running.life.budget.remaining == 1


@pytest.mark.parametrize("evidence", [ASKED, TOLD_TO_STOP, ORDERLY])
def test_a_late_stop_costs_nothing(running: LocalScene, evidence) -> None:
    running.load(2)
    running.settle(evidence, number=1)
    assert running.life.budget.remaining == 3


@pytest.mark.parametrize("evidence", [KILLED, EXITED_1, TOLD_TO_STOP, UNEXPLAINED])
def test_a_launch_that_never_ran_costs_its_unit_at_once_and_once(evidence) -> None:
    scene = LocalScene().load()
    scene.load(2)
    assert scene.life.budget.remaining == 2
    scene.settle(evidence, number=1)
    assert scene.life.budget.remaining == 2


def test_a_late_crash_may_be_the_one_that_reaches_the_limit() -> None:
    scene = LocalScene(replace(LOCAL, max_restarts=1)).run()
    scene.crash()
    scene.run(2)
    assert budget(scene) == (0, False)
    scene.run(3)
    assert budget(scene) == (0, False)
    scene.settle(KILLED, number=2)
    assert budget(scene) == (0, True)


def test_launches_without_a_verdict_cost_nothing(running: LocalScene) -> None:
    for number in range(2, 9):
        running.run(number)
    assert budget(running) == (3, False)


# The limit.


def test_a_crash_loop_reaches_the_limit_however_long_it_loads() -> None:
    scene = LocalScene().load()
    left = []
    for number in range(2, 6):
        scene.wait(250.0).end()
        scene.wait(0.5).settle(EXITED_1)
        scene.wait(2.0).load(number)
        left.append(budget(scene))
    assert left == [(2, False), (1, False), (0, False), (0, True)]
    assert scene.crashes == 4


def test_a_crash_loop_that_serves_for_a_moment_reaches_the_limit_too(running: LocalScene) -> None:
    left = []
    for number in range(2, 6):
        running.wait(10.0).crash()
        running.wait(2.0).run(number, load_seconds=250.0)
        left.append(budget(running))
    assert left == [(2, False), (1, False), (0, False), (0, True)]


def test_a_crash_loop_faster_than_its_verdicts_reaches_the_limit_too(running: LocalScene) -> None:
    left = []
    for number in range(2, 6):
        running.run(number)
        running.wait(1.0).settle(KILLED, number=number - 1)
        left.append(budget(running))
    assert left == [(2, False), (1, False), (0, False), (0, True)]


# Full again.


def test_the_budget_is_full_after_the_window_of_running(running: LocalScene) -> None:
    for number in range(2, 6):
        running.crash()
        running.run(number)
    assert budget(running) == (0, True)
    running.wait(59.9).answer()
    assert budget(running) == (0, True)
    running.wait(0.1).tick()
    assert budget(running) == (3, False)


def test_loading_refills_nothing(running: LocalScene) -> None:
    running.crash()
    running.load(2)
    running.wait(3600.0).knock()
    running.tick()
    assert budget(running) == (2, False)


@pytest.mark.parametrize("how", ["failed", "closed its port"])
def test_the_window_is_of_uninterrupted_running(running: LocalScene, how: str) -> None:
    running.crash()
    running.run(2)
    running.wait(50.0)
    if how == "failed":
        running.answer_wrongly(3)
    else:
        running.close_port()
    running.answer()
    running.wait(50.0).answer()
    assert budget(running) == (2, False)
    running.wait(10.0).answer()
    assert budget(running) == (3, False)


# What is wanted.


@pytest.mark.parametrize(
    ("evidence", "is_desired"),
    [(TOLD_TO_STOP, False), (ORDERLY, False), (KILLED, True), (UNEXPLAINED, True)],
    ids=["rule 3", "rule 6", "rule 5", "rule 7"],
)
def test_what_was_stopped_by_somebody_is_not_wanted_up(
    running: LocalScene, evidence, *, is_desired: bool
) -> None:
    running.end()
    assert running.life.is_desired, "nobody knows yet"
    running.settle(evidence)
    assert running.life.is_desired is is_desired
    running.wait(60.0).tick()
    running.load(2)
    assert running.life.is_desired


def test_what_was_stopped_in_maintenance_is_wanted_again_after_it(running: LocalScene) -> None:
    running.maintain(600.0)
    running.crash()
    assert not running.life.is_desired
    running.wait(600.0).tick()
    assert running.life.is_desired


def test_a_stop_in_maintenance_that_a_stop_sign_told_of_is_wanted_again_too(
    running: LocalScene,
) -> None:
    running.maintain(math.inf)
    running.end()
    running.settle(TOLD_TO_STOP)
    running.maintain(None)
    assert running.life.is_desired


def test_an_end_that_nobody_watched_is_no_wish(running: LocalScene) -> None:
    running.come_back().miss()
    assert running.life.state is ServerState.STOPPED
    assert running.life.is_desired


def test_a_stop_of_an_older_launch_is_no_wish_for_the_newest(running: LocalScene) -> None:
    running.load(2)
    running.settle(TOLD_TO_STOP, number=1)
    assert running.life.is_desired


def test_one_that_was_never_there_is_wanted() -> None:
    scene = LocalScene()
    scene.miss()
    assert scene.life.is_desired


# Time.


def test_the_time_of_every_state_is_kept() -> None:
    scene = LocalScene()
    scene.wait(1.0).load()
    scene.wait(50.0).answer()
    scene.wait(20.0).close_port()
    scene.wait(120.0).tick()
    scene.wait(3.0).settle(KILLED)
    scene.wait(300.0).load(2)
    scene.wait(4.0).end()
    scene.wait(2.0).settle(TOLD_TO_STOP)
    scene.wait(1000.0).tick()
    spent = scene.life.state_time
    assert {state.value: seconds for state, seconds in spent.seconds.items()} == {
        "unknown": 1.0,
        "starting": 54.0,
        "running": 20.0,
        "stopping": 122.0,
        "stopped": 1000.0,
        "failed": 3.0,
        "crashed": 300.0,
    }
    assert spent.desired_seconds == 500.0
    assert spent.available_seconds == 20.0


def test_time_in_maintenance_is_neither_wanted_nor_available(running: LocalScene) -> None:
    before = running.life.state_time
    running.wait(10.0).maintain(math.inf)
    running.wait(30.0).maintain(None)
    running.wait(5.0).tick()
    after = running.life.state_time
    assert after.desired_seconds - before.desired_seconds == 15.0
    assert after.available_seconds - before.available_seconds == 15.0


def test_one_that_nobody_wants_up_has_no_wanted_seconds() -> None:
    scene = LocalScene(replace(LOCAL, is_wanted=False)).run()
    scene.wait(100.0).crash()
    scene.wait(100.0).tick()
    assert scene.life.state_time.desired_seconds == 0.0
    assert scene.life.state_time.available_seconds == 0.0
    assert scene.life.state_time.seconds[ServerState.RUNNING] == 100.0
    assert scene.life.state_time.seconds[ServerState.CRASHED] == 100.0
