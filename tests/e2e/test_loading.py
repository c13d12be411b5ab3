"""Loads and failures of stand-ins, as an operator sees them: metrics, API, command line, log."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_process import AgentProcess, wait_until
from vllm_agent.demo.launch import StandIn, free_port, kill_all, write_checkpoint
from vllm_agent.demo.standin.failures import FAILURES as STAND_IN_FAILURES
from vllm_agent.demo.standin.failures import Moment
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARDS = 8
SHARD_BYTES = 4 << 20
GIB = 2**30


def servers(*entries: str) -> str:
    return "\n".join(f"  - {entry}" for entry in entries)


def monitored(name: str, port: int, **more: str) -> str:
    keys = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{{name: {name}, match: {{port: {port}}}{keys}}}"


def control(agent: AgentProcess, path: str) -> Any:
    """What the control socket answers to a GET."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(agent.state_dir / "control.sock"))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def cli(agent: AgentProcess, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command line says of the same agent."""
    return subprocess.run(
        [sys.executable, "-m", "vllm_agent", *words, f"--state.dir={agent.state_dir}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def seen_while(agent: AgentProcess, name: str, server: StandIn) -> list[dict[str, Any]]:
    """Each different view of the load, until it serves."""
    views: list[dict[str, Any]] = []
    while True:
        view = agent.server(name)
        if view["load"] is not None and (not views or views[-1] != view["load"]):
            views.append(view["load"])
        if view["state"] == "running":
            return views
        assert server.process.poll() is None, server.log_text()
        time.sleep(0.1)


def test_a_load_is_seen_stage_by_stage_and_shard_by_shard(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", SHARDS, SHARD_BYTES)
    port = free_port()
    with (
        AgentProcess(tmp_path, servers(monitored("llama", port))) as agent,
        StandIn.start(
            "--load-seconds", "6", model=str(model), port=port, log=tmp_path / "vllm.log"
        ) as server,
    ):
        wait_until(lambda: agent.sample("load_stage", server="llama", stage="init") == 1, "init")
        stages, ratios = ["init"], []
        while agent.state("llama") != "running":
            page = agent.samples()
            now = [
                dict(labels)["stage"]
                for (metric, labels), value in page.items()
                if metric == "vllm_agent_load_stage" and value == 1
            ]
            if now and now[0] not in {stages[-1], "none"}:
                stages.append(now[0])
            labels = frozenset({("server", "llama"), ("stage", "load_weights")})
            ratio = page.get(("vllm_agent_load_progress_ratio", labels))
            if ratio is not None:
                ratios.append(ratio)
            assert server.process.poll() is None, server.log_text()
            time.sleep(0.1)
        # The last ones take less than a second each, which is the time between two looks.
        assert stages[:2] == ["init", "load_weights"]
        assert stages[2:] in (["compile", "warmup"], ["compile"], ["warmup"])
        assert ratios == sorted(ratios)
        assert len({*ratios}) >= 2
        assert agent.sample("load_stage", server="llama", stage="none") == 1
        assert agent.sample("load_duration_seconds_count", server="llama") == 1
        spent = {
            stage: agent.sample("load_stage_seconds", server="llama", stage=stage) or 0.0
            for stage in stages
        }
        total = agent.sample("load_duration_seconds_sum", server="llama")
        assert total is not None
        assert sum(spent.values()) == pytest.approx(total, abs=0.1)
        assert all(spent.values())
        load = agent.server("llama")["load"]
        assert load["stage"] == "none"
        assert load["weights"]["size_bytes"] == SHARDS * SHARD_BYTES
        told = {w["witness"] for w in load["witnesses"] if w["told"] is not None}
        assert {"shards", "io", "components", "log", "cpu"} <= told


def test_a_download_shows_its_bytes_and_the_second_start_how_long_is_left(tmp_path: Path) -> None:
    port = free_port()
    arguments = (
        *("--load-seconds", "3", "--download-dir", str(tmp_path / "cache")),
        *("--download-seconds", "3", "--download-bytes", str(32 << 20)),
    )
    with AgentProcess(tmp_path, servers(monitored("qwen", port))) as agent:
        with StandIn.start(*arguments, model="org/qwen", port=port) as server:
            views = seen_while(agent, "qwen", server)
            downloads = [v["download"] for v in views if v["stage"] == "download"]
            amounts = [d["bytes"] for d in downloads]
            assert amounts == sorted(amounts)
            assert len({*amounts}) >= 3
            sizes = {d["size_bytes"] for d in downloads} - {None}
            assert all(abs(size - (32 << 20)) < (4 << 20) for size in sizes)
            assert sizes
            assert {v["seconds_left"] for v in views if v["stage"] != "none"} == {None}
            server.terminate()
            server.wait()
        with StandIn.start(*arguments[:4], model="org/qwen", port=port) as server:
            wait_until(
                lambda: bool((agent.server("qwen")["load"] or {}).get("seconds_left")), "eta"
            )
            waited = cli(agent, "wait", "qwen", "--for", "running", "--timeout", "30s")
            assert waited.returncode == 0, waited.stderr
            server.terminate()
            server.wait()


def test_a_load_that_hangs_is_failed_and_says_which_timeout(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", SHARDS, SHARD_BYTES)
    port = free_port()
    start = "{start_timeout: 3s, load_timeout: 3s}"
    entry = monitored("stuck", port, start=start)
    with (
        AgentProcess(tmp_path, servers(entry)) as agent,
        StandIn.start(
            *("--load-seconds", "2", "--hang-load", "load_weights"),
            model=str(model),
            port=port,
            log=tmp_path / "vllm.log",
        ) as server,
    ):
        wait_until(lambda: agent.state("stuck") == "failed", "it is failed")
        assert agent.sample("server_failure_reason", server="stuck", reason="load_stalled") == 1
        assert agent.sample("load_stalled", server="stuck") == 1
        view = agent.server("stuck")
        assert "load_weights" in view["detail"]
        assert "load_timeout" in view["advice"]
        assert view["load"]["stalled"] is True
        shown = cli(agent, "status", "stuck").stdout
        assert "load_weights" in shown
        assert "load_timeout" in shown
        kill_all([*server.pids()])


FAILURES = {
    "airgapped": Reason.AIRGAPPED,
    "bad_arguments": Reason.BAD_ARGUMENTS,
    "context_too_long": Reason.CONTEXT_TOO_LONG,
    "disk_full": Reason.DISK_FULL,
    "gpu_memory_taken": Reason.GPU_MEMORY_TAKEN,
    "gpu_oom": Reason.GPU_OOM,
    "gpu_unavailable": Reason.GPU_UNAVAILABLE,
    "hf_auth": Reason.HF_AUTH,
    "hf_network": Reason.HF_NETWORK,
    "kv_cache_too_small": Reason.KV_CACHE_TOO_SMALL,
    "model_not_found": Reason.MODEL_NOT_FOUND,
    "nccl": Reason.NCCL,
    "port_in_use": Reason.PORT_IN_USE,
    "unsupported_model": Reason.UNSUPPORTED_MODEL,
}


def load_seconds(how: str) -> str:
    """Long enough for a busy agent to see one that fails in the first fifth of its load."""
    is_early = STAND_IN_FAILURES[how].moment in {
        Moment.ARGUMENTS,
        Moment.BIND,
        Moment.FETCH_CONFIG,
        Moment.CONFIGURE,
    }
    return "20" if is_early else "8"


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent that saw a server fail in each way."""
    folder = tmp_path_factory.mktemp("failed")
    ports = {how: free_port() for how in FAILURES}
    entries = [monitored(how, port) for how, port in ports.items()]
    with AgentProcess(folder, servers(*entries)) as agent:
        started = [
            StandIn.start(
                *("--load-seconds", load_seconds(how), "--fail-load", how),
                model="org/model",
                port=port,
                log=folder / f"{how}.log",
            )
            for how, port in ports.items()
        ]
        try:
            for how in FAILURES:
                wait_until(
                    lambda h=how: agent.state(h) == "crashed",  # type: ignore[misc]
                    f"{how} has failed",
                    timeout_seconds=60,
                )
            yield agent
        finally:
            for server in started:
                server.close()


@pytest.mark.parametrize("how", FAILURES)
def test_a_failure_has_its_reason_its_advice_and_its_evidence(
    failed: AgentProcess, how: str
) -> None:
    reason = FAILURES[how]
    view = failed.server(how)
    assert view["reason"] == reason, view["last_ending"]
    assert view["advice"]
    assert failed.sample("server_failure_reason", server=how, reason=reason) == 1
    assert failed.sample("server_crashes_total", server=how, reason=reason) == 1
    told = control(failed, f"/api/v1/servers/{how}/history")["launches"][0]["ending"]
    assert told["log"], "no line of the log was kept"
    assert len(told["log"]) <= 40
    assert not [line for line in told["log"] if " INFO " in line]


def test_log_lines_leave_through_the_control_socket_only(failed: AgentProcess) -> None:
    kept = control(failed, "/api/v1/servers/gpu_oom/history")["launches"][0]["ending"]["log"]
    assert any("Tried to allocate" in line for line in kept)
    for path in ("/", "/metrics", "/api/v1/servers", "/api/v1/servers/gpu_oom/history"):
        assert b"Tried to allocate" not in failed.get(path)[2], path


def test_who_holds_the_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            AgentProcess(tmp_path, servers(monitored("late", port))) as agent,
            StandIn.start(
                "--load-seconds", "15", model="org/model", port=port, log=tmp_path / "vllm.log"
            ),
        ):
            wait_until(lambda: agent.state("late") == "crashed", "it has failed")
            view = agent.server("late")
            assert view["reason"] == "port_in_use"
            assert re.search(r"\(PID \d+\)", view["advice"]), view["advice"]
            assert str(port) in view["advice"]


CANARIES = {
    "api_key": "canary-api-key-7c1f",
    "hf_token": "hf_canaryCANARYcanary0123456789abcdef",
    "environ": "canary-environ-51d2",
    "plain": "canary-plain-e9aa",
}


def test_no_secret_of_a_server_comes_out_anywhere(tmp_path: Path) -> None:
    """Keys in arguments, environment and log lines of a server that fails."""
    port = free_port()
    log = tmp_path / "vllm.log"
    lines = "\n".join(
        f"ValueError: bad {name} {value} in api_key='{value}'" for name, value in CANARIES.items()
    )
    text = f"Traceback (most recent call last):\n  File 1\n{lines}"
    program = (
        f"import sys, time; time.sleep(3); print({text!r}, flush=True); time.sleep(1); sys.exit(1)"
    )
    script = tmp_path / "vllm"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    command = [
        *(str(script), "serve", "org/model", "--port", str(port)),
        *("--api-key", CANARIES["api_key"], CANARIES["plain"]),
        f"--hf-token={CANARIES['hf_token']}",
    ]
    with AgentProcess(tmp_path, servers(monitored("leaky", port))) as agent:
        with log.open("wb") as written:
            process = subprocess.Popen(
                command,
                stdout=written,
                stderr=written,
                env={"PATH": "/usr/bin:/bin", "MY_SECRET_TOKEN": CANARIES["environ"]},
            )
        wait_until(lambda: agent.state("leaky") == "starting", "it is seen")
        outputs = [agent.get("/")[2], agent.get("/metrics")[2], agent.get("/api/v1/servers")[2]]
        process.wait(20)
        wait_until(lambda: agent.state("leaky") == "crashed", "it has failed")
        history = control(agent, "/api/v1/servers/leaky/history")
        kept = history["launches"][0]["ending"]["log"]
        assert any("bad plain" in line for line in kept)
        outputs += [
            *(agent.get(path)[2] for path in ("/", "/metrics", "/api/v1/servers")),
            *(agent.get(f"/api/v1/{path}")[2] for path in ("gpus", "http_sd")),
            agent.get("/api/v1/servers/leaky/history")[2],
            json.dumps(history).encode(),
            *(cli(agent, *words).stdout.encode() for words in (("status",), ("status", "leaky"))),
            cli(agent, "status", "--json").stdout.encode(),
            cli(agent, "history", "leaky").stdout.encode(),
            cli(agent, "doctor").stdout.encode(),
            agent.log().encode(),
        ]
        agent.stop()
    with closing(sqlite3.connect(agent.state_dir / "history.sqlite")) as store:
        outputs.append("\n".join(store.iterdump()).encode())
    for output in outputs:
        for name, value in CANARIES.items():
            assert value.encode() not in output, name
