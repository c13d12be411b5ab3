"""What the EngineCores of a local server tell, beside HTTP and without it."""

from __future__ import annotations

import pytest

from tests.lifecycle.local_scene import HEADLESS, LocalScene
from tests.lifecycle.looks import REFUSED, failing, serving
from tests.lifecycle.sightings import KILLED, tree
from vllm_agent.lifecycle.by_process import ENGINE_GONE_SECONDS
from vllm_agent.lifecycle.events import DropConnection, LookNow, TreeSeen
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import Listener, ProbeCause

STARTING, RUNNING, STOPPING = ServerState.STARTING, ServerState.RUNNING, ServerState.STOPPING
STOPPED, FAILED, CRASHED = ServerState.STOPPED, ServerState.FAILED, ServerState.CRASHED
UNKNOWN = ServerState.UNKNOWN


@pytest.fixture
def running() -> LocalScene:
    return LocalScene().run()


@pytest.fixture
def headless() -> LocalScene:
    return LocalScene(HEADLESS).load()


# An engine of a server with HTTP is gone.


def test_the_end_of_an_engine_is_only_a_reason_to_look(running: LocalScene) -> None:
    """A stop ends the engine too, a moment before it closes the listener."""
    assert running.component_ends().effects == (LookNow(),)
    assert running.see_tree(engines=0, gone=1).effects == ()
    assert running.seen() == (RUNNING, None)


def test_a_stop_is_never_failed_though_it_says_503_without_an_engine(running: LocalScene) -> None:
    running.engine_dies()
    running.answer_wrongly()
    running.wait(0.6).close_port()
    assert running.seen() == (STOPPING, None)
    assert (RUNNING, FAILED) not in running.life.tally.transitions


def test_without_its_engine_and_unhealthy_it_is_failed_after_a_second(running: LocalScene) -> None:
    running.engine_dies()
    running.answer_wrongly()
    assert running.seen() == (RUNNING, None)
    running.wait(ENGINE_GONE_SECONDS - 0.1).answer_wrongly()
    assert running.seen() == (RUNNING, None)
    done = running.wait(0.1).answer_wrongly()
    assert running.seen() == (FAILED, Reason.ENGINE_DIED)
    assert DropConnection() not in done.effects, "its close is the next thing to hear of it"
    assert ENGINE_GONE_SECONDS == 1.0


def test_or_by_the_threshold_where_that_is_sooner(running: LocalScene) -> None:
    running.engine_dies()
    for _ in range(3):
        running.wait(0.1).answer_wrongly()
    assert running.seen() == (FAILED, Reason.ENGINE_DIED)


def test_without_its_engine_but_healthy_it_runs_on(running: LocalScene) -> None:
    """Elastic scaling ends engines too."""
    running.engine_dies()
    for _ in range(20):
        running.wait(1.0).answer()
    assert running.seen() == (RUNNING, None)
    assert running.life.consecutive_failures == 0


def test_unhealthy_with_all_its_engines_is_a_failed_check_like_any(running: LocalScene) -> None:
    running.see_tree()
    running.answer_wrongly(2)
    running.wait(10.0).see_tree()
    assert running.seen() == (RUNNING, None)
    running.answer_wrongly()
    assert running.seen() == (FAILED, Reason.UNHEALTHY)


@pytest.mark.parametrize("cause", [ProbeCause.TIMEOUT, ProbeCause.RESET, ProbeCause.HTTP_4XX])
def test_without_a_503_an_engine_that_is_gone_explains_a_failure_and_hastens_none(
    running: LocalScene, cause: ProbeCause
) -> None:
    running.engine_dies()
    running.wait(5.0).answer_wrongly(2, cause)
    assert running.seen() == (RUNNING, None)
    running.answer_wrongly(1, cause)
    assert running.seen() == (FAILED, Reason.ENGINE_DIED)


def test_one_of_several_engines_is_enough(running: LocalScene) -> None:
    running.see_tree(engines=3, gone=1)
    running.wait(1.0).answer_wrongly()
    assert running.seen() == (FAILED, Reason.ENGINE_DIED)


def test_the_second_counts_from_when_the_engine_was_first_missed(running: LocalScene) -> None:
    running.see_tree(engines=0, gone=1)
    running.wait(0.6).see_tree(engines=0, gone=1)
    running.wait(0.4).answer_wrongly()
    assert running.seen() == (FAILED, Reason.ENGINE_DIED)


def test_an_engine_that_is_there_again_is_forgiven(running: LocalScene) -> None:
    running.see_tree(engines=0, gone=1)
    running.wait(0.5).see_tree(engines=1)
    running.wait(5.0).answer_wrongly()
    assert running.seen() == (RUNNING, None)


def test_a_failed_check_becomes_an_engine_death_once_that_is_known(running: LocalScene) -> None:
    running.answer_wrongly(3)
    assert running.seen() == (FAILED, Reason.UNHEALTHY)
    entered = running.life.entered
    running.engine_dies()
    running.wait(1.0).answer_wrongly()
    assert running.seen() == (FAILED, Reason.ENGINE_DIED)
    assert running.life.entered == entered


