"""Managed servers for tests: stand-ins that an agent starts, and what is left of them on the host.

What is left is known without the agent: by the marker in the environment, and by the log file that
every process of a launch has as its output, however it was started and whatever it calls itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.e2e.agent_process import LOOK_SECONDS, AgentProcess, wait_until
from vllm_agent.demo.launch import free_port, kill_all, title
from vllm_agent.demo.server import LIFETIME_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MARKER = "LAUNCHED_BY_VLLM_AGENT"
ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "src/vllm_agent/demo/standin/bin/vllm"
LIFETIME_SECONDS = 300
"""A server whose test was killed ends by itself."""

SPEED = 10.0
"""Endings are this much faster than those of a real vLLM."""

STAND_IN_ARGUMENTS = ("--speed", str(SPEED), "--orphan-lifetime", "120")
STAND_IN_ENVIRON = {LIFETIME_VARIABLE: str(LIFETIME_SECONDS)}

REQUEST_SECONDS = 60.0
"""An answer tells what came of a request, which may be a start."""

PATIENCE_SECONDS = 60.0
"""For hangs only: twenty servers that start at once on two cores are slow."""

VIEW_SECONDS = 0.05
"""How often a view is asked for: many at once would leave no time for what is looked at."""

_LOG_NAME = re.compile(r"/logs/[^/]+/[^/]*-([0-9a-f]+)\.log")
_OUTPUTS = (1, 2)
_STATE = 0


@dataclass(frozen=True, kw_only=True)
class Managed:
    """An entry of the configuration: a server that the agent starts, a stand-in unless told.

    `arguments` and `environ` are added to what every stand-in of the tests has.
    """

    name: str
    model: Path
    port: int = field(default_factory=free_port)
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = (sys.executable, str(STAND_IN), "serve")
    environ: Mapping[str, str] = field(default_factory=dict)
    is_stand_in: bool = True
    served_name: str | None = None
    stop_timeout: str = "20s"
    stop_on_exit: bool = False
    user: str | None = field(default_factory=lambda: "root" if os.geteuid() == 0 else None)
    restart: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)

    def entry(self) -> str:
        """The lines of the configuration; JSON is YAML."""
        arguments = STAND_IN_ARGUMENTS if self.is_stand_in else ()
        environ = STAND_IN_ENVIRON if self.is_stand_in else {}
        managed = {
            "command": [*self.command],
            "args": [*arguments, *self.arguments],
            "env": {**environ, **self.environ},
            **({} if self.served_name is None else {"served_model_name": self.served_name}),
            "stop_timeout": self.stop_timeout,
            "stop_on_exit": self.stop_on_exit,
            **({} if self.user is None else {"user": self.user}),
        }
        settings = {
            "name": self.name,
            "mode": "managed",
            "model": str(self.model),
            "url": f"http://127.0.0.1:{self.port}",
            "probe": {"interval": "1s", "timeout": "1s"},
            "restart": {**self.restart},
            "start": {**self.start},
            "managed": managed,
        }
        return f"  - {json.dumps(settings)}\n"


class ManagedAgent(AgentProcess):
    """An agent with managed servers; leaving it ends the agent, and kills what is left of them."""

    def __init__(
        self, folder: Path, *servers: Managed, program: str = "vllm_agent", **more: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, "".join(server.entry() for server in servers), **more)
        self.entries = {server.name: server for server in servers}
        if program != "vllm_agent":
            self._command[self._command.index("vllm_agent")] = program
            self._environ["PYTHONPATH"] = str(ROOT)

    def __enter__(self) -> Self:
        try:
            super().__enter__()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            super().__exit__(*error)
        finally:
            self.kill_what_is_left()

    def configure(self, *servers: Managed) -> None:
        """Writes another configuration, which the agent has not read yet."""
        entries = "".join(server.entry() for server in servers)
        self.config_path.write_text(f"discovery: {{enabled: false}}\nservers:\n{entries}")
        self.entries = {server.name: server for server in servers}

    def kill(self) -> None:
        """Ends the agent by SIGKILL; its servers stay."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_what_is_left(self) -> None:
        """Kills every process of every launch."""
        while pids := [pid for pids in self.left().values() for pid in pids]:
            kill_all(pids)

    # What is on the host.

    def left(self) -> dict[str, list[int]]:
        """PIDs of the processes that live and belong to a launch, by server; zombies do not."""
        found: dict[str, list[int]] = {name: [] for name in self.entries}
        for pid in _living():
            name = self._server_of(pid)
            if name is not None:
                found.setdefault(name, []).append(pid)
        return found

    def pids(self, name: str, prefix: str = "") -> list[int]:
        """PIDs of what is left of one server, those whose title begins with `prefix`."""
        return [pid for pid in self.left().get(name, []) if title(pid).startswith(prefix)]

    def launches_alive(self, name: str) -> set[str]:
        """The ids of the launches of which a process lives."""
        return {*self.launches_of(name)}

    def launches_of(self, name: str) -> dict[str, list[int]]:
        """PIDs of what is left of one server, by the id of their launch."""
        found: dict[str, list[int]] = {}
        for pid in self.pids(name):
            if (launch := _launch_of(pid)) is not None:
                found.setdefault(launch, []).append(pid)
        return found

    def _server_of(self, pid: int) -> str | None:
        logs = f"{self.state_dir}/logs/"
        for output in _OUTPUTS:
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{output}")  # noqa: PTH115 - may be no path
                if target.startswith(logs):
                    return target.removeprefix(logs).partition("/")[0]
        name, _, launch = (_marker(pid) or "").partition("/")
        # Another agent on this host may have a server of the same name.
        return name if name in self.entries and launch.endswith(f"@{self._owner()}") else None

    def _owner(self) -> str:
        try:
            status = self.state_dir.stat()
        except FileNotFoundError:
            return ""
        return f"{status.st_dev:x}:{status.st_ino:x}"

    # What the agent says and is asked.

    def ask(self, name: str, what: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Posts to the control socket; status and answer."""
        return self.post(f"/api/v1/servers/{name}/{what}", body)

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Posts to the control socket; status and answer."""
        connection = _UnixConnection(self.state_dir / "control.sock")
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            is_json = "json" in (answer.getheader("Content-Type") or "")
            return answer.status, json.loads(text) if is_json else {"text": text.decode()}
        finally:
            connection.close()

    def done(self, name: str, what: str, **body: Any) -> dict[str, Any]:
        """As `ask`, which must be answered with 200."""
        status, answer = self.ask(name, what, **body)
        assert status == 200, (status, answer, self.log()[-3000:])
        return answer

    def wait_view(
        self,
        name: str,
        what: str,
        expected: Mapping[str, Any],
        timeout_seconds: float = PATIENCE_SECONDS,
    ) -> dict[str, Any]:
        """Waits until these fields of the server's view, with dots between, have these values."""
        view: dict[str, Any] = {}

        def is_so() -> bool:
            nonlocal view
            view = self.server(name)
            return all(_at(view, key) == value for key, value in expected.items())

        try:
            wait_until(is_so, what, timeout_seconds, VIEW_SECONDS)
        except AssertionError as error:
            told = {key: _at(view, key) for key in (*expected, "state", "reason", "detail")}
            raise AssertionError(f"{name}: {error}: {told}\n{self.log()[-3000:]}") from None
        return view

    def wait_running(
        self, name: str, launches: int | None = None, timeout_seconds: float = PATIENCE_SECONDS
    ) -> dict[str, Any]:
        """Waits until the server runs, in that launch."""
        expected: dict[str, Any] = {"state": "running"}
        if launches is not None:
            expected["launches"] = launches
        return self.wait_view(name, "it runs", expected, timeout_seconds)

    def wait_gone(self, name: str) -> None:
        """Waits until nothing of the server is left."""
        wait_until(
            lambda: not self.pids(name),
            f"nothing of {name} is left: {[title(pid) for pid in self.pids(name)]}",
            timeout_seconds=PATIENCE_SECONDS,
            look_seconds=VIEW_SECONDS,
        )

    def main_pid(self, name: str) -> int:
        """PID of the main process, which leads a session."""
        leaders = [
            pid for pid in self.pids(name) if os.getsid(pid) == pid and " serve " in title(pid)
        ]
        assert len(leaders) == 1, leaders
        return leaders[0]

    def told(self, name: str) -> list[str]:
        """What its newest log says, line by line."""
        return self.launch_logs(name)[-1].read_text(errors="replace").splitlines()

    def kill_part(self, name: str, prefix: str = "VLLM::EngineCore") -> None:
        """Kills the processes of a server that have this title."""
        pids = self.pids(name, prefix)
        assert pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def launch_logs(self, name: str) -> list[Path]:
        """The logs of its launches, oldest first."""
        return sorted((self.state_dir / "logs" / name).iterdir())


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=REQUEST_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def is_serving(port: int) -> bool:
    """Whether /health answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def complete(port: int, model: str) -> str:
    """The text of a completion; raises OSError or AssertionError where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        body = json.dumps({"model": model, "prompt": "one two", "max_tokens": 4})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        completed: str = json.loads(text)["choices"][0]["text"]
        return completed
    finally:
        connection.close()


class Requests:
    """A client that asks for one completion after another, and keeps what failed."""

    def __init__(self, port: int, model: str) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self._port, self._model = port, model
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask_on(self) -> None:
        while not self._over.is_set():
            try:
                complete(self._port, self._model)
                self.answers += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
                self._over.wait(LOOK_SECONDS)

    def wait_more(self) -> None:
        """Waits for some more answers."""
        goal = self.answers + 3
        wait_until(lambda: self.answers >= goal, "there are answers")


def wait_serving(port: int) -> None:
    """Waits until the port serves."""
    wait_until(lambda: is_serving(port), f"port {port} serves")


def wait_marked(name: str, *, but: frozenset[int] = frozenset()) -> int:
    """Waits, without a pause, for a process with the server's marker; its PID."""
    deadline = time.monotonic() + LIFETIME_SECONDS
    while time.monotonic() < deadline:
        for pid in set(_living()) - but:
            marker = _marker(pid)
            if marker is not None and marker.startswith(f"{name}/"):
                return pid
    raise AssertionError(f"{name} was not started")


def _at(view: Any, key: str) -> Any:
    for part in key.split("."):
        view = None if view is None else view.get(part)
    return view


def _living() -> Iterator[int]:
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
                if stat.rpartition(")")[2].split()[_STATE] != "Z":
                    yield int(entry)


def _marker(pid: int) -> str | None:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    for variable in environ.split(b"\0"):
        name, _, value = variable.partition(b"=")
        if name == MARKER.encode():
            return value.decode()
    return None


def _launch_of(pid: int) -> str | None:
    """The launch that a process belongs to; one without a marker has its log all the same."""
    for output in _OUTPUTS:
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{output}")  # noqa: PTH115 - may be no path
            if (named := _LOG_NAME.search(target)) is not None:
                return named[1]
    marker = _marker(pid)
    return None if marker is None else marker.rpartition("/")[2].partition("@")[0]
