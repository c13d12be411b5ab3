"""How the launches of a local server end: when an end begins, and what its verdict does."""

from __future__ import annotations

import math
import signal

import pytest

from tests.lifecycle.local_scene import LocalScene
from tests.lifecycle.looks import failing, serving
from tests.lifecycle.sightings import (
    ASKED,
    EXITED_1,
    KILLED,
    TOLD_TO_STOP,
    UNEXPLAINED,
)
from vllm_agent.lifecycle.events import DropConnection
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.lifecycle.supervision import ENDING_SECONDS
from vllm_agent.observations import Listener, ProbeCause

STARTING, RUNNING, STOPPING = ServerState.STARTING, ServerState.RUNNING, ServerState.STOPPING
STOPPED, FAILED, CRASHED = ServerState.STOPPED, ServerState.FAILED, ServerState.CRASHED
UNKNOWN = ServerState.UNKNOWN


@pytest.fixture
def loading() -> LocalScene:
    return LocalScene().load()


@pytest.fixture
def running() -> LocalScene:
    return LocalScene().run()


# An end begins.


def test_an_end_begins_when_its_main_process_is_gone(running: LocalScene) -> None:
    done = running.end()
    assert running.seen() == (STOPPING, None)
    assert DropConnection() in done.effects
    assert running.life.launch_end is None


def test_an_end_begins_when_its_port_refuses(running: LocalScene) -> None:
    done = running.close_port()
    assert running.seen() == (STOPPING, None)
    assert DropConnection() in done.effects
    assert running.life.consecutive_failures == 0


def test_a_failed_server_whose_port_refuses_is_ending_too(running: LocalScene) -> None:
    running.answer_wrongly(3)
    running.close_port()
    assert running.seen() == (STOPPING, None)


def test_an_end_begins_once(running: LocalScene) -> None:
    running.close_port()
    begun = running.life
    running.wait(3.0).end()
    running.close_port()
    running.knock()
    assert running.seen() == (STOPPING, None)
    assert running.life.entered == begun.entered


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.STALLED, Phase.UNREADY, Phase.UNREACHED])
def test_an_end_can_begin_in_every_phase_of_a_live_server(
    loading: LocalScene, phase: Phase
) -> None:
    match phase:
        case Phase.STALLED:
            loading.stall()
        case Phase.UNREADY:
            loading.answer_wrongly(3)
        case Phase.UNREACHED:
            loading.knock(out_of_reach="firewall")
    assert loading.phase is phase
    loading.end()
    assert loading.seen() == (STOPPING, None)


def test_an_end_can_begin_before_the_first_look() -> None:
    scene = LocalScene()
    scene.appear(age_seconds=60.0)
    scene.end()
    assert scene.seen() == (STOPPING, None)
    scene.settle()
    assert scene.seen() == (CRASHED, Reason.SIGNAL)


def test_failing_checks_are_no_news_of_a_server_that_ends(running: LocalScene) -> None:
    running.end()
    running.answer_wrongly(5)
    running.knock(out_of_reach="firewall")
    assert running.seen() == (STOPPING, None)


def test_an_end_that_has_begun_says_nothing_once_it_is_settled(running: LocalScene) -> None:
    running.crash()
    running.end()
    running.look(serving(running.newest.start_seconds))
    running.answer()
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    assert (running.launches, running.crashes) == (1, 1)


# Its listener is back.


def test_an_end_had_not_begun_where_its_own_listener_answers_again(running: LocalScene) -> None:
    running.close_port()
    running.wait(1.0).answer()
    assert running.seen() == (RUNNING, None)
    assert running.life.entered == running.now
    assert (running.launches, running.crashes) == (1, 0)
    running.crash()
    assert running.crashes == 1


def test_nor_had_it_where_the_start_time_says_that_it_is_the_same_process(
    running: LocalScene,
) -> None:
    """File descriptors of another user's process tell nobody whose a socket is."""
    running.close_port()
    running.wait(1.0).answer(by=None)
    assert running.seen() == (RUNNING, None)


@pytest.mark.parametrize("is_overdue", [False, True])
def test_nor_had_it_where_nobody_can_tell_whose_the_listener_is(*, is_overdue: bool) -> None:
    """What was proof enough to call it running is so again, while its main process is there."""
    scene = LocalScene().load()
    undated = serving(None)
    scene.answer(undated, by=None)
    scene.close_port()
    if is_overdue:
        scene.wait(120.0).tick()
    scene.wait(1.0).answer(undated, by=None)
    assert scene.seen() == (RUNNING, None)


