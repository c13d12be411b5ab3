"""Starts stand-in vLLM servers for tests and the demo, and leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from vllm_agent.demo.server import LIFETIME_VARIABLE, READY_FD_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import IO

# Its cmdline reads `python …/bin/vllm serve MODEL …`, as that of an installed vLLM.
_VLLM: Final = Path(__file__).parent / "standin" / "bin" / "vllm"
_SERVING_TIMEOUT_SECONDS: Final = 20.0  # a loaded machine starts Python slowly
_KILL_TIMEOUT_SECONDS: Final = 5.0  # SIGKILL needs milliseconds
# A server whose launcher was killed ends by itself after this time.
_LIFETIME_SECONDS: Final = 900
# Below 32768, where net.ipv4.ip_local_port_range begins, and above what services use.
_NOT_EPHEMERAL: Final = range(20_000, 32_768)
_ports: Final = itertools.cycle(random.sample(_NOT_EPHEMERAL, len(_NOT_EPHEMERAL)))
# proc_pid_stat(5) fields 3 and 6, counted from the one after the name.
_STATE, _SESSION = 0, 3


class NotServingError(Exception):
    """The server ended, or the time was over, before it listened."""


class StandIn:
    """One running server with all its processes, which share a session of their own.

    Use it as a context manager: leaving it kills every process of the session, orphans too.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], url: str, port: int, ready: int, log: IO[bytes]
    ) -> None:
        self.process = process
        self.url = url
        self.port = port
        self._ready = ready
        self._log = log

    @classmethod
    def start(
        cls,
        *arguments: str,
        model: str = "/models/demo",
        port: int | None = None,
        uds: Path | None = None,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Starts a server on the loopback and returns at once.

        Without `port` a free one is chosen; `arguments` are flags of `demo.server`. Output
        goes to the file `log` (appended) or to an unnamed one, see `log_text`.
        """
        chosen = free_port() if port is None else port
        url = f"{'https' if '--ssl-certfile' in arguments else 'http'}://127.0.0.1:{chosen}"
        if uds is not None:
            arguments, url = ("--uds", str(uds), *arguments), f"unix://{uds}"
        output = tempfile.TemporaryFile() if log is None else log.open("ab+")  # noqa: SIM115  closed by close()
        ready, ready_write = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603  our own program
                command_line(*arguments, model=model, port=chosen),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[ready_write],
                start_new_session=True,
                env={**os.environ, **_environment(ready_write), **(environment or {})},
            )
        finally:
            os.close(ready_write)
        return cls(process, url, chosen, ready, output)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """PID of the main process, which is also the session and the process group."""
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

    def wait_serving(self, timeout: float = _SERVING_TIMEOUT_SECONDS) -> Self:
        """Waits until the server listens.

        Raises:
            NotServingError: it ended first, or `timeout` seconds passed.
        """
        readable, _, _ = select.select([self._ready], [], [], timeout)
        self._check_serving(bool(readable))
        return self

    async def serving(self, timeout: float = _SERVING_TIMEOUT_SECONDS) -> Self:  # noqa: ASYNC109  as wait_serving
        """`wait_serving` for an event loop."""
        self._check_serving(await _readable(self._ready, timeout))
        return self

    def _check_serving(self, readable: bool) -> None:  # noqa: FBT001  private
        if not readable:
            raise NotServingError(f"{self.url}: not listening in time\n{self.log_text()}")
        if not os.read(self._ready, 1):
            raise NotServingError(f"{self.url}: ended while loading\n{self.log_text()}")

    def signal(self, signum: int) -> None:
        """Sends a signal to the main process; nothing when it is gone."""
        self.process.send_signal(signum)

    def terminate(self) -> None:
        """Sends SIGTERM to the main process."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the main process only; its engines stay as orphans until `close`."""
        self.signal(signal.SIGKILL)

    def signal_group(self, signum: int) -> None:
        """Sends a signal to every process of the server, as a terminal does."""
        os.killpg(self.pid, signum)

    def wait(self, timeout: float = _SERVING_TIMEOUT_SECONDS) -> int:
        """Waits for the main process; its exit code, or minus its signal.

        Raises:
            subprocess.TimeoutExpired: it did not end within `timeout` seconds.
        """
        return self.process.wait(timeout)

    async def exited(self, timeout: float = _SERVING_TIMEOUT_SECONDS) -> int:  # noqa: ASYNC109  as wait
        """`wait` for an event loop.

        Raises:
            TimeoutError: it did not end within `timeout` seconds.
        """
        if self.process.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not await _readable(pidfd, timeout):
                    raise TimeoutError(f"{self.url} did not end")
            finally:
                os.close(pidfd)
        return self.process.wait()

    def log_text(self) -> str:
        """What the server has printed so far."""
        self._log.flush()
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def close(self) -> None:
        """Kills what is left of the session and waits until it is gone."""
        if self._log.closed:
            return
        deadline = time.monotonic() + _KILL_TIMEOUT_SECONDS
        # One that is loading may start another one between the look and the kill.
        while (pids := session_pids(self.pid)) and time.monotonic() < deadline:
            kill_all(pids)
        self.process.wait(_KILL_TIMEOUT_SECONDS)
        os.close(self._ready)
        self._log.close()


def command_line(*arguments: str, model: str, port: int) -> list[str]:
    """How a shell starts a server on the loopback."""
    place = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, str(_VLLM), "serve", model, *place, *arguments]


def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago.

    Nobody who asks for any port gets it meanwhile, neither from the kernel nor from here.
    """
    while True:
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def write_checkpoint(directory: Path, shards: int, shard_bytes: int = 1 << 20) -> Path:
    """Makes a model directory of sparse safetensors shards, to be mapped one by one."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    for name in names:
        with (directory / name).open("wb") as file:
            file.truncate(shard_bytes)
    index = {
        "metadata": {"total_size": shards * shard_bytes},
        "weight_map": {f"layers.{number}.weight": name for number, name in enumerate(names)},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {"architectures": ["LlamaForCausalLM"]}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def _environment(ready: int) -> dict[str, str]:
    return {READY_FD_VARIABLE: str(ready), LIFETIME_VARIABLE: str(_LIFETIME_SECONDS)}


def session_pids(leader: int, prefix: str = "") -> list[int]:
    """PIDs of a session whose title begins with `prefix`, by title; zombies are left out."""
    members = []
    for entry in os.listdir("/proc"):  # noqa: PTH208  names are all that is needed
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
                fields = stat.rpartition(")")[2].split()
                if int(fields[_SESSION]) == leader and fields[_STATE] != "Z":
                    members.append(int(entry))
    found = sorted((title(pid), pid) for pid in members)
    return [pid for name, pid in found if name.startswith(prefix)]


def title(pid: int) -> str:
    """The command line of a process with spaces between; empty when it is gone."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return line.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def kill_all(pids: list[int]) -> None:
    """Kills processes and waits until each has ended."""
    deadline = time.monotonic() + _KILL_TIMEOUT_SECONDS
    pidfds = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(pid))
    try:
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


async def _readable(fd: int, seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True
