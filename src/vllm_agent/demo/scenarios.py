"""The demonstration: stand-in vLLM servers that live, crash and come back under a real agent."""

from __future__ import annotations

import contextlib
import http.client
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm_agent.config.flags import DEFAULT_PORT
from vllm_agent.demo.end_signals import EndSignals
from vllm_agent.demo.launch import StandIn, free_port, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY_SECONDS: Final = 20.0
"""An agent that is not ready by then never will be."""

LOOK_SECONDS: Final = 0.05
"""An agent starts in half a second: nobody sees so short a wait."""

STOP_SECONDS: Final = 5.0
"""More than the 2 s in which the agent ends."""

DOWN_SECONDS: Final = 6.0
"""Long enough to be read as crashed."""

ORPHANED_SECONDS: Final = 45.0
"""Long enough to find the orphans in another terminal."""

LOADED_SECONDS: Final = 75.0
"""Two loads in two minutes: of the second one it is known how long the first took."""

DOWNLOAD_BYTES: Final = 128 * 2**20
"""So much of the disk is taken while the demo runs, for a download whose bytes can be seen."""

STALL_SECONDS: Final = 10.0
"""A load stands still for so long before it counts as stalled: nobody watches for the usual five
minutes."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a scenario plays: its port, the demo's end, and the log its servers write to."""

    port: int
    is_over: threading.Event
    log: Path

    def launch(self, *arguments: str, model: str = "/models/demo") -> StandIn:
        """Starts a server on this stage's port, with its caches beside its log."""
        caches = {
            "HF_HOME": str(self.log.with_suffix(".huggingface")),
            "VLLM_CACHE_ROOT": str(self.log.with_suffix(".cache")),
        }
        return StandIn.start(
            *arguments, model=model, port=self.port, log=self.log, environment=caches
        )

    def pause(self, seconds: float) -> bool:
        """Waits; false when the demo is over."""
        return not self.is_over.wait(seconds)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One server of the demo, what the viewer should see of it, and how it lives."""

    name: str
    story: str
    play: Callable[[Stage], None]
    extra: str = ""


def _steady(stage: Stage) -> None:
    with stage.launch("--load-seconds", "2"):
        stage.is_over.wait()


def _slow(stage: Stage) -> None:
    download = ("--download-seconds", "10", "--download-bytes", str(DOWNLOAD_BYTES))
    while not stage.is_over.is_set():
        with stage.launch("--load-seconds", "20", *download, model="demo/llama-8b") as server:
            if stage.pause(LOADED_SECONDS):
                server.terminate()
                server.wait()


def _stuck(stage: Stage) -> None:
    model = write_checkpoint(stage.log.with_suffix(".model"), shards=6, shard_bytes=2**30)
    arguments = ("--load-seconds", "6", "--hang-load", "--served-model-name", "demo")
    with stage.launch(*arguments, model=str(model)):
        stage.is_over.wait()


def _misnamed(stage: Stage) -> None:
    with stage.launch("--load-seconds", "20", "--fail-load", "model_not_found", model="demo/lama"):
        stage.is_over.wait()


def _flaky(stage: Stage) -> None:
    while not stage.is_over.is_set():
        with stage.launch("--load-seconds", "1") as server:
            if not stage.pause(12):
                return
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            stage.pause(DOWN_SECONDS)


def _orphaned(stage: Stage) -> None:
    while not stage.is_over.is_set():
        with stage.launch("--load-seconds", "1", "--tensor-parallel-size", "2") as server:
            if not stage.pause(10):
                return
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            # Its engine and workers live until the session is killed on the way out.
            stage.pause(ORPHANED_SECONDS)


def _doomed(stage: Stage) -> None:
    with stage.launch("--load-seconds", "1", "--ending", "kill_engine", "--ending-after", "8"):
        stage.is_over.wait()


def _stopped(stage: Stage) -> None:
    with stage.launch("--load-seconds", "1") as server:
        if stage.pause(10):
            server.terminate()
            stage.is_over.wait()


def _hung(stage: Stage) -> None:
    with stage.launch("--load-seconds", "1") as server:
        if stage.pause(10):
            # A stopped process keeps its port: connections are accepted and nothing answers.
            server.signal(signal.SIGSTOP)
            stage.is_over.wait()


def _impostor(stage: Stage) -> None:
    with stage.launch("--load-seconds", "0", "--hostile", "garbage"):
        stage.is_over.wait()


def _other_model(stage: Stage) -> None:
    with stage.launch("--load-seconds", "1", "--served-model-name", "qwen3-8b"):
        stage.is_over.wait()


def _never_started(stage: Stage) -> None:
    stage.is_over.wait()


SCENARIOS: Final = (
    Scenario("steady", "loads for 2 s and serves", _steady),
    Scenario(
        "slow",
        "downloads its model for 10 s, loads it for 20 s, serves, and does it again",
        _slow,
    ),
    Scenario(
        "stuck",
        f"stands still in the middle of its weights: a stall after {STALL_SECONDS:g} s",
        _stuck,
        f"start: {{load_timeout: {STALL_SECONDS:g}s}}",
    ),
    Scenario("misnamed", "names a model that does not exist, and ends", _misnamed),
    Scenario("flaky", "is killed after 12 s and comes back, again and again", _flaky),
    Scenario(
        "orphaned",
        "is killed after 10 s; its workers hold the memory of two GPUs for 45 s more",
        _orphaned,
    ),
    Scenario("doomed", "loses its engine after 8 s, exits 0 and stays away", _doomed),
    Scenario("stopped", "is told to stop after 10 s, exits 0 too, and stays away", _stopped),
    Scenario("hung", "stops answering after 10 s", _hung),
    Scenario("impostor", "speaks something that is not HTTP", _impostor),
    Scenario("other-model", "serves another model than expected", _other_model, "model: llama"),
    Scenario("never-started", "is configured, and that is all", _never_started),
)


def run_demo(seconds: float | None = None) -> int:
    """Plays until one of `END_SIGNALS`, or for that many seconds; returns the exit code."""
    with (
        EndSignals() as signals,
        tempfile.TemporaryDirectory(prefix="vllm-agent-demo-") as folder,
    ):
        return _run(Path(folder), seconds, signals)


def _run(folder: Path, seconds: float | None, signals: EndSignals) -> int:
    page_port = _page_port()
    stages = {s.name: Stage(free_port(), threading.Event(), folder / s.name) for s in SCENARIOS}
    config = folder / "vllm-agent.yml"
    config.write_text(configuration(stages), encoding="utf-8")
    command = [sys.executable, "-m", "vllm_agent"]
    state = f"--state.dir={folder / 'state'}"
    listen = f"--web.listen-address=127.0.0.1:{page_port}"
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(  # noqa: S603 - our own program
            [*command, "run", f"--config.file={config}", listen, state], stdout=log, stderr=log
        )
    try:
        if not _is_ready(agent, page_port, signals):
            if signals.has_come:
                return 0
            sys.stderr.write((folder / "agent.log").read_text(encoding="utf-8"))
            return 1
        _introduce(page_port, [*command, "gpus", state])
        with _played(stages):
            _show([*command, "status", "--watch", state], seconds, signals)
    finally:
        _end(agent)
    return 0


def configuration(stages: dict[str, Stage]) -> str:
    """The configuration file of the agent that watches the play."""
    # Others that run on this host, and its GPUs, are not part of the play.
    lines = [
        "discovery: {enabled: false}",
        "gpu: {nvml: off, amdgpu: off, demo: true}",
        "servers:",
    ]
    for scenario in SCENARIOS:
        lines += [
            f"  - name: {scenario.name}",
            f"    match: {{port: {stages[scenario.name].port}}}",
            "    probe: {interval: 2s, timeout: 1s}",
        ]
        if scenario.extra:
            lines.append(f"    {scenario.extra}")
    return "\n".join(lines) + "\n"


def _introduce(port: int, gpus: list[str]) -> None:
    width = max(len(s.name) for s in SCENARIOS)
    told = "\n".join(f"  {s.name:{width}}  {s.story}" for s in SCENARIOS)
    sys.stdout.write(
        f"{told}\n\npage: http://127.0.0.1:{port}/    Ctrl-C ends the demo\n"
        "who holds GPU memory shows, in another terminal, vllm-agent gpus; here it is\n"
        f"  {shlex.join(gpus)}\n\n"
    )
    sys.stdout.flush()


@contextlib.contextmanager
def _played(stages: dict[str, Stage]) -> Iterator[None]:
    threads = [threading.Thread(target=s.play, args=(stages[s.name],)) for s in SCENARIOS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for stage in stages.values():
            stage.is_over.set()
        for thread in threads:
            thread.join()


def _show(watch: list[str], seconds: float | None, signals: EndSignals) -> None:
    """Shows the live table, which is the command `status --watch`."""
    shown = subprocess.Popen(watch)  # noqa: S603 - our own program
    try:
        signals.wait_for_exit(shown.pid, seconds)
    finally:
        _end(shown)


def _is_ready(agent: subprocess.Popen[bytes], port: int, signals: EndSignals) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and agent.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with contextlib.suppress(OSError):
            connection.request("GET", "/-/ready")
            if connection.getresponse().status == http.client.OK:
                return True
        connection.close()
        if signals.wait(LOOK_SECONDS):
            break
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _page_port() -> int:
    """The agent's own port where it is free, so that the page is where the docs say."""
    try:
        with socket.create_server(("127.0.0.1", DEFAULT_PORT)):
            return DEFAULT_PORT
    except OSError:
        return free_port()
