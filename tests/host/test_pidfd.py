"""The end of a process that is not ours: told at once, with its status wherever that is known."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import platform
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host.blind_proc import BlindProc
from vllm_agent.host import pidfd
from vllm_agent.host.clock import now
from vllm_agent.host.pidfd import ExitWatch, has_exit_info
from vllm_agent.host.proc import Proc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.observations import ProcessId

NOBODY = 65534
WAYS = {
    "exit 0": ("exit 0", 0),
    "exit 3": ("exit 3", 3 << 8),
    "KILL": ("kill -KILL $$", signal.SIGKILL),
    "TERM": ("kill -TERM $$", signal.SIGTERM),
    "SEGV": ("ulimit -c 0; kill -SEGV $$", signal.SIGSEGV),
}


@dataclass
class Told:
    """What one watch has told, in order."""

    calls: list = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def on_exit(self, at_seconds: float, wait_status: int | None) -> None:
        self._note("exit", at_seconds, wait_status)

    def on_status(self, wait_status: int | None) -> None:
        self._note("status", time.monotonic(), wait_status)

    def _note(self, what: str, at_seconds: float, wait_status: int | None) -> None:
        self.calls.append((what, wait_status))
        self.at_seconds = at_seconds
        self.heard.set()

    async def until(self, count: int) -> list:
        async with asyncio.timeout(10):
            while len(self.calls) < count:
                self.heard.clear()
                await self.heard.wait()
        return self.calls


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A shell that does what it reads; nobody reaps it before the test does."""
    with subprocess.Popen(["/bin/sh"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def say(victim: subprocess.Popen[bytes], line: str) -> None:
    """Ends it without reaping it."""
    assert victim.stdin is not None
    victim.stdin.write(f"{line}\n".encode())
    victim.stdin.flush()


def end(victim: subprocess.Popen[bytes]) -> None:
    """Ends it and reaps it."""
    say(victim, "exit 3")
    victim.wait(10)


def wait_ended(pid: int) -> None:
    fd = os.pidfd_open(pid)
    assert select.select([fd], [], [], 10)[0]
    os.close(fd)


def identify(proc: Proc, pid: int) -> ProcessId:
    stat = proc.stat(pid)
    assert stat is not None
    return proc.identify(stat)


def watch(proc: Proc, pid: int, told: Told) -> ExitWatch:
    return ExitWatch(
        identify(proc, pid), proc, clock=now, on_exit=told.on_exit, on_status=told.on_status
    )


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("line", "status"), WAYS.values(), ids=WAYS)
async def test_exit_is_told_at_once_with_the_status_of_the_zombie(victim, line, status):
    told = Told()
    before = open_fds()
    watch(Proc(), victim.pid, told)
    say(victim, line)
    assert await told.until(1) == [("exit", status)]
    assert open_fds() == before


@pytest.mark.parametrize(("line", "status"), WAYS.values(), ids=WAYS)
async def test_without_access_the_status_is_told_once_the_parent_has_reaped_it(
    victim, line, status, monkeypatch
):
    # Told by an event: the deadline would come too late.
    monkeypatch.setattr(pidfd, "REAPING_SECONDS", 60.0)
    told = Told()
    before = open_fds()
    watch(BlindProc(), victim.pid, told)
    say(victim, line)
    assert (await told.until(1))[0] == ("exit", None)
    victim.wait()
    expected = status if has_exit_info() else None
    assert await told.until(2) == [("exit", None), ("status", expected)]
    assert open_fds() == before


async def test_a_parent_that_reaps_before_we_look_costs_no_status(victim):
    told = Told()
    watch(Proc(), victim.pid, told)
    end(victim)
    if not has_exit_info():
        assert await told.until(2) == [("exit", None), ("status", None)]
        return
    assert await told.until(1) == [("exit", 3 << 8)]


async def test_a_zombie_whose_parent_sleeps_is_given_up_and_the_loop_is_not_kept_busy(
    victim, monkeypatch
):
    monkeypatch.setattr(pidfd, "REAPING_SECONDS", 0.1)
    monkeypatch.setattr(pidfd, "has_exit_info", lambda: True)
    asked = []
    ask = pidfd._exit_info

    def count_and_ask(fd: int) -> int | None:
        asked.append(fd)
        return ask(fd)

    monkeypatch.setattr(pidfd, "_exit_info", count_and_ask)
    told = Told()
    before = open_fds()
    watch(BlindProc(), victim.pid, told)
    say(victim, "exit 3")
    await told.until(1)
    ended = told.at_seconds
    assert await told.until(2) == [("exit", None), ("status", None)]
    assert told.at_seconds - ended >= 0.09
    assert len(asked) == 2
    assert open_fds() == before


def test_a_parent_is_waited_for_less_long_than_an_ending_may_take():
    assert pidfd.REAPING_SECONDS == 1.5


async def test_a_kernel_that_tells_nothing_is_not_waited_for(victim, monkeypatch):
    monkeypatch.setattr(pidfd, "REAPING_SECONDS", 60.0)
    monkeypatch.setattr(pidfd, "has_exit_info", lambda: False)
    told = Told()
    before = open_fds()
    watch(BlindProc(), victim.pid, told)
    say(victim, "exit 3")
    assert await told.until(2) == [("exit", None), ("status", None)]
    assert open_fds() == before


async def test_no_descriptor_left_for_the_wait_only_delays_the_status(victim, monkeypatch):
    monkeypatch.setattr(pidfd, "REAPING_SECONDS", 0.1)
    monkeypatch.setattr(pidfd, "has_exit_info", lambda: None)
    told = Told()
    watch(BlindProc(), victim.pid, told)
    # The standard loop is asked nothing that needs an epoll of its own any more.
    monkeypatch.setattr(select, "epoll", refuse)
    say(victim, "exit 3")
    await told.until(1)
    victim.wait()
    expected = 3 << 8 if has_exit_info() else None
    assert await told.until(2) == [("exit", None), ("status", expected)]


def refuse(*_args: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


async def test_another_process_with_the_same_number_is_not_watched(victim):
    proc = Proc()
    before = open_fds()
    other = replace(identify(proc, victim.pid), start_ticks=1)
    told = Told()
    with pytest.raises(ProcessLookupError):
        ExitWatch(other, proc, clock=now, on_exit=told.on_exit, on_status=told.on_status)
    assert open_fds() == before


async def test_a_process_that_is_gone_is_not_watched(victim):
    proc, told = Proc(), Told()
    process = identify(proc, victim.pid)
    end(victim)
    before = open_fds()
    with pytest.raises(ProcessLookupError):
        ExitWatch(process, proc, clock=now, on_exit=told.on_exit, on_status=told.on_status)
    assert open_fds() == before


async def test_a_zombie_is_told_of_at_once(victim):
    told = Told()
    say(victim, "exit 3")
    wait_ended(victim.pid)
    watch(Proc(), victim.pid, told)
    assert await told.until(1) == [("exit", 3 << 8)]


async def test_no_descriptor_left_is_an_error_of_the_system(victim):
    proc = Proc()
    process = identify(proc, victim.pid)
    told = Told()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="open files") as caught:
            ExitWatch(process, proc, clock=now, on_exit=told.on_exit, on_status=told.on_status)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE


async def test_the_last_descriptors_are_left_for_those_who_answer(victim, monkeypatch):
    """An agent that watches everything and can answer nobody is of no use."""
    told, before = Told(), open_fds()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    monkeypatch.setattr(pidfd, "RESERVED_FILES", limit)
    with pytest.raises(OSError, match="open files"):
        watch(Proc(), victim.pid, told)
    assert open_fds() == before


@pytest.mark.parametrize("proc", [Proc(), BlindProc()], ids=["access", "no access"])
async def test_nothing_is_told_after_close(victim, proc):
    told, heard = Told(), Told()
    before = open_fds()
    watched = watch(proc, victim.pid, told)
    watched.close()
    watched.close()
    watch(proc, victim.pid, heard)
    end(victim)
    await heard.until(1)
    assert told.calls == []
    assert open_fds() == before


async def test_close_while_the_reaping_is_waited_for_leaves_nothing(victim, monkeypatch):
    monkeypatch.setattr(pidfd, "has_exit_info", lambda: True)
    monkeypatch.setattr(pidfd, "REAPING_SECONDS", 0.05)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, error: errors.append(error))
    told, heard = Told(), Told()
    before = open_fds()
    watched = watch(BlindProc(), victim.pid, told)
    watch(BlindProc(), victim.pid, heard)
    say(victim, "exit 3")
    await told.until(1)
    watched.close()
    await heard.until(2)
    assert told.calls == [("exit", None)]
    assert errors == []
    assert open_fds() == before


