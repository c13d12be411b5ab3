"""When a server is looked at next, and when time alone changes something."""

from __future__ import annotations

import math

import pytest

from tests.lifecycle.looks import STARTED
from tests.lifecycle.scene import Scene
from vllm_agent.lifecycle.events import EndBegan, ProcessAppeared
from vllm_agent.lifecycle.pace import next_deadline_seconds, next_look_seconds
from vllm_agent.lifecycle.states import Phase, ServerState

INTERVAL = 10.0


@pytest.fixture
def running() -> Scene:
    scene = Scene()
    scene.serve()
    return scene


def next_look(scene: Scene, interval: float = INTERVAL) -> float:
    return next_look_seconds(scene.life, interval, scene.now)


def deadline(scene: Scene) -> float | None:
    return next_deadline_seconds(scene.life, scene.policy, scene.now)


# Looks.


def test_a_running_server_is_looked_at_once_an_interval(running: Scene) -> None:
    assert next_look(running) == INTERVAL
    assert next_look(running.wait(3600.0)) == INTERVAL


def test_a_failed_server_is_looked_at_once_an_interval(running: Scene) -> None:
    running.fail(3)
    assert next_look(running.wait(100.0)) == INTERVAL


def test_a_server_nobody_has_seen_is_looked_at_once_an_interval() -> None:
    scene = Scene()
    scene.fail(1)
    assert next_look(scene) == INTERVAL


def test_a_lost_server_is_looked_at_every_second_and_when_it_counts_as_crashed(
    running: Scene,
) -> None:
    running.refuse()
    assert next_look(running) == 1.0
    running.wait(9.25)
    assert next_look(running) == 0.75
    assert next_look(running.wait(0.75)) == 1.0


def test_looking_when_told_finds_the_crash_after_ten_seconds(running: Scene) -> None:
    running.refuse()
    lost_at = running.now
    looks = 0
    while running.phase is Phase.LOST:
        running.wait(next_look(running)).refuse()
        looks += 1
    assert running.now.since(lost_at) == pytest.approx(10.0)
    assert looks == 10


@pytest.mark.parametrize(
    ("down_seconds", "expected"),
    [(0.0, 1.0), (10.0, 1.0), (30.0, 3.0), (99.0, 9.9), (100.0, 10.0), (86_400.0, 10.0)],
)
@pytest.mark.parametrize("state", [ServerState.STOPPED, ServerState.CRASHED])
def test_a_server_that_is_down_is_looked_at_less_and_less(
    state: ServerState, down_seconds: float, expected: float
) -> None:
    scene = Scene()
    if state is ServerState.CRASHED:
        scene.serve()
        scene.crash()
    else:
        scene.refuse()
    assert scene.life.state is state
    assert next_look(scene.wait(down_seconds)) == pytest.approx(expected)


def test_a_server_that_is_down_is_never_looked_at_less_than_it_is_when_up() -> None:
    scene = Scene()
    scene.refuse()
    assert next_look(scene.wait(3600.0), 5.0) == 5.0
    assert next_look(scene, 0.5) == 0.5


# Deadlines.


def test_nothing_changes_by_itself_at_first(running: Scene) -> None:
    assert deadline(running) is None
    assert deadline(Scene()) is None


def test_a_used_budget_is_full_again_after_the_window(running: Scene) -> None:
    running.crash()
    assert deadline(running) is None
    running.wait(60.0).serve(STARTED + 70.0)
    assert deadline(running) == 60.0
    left = deadline(running.wait(45.0))
    assert left == 15.0
    running.wait(left).tick()
    assert running.life.budget.remaining == 3
    assert deadline(running) is None


def test_a_reached_limit_without_units_ends_after_the_window_too() -> None:
    scene = Scene()
    scene.policy = type(scene.policy)(max_restarts=0)
    scene.serve()
    scene.crash()
    scene.wait(60.0).serve(STARTED + 70.0)
    assert deadline(scene) == 60.0


def test_an_end_has_two_minutes() -> None:
    scene = Scene()
    scene.send(ProcessAppeared(STARTED))
    scene.send(EndBegan())
    assert deadline(scene.wait(20.0)) == 100.0
    assert deadline(scene.wait(500.0)) == 0.0
    scene.tick()
    assert scene.phase is Phase.OVERDUE
    assert deadline(scene) is None


def test_maintenance_ends_in_time(running: Scene) -> None:
    running.maintain(90.0)
    assert deadline(running.wait(30.0)) == 60.0
    running.wait(60.0).tick()
    assert deadline(running) is None


def test_maintenance_without_an_end_has_no_deadline(running: Scene) -> None:
    running.maintain(math.inf)
    assert deadline(running) is None


def test_the_first_deadline_counts(running: Scene) -> None:
    running.crash()
    running.wait(60.0).serve(STARTED + 70.0)
    running.maintain(30.0)
    assert deadline(running) == 30.0
    running.maintain(300.0)
    assert deadline(running) == 60.0
