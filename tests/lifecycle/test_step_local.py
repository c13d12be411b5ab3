"""A server whose processes are seen: from its first sight to serving, and what goes wrong then."""

from __future__ import annotations

import math

import pytest

from tests.lifecycle.local_scene import LocalScene
from tests.lifecycle.looks import (
    STARTED,
    failing,
    serving,
    with_metrics,
    with_models,
)
from tests.lifecycle.sightings import process, sighting
from vllm_agent.lifecycle.by_process import NEW_PROCESS_SECONDS
from vllm_agent.lifecycle.events import (
    ConnectionClosed,
    DropConnection,
    Follow,
    KeepConnection,
    LeaveLoad,
    LookNow,
    WatchLoad,
)
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.observations import Listener, ProbeCause

STARTING, RUNNING, STOPPING = ServerState.STARTING, ServerState.RUNNING, ServerState.STOPPING
STOPPED, FAILED, UNKNOWN = ServerState.STOPPED, ServerState.FAILED, ServerState.UNKNOWN
STRANGER, OWN = Listener.STRANGER, Listener.OWN
OTHER_START = STARTED - 86_400.0


@pytest.fixture
def loading() -> LocalScene:
    return LocalScene().load()


@pytest.fixture
def running() -> LocalScene:
    return LocalScene().run()


# First sight.


def test_before_its_processes_were_looked_for_nothing_is_known() -> None:
    assert LocalScene().seen() == (UNKNOWN, None)


def test_one_without_a_process_that_was_never_seen_is_stopped() -> None:
    scene = LocalScene()
    done = scene.miss()
    assert scene.seen() == (STOPPED, None)
    assert done.ending is None
    assert scene.launches == scene.crashes == 0


def test_one_without_a_process_is_stopped_however_its_port_answers() -> None:
    """A process of its own has to hold the port; whoever this is belongs to somebody else."""
    scene = LocalScene()
    scene.miss()
    scene.look(serving())
    scene.look(failing())
    assert scene.seen() == (STOPPED, None)
    assert scene.launches == 0


def test_a_new_process_is_starting_at_once(loading: LocalScene) -> None:
    assert loading.seen() == (STARTING, None)
    done = loading.steps[-1]
    assert done.effects == (Follow(loading.newest), LookNow(), WatchLoad())
    assert done.launch is not None
    assert (done.launch.number, done.launch.process) == (1, process(1))
    assert done.launch.start_seconds == loading.newest.start_seconds
    assert not done.launch.has_served
    assert (loading.launches, loading.restarts) == (1, 0)


def test_a_process_that_appears_after_none_was_there_is_starting() -> None:
    scene = LocalScene()
    scene.miss()
    scene.wait(3600.0).appear()
    assert scene.seen() == (STARTING, None)
    assert (scene.launches, scene.restarts) == (1, 0)


def test_a_process_that_is_found_late_by_an_agent_that_watches_is_starting() -> None:
    """The agent saw that nothing was there; whatever came since has not served for it."""
    scene = LocalScene()
    scene.miss()
    scene.wait(3600.0).appear(age_seconds=60.0)
    assert scene.seen() == (STARTING, None)
    scene.answer()
    assert scene.seen() == (RUNNING, None)


def test_a_process_that_is_told_of_twice_is_one_launch(loading: LocalScene) -> None:
    for _ in range(3):
        assert loading.sight_again().effects == ()
    loading.wait(50.0).answer()
    loading.sight_again()
    assert loading.seen() == (RUNNING, None)
    assert loading.launches == 1


@pytest.mark.parametrize(
    ("age_seconds", "state"),
    [(NEW_PROCESS_SECONDS - 0.1, STARTING), (NEW_PROCESS_SECONDS, UNKNOWN), (86_400.0, UNKNOWN)],
)
def test_a_process_that_may_serve_already_is_looked_at_before_it_is_called_starting(
    age_seconds: float, state: ServerState
) -> None:
    scene = LocalScene()
    scene.appear(age_seconds=age_seconds)
    assert scene.seen() == (state, None)
    assert scene.launches == 1


def test_an_old_process_that_serves_was_never_starting() -> None:
    scene = LocalScene()
    scene.appear(age_seconds=86_400.0)
    scene.answer()
    assert scene.seen() == (RUNNING, None)
    assert scene.life.tally.transitions == {(UNKNOWN, RUNNING): 1}
    assert (scene.launches, scene.restarts) == (1, 0)


