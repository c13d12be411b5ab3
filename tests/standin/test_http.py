"""HTTP as vLLM answers it: endpoints, keys, streams, and what a hang looks like."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.standin.conftest import FAST, ask
from vllm_agent.demo.launch import StandIn

RECORDINGS = Path(__file__).parents[1] / "testdata" / "vllm-0.32.0"
COMPLETION = {"model": "tiny", "prompt": "one two three", "max_tokens": 5}


@pytest.fixture(scope="module")
def server():
    with StandIn.start(*FAST, "--served-model-name", "tiny", model="/models/model") as one:
        yield one.wait_serving()


def values(page: bytes) -> dict[str, float]:
    """Every sample of a page, by name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def total(server: StandIn, name: str) -> float:
    page = values(ask(server, "/metrics").body)
    return sum(value for key, value in page.items() if key.startswith(f"{name}["))


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health_is_empty(server, path):
    answer = ask(server, path)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["server"] == "uvicorn"


def test_version(server):
    assert ask(server, "/version").json() == json.loads((RECORDINGS / "version.json").read_text())


def test_load(server):
    assert ask(server, "/load").json() == {"server_load": 0}


def test_models(server):
    """Like the recording, but for the time of the request and the random id."""
    recorded = json.loads((RECORDINGS / "v1_models.json").read_text())
    answer = ask(server, "/v1/models").json()
    for models in (recorded, answer):
        card = models["data"][0]
        card["created"] = card["permission"][0]["created"] = 0
        card["permission"][0]["id"] = card["permission"][0]["id"].partition("-")[0]
    assert answer == recorded


def test_unknown_path_and_method(server):
    assert ask(server, "/is_sleeping").status == 404
    assert ask(server, "/health", {}).status == 405


def test_completion(server):
    answer = ask(server, "/v1/completions", COMPLETION).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}


