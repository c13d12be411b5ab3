"""The demonstration, as somebody sees it who pipes it into a file."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.e2e.agent_process import wait_until
from vllm_agent.config.choices import GpuUse
from vllm_agent.config.gpu import GpuConfig
from vllm_agent.config.load import load
from vllm_agent.demo import launch
from vllm_agent.demo.end_signals import END_SIGNALS, EndSignals
from vllm_agent.demo.launch import StandIn, free_port, kill_all, session_pids, title
from vllm_agent.demo.scenarios import SCENARIOS, STOP_SECONDS, Stage, _show, configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_SECONDS = 60
"""A machine that shows less in this time shows nothing."""


class _Mark:
    """A variable that all processes of a demo inherit, however far from it, and no others have."""

    def __init__(self) -> None:
        self._name, self._value = "VLLM_AGENT_TEST_MARK", uuid.uuid4().hex

    @property
    def environ(self) -> dict[str, str]:
        """This environment, with it; without SPT_NOENV it goes where a title is set."""
        return {**os.environ, self._name: self._value, "SPT_NOENV": "1"}

    def pids(self, part: str = "") -> list[int]:
        """What runs with it, and with `part` in its command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environ = (path / "environ").read_bytes().split(b"\0")
                if f"{self._name}={self._value}".encode() in environ:
                    found.append(int(path.name))
        return [pid for pid in found if part in title(pid)]


@contextlib.contextmanager
def _demo(*patterns: str) -> Iterator[str]:
    """The demo once it has shown all of that; leaving ends it, and all of it, as Ctrl-C does."""
    wanted, shown, mark = set(patterns), "", _Mark()
    command = [sys.executable, "-m", "vllm_agent", "demo", "--for", f"{PATIENCE_SECONDS}s"]
    with subprocess.Popen(
        command, env=mark.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        assert demo.stdout is not None
        try:
            while wanted and (line := demo.stdout.readline()):
                shown += line
                wanted = {pattern for pattern in wanted if not re.search(pattern, shown)}
            assert not wanted, shown
            yield shown
        finally:
            demo.send_signal(signal.SIGINT)
            rest = demo.stdout.read()
    assert demo.returncode == 0, shown + rest
    assert [title(pid) for pid in mark.pids()] == []


def _gpus(shown: str) -> str:
    """What the command tells that the introduction names."""
    (command,) = re.findall(r"^  (.* gpus --state.dir=.*)$", shown, flags=re.MULTILINE)
    return subprocess.run(
        shlex.split(command), capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    ).stdout


def test_it_shows_servers_come_and_who_holds_its_gpus_and_leaves_nothing_behind():
    with _demo(
        r"steady +running",
        r"impostor +failed +unhealthy",
        r"other-model +failed +model_missing",
        r"misnamed +crashed +model_not_found",
    ) as shown:
        gpus = _gpus(shown)
    assert re.search(r"page: http://127\.0\.0\.1:\d+/", shown)
    assert all(f"  {scenario.name}" in shown for scenario in SCENARIOS)
    assert "synthetic" in gpus


@pytest.fixture(scope="module", autouse=True)
def _hangups_arrive() -> Iterator[None]:
    """Under nohup they would be ignored, here and in whatever is started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class _MarkedDemo:
    """A demo in a session of its own, whose files are below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._mark = _Mark()
        self.folder = folder
        self.pids = self._mark.pids

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm_agent", "demo", "--for", f"{PATIENCE_SECONDS}s"],
            env={**self._mark.environ, "TMPDIR": str(self.folder)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        kill_all(self.pids())
        self.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_all_that_runs_also_what_is_stopped(tmp_path: Path, number):
    with _MarkedDemo(tmp_path) as demo:
        wait_until(lambda: bool(demo.pids("VLLM::Worker")), "a stand-in has its workers")
        (session,) = {os.getsid(pid) for pid in demo.pids("VLLM::Worker")}
        for pid in session_pids(session):
            os.kill(pid, signal.SIGSTOP)

        demo.process.send_signal(number)

        assert demo.process.wait(PATIENCE_SECONDS) == 0
        assert [title(pid) for pid in demo.pids()] == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["vllm_agent run", "/models/demo"])
@pytest.mark.parametrize("number", END_SIGNALS)
def test_a_signal_ends_it_while_it_starts(tmp_path: Path, number, part):
    with _MarkedDemo(tmp_path) as demo:
        wait_until(lambda: bool(demo.pids(part)), f"{part} runs")

        # `timeout` sends two: to the demo and to all its group.
        os.killpg(demo.process.pid, number)
        demo.process.send_signal(number)

        assert demo.process.wait(PATIENCE_SECONDS) == 0
        assert [title(pid) for pid in demo.pids()] == []
        assert list(tmp_path.iterdir()) == []


def test_what_a_stand_in_starts_while_it_is_killed_is_killed_too(monkeypatch):
    server = StandIn.start("--load-seconds", "0").wait_serving()
    looks = [[server.pid]]
    monkeypatch.setattr(
        launch, "session_pids", lambda pid: looks.pop() if looks else session_pids(pid)
    )

    server.close()

    assert session_pids(server.pid) == []


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with EndSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.has_come
            signal.raise_signal(signal.SIGTERM)
            assert signals.has_come
            assert signals.wait(None)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_it_ends_by_itself_after_the_time_that_was_asked_for():
    began = time.monotonic()
    with EndSignals() as signals:
        _show([sys.executable, "-c", "import time; time.sleep(60)"], 0.05, signals)
    assert time.monotonic() - began < STOP_SECONDS


@dataclass(frozen=True)
class _Rehearsal(Stage):
    """A stage without waiting: `scenes` are the titles of what runs at each pause."""

    launched: list[StandIn] = field(default_factory=list)
    scenes: list[list[str]] = field(default_factory=list)

    def launch(self, *arguments: str, model: str = "/models/demo") -> StandIn:
        server = super().launch(*arguments, model=model).wait_serving()
        self.launched.append(server)
        return server

    def pause(self, seconds: float) -> bool:
        assert seconds > 0
        (server,) = self.launched
        if self.scenes:
            server.wait()
            self.is_over.set()
        self.scenes.append([title(pid) for pid in server.pids("VLLM::")])
        return not self.is_over.is_set()


def test_the_orphaned_server_leaves_its_workers_until_the_scene_ends(tmp_path: Path):
    stage = _Rehearsal(free_port(), threading.Event(), tmp_path / "log")
    (scenario,) = (s for s in SCENARIOS if s.name == "orphaned")

    scenario.play(stage)

    holders = ["VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"]
    assert stage.scenes == [holders, holders]
    assert stage.launched[0].pids() == []


def test_its_gpus_are_not_those_of_this_host(tmp_path: Path):
    stages = {s.name: Stage(8000 + n, threading.Event(), tmp_path) for n, s in enumerate(SCENARIOS)}
    path = tmp_path / "vllm-agent.yml"
    path.write_text(configuration(stages), encoding="utf-8")

    gpu = load(path, {}).gpu
    assert gpu == GpuConfig(nvml=GpuUse.OFF, amdgpu=GpuUse.OFF, demo=True)
