"""What the benchmarks have an agent start is what it is told to, is found, and does not stay."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from benchmarks.managed import Mains
from benchmarks.managed_servers import launched_pids, managed_config, none_left
from vllm_agent.config.load import load
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def writing_to(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits, with `log` for its output and these words at the end of its line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["sh", "-c", "read forever", "sh", *words]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output) as process,
    ):
        yield process


def log_of(folder: Path) -> Path:
    return folder / "state" / "logs" / "s0" / "launch.log"


def test_an_agent_is_told_to_start_these_servers_and_watches_no_others(tmp_path):
    path = tmp_path / "config.yml"
    text = managed_config(tmp_path, [8001, 8002], "10s", {"window": "1s"})
    path.write_text(text, encoding="utf-8")
    config = load(path, {})
    told = [(server.name, server.mode, str(server.url)) for server in config.servers]
    mode = LifecycleMode.MANAGED
    assert told == [("s0", mode, "http://127.0.0.1:8001"), ("s1", mode, "http://127.0.0.1:8002")]
    assert {server.restart.window_seconds for server in config.servers} == {1.0}
    assert not config.discovery.enabled


def test_what_writes_to_the_log_of_a_launch_is_ended_even_after_a_failure(tmp_path):
    with writing_to(log_of(tmp_path)) as launched, writing_to(tmp_path / "another.log") as other:
        assert launched_pids(tmp_path) == [launched.pid]
        with pytest.raises(KeyboardInterrupt), none_left(tmp_path):
            raise KeyboardInterrupt
        assert launched_pids(tmp_path) == []
        assert launched.wait() < 0
        assert other.poll() is None


def test_the_main_process_of_a_server_is_the_child_that_was_given_its_port(tmp_path):
    mains = Mains(os.getpid())
    assert mains.find(8001) is None
    with writing_to(tmp_path / "log", "--port", "8001") as process:
        while (found := mains.find(8001)) is None:
            assert process.poll() is None
        assert found == process.pid
        assert mains.find(8002) is None
