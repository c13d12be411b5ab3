"""Whether a server can listen where it is told to, tried as vLLM does it.

vLLM binds its socket before it loads, with SO_REUSEADDR, and listens minutes later. Until then
nothing keeps a second one from binding there as well: it would fail once it has loaded.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import pwd
import socket
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.host.launching.asking import HangsError, ask
from vllm_agent.host.launching.plan import WORKING_FOLDER
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.port_holder import MAX_PROCESSES, port_holder
from vllm_agent.host.sockets import is_same_network, is_unix_bound, port_uses
from vllm_agent.host.vllm_argv import is_main, parse_command
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.patience import Patience
    from vllm_agent.host.proc import Proc

CONNECT_SECONDS: Final = 1.0
"""For a unix socket to take a connection: one whose queue is full is in use."""


async def lacks_port(plan: LaunchPlan, proc: Proc, patience: Patience) -> Refusal | None:
    """Whether the port, or the path of the unix socket, of a launch is taken."""
    command = plan.command
    if command.is_headless:
        return None
    if command.uds is not None:
        path = os.path.join(WORKING_FOLDER, command.uds)
        text, find = await ask(patience, partial(_why_no_path, proc=proc), path)
    else:
        place = f"port {command.port} of {command.host or 'all addresses'}"
        text, find = await ask(patience, partial(_why_no_port, proc=proc, command=command), place)
    if not text:
        return None
    try:
        holder = await ask(patience, lambda _: find(), "a process")
    except HangsError:
        holder = ""
    return Refusal(Reason.PORT_IN_USE, text, holder)


def _why_no_port(place: str, proc: Proc, command: VllmCommand) -> tuple[str, Callable[[], str]]:
    """What is the matter with a port, empty where it is free, and what finds out whose it is."""
    if not _can_bind(command, is_reused=True):
        return f"{place} is taken", lambda: _listener(proc, command)
    if not _is_bound_only(proc, command):
        return "", _nobody
    text = f"{place} is taken by a process that does not listen yet, as a vLLM that loads"
    return text, lambda: next(_loading(proc, command.port), "")


def _can_bind(command: VllmCommand, *, is_reused: bool) -> bool:
    """Whether a socket can be bound; what else may go wrong than that it is taken does not count.

    SO_REUSEPORT is not set, as vLLM does for several API servers: it would share the port with a
    stranger of the same user.
    """
    host = command.host or ""
    try:
        with socket.socket(_family(host), socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(is_reused))
            sock.bind((host, command.port))
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    except TypeError:  # a name that is none: it cannot even be encoded
        return True
    return True


def _family(host: str) -> socket.AddressFamily:
    with contextlib.suppress(ValueError):
        ipaddress.IPv6Address(host)
        return socket.AF_INET6
    return socket.AF_INET


def _is_bound_only(proc: Proc, command: VllmCommand) -> bool:
    """Whether a socket is bound there that neither listens nor is, or was just, connected."""
    if _can_bind(command, is_reused=False):
        return False
    if port_uses(proc, os.getpid(), command.port).is_told:
        return False
    # What was closing may have closed since.
    return not _can_bind(command, is_reused=False)


def _nobody() -> str:
    return ""


def _listener(proc: Proc, command: VllmCommand) -> str:
    """Who listens; where not even its PID may be seen, whose process it is."""
    if holder := port_holder(proc, os.getpid(), command):
        return holder
    for uid in sorted(port_uses(proc, os.getpid(), command.port).listeners):
        try:
            return f"a process of user {pwd.getpwuid(uid).pw_name}"
        except KeyError:
            return f"a process of user {uid}"
    return ""


def _loading(proc: Proc, port: int) -> Iterator[str]:
    """The vLLM servers in sight that are to listen at a port."""
    for pid in sorted(proc.pids())[:MAX_PROCESSES]:
        line = proc.command_line(pid)
        if line is None or not is_main(line.arguments) or not is_same_network(proc, pid):
            continue
        command = parse_command(line.arguments, lambda _: {})
        process = proc.stat(pid)
        if command.port == port and not command.uds and not command.is_headless and process:
            yield f"{process.name} (PID {pid})"


def remove_left_socket(path: str, proc: Proc) -> bool:
    """Removes the unix socket of a server that is gone; whether there was one.

    vLLM leaves it behind at every end, and fails where it finds one. What somebody has bound, and
    whatever is no socket, stays. This blocks as the disk does: call it in a thread.

    Raises:
        OSError: it may not be removed.
    """
    if not _is_socket(path) or _is_used(path, proc):
        return False
    os.unlink(path)
    return True


def _why_no_path(path: str, proc: Proc) -> tuple[str, Callable[[], str]]:
    """The same of a path: vLLM makes the socket itself, and fails if anything is there."""
    is_socket = _is_socket(path)
    if is_socket is None:
        return "", _nobody
    if not is_socket:
        return f"{path} is there and is no socket: remove it, or choose another path", _nobody
    if _is_used(path, proc):
        command = VllmCommand(uds=path)
        return f"the socket {path} is taken", lambda: port_holder(proc, os.getpid(), command)
    text = (
        f"the socket {path} was left by a process that is gone: remove it, "
        "or vLLM fails with 'Address already in use'"
    )
    return text, _nobody


def _is_socket(path: str) -> bool | None:
    """None where there is nothing, or it cannot be seen."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return None


def _is_used(path: str, proc: Proc) -> bool:
    return _is_answered(path) or is_unix_bound(proc, os.getpid(), path)


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            # A queue that is full, or a path that only others may connect to.
            return True
    return True
