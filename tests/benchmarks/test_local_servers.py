"""What the benchmarks start on this host is what the agent is told of, and does not stay."""

from __future__ import annotations

import os

import pytest

from benchmarks.local_servers import crowd
from benchmarks.programs import config_of, external_server, local_server
from vllm_agent.config.load import load
from vllm_agent.lifecycle.states import LifecycleMode


def is_child(pid: int) -> bool:
    """Whether there is such a process of ours, a zombie included."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def test_a_crowd_is_there_for_its_block_only():
    with crowd(3) as pids:
        assert [is_child(pid) for pid in pids] == [True] * 3
    assert not any(is_child(pid) for pid in pids)


def test_a_crowd_that_fails_to_start_leaves_nobody(monkeypatch):
    spawn = os.posix_spawn
    pids: list[int] = []

    def spawn_once(*arguments):
        if pids:
            raise OSError("no more processes")
        pids.append(spawn(*arguments))
        return pids[-1]

    monkeypatch.setattr(os, "posix_spawn", spawn_once)
    with pytest.raises(OSError, match="no more"), crowd(2):
        pass
    assert len(pids) == 1
    assert not is_child(pids[0])


@pytest.mark.parametrize(
    ("server", "mode"),
    [(external_server, LifecycleMode.EXTERNAL), (local_server, LifecycleMode.MONITORED)],
)
def test_an_agent_is_given_these_servers_and_no_others_of_the_host(tmp_path, server, mode):
    path = tmp_path / "config.yml"
    path.write_text(config_of([8001, 8002], "1s", server), encoding="utf-8")
    config = load(path, {})
    assert [(one.name, one.mode) for one in config.servers] == [("s0", mode), ("s1", mode)]
    assert {one.probe.interval_seconds for one in config.servers} == {1.0}
    assert not config.discovery.enabled