def test_the_end_that_follows_an_engine_death_is_one_crash(running: LocalScene) -> None:
    """It answers 503 for up to 5 s, closes its port, and exits 0."""
    running.engine_dies()
    running.answer_wrongly()
    running.wait(1.0).answer_wrongly()
    done = running.wait(3.3).close_port()
    assert running.seen() == (STOPPING, None)
    assert DropConnection() in done.effects
    running.wait(0.5).end()
    running.settle(KILLED)
    assert running.seen() == (CRASHED, Reason.SIGNAL)
    assert running.crashes == 1


def test_an_engine_that_died_in_a_launch_before_is_not_missed_in_the_next(
    running: LocalScene,
) -> None:
    running.engine_dies()
    running.crash()
    running.run(2)
    running.answer_wrongly(2)
    assert running.seen() == (RUNNING, None)


def test_an_engine_that_dies_while_it_loads_is_left_to_its_main_process() -> None:
    scene = LocalScene().load()
    assert scene.component_ends().effects == ()
    scene.see_tree(engines=0, gone=1)
    scene.wait(5.0).knock()
    assert scene.seen() == (STARTING, None)


def test_what_is_seen_of_a_tree_whose_main_process_is_gone_says_nothing(
    running: LocalScene,
) -> None:
    before = running.life
    of = running.newest.process
    running.send(TreeSeen(tree(of, engines=0, gone=1, is_main_alive=False)))
    assert running.life == before


def test_components_that_end_with_their_server_are_no_reason_to_look(running: LocalScene) -> None:
    running.end()
    assert running.component_ends().effects == ()
    running.settle()
    assert running.component_ends().effects == ()


# A server without HTTP.


def test_a_headless_server_is_starting_until_it_has_an_engine(headless: LocalScene) -> None:
    assert headless.seen() == (STARTING, None)
    headless.see_tree(engines=0)
    headless.knock()
    assert headless.seen() == (STARTING, None)
    headless.see_tree(engines=2)
    assert headless.seen() == (RUNNING, None)
    assert headless.life.launch is not None
    assert headless.life.launch.has_served


def test_a_headless_server_runs_while_all_its_engines_live(headless: LocalScene) -> None:
    for _ in range(10):
        headless.wait(10.0).see_tree(engines=2)
        headless.knock()
    assert headless.seen() == (RUNNING, None)
    assert (headless.launches, headless.life.consecutive_failures) == (1, 0)


@pytest.mark.parametrize("engines", [0, 1, 7])
def test_a_headless_server_without_one_of_its_engines_is_failed(
    headless: LocalScene, engines: int
) -> None:
    headless.see_tree(engines=engines + 1)
    headless.see_tree(engines=engines, gone=1)
    assert headless.seen() == (FAILED, Reason.ENGINE_DIED)
    headless.see_tree(engines=engines + 1)
    assert headless.seen() == (RUNNING, None)


def test_a_headless_server_whose_engine_dies_while_it_loads_is_failed(
    headless: LocalScene,
) -> None:
    headless.see_tree(engines=0, gone=1)
    assert headless.seen() == (FAILED, Reason.ENGINE_DIED)


def test_a_headless_server_ends_like_any(headless: LocalScene) -> None:
    headless.see_tree()
    headless.end()
    assert headless.seen() == (STOPPING, None)
    headless.see_tree()
    assert headless.seen() == (STOPPING, None)
    headless.settle()
    assert headless.seen() == (CRASHED, Reason.SIGNAL)
    headless.see_tree()
    assert headless.seen() == (CRASHED, Reason.SIGNAL)


def test_an_old_headless_server_is_running_by_its_engines() -> None:
    scene = LocalScene(HEADLESS)
    scene.appear(age_seconds=3600.0)
    assert scene.seen() == (UNKNOWN, None)
    scene.see_tree()
    assert scene.seen() == (RUNNING, None)
    assert scene.life.tally.transitions == {(UNKNOWN, RUNNING): 1}


@pytest.mark.parametrize(
    "look", [REFUSED, failing(ProbeCause.HTTP_5XX), serving(names=())], ids=["no", "503", "other"]
)
def test_http_is_no_evidence_of_a_headless_server(headless: LocalScene, look) -> None:
    """Whoever listens on the port that it would have had is somebody else."""
    headless.see_tree()
    for _ in range(3):
        headless.answer(look, by=Listener.STRANGER)
        headless.answer(look, by=None)
    assert headless.seen() == (RUNNING, None)


def test_nor_does_http_prove_a_headless_server(headless: LocalScene) -> None:
    headless.answer(by=None)
    assert headless.seen() == (STARTING, None)


def test_a_headless_server_that_ran_is_not_starting_again_for_a_new_agent(
    headless: LocalScene,
) -> None:
    """Starting is what has not served in this launch."""
    headless.see_tree()
    headless.come_back().sight_again()
    headless.see_tree(engines=0)
    assert headless.life.state is not STARTING


def test_a_knock_that_a_headless_server_cannot_answer_is_no_end_of_it(
    headless: LocalScene,
) -> None:
    headless.see_tree()
    headless.come_back().sight_again()
    headless.knock()
    assert headless.seen() == (UNKNOWN, None)


def test_a_headless_server_of_a_policy_without_a_threshold_needs_no_checks() -> None:
    scene = LocalScene(Policy(is_local=True, has_http=False, failure_threshold=1)).load()
    scene.see_tree()
    scene.see_tree(engines=0, gone=1)
    assert scene.seen() == (FAILED, Reason.ENGINE_DIED)
