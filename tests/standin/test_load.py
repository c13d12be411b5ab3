"""A load seen from outside: port, log, signals, failures."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.standin.conftest import reason_in, refused, wait_log
from vllm_agent.demo.launch import NotServingError, title, write_checkpoint
from vllm_agent.demo.standin.failures import FAILURES, reason_of
from vllm_agent.demo.standin.options import HANGS
from vllm_agent.lifecycle.reasons import Reason

RECORDINGS = Path(__file__).parents[1] / "testdata" / "vllm-0.32.0"
VARIABLE = re.compile(
    r"(?i:pid: |pid[ =])\d+|\d\d-\d\d \d\d:\d\d:\d\d|\[\d+\]|'?/models/\w+'?|\d+\.\d+|\[W\d.*?utils"
    r"|:\d{4,5}\b|'port': \d+|\bport \d+|vllm_dist_\w+"
)


def normal(line: str) -> str:
    return VARIABLE.sub("#", line).strip()


def test_refused_until_loaded(start):
    server = start("--load-seconds", "0.5")
    wait_log(server, "non-default args")
    assert refused(server)
    wait_log(server, "Loading weights took")
    assert refused(server)
    server.wait_serving()
    assert not refused(server)


def test_load_takes_its_time(start):
    began = time.monotonic()
    start("--load-seconds", "0.6").wait_serving()
    assert 0.6 < time.monotonic() - began < 3


def test_listens_soon_without_load_time(start):
    began = time.monotonic()
    start().wait_serving()
    assert time.monotonic() - began < 2  # 0.2 s on an idle machine


def test_log_has_the_recorded_lines(serve):
    """Every line of a load is a line of the recordings, apart from numbers and shards."""
    server = serve("--shards", "6", "--enforce-eager", "--served-model-name", "tiny")
    server.terminate()
    server.wait()
    recorded = {
        normal(line)
        for name in ("normal-stop-sigterm.log", "fail-kv-cache-memory.log", "worker-killed.log")
        for line in (RECORDINGS / name).read_text().splitlines()
    }
    own = ("non-default args", "Initializing a V1", "Completed |", "Starting vLLM server")
    strange = [
        line
        for line in server.log_text().splitlines()
        if normal(line) not in recorded and not any(text in line for text in own)
    ]
    assert strange == []


def test_progress_bar_has_the_recorded_shape(serve):
    bars = re.compile(
        r"Loading safetensors checkpoint shards: [ 1]?[ \d]\d% Completed \| \d+/11 "
        r"\[\d\d:\d\d<(\d\d:\d\d|\?), +(\?it/s|\d+\.\d\d(it/s|s/it))\]"
    )
    recorded = (RECORDINGS / "load-11-shards-torch-compile.log").read_text()
    log = serve("--shards", "11").log_text()
    for text, count in ((recorded, 13), (log, 12)):
        lines = [line for line in text.splitlines() if line.startswith("Loading safetensors")]
        assert [line for line in lines if bars.fullmatch(line) is None] == []
        assert len(lines) == count


def test_a_shard_is_mapped_while_it_loads(start, tmp_path):
    model = write_checkpoint(tmp_path / "model", shards=4)
    server = start("--load-seconds", "1", model=str(model))
    seen: list[str] = []
    while "Loading weights took" not in server.log_text():
        for pid in server.worker_pids:
            maps = Path(f"/proc/{pid}/maps").read_text()
            seen += re.findall(r"model-0000\d-of-00004", maps)
        time.sleep(0.01)
    assert list(dict.fromkeys(seen)) == [f"model-0000{number}-of-00004" for number in range(1, 5)]


def test_port_in_use_fails_at_once(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start("--load-seconds", "3", port=taken.getsockname()[1])
        # The share of a load before the bind is a tenth.
        assert server.wait() == 1
    assert server.log_text().endswith("OSError: [Errno 98] Address already in use\n")


def test_of_two_loaders_the_second_to_listen_fails(start):
    """Both may bind while neither listens; the loser learns it after its load."""
    first = start("--load-seconds", "1")
    wait_log(first, "non-default args")
    second = start("--load-seconds", "0.2", port=first.port).wait_serving()
    assert first.wait() == 1
    assert second.process.poll() is None


def test_a_stale_unix_socket_is_in_use(start, tmp_path):
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "s"))
    assert start(uds=tmp_path / "s").wait() == 1


RECORDED_FAILURES = {
    "bad_arguments": "fail-bad-arguments.log",
    "folder_missing": "fail-folder-missing.log",
    "hf_auth": "fail-hub-gated.log",
    "hf_network": "fail-hub-unreachable.log",
    "hf_rate_limited": "fail-hub-rate-limited.log",
    "model_not_found": "fail-hub-not-found.log",
    "port_in_use": "fail-port-in-use.log",
    "airgapped": "fail-model-not-found-offline.log",
    "context_too_long": "fail-context-too-long.log",
    "kv_cache_too_small": "fail-kv-cache-memory.log",
}


MODELS = {"folder_missing": "/models/nothing-here", "airgapped": "org/does-not-exist"}
FIRST_WORDS = re.compile(r"Traceback|usage|httpx2|'\[Errno|HTTP Error|ERROR.*Traceback")


@pytest.mark.parametrize("reason", sorted(FAILURES.keys() - RECORDED_FAILURES))
def test_failed_loads_end_with_their_status(start, reason):
    server = start("--fail-load", reason)
    assert server.wait() == 1
    with pytest.raises(NotServingError):
        server.wait_serving()
    assert reason_in(server.log_text()) == reason_of(reason)


@pytest.mark.parametrize(("reason", "recording"), RECORDED_FAILURES.items())
def test_failures_log_what_was_recorded(start, reason, recording):
    server = start("--fail-load", reason, model=MODELS.get(reason, "org/tiny"))
    assert server.wait() == (2 if reason == "bad_arguments" else 1)
    lines = [normal(line) for line in (RECORDINGS / recording).read_text().splitlines()]
    first = next(n for n, line in enumerate(lines) if FIRST_WORDS.match(line))
    log = {normal(line) for line in server.log_text().splitlines()}
    assert [line for line in lines[first:] if line not in log] == []
    assert reason_in(server.log_text()) == reason_of(reason)


def test_every_reason_of_a_failure_is_one():
    assert {reason_of(name) for name in FAILURES} <= set(Reason)
    assert reason_of("folder_missing") == Reason.MODEL_NOT_FOUND


def test_engine_failure_names_the_cause_before_the_wrapper(start):
    server = start("--fail-load", "gpu_oom")
    server.wait()
    log = server.log_text()
    cause = log.index("torch.OutOfMemoryError: CUDA out of memory")
    assert cause < log.index("Failed core proc(s): {'EngineCore': 1}")


def test_engine_killed_while_loading(start):
    server = start("--hang-load")
    wait_log(server, "Loading safetensors")
    os.kill(server.engine_pids[0], signal.SIGKILL)
    assert server.wait() == 1
    assert "Failed core proc(s): {'EngineCore': -9}" in server.log_text()


def test_hung_load_stays_refused(start):
    server = start("--hang-load")
    wait_log(server, " 50% Completed | 3/6")
    with pytest.raises(NotServingError):
        server.wait_serving(timeout=0.3)
    assert refused(server)


@pytest.mark.parametrize("stage", HANGS)
def test_a_load_hangs_in_the_stage_that_is_asked_for(start, stage):
    server = start("--hang-load", stage, "--speed", "1000")
    wait_log(server, LAST_WORDS[stage])
    with pytest.raises(NotServingError):
        server.wait_serving(timeout=0.2)
    said = server.log_text().splitlines()
    assert LAST_WORDS[stage] in next(line for line in reversed(said) if "shm_broadcast" not in line)


LAST_WORDS = {
    "configure": "Model Runner V2 requires Triton",
    "init": "reserved_cpus",
    "load_weights": " 50% Completed | 3/6",
    "compile": "Warming up model for the compilation",
    "warmup": "Warming up done.",
}


@pytest.mark.parametrize("stage", ["configure", "load_weights", "compile"])
def test_a_hang_may_spin(start, stage):
    server = start("--hang-load", stage, "--hang-spin")
    wait_log(server, LAST_WORDS[stage])
    deadline, before = time.monotonic() + 10, cpu_seconds(server)
    while cpu_seconds(server) < before + 0.3:
        assert time.monotonic() < deadline, "it takes no CPU"
        time.sleep(0.05)


def cpu_seconds(server) -> float:
    used = 0
    for pid in server.pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


def test_the_engine_says_again_and_again_that_it_hears_nothing(start):
    server = start("--hang-load", "compile", "--speed", "1000")
    wait_log(server, "No available shared memory broadcast block found in 60 seconds.")
    deadline = time.monotonic() + 10
    while server.log_text().count("No available shared memory broadcast") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_compilation_fills_the_cache_that_is_named(serve, tmp_path):
    log = serve(environment={"VLLM_CACHE_ROOT": str(tmp_path)}).log_text()
    (path,) = re.findall(r"\(Worker pid=\d+\) .* saved AOT compiled function to (.*)", log)
    assert Path(path).is_relative_to(tmp_path / "torch_compile_cache" / "torch_aot_compile")
    assert Path(path).stat().st_size > 0
    assert len(list(tmp_path.glob("torch_compile_cache/**/inductor_cache/*/*.py"))) == 8


def test_an_eager_server_compiles_nothing(serve, tmp_path):
    log = serve("--enforce-eager", environment={"VLLM_CACHE_ROOT": str(tmp_path)}).log_text()
    assert "for the compilation" not in log
    assert list(tmp_path.iterdir()) == []


def test_first_sigterm_of_a_load_is_swallowed(start):
    server = start("--load-seconds", "0.5")
    wait_log(server, "non-default args")
    server.terminate()
    server.wait_serving()
    server.terminate()
    assert server.wait() == 0


def test_second_sigterm_of_a_load_stops_it(start):
    server = start("--hang-load")
    wait_log(server, "Loading safetensors")
    server.terminate()
    time.sleep(0.05)  # two pending signals of one number are one
    server.terminate()
    assert server.wait() == 0


def test_second_sigterm_of_a_load_leaves_its_engine_where_asked(start):
    """As vLLM 0.32: the signal interrupts its wait for the end of EngineCore."""
    server = start("--hang-load", "--orphan-while-loading")
    wait_log(server, "Loading safetensors")
    server.terminate()
    time.sleep(0.05)  # two pending signals of one number are one
    server.terminate()
    assert server.wait() == -signal.SIGINT
    assert [title(pid) for pid in server.engine_pids] == ["VLLM::EngineCore"]


def test_failures_last_as_long_as_a_file_says(start, tmp_path):
    left = tmp_path / "left"
    left.write_text("2")
    failing = ("--fail-load", "bad_arguments", "--failures-left", str(left))
    assert [start(*failing).wait() for _ in range(2)] == [2, 2]
    assert start(*failing).wait_serving()
    assert left.read_text() == "0"


def test_a_model_that_is_not_known_is_not_found(start):
    known = ("--known-models", "org/one", "org/two")
    assert start(*known, model="org/two").wait_serving()
    server = start(*known, model="org/three")
    assert server.wait() == 1
    assert reason_in(server.log_text()) == "model_not_found"


def test_sigterm_kills_a_load_where_asked(start):
    server = start("--hang-load", "--no-ignore-sigterm-while-loading")
    wait_log(server, "Loading safetensors")
    server.terminate()
    assert server.wait() == -signal.SIGTERM


def test_sigterm_before_the_handlers_kills(start):
    server = start("--load-seconds", "30")
    while title(server.pid) == "":
        time.sleep(0.001)
    server.terminate()
    assert server.wait() == -signal.SIGTERM


def test_sigint_while_loading_fails(start):
    server = start("--hang-load")
    wait_log(server, "Loading safetensors")
    server.signal(signal.SIGINT)
    assert server.wait() == 1


def test_ignored_sigterm_needs_sigkill(start):
    server = start("--ignore-sigterm").wait_serving()
    server.terminate()
    server.signal(signal.SIGINT)
    time.sleep(0.1)
    assert server.process.poll() is None
    server.kill()
    assert server.wait() == -signal.SIGKILL