def test_an_old_process_that_does_not_listen_is_starting() -> None:
    scene = LocalScene()
    scene.appear(age_seconds=86_400.0)
    scene.knock()
    assert scene.seen() == (STARTING, None)


def test_an_old_process_that_answers_wrongly_is_failed_by_the_threshold() -> None:
    scene = LocalScene()
    scene.appear(age_seconds=86_400.0)
    scene.answer_wrongly(2)
    assert scene.seen() == (UNKNOWN, None)
    scene.answer_wrongly()
    assert scene.seen() == (FAILED, Reason.UNHEALTHY)


# Loading.


def test_a_refusal_while_it_loads_is_no_failure(loading: LocalScene) -> None:
    for _ in range(100):
        loading.wait(1.0).knock()
        loading.close_port()
    assert loading.seen() == (STARTING, None)
    assert loading.life.consecutive_failures == 0


def test_a_refusal_while_it_loads_in_maintenance_ends_nothing(loading: LocalScene) -> None:
    loading.maintain(math.inf)
    loading.close_port()
    loading.knock()
    assert loading.seen() == (STARTING, None)
    assert loading.life.launch_end is None


def test_it_runs_when_it_serves_and_stays_the_same_launch(running: LocalScene) -> None:
    assert running.seen() == (RUNNING, None)
    assert running.launches == 1
    assert running.life.launch is not None
    assert running.life.launch.has_served
    assert running.steps[-1].effects == (KeepConnection(), LeaveLoad())
    assert running.life.tally.transitions == {(UNKNOWN, STARTING): 1, (STARTING, RUNNING): 1}


def test_a_loading_server_that_answers_wrongly_is_failed(loading: LocalScene) -> None:
    loading.answer_wrongly(2)
    assert loading.seen() == (STARTING, None)
    loading.answer_wrongly()
    assert loading.seen() == (FAILED, Reason.UNHEALTHY)
    loading.answer()
    assert loading.seen() == (RUNNING, None)


def test_metrics_without_an_end_are_never_running_before_it_served(loading: LocalScene) -> None:
    for _ in range(20):
        loading.answer(with_metrics(ProbeCause.TOO_LARGE))
        assert loading.life.state is not RUNNING


def test_the_first_proof_needs_the_list_of_models(loading: LocalScene) -> None:
    loading.answer(serving(loading.newest.start_seconds, names=None))
    assert loading.seen() == (STARTING, None)


def test_one_that_serves_another_model_than_expected_is_failed() -> None:
    scene = LocalScene(Policy(is_local=True, expected_model="huge")).load()
    scene.wait(50.0)
    for _ in range(3):
        scene.answer()
    assert scene.seen() == (FAILED, Reason.MODEL_MISSING)
    assert scene.life.detail == "serves tiny, not huge"
    assert scene.life.launch is not None
    assert not scene.life.launch.has_served


def test_one_that_loses_its_model_is_failed_by_the_threshold(running: LocalScene) -> None:
    empty = serving(running.newest.start_seconds, names=())
    running.answer(empty)
    running.answer(empty)
    assert running.seen() == (RUNNING, None)
    running.answer(empty)
    assert running.seen() == (FAILED, Reason.MODEL_MISSING)


def test_a_list_of_models_that_is_withheld_is_no_evidence() -> None:
    scene = LocalScene(Policy(is_local=True, expected_model="tiny")).load()
    scene.newest = sighting(start_seconds=STARTED)
    scene.answer(with_models(ProbeCause.HTTP_4XX, 401))
    assert scene.seen() == (RUNNING, None)


# The progress of a load.


def test_a_load_without_progress_is_failed_and_recovers_by_progress(loading: LocalScene) -> None:
    loading.stall()
    assert loading.seen() == (FAILED, Reason.LOAD_STALLED)
    loading.answer_wrongly(3)
    loading.knock()
    assert loading.seen() == (FAILED, Reason.LOAD_STALLED)
    loading.witness(has_engine=True, io_bytes=2**20)
    assert loading.seen() == (STARTING, None)


def test_a_stalled_load_recovers_by_serving(loading: LocalScene) -> None:
    loading.stall()
    loading.answer()
    assert loading.seen() == (RUNNING, None)


def test_a_stall_outlives_the_agent_and_ends_by_progress(loading: LocalScene) -> None:
    loading.stall()
    loading.come_back().sight_again()
    loading.knock()
    assert loading.seen() == (FAILED, Reason.LOAD_STALLED)
    loading.witness(has_engine=True)
    loading.wait(1.0).witness(has_engine=True)
    assert loading.seen() == (FAILED, Reason.LOAD_STALLED)
    assert loading.life.load is not None
    assert loading.life.load.is_stalled
    loading.wait(1.0).witness(has_engine=True, io_bytes=2**20)
    assert loading.seen() == (STARTING, None)


