"""The programs under measurement: started on loopback, ended by whoever started them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.scraper import NoAnswerError, Scraper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT: Final = Path(__file__).parents[1]
BLACKBOX: Final = "prometheus-blackbox-exporter"
NODE: Final = "prometheus-node-exporter"

READY_SECONDS: Final = 60.0
"""A thousand servers are looked at once before the agent is ready."""
STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_LOG_CHARACTERS: Final = 500

# One range for each of several runs at a time, below the kernel's default of 32768.
_FIRST_PORT: Final = 20_000 + os.getpid() % 12 * 1000
_PORTS: Final = iter(range(_FIRST_PORT, _FIRST_PORT + 1000))
_PORTS_LOCK: Final = threading.Lock()

_BLACKBOX_CONFIG: Final = "modules:\n  http_2xx:\n    prober: http\n"


class NotMeasurableError(Exception):
    """A program did not do what a measurement needs; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Program:
    """A running program and the port it answers on."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def pid(self) -> int:
        """Its process, which the kernel accounts for."""
        return self.process.pid

    def wait_until(
        self, is_so: Callable[[], bool], what: str, every_seconds: float = _POLL_SECONDS
    ) -> None:
        """Asks until it is so.

        Raises:
            NotMeasurableError: it was not, for `READY_SECONDS`, or the program ended before.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not is_so():
            if self.process.poll() is not None:
                said = self.log_path.read_text(encoding="utf-8", errors="replace").strip()
                raise NotMeasurableError(
                    f"ended while waiting for {what}: {said[-_LOG_CHARACTERS:]}"
                )
            if time.monotonic() > deadline:
                raise NotMeasurableError(f"not within {READY_SECONDS:g} s: {what}")
            time.sleep(every_seconds)


@dataclass(frozen=True, slots=True)
class Listener:
    """One fake server and the process that serves it."""

    port: int
    pid: int


def free_port() -> int:
    """A port of loopback that nobody listens on, and that this run gave to nobody else.

    It is below those that the kernel gives to outgoing connections: there are thousands of them.
    """
    with _PORTS_LOCK:
        for port in _PORTS:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    return port
    raise NotMeasurableError("no free port")


def is_installed(program: str) -> bool:
    """Whether the peer is on this machine."""
    return shutil.which(program) is not None


@contextmanager
def farm(count: int, *, has_processes: bool = False) -> Iterator[list[Listener]]:
    """`count` fake vLLM servers, in one process or in one each."""
    command = [sys.executable, "-m", "benchmarks.farm", f"--listeners={count}"]
    if has_processes:
        command.append("--processes")
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise NotMeasurableError("the fake servers did not start")
        try:
            yield [Listener(port, pid) for port, pid in json.loads(line)]
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(STOP_SECONDS)


def agent_command(folder: Path, ports: Sequence[int], interval: str, port: int) -> list[str]:
    """The command line of an agent that watches these ports; writes its configuration file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    servers = "".join(
        f"  - {{name: s{number}, mode: external, url: 'http://127.0.0.1:{server_port}',"
        f" probe: {{interval: {interval}}}}}\n"
        for number, server_port in enumerate(ports)
    )
    config.write_text(f"servers:\n{servers}" if ports else "", encoding="utf-8")
    return [
        sys.executable,
        "-m",
        "vllm_agent",
        "run",
        f"--config.file={config}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--state.dir={folder / 'state'}",
    ]


@contextmanager
def agent(folder: Path, ports: Sequence[int], interval: str = "10s") -> Iterator[Program]:
    """An agent that watches a fake server on each port, all of them `running`."""
    port = free_port()
    with running(agent_command(folder, ports, interval, port), folder / "agent.log", port) as it:
        it.wait_until(lambda: answers(port, "/-/ready"), f"the agent with {len(ports)} servers")
        with Scraper(port) as scraper:
            it.wait_until(
                lambda: running_servers(scraper.get().body) == len(ports),
                f"all {len(ports)} servers are running",
            )
        yield it


def running_servers(page: bytes) -> int:
    """How many servers a metrics page shows as running."""
    return sum(
        1
        for line in page.splitlines()
        if line.startswith(b"vllm_agent_server_state{") and line.endswith(b'state="running"} 1.0')
    )


@contextmanager
def node_exporter(folder: Path) -> Iterator[Program]:
    """node_exporter with its default collectors."""
    port = free_port()
    command = [NODE, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with running(command, folder / "node.log", port) as it:
        it.wait_until(lambda: answers(port, "/"), "node_exporter answers")
        yield it


@contextmanager
def blackbox_exporter(folder: Path) -> Iterator[Program]:
    """blackbox_exporter with the module http_2xx."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "blackbox.yml"
    config.write_text(_BLACKBOX_CONFIG, encoding="utf-8")
    address = f"--web.listen-address=127.0.0.1:{port}"
    command = [BLACKBOX, f"--config.file={config}", address, "--log.level=error"]
    with running(command, folder / "blackbox.log", port) as it:
        it.wait_until(lambda: answers(port, "/-/healthy"), "blackbox_exporter answers")
        yield it


@contextmanager
def running(command: Sequence[str], log_path: Path, port: int) -> Iterator[Program]:
    """A program from start to end."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environ)
    try:
        yield Program(process, port, log_path)
    finally:
        _end(process)


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with Scraper(port, path) as scraper:
            return scraper.get().status == 200
    except (OSError, NoAnswerError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