@pytest.mark.parametrize("cause", [ProbeCause.TIMEOUT, ProbeCause.HTTP_5XX])
def test_its_own_listener_has_to_serve_to_be_back(running: LocalScene, cause: ProbeCause) -> None:
    running.close_port()
    running.answer(failing(cause))
    assert running.seen() == (STOPPING, None)


def test_a_process_that_is_gone_does_not_come_back_whoever_still_answers(
    running: LocalScene,
) -> None:
    """Several API servers live on for a while after their main process was killed."""
    running.end()
    running.wait(0.1).answer()
    assert running.seen() == (STOPPING, None)


def test_nor_does_one_that_closed_its_port_before_it_went(running: LocalScene) -> None:
    running.close_port()
    running.wait(0.5).end()
    running.answer()
    assert running.seen() == (STOPPING, None)


# It takes too long.


def test_an_end_longer_than_two_minutes_is_unresponsive(running: LocalScene) -> None:
    running.close_port()
    running.wait(119.9).tick()
    assert running.seen() == (STOPPING, None)
    running.wait(0.1).tick()
    assert running.seen() == (FAILED, Reason.UNRESPONSIVE)
    assert ENDING_SECONDS == 120.0
    running.wait(60.0).end()
    assert running.seen() == (FAILED, Reason.UNRESPONSIVE)
    running.settle(TOLD_TO_STOP)
    assert running.seen() == (STOPPED, None)


def test_an_end_that_took_too_long_may_turn_out_a_crash(running: LocalScene) -> None:
    running.close_port()
    running.wait(120.0).tick()
    running.settle(KILLED)
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    assert running.crashes == 1


def test_one_whose_end_took_too_long_runs_again_when_its_own_listener_answers(
    running: LocalScene,
) -> None:
    running.close_port()
    running.wait(120.0).tick()
    running.wait(10.0).answer(by=Listener.STRANGER)
    assert running.seen() == (FAILED, Reason.UNRESPONSIVE)
    running.wait(10.0).answer()
    assert running.seen() == (RUNNING, None)
    assert running.launches == 1


def test_only_an_end_is_ever_overdue(loading: LocalScene) -> None:
    loading.wait(3600.0).tick()
    assert loading.seen() == (STARTING, None)


# The verdict.


def test_an_end_that_was_asked_for_is_stopped(running: LocalScene) -> None:
    running.end()
    done = running.wait(0.5).settle(ASKED)
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 0
    assert done.ending is not None
    assert (done.ending.at, done.ending.rule) == (running.now, 1)
    assert done.ending.launch_number == 1


@pytest.mark.parametrize("phase", ["loading", "running", "failed", "ending"])
def test_a_verdict_may_come_without_word_that_the_end_began(phase: str) -> None:
    scene = LocalScene().load()
    match phase:
        case "running":
            scene.answer()
        case "failed":
            scene.answer_wrongly(3)
        case "ending":
            scene.end()
    scene.settle(EXITED_1)
    assert scene.seen() == (CRASHED, Reason.EXIT_NONZERO)


@pytest.mark.parametrize(
    ("evidence", "reason", "code", "number"),
    [
        (KILLED, Reason.SIGNAL, None, signal.SIGKILL),
        (EXITED_1, Reason.EXIT_NONZERO, 1, None),
        (UNEXPLAINED, Reason.UNKNOWN, None, None),
    ],
)
def test_an_end_that_nobody_asked_for_is_crashed(
    running: LocalScene, evidence, reason: Reason, code: int | None, number: int | None
) -> None:
    running.end()
    done = running.settle(evidence)
    assert running.seen() == (CRASHED, reason)
    assert running.life.tally.crashes == {reason: 1}
    assert running.life.tally.last_crash_unix_seconds == {reason: running.now.unix_seconds}
    assert done.ending is not None
    assert (done.ending.exit_code, done.ending.signal) == (code, number)
    assert running.life.detail == done.ending.evidence[0]


def test_an_end_is_settled_once(running: LocalScene) -> None:
    running.end()
    running.settle(KILLED)
    for evidence in (KILLED, EXITED_1, ASKED):
        assert running.settle(evidence).ending is None
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    assert running.crashes == 1


def test_a_crash_stays_until_the_next_process_appears(running: LocalScene) -> None:
    running.crash()
    running.wait(86_400.0).tick()
    running.miss()
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    running.load(2)
    assert running.seen() == (STARTING, None)


# Maintenance.


@pytest.mark.parametrize("evidence", [KILLED, EXITED_1, UNEXPLAINED])
def test_an_end_in_maintenance_is_stopped(running: LocalScene, evidence) -> None:
    running.maintain(math.inf)
    running.end()
    done = running.settle(evidence)
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 0
    assert done.ending is not None
    assert (done.ending.rule, done.ending.evidence[0]) == (1, "it was in maintenance")


