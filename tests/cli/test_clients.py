"""`wait`, `maintenance` and `forget`, and what every client says when there is no agent."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.expose.snapshots import (
    ENGINE,
    NOW,
    crashed_server,
    ended_local_server,
    life,
    local_server,
    server,
    sighting,
    tree,
)
from vllm_agent.cli import agent_client, follow, main
from vllm_agent.cli.agent_client import SERVERS_PATH, SOCKET_NAME, AgentClient
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.server_life import Transition
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Instant, Sight, SightKind
from vllm_agent.snapshot import CollectorSnapshot
from vllm_agent.store import History

CLIENTS = (
    ["status"],
    ["gpus"],
    ["history"],
    ["history", "llama"],
    ["wait", "llama", "--for=running"],
    ["start", "llama"],
    ["stop", "llama"],
    ["restart", "llama"],
    ["set-model", "llama", "org/new"],
    ["ensure-healthy", "llama"],
    ["maintenance", "llama", "on"],
    ["forget", "llama"],
)


@pytest.mark.parametrize("command", CLIENTS)
def test_without_an_agent_it_says_where_it_looked_and_how_to_start_one(
    cli, tmp_path, command
) -> None:
    outcome = cli(*command)

    assert (outcome.code, outcome.out) == (3, "")
    assert f"{tmp_path}/{SOCKET_NAME}" in outcome.err
    assert "vllm-agent run" in outcome.err
    assert "another --state.dir" in outcome.err


def test_a_socket_that_its_agent_left_behind(cli, tmp_path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET_NAME))

    assert cli("status").code == 3


def test_an_agent_that_ends_in_the_middle_of_an_answer(cli, tmp_path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen()

        def accept_and_close() -> None:
            listener.accept()[0].close()

        closing = threading.Thread(target=accept_and_close)
        closing.start()
        outcome = cli("status")
        closing.join()

    assert outcome.code == 3


def test_an_agent_that_does_not_answer(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(agent_client, "ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen()
        outcome = cli("status")

    assert outcome.code == 1
    assert "did not answer within 0.05 s" in outcome.err


def test_a_socket_of_somebody_else(cli, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(agent_client._SocketConnection, "connect", refuse)

    outcome = cli("status")

    assert outcome.code == 1
    assert "as root" in outcome.err


def test_a_path_too_long_for_a_socket(tmp_path, capfd) -> None:
    assert main(["status", f"--state.dir={tmp_path / ('x' * 120)}"]) == 1
    assert "shorter --state.dir" in capfd.readouterr().err


def test_the_folder_may_come_from_the_environment(served, monkeypatch, capfd) -> None:
    monkeypatch.setenv("VLLM_AGENT_STATE_DIR", str(served.state_dir))
    # What is only for the agent does not hinder a client.
    monkeypatch.setenv("VLLM_AGENT_WEB_LISTEN_ADDRESS", "nonsense")

    assert main(["status"]) == 0
    assert "llama" in capfd.readouterr().out


def test_a_bad_folder_is_a_problem_of_configuration(capfd) -> None:
    assert main(["status", "--state.dir="]) == 2
    assert capfd.readouterr().err == "--state.dir: must not be empty\n"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "command",
    [
        ["status", "lama"],
        ["history", "lama"],
        ["wait", "lama", "--for=running"],
        ["start", "lama"],
        ["stop", "lama"],
        ["restart", "lama"],
        ["set-model", "lama", "org/new"],
        ["ensure-healthy", "lama"],
        ["maintenance", "lama", "on"],
        ["forget", "lama"],
    ],
)
def test_an_unknown_server_is_told_near_names(cli, command) -> None:
    outcome = cli(*command)

    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "vllm-agent: no server is named 'lama': Did you mean llama?\n"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("states", ["running", "crashed,running", "crashed, running"])
def test_wait_returns_at_once_when_it_is_so(cli, states) -> None:
    outcome = cli("wait", "llama", "--for", states)

    assert (outcome.code, outcome.out) == (0, "llama is running\n")


def test_wait_returns_when_it_becomes_so(cli, served) -> None:
    becoming = threading.Timer(0.3, lambda: served.show(crashed_server("llama")))
    becoming.start()

    outcome = cli("wait", "llama", "--for=crashed", "--timeout=10s")

    becoming.join()
    assert (outcome.code, outcome.out) == (0, "llama is crashed\n")
    assert served.answered[304] >= 1
    assert served.answered[200] == 2


def test_wait_gives_up_and_says_what_is(cli, served) -> None:
    served.show(crashed_server("llama"))

    outcome = cli("wait", "llama", "--for=running,stopped", "--timeout=50ms")

    assert (outcome.code, outcome.out) == (4, "")
    assert "llama is still crashed (unreachable), not running or stopped, after 50ms" in outcome.err


def test_wait_bears_a_restart_of_the_agent(cli, served, monkeypatch) -> None:
    def come_back() -> None:
        served.show(crashed_server("llama"))
        served.__enter__()

    happens = iter([served.__exit__, lambda: None, come_back])
    clock = SimpleNamespace(
        monotonic=time.monotonic, time=time.time, sleep=lambda _: next(happens)()
    )
    monkeypatch.setattr(follow, "time", clock)

    outcome = cli("wait", "llama", "--for=crashed", "--timeout=10s")

    assert (outcome.code, outcome.out) == (0, "llama is crashed\n")
    assert next(happens, None) is None


def test_a_kept_connection_is_opened_again_for_another_agent(served) -> None:
    with AgentClient(served.state_dir) as client:
        before = client.read(SERVERS_PATH)
        served.__exit__()
        served.show(server("other"))
        served.__enter__()
        after = client.read_if_changed(SERVERS_PATH, before.etag)

    assert after is not None
    assert [s["name"] for s in after.json["servers"]] == ["other"]


@pytest.mark.usefixtures("served")
def test_an_unknown_server_that_is_near_to_none_is_told_a_command(cli) -> None:
    err = cli("status", "zzz").err

    assert err == (
        "vllm-agent: no server is named 'zzz': "
        "'vllm-agent status' lists the names that there are.\n"
    )


def test_wait_ends_when_the_server_is_no_longer_watched(cli, served) -> None:
    leaving = threading.Timer(0.2, served.show)
    leaving.start()

    outcome = cli("wait", "llama", "--for=crashed", "--timeout=10s")

    leaving.join()
    assert outcome.code == 1
    assert "no server is named 'llama'" in outcome.err


@pytest.mark.parametrize("states", ["runing", "running,runing", "Running", ""])
def test_wait_for_a_state_that_there_is_not(cli, states) -> None:
    outcome = cli("wait", "llama", "--for", states)

    assert outcome.code == 2
    assert "crashed" in outcome.err
    assert "--help" in outcome.err


@pytest.mark.parametrize("timeout", ["5", "0", "-1s", "soon"])
def test_wait_with_a_bad_timeout(cli, timeout) -> None:
    outcome = cli("wait", "llama", "--for=running", f"--timeout={timeout}")

    assert outcome.code == 2
    assert "--timeout" in outcome.err


@pytest.mark.parametrize(
    ("words", "until", "told"),
    [
        (["on"], float("inf"), "is in maintenance until it is switched off"),
        (["on", "--for=30m"], NOW.unix_seconds + 1800, "until 2025-06-15 15:38:20"),
        (["off"], None, "is not in maintenance"),
    ],
)
def test_maintenance(cli, served, words, until, told) -> None:
    outcome = cli("maintenance", "llama", *words)

    assert outcome.code == 0
    assert outcome.out.startswith("llama is ")
    assert told in outcome.out
    assert served.asked_maintenance == [("llama", until)]


@pytest.mark.parametrize("words", [["off", "--for=5m"], ["on", "--for=2y"], ["on", "--for=0"]])
def test_maintenance_with_a_bad_duration(cli, served, words) -> None:
    outcome = cli("maintenance", "llama", *words)

    assert outcome.code == 2
    assert "--for" in outcome.err
    assert served.asked_maintenance == []


def test_forget(cli, served) -> None:
    served.show(ended_local_server(), server())

    outcome = cli("forget", "qwen")

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "qwen is forgotten until it is started again\n"
    assert served.asked_forget == ["qwen"]
    assert cli("forget", "qwen").code == 1


def test_forget_what_lives_or_is_configured(cli, served) -> None:
    served.show(local_server("alive"), server("configured"))

    alive, configured = cli("forget", "alive"), cli("forget", "configured")

    assert (alive.code, configured.code) == (1, 1)
    assert "'alive' is running" in alive.err
    assert "Remove it from the configuration file" in configured.err
    assert served.asked_forget == []


def test_names_with_any_character_reach_the_agent(cli, served) -> None:
    served.show(server("a/b%2F?#ü"))

    assert cli("maintenance", "a/b%2F?#ü", "on").code == 0
    assert served.asked_maintenance[0][0] == "a/b%2F?#ü"


def test_a_terminal_does_not_obey_what_a_server_says(cli, served) -> None:
    hostile = "\x1b[2J\x1b]0;gone\x07\u202eevil\n"
    changed = replace(life(Phase.UNREADY), reason=Reason.UNHEALTHY, detail=hostile)
    hidden = (Sight(SightKind.LOG, is_visible=False, why_not=hostile, fix=hostile),)
    served.show(
        local_server(
            model_name=hostile,
            version=hostile,
            life=changed,
            sighting=sighting(unit=hostile),
            tree=tree(components=(replace(ENGINE, rank=hostile),)),
            sights=hidden,
        ),
        sights=hidden,
        collectors=(CollectorSnapshot(hostile, is_up=False, detail=hostile),),
    )
    at = Instant(0.0, 1.0)
    served.past = History((Transition(at, Phase.READY, Phase.LOST, None, hostile),))

    for command in (["status"], ["status", "llama"], ["history", "llama"], ["doctor"]):
        out = cli(*command).out
        assert "evil" in out
        assert not [c for c in out if not c.isprintable() and c != "\n"]
