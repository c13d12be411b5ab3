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
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).parents[1]
BLACKBOX: Final = "prometheus-blackbox-exporter"
NODE: Final = "prometheus-node-exporter"
PROMETHEUS: Final = "prometheus"

READY_SECONDS: Final = 60.0
"""A thousand servers are looked at once before the agent is ready."""
STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_LOG_CHARACTERS: Final = 500

# One range for each of several runs at a time, below the kernel's default of 32768.
_FIRST_PORT: Final = 20_000 + os.getpid() % 12 * 1000
_PORTS: Final = iter(range(_FIRST_PORT, _FIRST_PORT + 1000))
_PORTS_LOCK: Final = threading.Lock()

# What an installed agent does not have: settings, and modules that are compiled at every start.
_LEFT_OUT: Final = ("VLLM_", "PYTHONDONTWRITEBYTECODE")

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
        self,
        is_so: Callable[[], bool],
        what: str,
        every_seconds: float = _POLL_SECONDS,
        within_seconds: float = READY_SECONDS,
    ) -> None:
        """Asks until it is so.

        Raises:
            NotMeasurableError: it was not, for `within_seconds`, or the program ended before.
        """
        deadline = time.monotonic() + within_seconds
        while not is_so():
            if self.process.poll() is not None:
                said = self.log_path.read_text(encoding="utf-8", errors="replace").strip()
                raise NotMeasurableError(
                    f"ended while waiting for {what}: {said[-_LOG_CHARACTERS:]}"
                )
            if time.monotonic() > deadline:
                raise NotMeasurableError(f"not within {within_seconds:g} s: {what}")
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


def external_server(number: int, port: int, interval: str) -> str:
    """The lines of the configuration for a server that is watched by its URL alone."""
    return (
        f"  - {{name: s{number}, mode: external, url: 'http://127.0.0.1:{port}',"
        f" probe: {{interval: {interval}}}}}\n"
    )


def local_server(number: int, port: int, interval: str) -> str:
    """The lines of the configuration for a server whose processes are found and followed."""
    return f"  - {{name: s{number}, match: {{port: {port}}}, probe: {{interval: {interval}}}}}\n"


def agent_command(folder: Path, config_text: str, port: int) -> list[str]:
    """The command line of an agent with this configuration, which is written to its file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    config.write_text(config_text, encoding="utf-8")
    return [
        sys.executable,
        "-m",
        "vllm_agent",
        "run",
        f"--config.file={config}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--state.dir={folder / 'state'}",
    ]


def config_of(
    ports: Sequence[int],
    interval: str = "10s",
    server: Callable[[int, int, str], str] = external_server,
) -> str:
    """A configuration with the servers `s0`, `s1` … on these ports, and no others of the host."""
    servers = "".join(server(number, port, interval) for number, port in enumerate(ports))
    return f"discovery: {{enabled: false}}\nservers:\n{servers}"


@contextmanager
def agent(
    folder: Path,
    ports: Sequence[int],
    interval: str = "10s",
    server: Callable[[int, int, str], str] = external_server,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """An agent that watches the server on each port, all of them `running`."""
    with started_agent(folder, config_of(ports, interval, server), environment) as it:
        await_running(it, len(ports))
        yield it


@contextmanager
def started_agent(
    folder: Path, config_text: str, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """An agent that is ready."""
    port = free_port()
    command = agent_command(folder, config_text, port)
    with running(command, folder / "agent.log", port, environment) as it:
        it.wait_until(lambda: answers(port, "/-/ready"), "the agent is ready")
        yield it


def await_running(agent: Program, count: int, within_seconds: float = READY_SECONDS) -> None:
    """Waits until the agent shows so many servers as running.

    Raises:
        NotMeasurableError: it does not.
    """
    with Scraper(agent.port) as scraper:
        agent.wait_until(
            lambda: running_servers(scraper.get().body) == count,
            f"all {count} servers are running",
            within_seconds=within_seconds,
        )


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
def prometheus(folder: Path, ports: Sequence[int], interval: str) -> Iterator[Program]:
    """Prometheus that scrapes /metrics of each port; the job is `servers`."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.yml"
    targets = ", ".join(f"'127.0.0.1:{target}'" for target in ports)
    config.write_text(
        f"scrape_configs:\n  - job_name: servers\n    scrape_interval: {interval}\n"
        f"    scrape_timeout: {interval}\n    static_configs: [{{targets: [{targets}]}}]\n",
        encoding="utf-8",
    )
    command = [
        PROMETHEUS,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with running(command, folder / "prometheus.log", port) as it:
        it.wait_until(lambda: answers(port, "/-/ready"), "Prometheus is ready")
        # Its targets take effect seconds later.
        with Scraper(port, "/api/v1/query?query=up", is_compressed=False) as scraper:
            it.wait_until(
                lambda: scraper.get().body.count(b'"instance"') == len(ports),
                "Prometheus has scraped every server",
            )
        yield it


@contextmanager
def running(
    command: Sequence[str], log_path: Path, port: int, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """A program from start to end; `environment` is added to that of this process."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)
    } | dict(environment or {})
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