def test_a_load_counts_when_it_serves_and_not_when_it_ends(loading: LocalScene) -> None:
    loading.witness(has_engine=True)
    loading.crash()
    assert loading.life.load_history.count == 0
    loading.load(2).witness(has_engine=True)
    loading.wait(40.0).answer()
    assert loading.life.load_history.count == 1


def test_a_look_at_a_launch_before_says_nothing_of_the_newest(loading: LocalScene) -> None:
    loading.appear(2)
    loading.witness(1, has_engine=True, io_bytes=7)
    assert loading.life.load is None
    loading.witness(2, io_bytes=1)
    loading.witness(1, has_engine=True, io_bytes=2**30)
    assert loading.life.load is not None
    assert loading.life.load.look.io_bytes == 1


def test_a_stall_is_forgotten_with_its_launch(loading: LocalScene) -> None:
    loading.stall()
    loading.come_back().appear(2)
    loading.knock()
    assert loading.seen() == (STARTING, None)


def test_an_end_tells_that_the_load_had_stalled(loading: LocalScene) -> None:
    loading.stall()
    loading.end()
    done = loading.settle()
    assert done.ending is not None
    [told] = [text for text in done.ending.evidence if "before it ended" in text]
    assert "no progress for 300 s in stage init" in told


def test_load_progress_is_of_no_interest_once_it_runs(running: LocalScene) -> None:
    running.stall()
    assert running.seen() == (RUNNING, None)
    assert running.life.load is None


# Out of reach.


def test_one_that_listens_where_the_agent_cannot_connect_is_unknown(loading: LocalScene) -> None:
    loading.knock(out_of_reach="listens in another network namespace")
    assert loading.seen() == (UNKNOWN, Reason.UNREACHABLE)
    assert loading.life.detail == "listens in another network namespace"
    loading.answer_wrongly(5)
    assert loading.seen() == (UNKNOWN, Reason.UNREACHABLE)
    loading.answer()
    assert loading.seen() == (RUNNING, None)


def test_one_that_listened_out_of_reach_and_does_no_more_is_starting(loading: LocalScene) -> None:
    loading.knock(out_of_reach="firewall")
    loading.knock()
    assert loading.seen() == (STARTING, None)


def test_the_time_of_a_state_goes_on_when_only_the_phase_changes() -> None:
    scene = LocalScene()
    scene.appear(age_seconds=60.0)
    scene.wait(5.0).knock(out_of_reach="firewall")
    assert scene.phase is Phase.UNREACHED
    assert scene.life.entered == scene.begun
    assert scene.life.phase_entered == scene.now
    assert scene.life.tally.transitions == {}


def test_one_that_was_reached_once_is_not_out_of_reach(running: LocalScene) -> None:
    running.knock(out_of_reach="firewall")
    assert running.seen() == (RUNNING, None)


def test_one_that_served_and_is_out_of_reach_of_a_new_agent_is_not_starting_after_it(
    running: LocalScene,
) -> None:
    """Starting is what has not served in this launch."""
    running.come_back().sight_again()
    running.knock(out_of_reach="firewall")
    assert running.seen() == (UNKNOWN, Reason.UNREACHABLE)
    running.knock()
    assert running.life.state is not STARTING


# Somebody else on its port.


def test_a_stranger_on_its_port_while_it_loads_is_as_good_as_nobody(loading: LocalScene) -> None:
    for _ in range(10):
        loading.wait(1.0).answer(by=STRANGER)
        loading.answer(failing(ProbeCause.HTTP_5XX), by=STRANGER)
    assert loading.seen() == (STARTING, None)
    assert loading.life.consecutive_failures == 0
    assert loading.life.launch is not None
    assert not loading.life.launch.has_served


@pytest.mark.parametrize(
    ("start_seconds", "state"),
    [(0.0, RUNNING), (2.0, RUNNING), (-2.0, RUNNING), (2.1, STARTING), (OTHER_START, STARTING)],
)
def test_where_the_owner_of_the_port_is_unknown_its_start_time_tells(
    loading: LocalScene, start_seconds: float, state: ServerState
) -> None:
    told = loading.newest.start_seconds + start_seconds
    loading.wait(50.0).answer(serving(told), by=None)
    assert loading.seen() == (state, None)


