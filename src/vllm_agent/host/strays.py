"""Which components of a vLLM have lost whoever started them.

vLLM's EngineCore and workers outlive an API server that is killed: the kernel gives them to the
nearest subreaper above, or to PID 1 of their namespace. Those below an `LLM()` script, a Ray worker
or another program that is still there are nobody's orphans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.host.new_processes import WRAPPERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.proc import ProcessStat

MAX_ANCESTORS: Final = 64
"""Steps from a process up to PID 1: few hosts have ten, and a loop cannot be excluded while PIDs
are used again."""

_REAPERS: Final = WRAPPERS | {"systemd", "init", "containerd-shim", "docker-containe", "conmon"}
"""Kernel names of what an orphan gets for a parent, beside PID 1; none of them starts a
component."""

_STARTERS: Final = ("python", "vllm", "pt_main_thread", "ray")
"""How kernel names begin of what starts components itself: any of them may be PID 1 of a container.
PyTorch names the main thread of a program that imports it pt_main_thread."""

_PID_1: Final = 1


def is_stray(
    stat: ProcessStat,
    *,
    stat_of: Callable[[int], ProcessStat | None],
    is_component: Callable[[ProcessStat], bool],
    is_main: Callable[[ProcessStat], bool],
    inner_pid: Callable[[int], int | None],
) -> bool:
    """Whether the topmost component above this one, or itself, was left behind.

    `stat_of` gives a process by its PID; `is_main` tells main processes that are known by more than
    their name; `inner_pid` is the number of a process in its own PID namespace.
    """
    for _ in range(MAX_ANCESTORS):
        parent = stat_of(stat.parent)
        if parent is None:
            return True
        if not is_component(parent):
            return not is_main(parent) and _is_reaper(parent, inner_pid)
        stat = parent
    return False


def _is_reaper(stat: ProcessStat, inner_pid: Callable[[int], int | None]) -> bool:
    if stat.name in _REAPERS:
        return True
    return not stat.name.startswith(_STARTERS) and inner_pid(stat.pid) == _PID_1
