"""Starts the process of a managed server, which lives on whatever becomes of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.host.launching.plan import WORKING_FOLDER
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.launching.user import User, find_user, user_to_become
from vllm_agent.host.open_files import OPEN_FILES_AT_START
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import Sighting

if TYPE_CHECKING:
    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.proc import Proc

__all__ = ["Child", "SpawnError", "find_user", "spawn"]

ZOMBIE_SECONDS: Final = 1.0
"""How long an ended child is left for those who read the exit status of its zombie, at once if they
hear of it at all. Those who may not look wait for the reaping, `pidfd.REAPING_SECONDS`."""

RETRY_SECONDS: Final = 1.0
"""Until a watch is tried again for which no file was free: meanwhile an end leaves a zombie."""

UMASK: Final = 0o022
"""Of the server, as a login has it: the agent's own may let nobody read what it writes."""

_ADVICE: Final = MappingProxyType(
    {
        errno.E2BIG: "its arguments and environment are too long: shorten managed.args or env",
        errno.EAGAIN: (
            "the kernel gives no further process: end some, or raise the limit "
            "(TasksMax=, pids.max, ulimit -u)"
        ),
        errno.ELOOP: "its path has too many links: correct managed.command",
        errno.EMFILE: "the agent has no file free: raise its limit (LimitNOFILE=, ulimit -n)",
        errno.ENFILE: "the host has no file free: raise fs.file-max",
        errno.ENOEXEC: (
            "it is no program for this machine, or a script without '#!' in its first line"
        ),
        errno.ENOMEM: "the host has no memory for a further process: free some",
        errno.ETXTBSY: "it is being written at this moment: start again when that is done",
    }
)


# With vfork(2) Python 3.11 stands still, all threads of it, until the program is executed: for ever
# where that lies on a network file system that hangs (CPython issue 104372).
subprocess._USE_VFORK = False  # type: ignore[misc]  # noqa: SLF001 - the documented way


class SpawnError(StartError):
    """No process was started."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.SPAWN_FAILED, detail)


class Child:
    """The main process of a launch that this agent started, alive or ended.

    It does not end with the agent. Once `watch` is called in the event loop, it is reaped
    `ZOMBIE_SECONDS` after its end.
    """

    __slots__ = ("_fd", "_loop", "_timer", "sighting")

    def __init__(self, sighting: Sighting) -> None:
        self.sighting = sighting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1

    def watch(self) -> None:
        """Sees to it that no zombie stays; to be called once, in a running loop."""
        self._loop = asyncio.get_running_loop()
        try:
            # It is ours and not reaped: the number is no other process's.
            self._fd = os.pidfd_open(self.sighting.process.pid)
        except OSError:
            self._timer = self._loop.call_later(RETRY_SECONDS, self.watch)
            return
        self._loop.add_reader(self._fd, self._ended)

    def close(self) -> None:
        """Watches no more; nothing happens to the process. May be repeated."""
        if self._timer is not None:
            self._timer.cancel()
        self._forget()

    def _ended(self) -> None:
        self._forget()
        self._timer = asyncio.get_running_loop().call_later(ZOMBIE_SECONDS, self._reap)

    def _reap(self) -> None:
        # None of ours any more where somebody ignores SIGCHLD.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.sighting.process.pid, os.WNOHANG)

    def _forget(self) -> None:
        if self._fd < 0 or self._loop is None:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1


def spawn(plan: LaunchPlan, output: int, proc: Proc) -> Child:
    """Starts what the plan says, in a session of its own, with `output` as its standard output.

    `output` is a descriptor and stays the caller's. Standard error goes there as well; nothing can
    be read from standard input. It waits until the program is executed: call it in a thread, and
    `Child.watch` in the event loop.

    Raises:
        StartError: nothing runs.
    """
    user = user_to_become(plan.user)
    pid = _start(plan, output, user)
    # Another user's process, or one that has ended already: then it does not matter.
    with contextlib.suppress(OSError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (OPEN_FILES_AT_START, hard))
    stat = proc.stat(pid)
    # In a container with the /proc of its host the number is a stranger's.
    if stat is None or stat.parent != os.getpid():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise SpawnError(
            f"{proc.root} does not show the process that was started, so nobody could watch it: "
            "mount it without hidepid, and as the one of the agent's own container"
        )
    return Child(
        Sighting(
            process=proc.identify(stat),
            start_seconds=proc.start_unix_seconds(stat),
            command=plan.command,
            uid=os.geteuid() if user is None else user.uid,
            session=pid,
            url=plan.url,
        )
    )


def _start(plan: LaunchPlan, output: int, user: User | None) -> int:
    # The child inherits the mask of this thread.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        # No preexec_fn: between fork and exec only what is safe beside other threads.
        process = subprocess.Popen(  # noqa: S603 - a list that the operator wrote, no shell
            plan.arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=WORKING_FOLDER,
            env=plan.environ,
            start_new_session=True,
            umask=UMASK,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else user.groups,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SpawnError(_why(error, plan, user)) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # `Child` waits for it: Popen would warn that it runs, and reap it at a moment of its own.
    process.returncode = 0
    return process.pid


def _why(error: Exception, plan: LaunchPlan, user: User | None) -> str:
    program = plan.arguments[0]
    if not isinstance(error, OSError):
        # The text of the error may repeat an argument.
        return "managed.args or managed.env has a character that no process can be given"
    number = error.errno or 0
    whose = "the agent's user" if user is None else f"user {user.name!r}"
    if error.filename == WORKING_FOLDER:
        # Popen names it for whatever fails before the program is executed.
        return (
            f"the agent may not become {whose} ({os.strerror(number)}): "
            "it needs CAP_SETUID and CAP_SETGID"
        )
    match error:
        case _ if number in _ADVICE:
            text = _ADVICE[number]
        case _ if error.filename not in {None, program}:
            text = f"{error.filename}: {os.strerror(number)}"
        case FileNotFoundError() if shutil.which(program, path=plan.environ.get("PATH")):
            text = "what its first line names ('#!') is not there: install it again"
        case FileNotFoundError() | NotADirectoryError():
            text = "there is no such program: give its path in managed.command"
        case PermissionError():
            text = (
                f"{whose} may not execute it: "
                "look at its mode, at every folder above it, and at noexec mounts"
            )
        case _:
            text = os.strerror(number)
    return f"{program} could not be started: {text}"
