"""Starts of a real vLLM that fail, and the reason that an agent gives for each."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.vllm.prepare import default_cache
from tests.vllm.real_vllm import RealVllm, reserve_port
from vllm_agent.cli.agent_client import AgentClient
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)

AT_ONCE = 2
"""A start keeps one core busy, and two are what a small machine has."""

FAIL_SECONDS = 120.0
"""Where it is alone on two cores a start fails within 10 s."""

MODEL = "{cache}/model"
MISSING = "{folder}/no-such-model"
UNSUPPORTED = "{folder}/unsupported"


@dataclass(frozen=True)
class Failure:
    """A start that fails: how, and what an agent must say of it.

    `pattern` is the name of what its log says, `logged` a piece of that line, `advice` words that
    only this server's advice has.
    """

    name: str
    reason: Reason
    pattern: str
    logged: str
    model: str = MODEL
    arguments: tuple[str, ...] = ()
    kv_cache_gib: int = 1
    exit_code: int = 1
    advice: str = ""
    is_port_taken: bool = False
    is_long: bool = False


FAILURES = (
    Failure(
        "wrong path",
        Reason.MODEL_NOT_FOUND,
        pattern="neither a folder nor a model on the Hub",
        logged="Repo id must be in the form",
        model=MISSING,
        advice=MISSING,
    ),
    Failure(
        "not in the cache",
        Reason.AIRGAPPED,
        pattern="not in the cache, and downloads are off",
        logged="outgoing traffic has been disabled",
        model="org/does-not-exist",
        advice="hf download org/does-not-exist",
    ),
    Failure(
        "context too long",
        Reason.CONTEXT_TOO_LONG,
        pattern="max_model_len is greater than the model allows",
        logged="is greater than the derived max_model_len",
        arguments=("--max-model-len", "2000000"),
        advice=f"{MODEL}/config.json",
    ),
    Failure(
        "port taken",
        Reason.PORT_IN_USE,
        pattern="address already in use",
        logged="Address already in use",
        advice=f"PID {os.getpid()}",
        is_port_taken=True,
    ),
    Failure(
        "too little memory",
        Reason.KV_CACHE_TOO_SMALL,
        pattern="less memory is free than the KV cache is to have",
        logged="is less than requested memory for kv",
        kv_cache_gib=4000,
    ),
    Failure(
        "unknown flag",
        Reason.BAD_ARGUMENTS,
        pattern="vLLM does not take its arguments",
        logged="unrecognized arguments: --no-such-flag",
        arguments=("--no-such-flag",),
        exit_code=2,
    ),
    Failure(
        "unknown choice",
        Reason.BAD_ARGUMENTS,
        pattern="vLLM does not take its arguments",
        logged="invalid choice: 'float7'",
        arguments=("--dtype", "float7"),
        exit_code=2,
        is_long=True,
    ),
    Failure(
        "unsupported model",
        Reason.UNSUPPORTED_MODEL,
        pattern="the architecture is not supported",
        logged="are not supported for now",
        model=UNSUPPORTED,
        is_long=True,
    ),
)

PARAMETERS = [
    pytest.param(failure, id=failure.name, marks=pytest.mark.long if failure.is_long else ())
    for failure in FAILURES
]


@dataclass(frozen=True)
class Failed:
    """A start that has failed: its exit status, the name of its server, where its model was."""

    exit_code: int
    name: str
    folder: Path


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent that was told nothing: it finds every server by itself."""
    with AgentProcess(tmp_path_factory.mktemp("agent")) as agent:
        yield agent


@pytest.fixture(scope="module")
def failed(
    request: pytest.FixtureRequest, agent: AgentProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Failure, Future[Failed]]]:
    """What comes of each failure that was selected, `AT_ONCE` of them at a time."""
    del agent  # it has to be there before them
    failures: list[Failure] = [
        cast("Failure", item.callspec.params["failure"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.originalname == test_failure.__name__
        and item.path == request.path
    ]
    folder = tmp_path_factory.mktemp("vllm")
    _make_unsupported(folder)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {failure: pool.submit(_fail, failure, folder) for failure in failures}
        pool.shutdown(cancel_futures=True)


def _fail(failure: Failure, folder: Path) -> Failed:
    port = reserve_port()
    server = RealVllm(
        folder,
        port,
        model=_filled(failure.model, folder),
        arguments=failure.arguments,
        environment={"VLLM_CPU_KVCACHE_SPACE": str(failure.kv_cache_gib)},
    )
    with ExitStack() as stack:
        if failure.is_port_taken:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        stack.enter_context(server)
        return Failed(server.wait(FAIL_SECONDS), server.name, folder)


def _make_unsupported(folder: Path) -> None:
    """A model whose architecture no vLLM knows."""
    target = folder / "unsupported"
    target.mkdir()
    for path in (default_cache() / "model").iterdir():
        (target / path.name).symlink_to(path)
    config = target / "config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text.replace("LlamaForCausalLM", "NoSuchForCausalLM"))


def _filled(text: str, folder: Path) -> str:
    return text.format(cache=default_cache(), folder=folder)


@pytest.mark.parametrize("failure", PARAMETERS)
def test_failure(
    failure: Failure, failed: dict[Failure, Future[Failed]], agent: AgentProcess
) -> None:
    """Reason, evidence and advice are for everybody, the lines of its log for the socket only."""
    ended = failed[failure].result()
    labels = {"server": ended.name, "reason": failure.reason}
    agent.wait_state(ended.name, "crashed")
    view = agent.server(ended.name)
    ending: dict[str, Any] = view["last_ending"]
    print(json.dumps(ending, indent=2))
    assert ended.exit_code == failure.exit_code
    assert ending["exit_code"] in {None, failure.exit_code}
    assert (view["reason"], ending["reason"]) == (failure.reason, failure.reason)
    assert ending["rule"] == 2
    assert ending["evidence"][0] == f"its log says: {failure.pattern}"
    assert _filled(failure.advice, ended.folder) in view["advice"]
    assert view["advice"] == ending["advice"]
    assert (ending["holder"] is None) != failure.is_port_taken

    assert agent.sample("server_failure_reason", **labels) == 1
    assert agent.sample("server_crashes_total", **labels) == 1
    at_seconds = agent.sample("server_last_crash_timestamp_seconds", **labels)
    assert at_seconds == pytest.approx(ending["timestamp_seconds"])

    with AgentClient(agent.state_dir) as client:
        (launch,) = client.history(ended.name, limit=10).json["launches"]
    print("\n".join(launch["ending"]["log"]))
    assert any(failure.logged in line for line in launch["ending"]["log"])
    assert launch["ending"]["reason"] == failure.reason
    for path in ("", "/history"):
        _, _, body = agent.get(f"/api/v1/servers/{ended.name}{path}")
        assert '"log":' not in body.decode()
        assert failure.logged not in body.decode()
