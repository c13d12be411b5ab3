"""Whether the agent sees the processes of its host, or why not and what would help."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from vllm_agent.host.proc import read_small
from vllm_agent.observations import Sight, SightKind

if TYPE_CHECKING:
    from vllm_agent.host.proc import Proc

_INITIAL_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO in include/uapi/linux/nsfs.h
_SYSTEM_INITS: Final = frozenset({"systemd", "init"})
_MAX_ANCESTORS: Final = 64
_MAX_MOUNTS_BYTES: Final = 1024 * 1024
_HIDING: Final = frozenset({"1", "2", "4", "noaccess", "invisible", "ptraceable"})


def process_sight(proc: Proc) -> Sight:
    """What the agent may see of other processes, at this moment.

    The PIDs are not the host's where the agent shares them with nobody but its own container. A
    system container (LXC, nspawn, WSL) is a host of its own, and a pod that shares its PIDs shows
    the vLLM beside the agent: both are sighted.
    """
    if _is_alone(proc):
        return Sight(
            SightKind.PROCESSES,
            is_visible=False,
            why_not="the agent runs in a container without the host's PIDs",
            fix="run it with --pid=host (Docker Compose: pid: host; Kubernetes: hostPID: true)",
        )
    if proc.stat(1) is None:
        hidepid = _hidepid(proc)
        return Sight(
            SightKind.PROCESSES,
            is_visible=False,
            why_not=(
                f"/proc is mounted with hidepid={hidepid}, which hides other users' processes"
                if hidepid is not None
                else "/proc does not show the processes of other users"
            ),
            fix="give the agent CAP_SYS_PTRACE, or the group that the mount option gid= of /proc "
            "names; in a systemd unit also ProtectProc=default",
        )
    return Sight(SightKind.PROCESSES, is_visible=True)


def _is_alone(proc: Proc) -> bool:
    """Whether PID 1 is the agent or one that started it, and no system's."""
    first = proc.stat(1)
    if not has_pids_of_its_own(proc) or first is None or first.name in _SYSTEM_INITS:
        return False
    pid = os.getpid()
    for _ in range(_MAX_ANCESTORS):
        stat = proc.stat(pid)
        if pid == 1 or stat is None:
            break
        pid = stat.parent
    return pid == 1


def has_pids_of_its_own(proc: Proc) -> bool:
    """Whether the agent is in a PID namespace below the host's, and sees no other."""
    try:
        is_initial = os.stat(f"{proc.root}/self/ns/pid").st_ino == _INITIAL_NAMESPACE
        # With the host's /proc in its container the agent sees all, whatever its own PIDs are.
        return not is_initial and os.readlink(f"{proc.root}/self") == str(os.getpid())
    except OSError:
        return False


def _hidepid(proc: Proc) -> str | None:
    """The option of the mount that /proc is now, which is the last one there."""
    found = None
    content = read_small(f"{proc.root}/self/mountinfo", _MAX_MOUNTS_BYTES) or b""
    for line in content.decode("utf-8", "replace").splitlines():
        fields = line.split()
        if fields[4:5] == [str(proc.root)]:
            options = dict(option.partition("=")[::2] for option in fields[-1].split(","))
            found = options.get("hidepid")
    return found if found in _HIDING else None