def test_chat_completion(server):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = ask(server, "/v1/chat/completions", body).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "the"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_stream(server, path):
    body = {"prompt": "x", "messages": [], "max_tokens": 3, "stream": True}
    answer = ask(server, path, body)
    lines = [line for line in answer.body.decode().split("\n\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [line.startswith('data: {"id"') for line in lines] == [True, True, True, False]
    assert lines[-1] == "data: [DONE]"


def test_unknown_model(server):
    answer = ask(server, "/v1/completions", {"model": "other", "prompt": "x"})
    assert answer.status == 404
    assert answer.json()["error"]["message"] == "The model `other` does not exist."


def test_wrong_body(server):
    assert ask(server, "/v1/completions", "text").status == 400


def test_metrics_have_the_recorded_families(server):
    recorded = (RECORDINGS / "metrics-after-one-request.txt").read_text()
    page = ask(server, "/metrics")
    assert page.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    assert 45_000 < len(page.body) < 60_000
    for prefix in ("# HELP", "# TYPE"):
        assert [line for line in page.body.decode().splitlines() if line.startswith(prefix)] == [
            line for line in recorded.splitlines() if line.startswith(prefix)
        ]


def test_an_idle_page_is_the_recorded_one(serve):
    """Apart from what a process measures of itself, and the times of creation."""
    server = serve("--served-model-name", "tiny", model="/models/model")
    for path in ("/v1/models", "/health", "/metrics"):
        ask(server, path)
    recorded_page = (RECORDINGS / "metrics-idle.txt").read_bytes()
    recorded = values(recorded_page.partition(b"\n\n")[0])  # curl's own line follows
    page = values(ask(server, "/metrics").body)
    assert page.keys() == recorded.keys()
    own = ("process_", "http_", "python_")
    for key, value in page.items():
        if not key.startswith(own) and "_created" not in key:
            assert value == recorded[key], key


def test_traffic_moves_the_counters(serve):
    server = serve("--served-model-name", "tiny")
    ask(server, "/v1/completions", COMPLETION | {"max_tokens": 20, "prompt": "a b c d e"})
    page = values(ask(server, "/metrics").body)
    recorded = values((RECORDINGS / "metrics-after-one-request.txt").read_bytes())
    for name in (
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:iteration_tokens_total_count",
        "vllm:iteration_tokens_total_sum",
        "vllm:request_generation_tokens_sum",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
    ):
        key = f"{name}[('engine', '0'), ('model_name', 'tiny')]"
        assert page[key] == recorded[key], name
    buckets = [key for key in recorded if key.startswith("vllm:request_prompt_tokens_bucket[")]
    assert {key: page[key] for key in buckets} == {key: recorded[key] for key in buckets}


def test_process_start_time_is_true(serve):
    before = time.time()
    server = serve()
    started = total(server, "process_start_time_seconds")
    assert before - 1 < started < time.time() + 1


def test_several_api_servers_share_one_page(serve):
    server = serve("--api-server-count", "2")
    for _ in range(8):
        ask(server, "/v1/completions", {"prompt": "x", "max_tokens": 1})
    page = ask(server, "/metrics").body
    assert total(server, "vllm:generation_tokens_total") == 8
    assert b"\nprocess_" not in page
    assert b"python_info" not in page


def test_data_parallel_engines_have_their_own_series(serve):
    server = serve("--data-parallel-size", "2")
    page = values(ask(server, "/metrics").body)
    running = [key for key in page if key.startswith("vllm:num_requests_running[")]
    assert [("'0'" in key, "'1'" in key) for key in running] == [(True, False), (False, True)]


def test_running_requests_are_shown(serve):
    server = serve()
    body = json.dumps({"prompt": "x", "max_tokens": 10_000, "stream": True})
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        while b"data:" not in client.recv(4096):
            pass
        assert total(server, "vllm:num_requests_running") == 1


@pytest.mark.parametrize("arguments", [["--api-key", "one", "two"], []])
def test_api_key_guards_v1_only(serve, arguments):
    environment = {} if arguments else {"VLLM_API_KEY": "two"}
    server = serve(*arguments, environment=environment)
    assert ask(server, "/health").status == 200
    assert ask(server, "/metrics").status == 200
    denied = ask(server, "/v1/models")
    assert (denied.status, denied.json()) == (401, {"error": "Unauthorized"})
    wrong = {"Authorization": "Bearer three"}
    assert ask(server, "/v1/completions", COMPLETION, headers=wrong).status == 401
    assert ask(server, "/v1/models", headers={"Authorization": "Bearer two"}).status == 200


def test_unix_socket(serve, tmp_path):
    server = serve(uds=tmp_path / "vllm.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "vllm.sock"))
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert server.url == f"unix://{tmp_path / 'vllm.sock'}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_tls(serve, tmp_path):
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    name = ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*make.split(), *name], check=True, capture_output=True)
    server = serve("--ssl-certfile", certificate, "--ssl-keyfile", key)
    assert server.url.startswith("https://")
    context = ssl.create_default_context(cafile=certificate)
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_idle_connections(serve):
    """Kept alive for a while after a request, but for ever without any."""
    server = serve()
    with (
        socket.create_connection(("127.0.0.1", server.port)) as used,
        socket.create_connection(("127.0.0.1", server.port)) as unused,
    ):
        began = time.monotonic()
        used.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        used.recv(1000)
        assert used.recv(1000) == b""
        assert 0.4 < time.monotonic() - began < 1.5  # 5 s, ten times faster
        unused.settimeout(0.3)
        with pytest.raises(TimeoutError):
            unused.recv(1)


def answers(server: StandIn) -> bool:
    try:
        return ask(server, "/v1/completions", {"prompt": "x"}, timeout=0.3).status == 200
    except TimeoutError:
        return False


def test_hang_is_switched_by_sigusr1(serve):
    """/health and the gauges look well, only a request shows it."""
    server = serve()
    assert answers(server)
    server.signal(signal.SIGUSR1)
    while answers(server):
        pass
    assert ask(server, "/health").status == 200
    assert total(server, "vllm:num_requests_running") == 0
    server.signal(signal.SIGUSR1)
    deadline = time.monotonic() + 5
    while not answers(server):
        assert time.monotonic() < deadline


def test_hang_after(serve):
    server = serve("--hang-after", "0")
    assert not answers(server)
    assert ask(server, "/health").status == 200


def test_stopped_worker_hangs_the_engine(serve):
    server = serve()
    os.kill(server.worker_pids[0], signal.SIGSTOP)
    assert not answers(server)
    assert ask(server, "/health").status == 200
    os.kill(server.worker_pids[0], signal.SIGCONT)
    assert answers(server)


def test_health_status(serve):
    server = serve("--health-status", "503")
    assert ask(server, "/health").status == 503
    assert ask(server, "/version").status == 200


def test_dead_engine_is_503(serve):
    server = serve("--speed", "1")
    os.kill(server.engine_pids[0], signal.SIGKILL)
    deadline = time.monotonic() + 2
    while ask(server, "/health").status == 200:
        assert time.monotonic() < deadline
    assert ask(server, "/health").status == 503
    assert ask(server, "/v1/models").status == 200
    answer = ask(server, "/v1/completions", {"prompt": "x"})
    assert answer.status == 500
    assert "EngineCore encountered an issue" in answer.json()["error"]["message"]


def test_stop_answering(serve):
    server = serve("--stop-answering")
    with pytest.raises(TimeoutError):
        ask(server, "/health", timeout=0.2)


def test_faults_can_come_later(serve):
    server = serve("--stop-answering", "--fault-after", "0.5")
    assert ask(server, "/health").status == 200
    time.sleep(0.5)
    with pytest.raises(TimeoutError):
        ask(server, "/health", timeout=0.2)


@pytest.mark.parametrize("after", ["0", "0.3"])
def test_sleeping(serve, after):
    server = serve("--sleeping", "--fault-after", after)
    time.sleep(float(after) * 1.2)
    page = values(ask(server, "/metrics").body)
    states = {
        key.partition("sleep_state', '")[2].rstrip("')]"): value
        for key, value in page.items()
        if key.startswith("vllm:engine_sleep_state[")
    }
    assert states == {"awake": 0, "weights_offloaded": 1, "discard_all": 0}
    assert ask(server, "/health").status == 200


def test_wrong_model(serve):
    server = serve("--served-model-name", "tiny", "--wrong-model")
    assert [card["id"] for card in ask(server, "/v1/models").json()["data"]] == ["another-model"]
    assert ask(server, "/v1/completions", COMPLETION).status == 404


def test_access_log(serve):
    server = serve("--disable-access-log-for-endpoints", "/metrics,/ping")
    for path in ("/health", "/metrics", "/ping"):
        ask(server, path)
    lines = [line for line in server.log_text().splitlines() if "HTTP/1.1" in line]
    assert len(lines) == 1
    assert lines[0].endswith('"GET /health HTTP/1.1" 200 OK')
