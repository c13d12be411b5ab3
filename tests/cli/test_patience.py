"""The patience of `wait`: what was asked for is a bound, the default bears a load that moves."""

from __future__ import annotations

import math

import pytest

from tests.cli.loads import ago, load, loading_server, stalled_server
from tests.expose.snapshots import crashed_server, ended_local_server, server
from vllm_agent.cli.patience import DEFAULT_SECONDS, Patience
from vllm_agent.expose.json_view import server_view
from vllm_agent.lifecycle.states import ServerState

RUNNING = (ServerState.RUNNING,)
LOADING = server_view(loading_server())
MOVED_ON = server_view(loading_server(of=load(last_progress=ago(1))))
STALLED = server_view(stalled_server())
GONE = server_view(ended_local_server())


def test_what_was_asked_for_is_a_bound_whatever_happens() -> None:
    patience = Patience(10.0, RUNNING, 100.0)

    patience.note(LOADING, 101.0)
    patience.note(MOVED_ON, 105.0)

    assert patience.rest_seconds(105.0) == 5.0
    assert patience.rest_seconds(110.0) == 0.0
    assert patience.spent_seconds(110.0) == 10.0


def test_a_load_that_moves_is_waited_for() -> None:
    patience = Patience(None, RUNNING, 0.0)

    patience.note(LOADING, 10 * DEFAULT_SECONDS)

    assert patience.rest_seconds(10 * DEFAULT_SECONDS) == math.inf


@pytest.mark.parametrize("seen", [STALLED, None, server_view(server())])
def test_without_a_load_that_moves_it_ends_so_long_after_the_last_progress(seen) -> None:
    patience = Patience(None, RUNNING, 0.0)
    patience.note(LOADING, 1.0)
    patience.note(MOVED_ON, 1_000.0)
    patience.note(MOVED_ON, 1_100.0)

    patience.note(seen, 1_200.0)

    assert patience.rest_seconds(1_200.0) == DEFAULT_SECONDS - 200.0


def test_a_load_that_nothing_could_show_to_move_ends_it_too() -> None:
    patience = Patience(None, RUNNING, 0.0)

    patience.note(server_view(loading_server(of=load(is_stalled=None))), 250.0)

    assert patience.rest_seconds(250.0) == DEFAULT_SECONDS - 250.0


def test_only_the_first_load_is_waited_for_like_that() -> None:
    patience = Patience(None, RUNNING, 0.0)
    patience.note(LOADING, 1.0)
    patience.note(MOVED_ON, 400.0)
    patience.note(GONE, 450.0)

    patience.note(LOADING, 500.0)

    assert patience.rest_seconds(500.0) == 200.0


def test_one_that_was_down_before_is_waited_for_once_it_loads() -> None:
    patience = Patience(None, RUNNING, 0.0)
    patience.note(server_view(crashed_server()), 0.0)

    patience.note(LOADING, 200.0)

    assert patience.rest_seconds(200.0) == math.inf


def test_whoever_waits_for_an_end_does_not_wait_for_a_load() -> None:
    patience = Patience(None, (ServerState.CRASHED, ServerState.STOPPED), 0.0)

    patience.note(LOADING, 1.0)
    patience.note(MOVED_ON, 100.0)

    assert patience.rest_seconds(100.0) == DEFAULT_SECONDS - 100.0
