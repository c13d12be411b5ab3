"""When a server is looked at next, and when time alone changes something."""

from __future__ import annotations

import math

import pytest

from tests.lifecycle.local_scene import HEADLESS, LocalScene
from tests.lifecycle.looks import STARTED
from tests.lifecycle.scene import Scene
from tests.lifecycle.sightings import KILLED, TOLD_TO_STOP
from vllm_agent.lifecycle.pace import (
    KNOCK_SECONDS,
    is_knocked_at,
    next_deadline_seconds,
    next_look_seconds,
)
from vllm_agent.lifecycle.states import Phase, ServerState

INTERVAL = 10.0


@pytest.fixture
def running() -> Scene:
    scene = Scene()
    scene.serve()
    return scene


def next_look(scene: Scene, interval: float = INTERVAL) -> float:
    return next_look_seconds(scene.life, scene.policy, interval, scene.now)


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


# Looks at a local server.


def test_a_loading_server_is_knocked_at_once_a_second_however_long_it_loads() -> None:
    scene = LocalScene().load()
    assert KNOCK_SECONDS == 0.9
    for _ in range(3):
        assert next_look(scene.wait(100.0)) == KNOCK_SECONDS
        assert is_knocked_at(scene.life, scene.policy)
        scene.knock()


@pytest.mark.parametrize("how", ["unobserved", "unreached", "stalled"])
def test_so_is_every_server_that_has_not_served(how: str) -> None:
    scene = LocalScene()
    scene.appear(age_seconds=3600.0)
    match how:
        case "unreached":
            scene.knock(out_of_reach="firewall")
        case "stalled":
            scene.knock()
            scene.stall()
    assert next_look(scene) == KNOCK_SECONDS
    assert is_knocked_at(scene.life, scene.policy)


def test_a_short_interval_is_the_pace_of_knocks_too() -> None:
    assert next_look(LocalScene().load(), 0.5) == 0.5


def test_a_local_server_that_serves_is_looked_at_once_an_interval() -> None:
    scene = LocalScene().run()
    assert next_look(scene.wait(3600.0)) == INTERVAL
    assert not is_knocked_at(scene.life, scene.policy)


def test_a_local_server_that_is_failed_or_ends_is_looked_at_once_an_interval() -> None:
    scene = LocalScene().run()
    scene.answer_wrongly(3)
    assert next_look(scene) == INTERVAL
    scene.close_port()
    assert next_look(scene) == INTERVAL
    scene.wait(120.0).tick()
    assert scene.phase is Phase.OVERDUE
    assert next_look(scene) == INTERVAL
    assert not is_knocked_at(scene.life, scene.policy)


@pytest.mark.parametrize("evidence", [KILLED, TOLD_TO_STOP])
def test_where_no_process_is_there_nobody_looks(evidence) -> None:
    scene = LocalScene()
    assert next_look(scene) == math.inf
    scene.miss()
    assert next_look(scene) == math.inf
    scene.run()
    scene.end()
    scene.settle(evidence)
    assert next_look(scene.wait(3600.0)) == math.inf
    scene.load(2)
    assert next_look(scene) == KNOCK_SECONDS


def test_a_server_without_its_engine_is_looked_at_once_a_second() -> None:
    """A 503 after a second is a failure, and has to be seen then."""
    scene = LocalScene().run()
    scene.engine_dies()
    assert next_look(scene) == KNOCK_SECONDS
    assert not is_knocked_at(scene.life, scene.policy)
    scene.see_tree()
    assert next_look(scene) == INTERVAL


def test_an_engine_death_is_found_within_two_seconds_by_looking_when_told() -> None:
    scene = LocalScene().run()
    scene.engine_dies()
    died_at = scene.now
    scene.answer_wrongly()
    while scene.life.state is ServerState.RUNNING:
        scene.wait(next_look(scene)).answer_wrongly()
    assert scene.now.since(died_at) <= 2.0


def test_a_headless_server_is_never_sent_a_request() -> None:
    scene = LocalScene(HEADLESS).load()
    assert is_knocked_at(scene.life, scene.policy)
    scene.see_tree()
    assert is_knocked_at(scene.life, scene.policy)
    assert next_look(scene) == INTERVAL


def test_a_server_watched_by_url_is_never_knocked_at(running: Scene) -> None:
    assert not is_knocked_at(Scene().life, running.policy)
    assert not is_knocked_at(running.life, running.policy)


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
    scene = LocalScene().run()
    scene.close_port()
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