async def test_close_from_within_the_call_is_the_last_that_is_heard(victim, monkeypatch):
    monkeypatch.setattr(pidfd, "has_exit_info", lambda: False)
    proc, told = BlindProc(), Told()
    watched: list[ExitWatch] = []

    def on_exit(at_seconds: float, wait_status: int | None) -> None:
        told.on_exit(at_seconds, wait_status)
        watched[0].close()

    process = identify(proc, victim.pid)
    watched.append(ExitWatch(process, proc, clock=now, on_exit=on_exit, on_status=told.on_status))
    say(victim, "exit 3")
    await told.until(1)
    await asyncio.sleep(0)
    assert told.calls == [("exit", None)]


async def test_a_process_of_another_user_shows_no_status_and_its_end_is_told(victim):
    """Its stat reads as if it had exited with 0."""
    proc, told = Proc(), Told()
    if os.geteuid() != 0:
        assert not proc.shows_exit_status(1)
        return
    os.seteuid(NOBODY)
    try:
        assert not proc.shows_exit_status(victim.pid)
        watch(proc, victim.pid, told)
        say(victim, "exit 3")
        assert await told.until(1) == [("exit", None)]
        stat = proc.stat(victim.pid)
        assert stat is not None
        assert (stat.is_zombie, stat.exit_status) == (True, 0)
        victim.wait()
        expected = 3 << 8 if has_exit_info() else None
        assert (await told.until(2))[1] == ("status", expected)
    finally:
        os.seteuid(0)