def test_a_crash_before_maintenance_stays_a_crash(running: LocalScene) -> None:
    running.crash()
    running.maintain(math.inf)
    running.settle()
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    assert running.crashes == 1


def test_a_server_runs_on_and_starts_in_maintenance(running: LocalScene) -> None:
    running.maintain(math.inf)
    running.answer()
    assert running.seen() == (RUNNING, None)
    running.crash()
    running.run(2)
    assert running.seen() == (RUNNING, None)
    assert running.launches == 2


# The next launch is there before the verdict.


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize("next_serves", [False, True])
def test_a_late_crash_is_counted_and_moves_the_next_launch_nowhere(
    running: LocalScene, *, has_begun: bool, next_serves: bool
) -> None:
    if has_begun:
        running.end()
    done = running.load(2).steps[-1]
    assert done.ending is None
    assert running.seen() == (STARTING, None)
    if next_serves:
        running.wait(50.0).answer()
    state, entered = running.life.state, running.life.entered
    done = running.wait(1.8).settle(KILLED, number=1)
    assert done.ending is not None
    assert (done.ending.launch_number, done.ending.state) == (1, CRASHED)
    assert done.transition is None
    assert (running.life.state, running.life.entered) == (state, entered)
    assert running.life.reason is None
    assert running.crashes == 1
    assert running.life.last_ending == done.ending
    assert running.life.launch_end is None
    assert (running.launches, running.restarts) == (2, 1)


def test_a_late_verdict_falls_once(running: LocalScene) -> None:
    running.load(2)
    running.settle(KILLED, number=1)
    for _ in range(3):
        assert running.settle(EXITED_1, number=1).ending is None
    assert running.crashes == 1


def test_a_late_stop_is_booked_too(running: LocalScene) -> None:
    running.load(2)
    done = running.settle(TOLD_TO_STOP, number=1)
    assert done.ending is not None
    assert (done.ending.launch_number, done.ending.rule) == (1, 3)
    assert running.crashes == 0
    assert running.life.is_desired


def test_late_verdicts_fall_in_any_order(running: LocalScene) -> None:
    running.run(2)
    running.run(3)
    newer = running.settle(EXITED_1, number=2).ending
    running.settle(KILLED, number=1)
    assert running.life.tally.crashes == {Reason.EXIT_NONZERO: 1, Reason.SIGNAL: 1}
    assert running.life.last_ending == newer
    running.end()
    newest = running.settle(TOLD_TO_STOP).ending
    assert running.life.last_ending == newest
    assert running.seen() == (STOPPED, None)


def test_a_verdict_on_the_newest_may_fall_before_that_on_an_older_one(running: LocalScene) -> None:
    running.load(2)
    running.settle(EXITED_1)
    assert running.seen() == (CRASHED, Reason.EXIT_NONZERO)
    running.settle(KILLED, number=1)
    assert running.seen() == (CRASHED, Reason.EXIT_NONZERO)
    assert running.crashes == 2
    assert running.life.last_ending is not None
    assert running.life.last_ending.launch_number == 2


def test_a_late_end_in_maintenance_is_stopped(running: LocalScene) -> None:
    running.maintain(math.inf)
    running.load(2)
    running.settle(KILLED, number=1)
    assert running.crashes == 0
    assert running.seen() == (STARTING, None)


def test_nothing_that_an_older_launch_still_does_touches_the_newest(running: LocalScene) -> None:
    running.run(2)
    before = running.life
    running.end(1)
    running.component_ends(1)
    running.see_tree(1, engines=0, gone=1)
    running.knock(1)
    assert running.life == before


def test_launches_that_come_too_fast_to_be_judged_are_bounded(running: LocalScene) -> None:
    for number in range(2, 6):
        assert running.load(number).steps[-1].ending is None
    assert [launch.number for launch in running.life.unsettled] == [1, 2, 3, 4]
    done = running.load(6).steps[-1]
    assert done.ending is not None
    assert (done.ending.launch_number, done.ending.state, done.ending.rule) == (1, STOPPED, 0)
    assert [launch.number for launch in running.life.unsettled] == [2, 3, 4, 5]
    assert running.settle(KILLED, number=1).ending is None
    for number in range(2, 6):
        assert running.settle(KILLED, number=number).ending is not None
    assert (running.launches, running.crashes) == (6, 4)
    assert running.life.unsettled == ()


def test_the_bound_takes_back_no_newer_ending(running: LocalScene) -> None:
    """What is said of the last exit is that of the newest launch that was judged."""
    for number in range(2, 6):
        running.load(number)
    newest = running.settle(EXITED_1, number=3).ending
    running.load(6)
    running.load(7)
    assert running.steps[-1].ending is not None
    assert running.life.last_ending == newest
