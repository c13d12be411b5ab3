"""The agent as its users run it: a process with a configuration file, a port and a state folder."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prometheus_client.parser import text_string_to_metric_families

from vllm_agent.demo.launch import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOOK_SECONDS = 0.02
DEADLINE_SECONDS = 20.0


def wait_until(
    is_so: Callable[[], bool],
    what: str,
    timeout_seconds: float = DEADLINE_SECONDS,
    look_seconds: float = LOOK_SECONDS,
) -> None:
    """Looks until `is_so`, since what other processes do sends no event here."""
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds:g} s: {what}")
        time.sleep(look_seconds)


class AgentProcess:
    """One running agent; its log is in `log_path`.

    It discovers servers only where no server is given, or `discovery` says so: others may run on
    this host. `prefix` is a command that runs it, such as setpriv.
    """

    def __init__(
        self,
        folder: Path,
        servers: str = "",
        *,
        flags: tuple[str, ...] = (),
        port: int | None = None,
        environ: Mapping[str, str] | None = None,
        discovery: str | None = None,
        gpu: str = "{}",
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.state_dir = folder / "state"
        self.log_path = folder / "agent.log"
        self.config_path = folder / "config.yml"
        settings = discovery or ("{enabled: false}" if servers else "{}")
        listed = f"servers:\n{servers}" if servers else ""
        self.config_path.write_text(f"discovery: {settings}\ngpu: {gpu}\n{listed}")
        self._command = [
            *prefix,
            sys.executable,
            "-m",
            "vllm_agent",
            "run",
            f"--config.file={self.config_path}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            f"--state.dir={self.state_dir}",
            *flags,
        ]
        self._environ = {**os.environ, **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def start(self, *, wait_ready: bool = True) -> None:
        """Starts the process, and waits for /-/ready."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environ, start_new_session=True
            )
        # Linux divides the processor among sessions first (sched(7), autogroup), and beside that of
        # a busy vLLM a new one starves. Only root may give it more.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/autogroup").write_text("-10")
        if wait_ready:
            wait_until(self.is_ready, f"the agent is ready; its log says: {self.log()}")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Ends it by signal; returns its exit status and the seconds it took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE_SECONDS)
        return status, time.monotonic() - started

    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text()

    def is_ready(self) -> bool:
        """Whether /-/ready says so; a dead agent fails the test at once."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return self.get("/-/ready")[0] == 200
        except OSError:
            return False

    def get(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def server(self, name: str) -> dict[str, Any]:
        """The API's answer on one server."""
        status, _, body = self.get(f"/api/v1/servers/{name}")
        assert status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """The whole /metrics page by name and labels."""
        text = self.get("/metrics")[2].decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def sample(self, name: str, **labels: str) -> float | None:
        """The value of one series, None where it is absent."""
        return self.samples().get((f"vllm_agent_{name}", frozenset(labels.items())))

    def state(self, name: str) -> str:
        """The state that /metrics shows: the one that is 1."""
        states = [
            dict(labels)["state"]
            for (metric, labels), value in self.samples().items()
            if metric == "vllm_agent_server_state" and value == 1 and ("server", name) in labels
        ]
        assert len(states) == 1, states
        return states[0]

    def wait_state(self, name: str, state: str, timeout_seconds: float = DEADLINE_SECONDS) -> None:
        """Waits until /metrics shows the state."""
        wait_until(
            lambda: self.state(name) == state,
            f"{name} is {state}; {self.log()[-2000:]}",
            timeout_seconds,
        )

    def cli(
        self, *arguments: str, timeout_seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of the CLI against this agent."""
        return subprocess.run(
            [sys.executable, "-m", "vllm_agent", *arguments, f"--state.dir={self.state_dir}"],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
