"""Real processes of a launch that is to be ended, in every place where one may hide."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self

from vllm_agent.host.launching.launch_cgroup import ROOT
from vllm_agent.host.launching.plan import MARKER
from vllm_agent.host.launching.remains import Mark, Remains
from vllm_agent.host.proc import Proc, read_small

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from vllm_agent.observations import ProcessId

SLEEP = "sleep 600"
"""Nothing outlives a test run for long, whatever goes wrong."""

TOKEN = "END_SCENE"
WAIT_SECONDS = 20.0


class Scene:
    """Launches of one server, and whatever else has the scene's token: leaving it ends them all.

    The token, and not the code under test, tells what belongs to the scene.
    """

    def __init__(self) -> None:
        self.proc = Proc()
        self.token = secrets.token_hex(8)
        self.mark = Mark("llama", self.token)
        self.dropped: list[str] = []
        self._started: list[subprocess.Popen[str]] = []
        self._remains: list[Remains] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all of it; may be repeated."""
        for remains in self._remains:
            remains.close()
        for process in self._started:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.kill()
        while alive := self.alive():
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait(WAIT_SECONDS)

    def start(
        self, *command: str, mark: Mark | None = None, is_leader: bool = True
    ) -> subprocess.Popen[str]:
        """A main process; one argument is a script of sh.

        In it `sh -c "$SAY"` says its PID and sleeps, and `"$TOKEN"` is for `env -i`.
        """
        process = subprocess.Popen(
            command if len(command) > 1 else ["sh", "-c", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=is_leader,
            env={
                "PATH": os.environ["PATH"],
                "SAY": f"echo $$; exec {SLEEP}",
                "TOKEN": f"{TOKEN}={self.token}",
                MARKER: (mark or self.mark).value(secrets.token_hex(4)),
            },
        )
        self._started.append(process)
        return process

    def identify(self, pid: int) -> ProcessId:
        stat = self.proc.stat(pid)
        assert stat is not None
        return self.proc.identify(stat)

    def alive(self) -> set[int]:
        """The PIDs of all that has the token and has not ended."""
        token = f"{TOKEN}={self.token}".encode()
        found = set()
        for pid in self.proc.pids():
            stat = self.proc.stat(pid)
            is_own = token in (read_small(self.proc.path(pid, "environ")) or b"")
            if is_own and stat is not None and stat.state not in {"Z", "X"}:
                found.add(pid)
        return found

    def remains(self, process: ProcessId | None, *, was_seen_alive: bool = False) -> Remains:
        made = Remains(
            self.proc,
            process,
            self.mark,
            count_dropped=self.dropped.append,
            was_seen_alive=was_seen_alive,
        )
        self._remains.append(made)
        return made


def told_pid(process: subprocess.Popen[str]) -> int:
    """A PID that a main process said on a line."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def end(process: subprocess.Popen[str]) -> None:
    """Ends a main process alone, and reaps it."""
    process.kill()
    process.wait()


def until(is_true: Callable[[], bool]) -> None:
    """Waits for what nothing tells of and takes a moment only."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_ended(pid: int) -> None:
    """Waits for an end without reaping."""
    fd = os.pidfd_open(pid)
    assert select.select([fd], [], [], WAIT_SECONDS)[0]
    os.close(fd)


async def eventually(is_true: Callable[[], object]) -> None:
    """`until` for an event loop."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not is_true():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.002)


def is_writable(proc: Proc) -> bool:
    """Whether cgroups can be made below that of the test."""
    lines = (proc.cgroup(os.getpid()) or "").splitlines()
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    mounts = [m for m in (ROOT, ROOT / "unified") if (m / "cgroup.controllers").exists()]
    return bool(path and mounts) and os.access(f"{mounts[0]}{path}", os.W_OK)
