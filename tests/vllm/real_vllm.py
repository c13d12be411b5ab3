"""A real vLLM on the CPU, started as users start it, in a session of its own."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Self

from tests.vllm.prepare import default_cache
from vllm_agent.demo.launch import kill_all, session_pids

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STOP_SECONDS = 60.0
"""A stop takes 0.5 s, with clients that hold on some seconds more."""

LOAD_SECONDS = 240.0
"""A load takes 28 s where it is alone on two cores."""

POLL_SECONDS = 0.02
"""How exactly `wait_serving` knows the moment."""

# Below the ports that the kernel hands out: a load binds seconds after its start.
_PORTS = itertools.count(18_100)


def reserve_port() -> int:
    """A TCP port of the loopback that no other call gets."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


class RealVllm:
    """`vllm serve` of a model, the tiny one unless told, with `arguments` after the usual ones.

    Its output is in `log_path`, or nowhere with `has_log` false. Use it as a context manager:
    leaving it kills every process of its session, orphans too.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        model: str | None = None,
        arguments: tuple[str, ...] = (),
        has_log: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = reserve_port() if port is None else port
        self.log_path = folder / f"vllm-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.started_seconds = 0.0
        self.ended_seconds: float | None = None
        self._model = model
        self._arguments = arguments
        self._has_log = has_log
        self._environment = environment or {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def name(self) -> str:
        """What an agent that discovers it calls it."""
        return f"tiny@{self.port}"

    @property
    def pid(self) -> int:
        """PID of the main process, which is also the session and the process group."""
        assert self.process is not None
        return self.process.pid

    @property
    def engine_pids(self) -> list[int]:
        """PIDs of the EngineCores that exist, by title."""
        return self.pids("VLLM::EngineCore")

    @property
    def worker_pids(self) -> list[int]:
        """PIDs of the workers that exist, by title."""
        return self.pids("VLLM::Worker")

    @property
    def api_server_pids(self) -> list[int]:
        """PIDs of the API servers below a main process that only watches."""
        return self.pids("VLLM::APIServer")

    def pids(self, prefix: str = "") -> list[int]:
        """PIDs of the session whose title begins with `prefix`, ordered by title."""
        return session_pids(self.pid, prefix)

    def start(self) -> None:
        """Starts a new launch; returns at once, long before it serves."""
        cache = default_cache()
        command = [cache / "venv/bin/vllm", "serve", self._model or cache / "model"]
        # As long as the model allows: a stream then outlasts a drain of ten seconds.
        flags = ["--served-model-name", "tiny", "--max-model-len", "2048", "--enforce-eager"]
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **self._environment,
        }
        self.ended_seconds = None
        self.started_seconds = time.monotonic()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *flags, *address, *self._arguments],
                stdout=log if self._has_log else subprocess.DEVNULL,
                stderr=log if self._has_log else subprocess.DEVNULL,
                env={**os.environ, **settings},
                start_new_session=True,
            )
        # Reaped at once, as systemd and container runtimes do.
        threading.Thread(target=self._reap, args=(self.process,), daemon=True).start()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self.ended_seconds = time.monotonic()

    def wait_serving(self, timeout_seconds: float = LOAD_SECONDS) -> float:
        """Waits for the first 200 of /health; returns that moment on the monotonic clock."""
        assert self.process is not None
        deadline = time.monotonic() + timeout_seconds
        while not self.is_serving():
            assert self.process.poll() is None, self.log()[-4000:]
            assert time.monotonic() < deadline, self.log()[-4000:]
            time.sleep(POLL_SECONDS)
        return time.monotonic()

    def is_serving(self) -> bool:
        """Whether /health answers 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_log(self, text: str, timeout_seconds: float = LOAD_SECONDS) -> None:
        """Waits for a line of its log."""
        deadline = time.monotonic() + timeout_seconds
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()[-4000:]
            time.sleep(POLL_SECONDS)

    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")

    def signal_group(self, signum: int) -> None:
        """Sends a signal to every process of the server, as a terminal does."""
        os.killpg(self.pid, signum)

    def wait(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Waits for the main process; its exit code, or minus its signal."""
        assert self.process is not None
        return self.process.wait(timeout_seconds)

    def terminate(self) -> int:
        """Stops it as an operator does; returns its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Ends every process of its session, as a power cut would."""
        if self.process is None:
            return
        kill_all(session_pids(self.pid))
        self.process.wait(STOP_SECONDS)
