"""What the agent says of a server whose processes it sees."""

from __future__ import annotations

import math
import signal

import pytest

from tests.lifecycle.looks import REFUSED, STARTED, serving, with_metrics
from tests.lifecycle.scene import Scene
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.lifecycle.events import (
    EndBegan,
    EndSettled,
    LoadProgressed,
    LoadStalled,
    OutOfReach,
    ProcessAppeared,
)
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.observations import ProbeCause

STARTING, RUNNING, STOPPING = ServerState.STARTING, ServerState.RUNNING, ServerState.STOPPING
STOPPED, FAILED, CRASHED = ServerState.STOPPED, ServerState.FAILED, ServerState.CRASHED
UNKNOWN = ServerState.UNKNOWN

ASKED = EndSettled(EndingEvidence(is_asked=True))
KILLED = EndSettled(EndingEvidence(main_wait_status=signal.SIGKILL))
EXITED_1 = EndSettled(EndingEvidence(main_wait_status=1 << 8))


@pytest.fixture
def loading() -> Scene:
    scene = Scene()
    scene.send(ProcessAppeared(STARTED))
    return scene


@pytest.fixture
def running(loading: Scene) -> Scene:
    loading.wait(50.0).serve()
    return loading


def test_a_process_that_appeared_is_starting(loading: Scene) -> None:
    assert loading.seen() == (STARTING, None)
    assert loading.launches == 1
    assert loading.life.launch is not None
    assert not loading.life.launch.has_served


def test_a_refusal_while_it_loads_is_no_failure(loading: Scene) -> None:
    for _ in range(100):
        loading.wait(1.0).refuse()
    assert loading.seen() == (STARTING, None)


def test_a_refusal_while_it_loads_in_maintenance_ends_nothing(loading: Scene) -> None:
    loading.maintain(math.inf)
    loading.refuse()
    assert loading.seen() == (STARTING, None)
    assert loading.life.launch_end is None


def test_it_runs_when_it_serves_and_stays_the_same_launch(running: Scene) -> None:
    assert running.seen() == (RUNNING, None)
    assert running.launches == 1
    assert running.life.launch is not None
    assert running.life.launch.has_served


def test_a_loading_server_that_answers_wrongly_is_failed(loading: Scene) -> None:
    loading.fail(3, ProbeCause.HTTP_5XX)
    assert loading.seen() == (FAILED, Reason.UNHEALTHY)


def test_metrics_without_an_end_are_never_running_before_it_served(loading: Scene) -> None:
    for _ in range(20):
        loading.look(with_metrics(ProbeCause.TOO_LARGE))
        assert loading.life.state is not RUNNING


def test_a_load_without_progress_is_failed_and_recovers_by_progress(loading: Scene) -> None:
    loading.wait(300.0).send(LoadStalled())
    assert loading.seen() == (FAILED, Reason.LOAD_STALLED)
    loading.fail(3)
    assert loading.seen() == (FAILED, Reason.LOAD_STALLED)
    loading.send(LoadProgressed())
    assert loading.seen() == (STARTING, None)


def test_a_stalled_load_recovers_by_serving(loading: Scene) -> None:
    loading.send(LoadStalled())
    loading.serve()
    assert loading.seen() == (RUNNING, None)


@pytest.mark.parametrize("event", [LoadStalled(), LoadProgressed()])
def test_load_progress_is_of_no_interest_once_it_runs(
    running: Scene, event: LoadStalled | LoadProgressed
) -> None:
    running.send(event)
    assert running.seen() == (RUNNING, None)


def test_one_that_listens_where_the_agent_cannot_connect_is_unknown(loading: Scene) -> None:
    loading.send(OutOfReach("listens in another network namespace"))
    assert loading.seen() == (UNKNOWN, Reason.UNREACHABLE)
    assert loading.life.detail == "listens in another network namespace"
    loading.fail(5)
    assert loading.seen() == (UNKNOWN, Reason.UNREACHABLE)
    loading.serve()
    assert loading.seen() == (RUNNING, None)


def test_the_time_of_a_state_goes_on_when_only_the_phase_changes() -> None:
    scene = Scene()
    scene.wait(5.0).send(OutOfReach("firewall"))
    assert scene.phase is Phase.UNREACHED
    assert scene.life.entered == scene.begun
    assert scene.life.phase_entered == scene.now
    assert scene.life.tally.transitions == {}


def test_one_that_was_reached_once_is_not_out_of_reach(running: Scene) -> None:
    running.send(OutOfReach("firewall"))
    assert running.seen() == (RUNNING, None)


def test_an_end_that_has_begun_is_stopping_until_it_is_settled(running: Scene) -> None:
    running.send(EndBegan())
    assert running.seen() == (STOPPING, None)
    running.look(serving())
    running.fail(3)
    running.look(REFUSED)
    assert running.seen() == (STOPPING, None)


