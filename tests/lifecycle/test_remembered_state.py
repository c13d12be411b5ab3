"""A state that a restart of the agent did not interrupt goes on: it began when it began."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lifecycle.looks import STARTED
from tests.lifecycle.scene import Scene
from vllm_agent.lifecycle.pace import next_look_seconds
from vllm_agent.lifecycle.states import Phase, ServerState

INTERVAL = 10.0


@pytest.fixture
def running() -> Scene:
    scene = Scene()
    scene.serve()
    return scene


def agent_away(scene: Scene, seconds: float = 300.0) -> Scene:
    """The agent ends, and another one begins that much later."""
    scene.wait(seconds).restart_agent()
    return scene.wait(1.0)


def test_a_crash_goes_on(running: Scene) -> None:
    running.wait(60.0).crash()
    crashed = running.life.entered
    agent_away(running).refuse()
    assert running.phase is Phase.CRASHED
    assert running.life.entered.unix_seconds == crashed.unix_seconds
    assert running.life.phase_entered == running.now


def test_a_crash_goes_on_over_two_restarts_of_the_agent(running: Scene) -> None:
    running.crash()
    crashed = running.life.entered
    agent_away(agent_away(running)).refuse()
    assert running.life.entered.unix_seconds == crashed.unix_seconds


def test_running_goes_on_where_the_same_process_serves(running: Scene) -> None:
    since = running.life.entered
    agent_away(running).serve()
    assert running.life.entered.unix_seconds == since.unix_seconds


def test_running_goes_on_where_starts_are_not_told() -> None:
    scene = Scene()
    scene.serve(None)
    since = scene.life.entered
    agent_away(scene).serve(None)
    assert scene.life.entered.unix_seconds == since.unix_seconds


def test_running_begins_anew_with_another_process(running: Scene) -> None:
    agent_away(running).serve(STARTED + 700.0)
    assert running.life.entered == running.now


def test_a_stop_goes_on() -> None:
    scene = Scene()
    scene.refuse()
    stopped = scene.life.entered
    agent_away(scene).refuse()
    assert scene.life.state is ServerState.STOPPED
    assert scene.life.entered.unix_seconds == stopped.unix_seconds


def test_a_failure_goes_on_once_it_is_confirmed(running: Scene) -> None:
    running.fail(3)
    failed = running.life.entered
    agent_away(running).fail(3)
    assert running.life.state is ServerState.FAILED
    assert running.life.entered.unix_seconds == failed.unix_seconds


def test_another_state_than_the_remembered_one_begins_now(running: Scene) -> None:
    running.crash()
    agent_away(running).serve(STARTED + 700.0)
    assert running.life.entered == running.now


def test_a_state_that_is_entered_again_later_begins_then(running: Scene) -> None:
    agent_away(running).fail(3)
    running.wait(5.0).serve()
    assert running.life.state is ServerState.RUNNING
    assert running.life.entered == running.now


def test_a_crash_that_was_not_the_state_shown_begins_when_it_is_confirmed(running: Scene) -> None:
    running.crash()
    running.wait(60.0).fail(3)
    assert running.life.memory.phase is Phase.CRASHED
    agent_away(running).refuse()
    assert running.phase is Phase.CRASHED
    assert running.life.entered == running.now


def test_a_state_does_not_begin_in_the_future_after_the_clock_was_set_back(running: Scene) -> None:
    running.set_wall_clock(-3600.0)
    agent_away(running).serve()
    assert running.life.entered == running.now


def test_a_memory_without_the_time_makes_the_state_begin_now(running: Scene) -> None:
    agent_away(running)
    running.life = replace(running.life, remembered_entered_unix_seconds=None)
    running.serve()
    assert running.life.entered == running.now


def test_the_pace_after_a_crash_is_that_of_a_crash_just_found(running: Scene) -> None:
    running.crash()
    fresh = next_look_seconds(running.life, running.policy, INTERVAL, running.now)
    agent_away(running, 86400.0).refuse()
    assert next_look_seconds(running.life, running.policy, INTERVAL, running.now) == fresh


def test_how_the_last_launch_ended_is_remembered(running: Scene) -> None:
    running.crash()
    ending = running.life.last_ending
    agent_away(running).refuse()
    assert running.life.last_ending == ending is not None


def test_an_ending_that_was_taken_back_is_not_remembered(running: Scene) -> None:
    running.crash()
    running.wait(5.0).serve()
    agent_away(running).serve()
    assert running.life.last_ending is None
