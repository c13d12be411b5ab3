"""What a vLLM process looks like from outside: title, name, file descriptors, slow death."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# /usr/include/linux/prctl.h
_PR_SET_NAME = 15
# proc_pid_stat(5): fields 48 to 51, counted from the one after the name.
_ARG_START, _ARG_END, _ENV_START, _ENV_END = 45, 46, 47, 48
# Where it is set, setproctitle leaves the environment alone.
_KEEPS_ENVIRONMENT = "SPT_NOENV"
# syscall(2) numbers of io_setup.
_IO_SETUP = {"x86_64": 206, "aarch64": 0}
_STANDARD_FDS = 3
# What a child of multiprocessing runs; the numbers are descriptors.
_SPAWNED = "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=7, pipe_handle=9)"
# What torch.compile runs beside the engine.
_COMPILE_WORKER = "from torch._inductor.compile_worker.__main__ import main; main()"
# A component installs its own handlers; until then a signal has its default action.
_INHERITED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGSEGV)


def set_title(title: str) -> None:
    """Replaces /proc/PID/cmdline and the 15-character name, as setproctitle does.

    /proc/PID/environ is empty from then on, unless SPT_NOENV is set: setproctitle takes its room.
    """
    _set_command_line(title.encode())
    if not os.environ.get(_KEEPS_ENVIRONMENT):
        _clear_environment()
    set_name(title)


def set_python_command(code: str, *arguments: str) -> None:
    """Looks like a `python -c CODE ARGUMENTS` that was started as a program of its own."""
    _set_command_line("\0".join(["python", "-c", code, *arguments]).encode())
    set_name("python")


def _set_command_line(text: bytes) -> None:
    fields = _stat_fields("self")
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    room = end - start
    ctypes.memset(start, 0, room)
    ctypes.memmove(start, text, min(len(text), room - 1))


def _clear_environment() -> None:
    for name, value in os.environ.items():
        os.putenv(name, value)  # the C library reads a copy of its own from here on
    fields = _stat_fields("self")
    start, end = int(fields[_ENV_START]), int(fields[_ENV_END])
    ctypes.memset(start, 0, end - start)


def set_name(name: str) -> None:
    """Sets /proc/PID/comm; the kernel keeps 15 characters."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def start_time_ticks() -> int:
    """Clock ticks between boot and the start of this process, proc_pid_stat(5) field 22."""
    return int(_stat_fields("self")[19])


def die_slowly() -> bool:
    """Makes this process stay visible while it exits, about 30 ms.

    A real engine frees gigabytes for 50 to 100 ms, and watchers see it exiting. An
    asynchronous I/O context makes the kernel wait for a grace period in the same place.
    False where the kernel offers none; the process then dies faster.
    """
    number = _IO_SETUP.get(platform.machine())
    if number is None:
        return False
    context = ctypes.c_ulong(0)
    result: int = ctypes.CDLL(None).syscall(number, 1, ctypes.byref(context))
    return result == 0


def forbid_core_dumps() -> None:
    """Keeps deliberate crashes from writing core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fork(run: Callable[[], int], keep: Collection[int]) -> int:
    """Forks a component that has only the `keep` descriptors and exits with what `run` returns.

    Until `run` gives it a title it looks like a child of Python's multiprocessing.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        set_python_command(_SPAWNED, "--multiprocessing-fork")
        signal.set_wakeup_fd(-1)
        for signum in _INHERITED_SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        _close_other_fds(keep)
        status = run()
    finally:
        os._exit(status)


def leave_daemon(seconds: float) -> None:
    """Leaves a process behind in a session of its own, whose parent is not this one.

    It ends by itself after `seconds`, and by any signal that ends one.
    """
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            set_python_command(_COMPILE_WORKER)
            _close_other_fds(())
            time.sleep(seconds)
    finally:
        os._exit(0)


def die_by(signum: int) -> NoReturn:
    """Ends this process by the default action of a signal."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    signal.pause()
    os._exit(128 + signum)


def freeze_and_die_by(signum: int, seconds: float) -> NoReturn:
    """Stands still as a process that writes its core dump does, then dies by the signal."""
    time.sleep(seconds)
    die_by(signum)


def exit_status(wait_status: int) -> int:
    """A wait status as vLLM's log shows it: the code, or minus the signal."""
    return os.waitstatus_to_exitcode(wait_status)


def _stat_fields(pid: str) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _close_other_fds(keep: Collection[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  the listing must be complete before the first close
        fd = int(name)
        if fd >= _STANDARD_FDS and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
