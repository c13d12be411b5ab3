"""An engine that breaks while it serves: its words, and who ends how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.standin.conftest import ask, reason_in
from vllm_agent.demo.standin.serving_failures import SERVING_FAILURES
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.demo.launch import StandIn

WORDS = {
    "gpu_fault": "CUDA error: an illegal memory access was encountered",
    "gpu_oom": "torch.OutOfMemoryError: CUDA out of memory",
    "nccl": "Watchdog caught collective operation timeout: WorkNCCL(",
}


def test_each_is_a_reason():
    assert SERVING_FAILURES.keys() == WORDS.keys() <= set(Reason)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("reason", WORDS)
def test_it_serves_then_says_why_and_exits_0(start, reason, workers):
    server = start("--fail-serving", reason, "--ending-after", "0.2", "--workers", workers)
    server.wait_serving()
    assert ask(server, "/health").status == 200

    assert server.wait() == 0
    log = server.log_text()
    assert WORDS[reason] in log
    assert log.index("Application startup complete") < log.index(WORDS[reason])
    assert reason_in(log) == reason
    assert server.engine_pids == server.worker_pids == []


def test_the_worker_names_the_cause_before_its_engine_does(start):
    log = _log_of(start, "gpu_fault")

    cause = log.index("torch.AcceleratorError: CUDA error")
    assert cause < log.index("EngineCore encountered a fatal error.")
    assert cause < log.index("Worker failed with error 'CUDA error: an illegal memory access")
    assert "please check the stack trace above for the root cause" in log
    assert log.index("EngineCore encountered") < log.index("EngineDeadError")


def test_a_watchdog_ends_its_worker_by_abort(start):
    assert "VllmWorker-0 died unexpectedly (exit code: -6)" in _log_of(start, "nccl")


def test_several_api_servers_see_it_too(start):
    server = start("--fail-serving", "gpu_fault", "--api-server-count", "2").wait_serving()

    assert server.wait() == 1
    assert WORDS["gpu_fault"] in server.log_text()


def _log_of(start: Callable[..., StandIn], reason: str) -> str:
    server = start("--fail-serving", reason)
    server.wait()
    return server.log_text()
