"""What the agent's own tasks do about faults, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from tests.runner.virtual_time import run_virtually
from vllm_agent import agent, roster_entry
from vllm_agent.store import StateDirectoryInUse
from vllm_agent.web_server import CannotListen, WebServer

if TYPE_CHECKING:
    from aiohttp import web

    from vllm_agent.config.flags import Settings
    from vllm_agent.config.model import Config
    from vllm_agent.server_runner import ServerRunner


def test_a_runner_that_fails_is_told_and_begun_again_after_a_pause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing:
        is_faulty = False
        begun: list[float] = []  # noqa: RUF012 - one instance

        async def run(self) -> None:
            self.begun.append(asyncio.get_running_loop().time())
            raise RuntimeError("a fault of the agent")

    runner = Failing()

    async def main() -> None:
        task = asyncio.create_task(roster_entry.supervised("a", cast("ServerRunner", runner)))
        await asyncio.sleep(2.5 * roster_entry.FAULT_PAUSE_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtually(main())
    assert runner.begun == [
        0.0,
        roster_entry.FAULT_PAUSE_SECONDS,
        2 * roster_entry.FAULT_PAUSE_SECONDS,
    ]
    assert runner.is_faulty
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 3


async def test_what_a_configuration_ignores_is_logged_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class NoStore:
        @staticmethod
        async def open(*_: object, **__: object) -> None:
            raise StateDirectoryInUse(Path("state"), None)

    monkeypatch.setattr(agent, "Store", NoStore)
    monkeypatch.setattr(agent, "raise_open_files", lambda: None)
    config = SimpleNamespace(warnings=("VLLM_AGENT_X: is not read",))
    settings = cast("Settings", SimpleNamespace(state_dir=Path("state")))
    with pytest.raises(StateDirectoryInUse):
        await agent._Agent(settings, cast("Config", config)).run()
    [told] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert vars(told)["detail"] == "VLLM_AGENT_X: is not read"


def test_a_control_socket_is_tried_again_until_it_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[float] = []

    class Reluctant(WebServer):
        async def serve_socket(self, path: Path, app: web.Application) -> None:
            tried.append(asyncio.get_running_loop().time())
            if len(tried) < 3:
                raise CannotListen(f"cannot listen on {path}: read-only")

    settings = cast("Settings", SimpleNamespace(state_dir=Path("state")))
    subject = agent._Agent(settings, cast("Config", SimpleNamespace(servers=())))
    app = cast("web.Application", None)

    async def main() -> None:
        server = Reluctant()
        assert not await subject._serve_control(server, app)
        subject._control_retry = asyncio.create_task(subject._serve_control_later(server, app))
        await subject._control_retry

    run_virtually(main())
    assert tried == [0.0, agent.CONTROL_RETRY_SECONDS, 2 * agent.CONTROL_RETRY_SECONDS]
    assert [r.levelname for r in caplog.records if r.levelno >= logging.WARNING] == ["WARNING"]