def test_root_without_capabilities_is_not_believed_to_see_a_status(victim):
    """It may list the open files of root's processes; that is no ptrace access."""
    if os.geteuid() != 0:
        assert not Proc().shows_exit_status(1)
        return
    script = f"from vllm_agent.host.proc import Proc; print(Proc().shows_exit_status({victim.pid}))"
    less = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    told = subprocess.run([*less, sys.executable, "-c", script], capture_output=True, check=True)
    assert told.stdout == b"False\n"


def test_own_processes_show_their_status_alive_ended_and_gone(victim):
    proc = Proc()
    assert proc.shows_exit_status(victim.pid)
    say(victim, "exit 3")
    wait_ended(victim.pid)
    assert proc.shows_exit_status(victim.pid)
    victim.wait()
    assert proc.stat(victim.pid) is None


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.14.9-generic", None),
        ("6.15.0", True),
        ("6.18.44-fc", True),
        ("7.0", True),
        ("10.1", True),
        ("odd", None),
    ],
)
def test_exit_info_is_known_by_the_release(monkeypatch, release, expected):
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(fcntl, "ioctl", lambda *_args: b"")
    assert has_exit_info() is expected


def test_a_kernel_without_the_request_tells_no_exit_info(monkeypatch):
    def unknown_request(*_args: object) -> None:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    before = open_fds()
    monkeypatch.setattr(fcntl, "ioctl", unknown_request)
    assert has_exit_info() is False
    assert open_fds() == before


def test_exit_info_is_unknown_without_a_pidfd(monkeypatch):
    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert has_exit_info() is None