def test_where_neither_owner_nor_start_are_told_it_is_taken_at_its_word(
    loading: LocalScene,
) -> None:
    loading.answer(serving(None), by=None)
    assert loading.seen() == (RUNNING, None)


def test_the_owner_of_the_port_counts_more_than_a_start_time(loading: LocalScene) -> None:
    """A process may be behind a clock that was set since."""
    loading.answer(serving(OTHER_START), by=OWN)
    assert loading.seen() == (RUNNING, None)


@pytest.mark.parametrize("by", [STRANGER, None])
def test_a_stranger_on_the_port_of_a_running_server_means_that_its_own_listener_closed(
    running: LocalScene, by: Listener | None
) -> None:
    done = running.answer(serving(OTHER_START), by=by)
    assert running.seen() == (STOPPING, None)
    assert DropConnection() in done.effects
    assert (running.launches, running.crashes) == (1, 0)


def test_a_stranger_may_stay_while_the_end_takes_its_time(running: LocalScene) -> None:
    running.close_port()
    for _ in range(5):
        running.wait(1.0).answer(by=STRANGER)
        running.answer(serving(OTHER_START), by=None)
    assert running.seen() == (STOPPING, None)


def test_what_a_stranger_says_of_itself_is_not_taken_for_the_server(loading: LocalScene) -> None:
    loading.answer(serving(OTHER_START, is_sleeping=True), by=STRANGER)
    assert loading.life.is_sleeping is None
    loading.answer()
    loading.answer(serving(OTHER_START, is_sleeping=True), by=STRANGER)
    assert loading.life.is_sleeping is None


@pytest.mark.parametrize("is_sleeping", [True, False])
def test_a_sleeping_server_runs(loading: LocalScene, *, is_sleeping: bool) -> None:
    loading.answer(serving(loading.newest.start_seconds, is_sleeping=is_sleeping))
    assert loading.seen() == (RUNNING, None)
    assert loading.life.is_sleeping is is_sleeping


# Running.


def test_busy_is_not_dead(running: LocalScene) -> None:
    running.answer_wrongly(2, ProbeCause.TIMEOUT)
    assert running.seen() == (RUNNING, None)
    running.answer_wrongly(1, ProbeCause.TIMEOUT)
    assert running.seen() == (FAILED, Reason.UNRESPONSIVE)
    running.answer()
    assert running.seen() == (RUNNING, None)
    assert (running.launches, running.crashes) == (1, 0)


def test_a_reset_asks_for_another_look_at_once_but_only_once(running: LocalScene) -> None:
    assert running.answer_wrongly(1, ProbeCause.RESET).effects == (LookNow(),)
    assert running.answer_wrongly(1, ProbeCause.RESET).effects == ()


def test_an_idle_close_is_only_a_reason_to_look(running: LocalScene) -> None:
    done = running.send(ConnectionClosed())
    assert done.effects == (LookNow(),)
    assert running.seen() == (RUNNING, None)


def test_a_knock_is_of_no_interest_once_it_runs(running: LocalScene) -> None:
    running.knock()
    assert running.seen() == (RUNNING, None)


def test_a_look_of_before_a_launch_does_not_prove_it(running: LocalScene) -> None:
    """It was answered by the launch before, whose socket was its own then."""
    look = serving(None)
    asked_at = running.now
    running.wait(1.0).load(2)
    running.wait(0.1)
    running.look_begun(asked_at, look)
    assert running.seen() == (STARTING, None)


# What is told of other processes.


@pytest.mark.parametrize("number", [1, 3], ids=["older", "unknown"])
@pytest.mark.parametrize("serves", [False, True])
def test_what_is_told_of_another_process_changes_nothing(number: int, *, serves: bool) -> None:
    scene = LocalScene().run()
    scene.end()
    scene.settle()
    scene.wait(5.0).load(2)
    if serves:
        scene.wait(50.0).answer()
    before = scene.life
    assert scene.knock(number).effects == ()
    assert scene.knock(number, out_of_reach="firewall").effects == ()
    assert scene.see_tree(number, engines=0, gone=1).effects == ()
    assert scene.component_ends(number).effects == ()
    assert scene.end(number).effects == ()
    assert scene.settle(number=number).effects == ()
    assert scene.life == before


def test_an_older_process_that_is_seen_again_is_no_launch(running: LocalScene) -> None:
    """One that ends slowly is still there when the next one is seen."""
    older = running.newest
    running.close_port()
    running.load(2)
    running.sight(older)
    assert running.launches == 2
    assert running.life.launch is not None
    assert running.life.launch.process == process(2)
