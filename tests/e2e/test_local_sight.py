"""What an agent without rights sees of local servers, what it says of that, and what it keeps."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from vllm_agent.demo.launch import StandIn

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-canary-5f2b9d"
NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""Root without a capability may look into its own kind only, and every other process has more."""


def _matched(server: StandIn) -> str:
    return (
        f"  - {{name: a, match: {{port: {server.port}}}, probe: {{interval: 2s, timeout: 1s}}}}\n"
    )


@pytest.mark.needs("setpriv")
@pytest.mark.skipif("os.geteuid() != 0", reason="only root can have rights taken away here")
def test_an_agent_without_rights_judges_ends_and_says_what_it_may_not_see(tmp_path: Path):
    with (
        StandIn.start("--load-seconds", "0.5") as server,
        AgentProcess(tmp_path, _matched(server), prefix=NO_CAPABILITIES) as agent,
    ):
        agent.wait_state("a", "running")
        hidden = {s["kind"]: s for s in agent.server("a")["sights"] if not s["visible"]}
        assert {"fds", "log"} <= set(hidden)
        assert all(sight["why_not"] for sight in hidden.values())
        doctor = agent.cli("doctor")
        assert doctor.returncode == 1
        assert "fds" in doctor.stdout
        assert "CAP_SYS_PTRACE" in doctor.stdout
        os.kill(server.engine_pids[0], signal.SIGKILL)
        agent.wait_state("a", "crashed")
        view = agent.server("a")
        assert view["reason"] == "engine_died", view["last_ending"]


def test_an_agent_that_sees_everything_says_so(tmp_path: Path):
    with (
        StandIn.start("--load-seconds", "0.5", log=tmp_path / "log") as server,
        AgentProcess(tmp_path, _matched(server)) as agent,
    ):
        agent.wait_state("a", "running")
        wait_until(
            lambda: "log" in {s["kind"] for s in agent.server("a")["sights"]}, "its log is found"
        )
        doctor = agent.cli("doctor")
        assert doctor.returncode == 0, doctor.stdout
        assert "not visible" not in doctor.stdout


def test_secrets_of_a_command_line_are_kept_nowhere(tmp_path: Path):
    """An API key in argv is on no page, in no log and in no file of the agent."""
    with (
        StandIn.start("--load-seconds", "0.5", "--api-key", KEY) as server,
        AgentProcess(tmp_path, flags=("--log.level=debug",)) as agent,
    ):
        name = f"demo@{server.port}"
        wait_until(lambda: name in _names(agent), "it is discovered")
        agent.wait_state(name, "running")
        server.kill()
        agent.wait_state(name, "crashed")
        shown = [
            agent.get(path)[2].decode()
            for path in (
                *("/", "/metrics", "/api/v1/servers", "/api/v1/http_sd"),
                *(f"/api/v1/servers/{name}", f"/api/v1/servers/{name}/history"),
            )
        ]
        shown += [agent.cli(*command).stdout for command in (("status", name), ("doctor",))]
        assert all(KEY not in text for text in shown)
        assert all(name in text for text in shown[:3])
    assert KEY not in agent.log()
    kept = [path for path in agent.state_dir.rglob("*") if path.is_file()]
    assert kept
    assert all(KEY.encode() not in path.read_bytes() for path in kept)


def _names(agent: AgentProcess) -> set[str]:
    servers = json.loads(agent.get("/api/v1/servers")[2])["servers"]
    return {server["name"] for server in servers}