def test_an_end_that_was_asked_for_is_stopped(running: Scene) -> None:
    running.send(EndBegan())
    done = running.wait(0.5).send(ASKED)
    assert running.seen() == (STOPPED, None)
    assert running.crashes == 0
    assert done.ending is not None
    assert (done.ending.at, done.ending.rule) == (running.now, 1)


@pytest.mark.parametrize(
    ("settled", "reason", "code", "number"),
    [(KILLED, Reason.SIGNAL, None, signal.SIGKILL), (EXITED_1, Reason.EXIT_NONZERO, 1, None)],
)
def test_an_end_that_nobody_asked_for_is_crashed(
    running: Scene, settled: EndSettled, reason: Reason, code: int | None, number: int | None
) -> None:
    running.send(EndBegan())
    done = running.send(settled)
    assert running.seen() == (CRASHED, reason)
    assert running.life.tally.crashes == {reason: 1}
    assert done.ending is not None
    assert (done.ending.exit_code, done.ending.signal) == (code, number)
    assert running.life.detail == "; ".join(done.ending.evidence)


def test_an_end_is_settled_once(running: Scene) -> None:
    running.send(EndBegan())
    running.send(KILLED)
    running.send(KILLED)
    running.send(EXITED_1)
    running.send(ASKED)
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    assert running.crashes == 1


def test_an_end_before_anything_was_seen_is_judged_too() -> None:
    scene = Scene()
    scene.send(KILLED)
    assert scene.seen() == (CRASHED, Reason.SIGNAL)


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.STALLED, Phase.UNREADY, Phase.UNREACHED])
def test_an_end_can_begin_in_every_phase_of_a_live_server(loading: Scene, phase: Phase) -> None:
    match phase:
        case Phase.STALLED:
            loading.send(LoadStalled())
        case Phase.UNREADY:
            loading.fail(3)
        case Phase.UNREACHED:
            loading.send(OutOfReach("firewall"))
    assert loading.phase is phase
    loading.send(EndBegan())
    assert loading.seen() == (STOPPING, None)


def test_an_end_longer_than_two_minutes_is_unresponsive(running: Scene) -> None:
    running.send(EndBegan())
    running.wait(119.9).tick()
    assert running.seen() == (STOPPING, None)
    running.wait(0.1).tick()
    assert running.seen() == (FAILED, Reason.UNRESPONSIVE)
    running.wait(60.0).send(ASKED)
    assert running.seen() == (STOPPED, None)


def test_only_an_end_is_ever_overdue(loading: Scene) -> None:
    loading.wait(3600.0).tick()
    assert loading.seen() == (STARTING, None)


def test_a_launch_after_a_crash_is_a_restart_and_costs_a_unit(running: Scene) -> None:
    running.send(EndBegan())
    running.send(KILLED)
    running.wait(2.0).send(ProcessAppeared(STARTED + 60.0))
    assert running.seen() == (STARTING, None)
    assert (running.launches, running.restarts) == (2, 1)
    assert running.life.budget.remaining == 2


def test_a_launch_after_a_stop_costs_nothing(running: Scene) -> None:
    running.send(EndBegan())
    running.send(ASKED)
    running.send(ProcessAppeared(STARTED + 60.0))
    assert (running.launches, running.life.budget.remaining) == (2, 3)


def test_a_launch_after_one_that_never_ran_costs_a_unit_even_when_it_was_stopped(
    loading: Scene,
) -> None:
    loading.send(EndBegan())
    loading.send(ASKED)
    loading.send(ProcessAppeared(STARTED + 60.0))
    assert (loading.launches, loading.life.budget.remaining) == (2, 2)


def test_a_crash_loop_reaches_the_limit_however_long_it_loads(loading: Scene) -> None:
    left = []
    for number in range(1, 5):
        loading.wait(250.0).send(EXITED_1)
        loading.wait(2.0).send(ProcessAppeared(STARTED + 252.0 * number))
        left.append((loading.life.budget.remaining, loading.life.budget.is_limit_reached))
    assert left == [(2, False), (1, False), (0, False), (0, True)]
    assert loading.crashes == 4


@pytest.mark.parametrize("event", [None, EndBegan()])
def test_the_next_process_of_a_server_whose_end_was_not_settled_is_starting(
    running: Scene, event: EndBegan | None
) -> None:
    """A launch that has not served is never called running."""
    if event is not None:
        running.send(event)
    done = running.send(ProcessAppeared(STARTED + 60.0))
    assert running.seen() == (STARTING, None)
    assert running.launches == 2
    assert done.ending is not None
    assert (done.ending.launch_number, done.ending.state) == (1, STOPPED)
