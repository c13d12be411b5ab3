"""The demonstration, as somebody sees it who pipes it into a file."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_agent.config.choices import GpuUse
from vllm_agent.config.gpu import GpuConfig
from vllm_agent.config.load import load
from vllm_agent.demo.launch import StandIn, free_port, title
from vllm_agent.demo.scenarios import SCENARIOS, STOP_SECONDS, Stage, _show, configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_SECONDS = 60
"""A machine that shows less in this time shows nothing."""


def _stand_ins() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"/models/demo" in path.read_bytes():
                found.add(path.parent.name)
    return found


@contextlib.contextmanager
def _demo(*patterns: str) -> Iterator[str]:
    """The demo once it has shown all of that; leaving ends it as Ctrl-C does."""
    wanted, shown = set(patterns), ""
    command = [sys.executable, "-m", "vllm_agent", "demo", "--for", f"{PATIENCE_SECONDS}s"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


def _gpus(shown: str) -> str:
    """What the command tells that the introduction names."""
    (command,) = re.findall(r"^  (.* gpus --state.dir=.*)$", shown, flags=re.MULTILINE)
    return subprocess.run(
        shlex.split(command), capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    ).stdout


def test_it_shows_servers_come_and_who_holds_its_gpus_and_leaves_nothing_behind():
    before = _stand_ins()
    with _demo(
        r"steady +running", r"impostor +failed +unhealthy", r"other-model +failed +model_missing"
    ) as shown:
        gpus = _gpus(shown)
    assert re.search(r"page: http://127\.0\.0\.1:\d+/", shown)
    assert all(f"  {scenario.name}" in shown for scenario in SCENARIOS)
    assert "synthetic" in gpus
    assert _stand_ins() <= before


def test_it_ends_by_itself_after_the_time_that_was_asked_for():
    began = time.monotonic()
    _show([sys.executable, "-c", "import time; time.sleep(60)"], 0.05)
    assert time.monotonic() - began < STOP_SECONDS


@dataclass(frozen=True)
class _Rehearsal(Stage):
    """A stage without waiting: `scenes` are the titles of what runs at each pause."""

    launched: list[StandIn] = field(default_factory=list)
    scenes: list[list[str]] = field(default_factory=list)

    def launch(self, *arguments: str) -> StandIn:
        server = super().launch(*arguments).wait_serving()
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
