"""The agent as a process: how it starts, refuses, ends and remembers."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from vllm_agent.demo.launch import StandIn, free_port


def external(name: str, url: str, *, interval: str = "1s", timeout: str = "1s") -> str:
    """One server of a configuration file."""
    return (
        f"  - {{name: {name}, mode: external, url: '{url}', "
        f"probe: {{interval: {interval}, timeout: {timeout}}}}}\n"
    )


def test_it_starts_without_a_configuration(tmp_path: Path) -> None:
    with AgentProcess(tmp_path) as agent:
        assert agent.get("/-/healthy")[0] == 200
        assert b"vllm_agent_build_info" in agent.get("/metrics")[2]
        assert agent.cli("status").returncode == 0


def test_it_does_not_hold_what_only_reads_its_configuration(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, external("down", "http://127.0.0.1:9")) as agent:
        assert agent.process is not None
        maps = Path(f"/proc/{agent.process.pid}/maps").read_text(encoding="utf-8")

    assert "/aiohttp/" in maps
    assert "pydantic" not in maps
    assert "/yaml/" not in maps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_two_seconds(tmp_path: Path, number: signal.Signals) -> None:
    """Even while a look at a server that never answers is under way."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        servers = external("silent", url, interval="60s", timeout="30s")
        agent = AgentProcess(tmp_path, servers)
        agent.start(wait_ready=False)
        wait_until(lambda: "listening" in agent.log(), "it listens")
        status, seconds = agent.stop(number)
        assert status == 0, agent.log()
        assert seconds < 2
        assert not (agent.state_dir / "control.sock").exists()


def test_a_taken_port_is_told_with_the_process_that_holds_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        agent = AgentProcess(tmp_path, port=port)
        agent.start(wait_ready=False)
        assert agent.process is not None
        assert agent.process.wait(10) == 1
        lines = agent.log().splitlines()
        assert f"127.0.0.1:{port}" in lines[-1]
        assert "python" in lines[-1]
        assert "--web.listen-address" in lines[-1]
        assert "Traceback" not in agent.log()


def test_a_second_agent_on_the_same_state_directory_refuses(tmp_path: Path) -> None:
    with AgentProcess(tmp_path) as first:
        assert first.process is not None
        second = subprocess.run(
            [
                *(sys.executable, "-m", "vllm_agent", f"--state.dir={first.state_dir}"),
                f"--web.listen-address=127.0.0.1:{free_port()}",
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert second.returncode == 1
        assert str(first.process.pid) in second.stderr
        assert "--state.dir" in second.stderr
        assert first.get("/-/healthy")[0] == 200


def test_a_state_directory_that_cannot_be_does_not_stop_the_watching(tmp_path: Path) -> None:
    """A file where the folder should be stands for every disk that cannot be written."""
    with StandIn.start() as server:
        agent = AgentProcess(tmp_path, external("a", server.url))
        agent.state_dir.write_text("not a folder")
        with agent:
            agent.wait_state("a", "running")
            assert agent.sample("collector_up", collector="store") == 0
            assert agent.cli("status").returncode == 3
            assert agent.log().count("no control socket") == 1


def test_a_stand_in_dies_and_comes_back(tmp_path: Path) -> None:
    """Stopped → running → failed at once → crashed after 10 s → running, with one restart."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with AgentProcess(tmp_path, external("a", url)) as agent:
        assert agent.state("a") == "stopped"
        with StandIn.start("--load-seconds", "0", port=port) as first:
            agent.wait_state("a", "running")
            first.kill()
            wait_until(lambda: agent.state("a") == "failed", "failed at once", 2)
            assert agent.server("a")["reason"] == "unreachable"
            agent.wait_state("a", "crashed", 12)
        assert agent.sample("server_crashes_total", server="a", reason="unreachable") == 1
        with StandIn.start("--load-seconds", "0", port=port):
            agent.wait_state("a", "running")
            assert agent.sample("server_restarts_total", server="a", initiator="outside") == 1
            status = agent.cli("status", "a")
            assert status.returncode == 0
            assert "running" in status.stdout
            history = agent.cli("history", "a")
            assert "unreachable" in history.stdout


def test_counters_and_history_survive_a_restart_of_the_agent(tmp_path: Path) -> None:
    with StandIn.start("--load-seconds", "0").wait_serving() as server:
        with AgentProcess(tmp_path, external("a", server.url)) as agent:
            agent.wait_state("a", "running")
        with AgentProcess(tmp_path, external("a", server.url)) as agent:
            agent.wait_state("a", "running")
            assert agent.sample("server_launches_total", server="a") == 1
            moved = {"server": "a", "from": "unknown", "to": "running"}
            assert agent.sample("server_state_transitions_total", **moved) == 2


def test_maintenance_makes_an_end_a_planned_one(tmp_path: Path) -> None:
    with (
        StandIn.start("--load-seconds", "0") as server,
        AgentProcess(tmp_path, external("a", server.url)) as agent,
    ):
        agent.wait_state("a", "running")
        assert agent.cli("maintenance", "a", "on", "--for", "10m").returncode == 0
        assert agent.sample("server_desired_up", server="a") == 0
        server.terminate()
        agent.wait_state("a", "stopped")
        assert agent.cli("maintenance", "a", "off").returncode == 0
        assert agent.sample("server_desired_up", server="a") == 1


def test_wait_returns_when_the_state_is_reached(tmp_path: Path) -> None:
    with (
        StandIn.start("--load-seconds", "1") as server,
        AgentProcess(tmp_path, external("a", server.url)) as agent,
    ):
        done = agent.cli("wait", "a", "--for", "running", "--timeout", "20s")
        assert done.returncode == 0, done.stderr
        late = agent.cli("wait", "a", "--for", "crashed", "--timeout", "1s")
        assert late.returncode == 4
        assert "running" in late.stderr


def test_an_api_key_never_shows(tmp_path: Path) -> None:
    key = "canary-key-1f9d2c7b"
    key_file = tmp_path / "key"
    key_file.write_text(key + "\n")
    with StandIn.start("--load-seconds", "0", "--api-key", key) as server:
        servers = external("a", server.url).replace("}}\n", f"}}, api_key_file: {key_file}}}\n")
        with AgentProcess(tmp_path, servers, flags=("--log.level=debug",)) as agent:
            agent.wait_state("a", "running")
            assert agent.server("a")["probes"]["models"]["success"] is True
            pages = [agent.get(p)[2].decode() for p in ("/", "/metrics", "/api/v1/servers")]
            pages += [agent.get("/api/v1/servers/a/history")[2].decode()]
            pages += [agent.cli("status", "a").stdout, agent.cli("check-config").stdout]
        pages += [agent.log()]
        assert all(key not in page for page in pages)
        kept = [path.read_bytes() for path in agent.state_dir.iterdir() if path.is_file()]
        assert all(key.encode() not in content for content in kept)
