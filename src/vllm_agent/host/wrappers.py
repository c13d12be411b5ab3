"""Programs that start another one, or become it: shells, init programs, launchers."""

from __future__ import annotations

from typing import Final

WRAPPERS: Final = frozenset(
    {
        *("sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "busybox"),
        *("tini", "tini-static", "docker-init", "dumb-init", "catatonit", "s6-supervise", "runc"),
        *("runc:[2:INIT]", "crun", "env", "nice", "ionice", "chrt", "taskset", "numactl", "setsid"),
        *("sudo", "su", "runuser", "setpriv", "gosu", "su-exec", "chroot", "nsenter", "unshare"),
        *("timeout", "stdbuf", "nohup", "flock", "script", "strace"),
        *("uv", "conda", "pixi", "poetry"),
        *("(sd-executor)", "systemd-executo", "start-stop-daem", "enroot", "apptainer", "starter"),
    }
)
"""Their names, as the kernel has them (15 characters)."""


def may_become_vllm(name: str) -> bool:
    """Whether a process of that name may still become a vLLM: a wrapper, or a python."""
    return name in WRAPPERS or name.startswith("python")
