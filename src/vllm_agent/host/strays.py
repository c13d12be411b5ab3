"""Which components of a vLLM have lost whoever started them.

vLLM's EngineCore and workers outlive an API server that is killed: the kernel gives them to the
nearest subreaper above, or to PID 1 of their namespace. Those below an `LLM()` script, a Ray worker
or another program that is still there are nobody's orphans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.host.wrappers import WRAPPERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.observations import ProcessId

MAX_ANCESTORS: Final = 64
"""Steps from a process up to PID 1: few hosts have ten, and a loop cannot be excluded while PIDs
are used again."""

_REAPERS: Final = WRAPPERS | {
    *("systemd", "init", "runit", "runit-init", "openrc-init", "s6-svscan", "dinit", "pause"),
    *("containerd-shim", "docker-containe", "conmon"),
}
"""Kernel names of what an orphan gets for a parent; none of them starts a component."""

_INTERPRETER: Final = "python"
"""How the name of a program begins that may start components itself. As PID 1 of a container it has
any kernel name: that of a script, or pt_main_thread where it imports PyTorch."""

_PID_1: Final = 1


def is_stray(
    stat: ProcessStat,
    *,
    stat_of: Callable[[int], ProcessStat | None],
    is_component: Callable[[ProcessStat], bool],
    is_main: Callable[[ProcessStat], bool],
    proc: Proc,
) -> bool:
    """Whether the topmost component above this one, or itself, was left behind.

    `stat_of` gives a process by its PID; `is_main` tells main processes that are known by more than
    their name.
    """
    for _ in range(MAX_ANCESTORS):
        parent = stat_of(stat.parent)
        if parent is None:
            return True
        if not is_component(parent):
            return not is_main(parent) and _is_reaper(parent, stat, proc)
        stat = parent
    return False


def is_left_by(process: ProcessId | None, stat: ProcessStat) -> bool:
    """Whether a component was of that launch, which led its own session or shell's job."""
    return (
        process is not None
        and stat.session == process.pid
        and stat.start_ticks >= process.start_ticks
    )


def _is_reaper(stat: ProcessStat, child: ProcessStat, proc: Proc) -> bool:
    """Whether the child got this parent only when its own had ended."""
    if stat.name in _REAPERS:
        return True
    if proc.inner_pid(stat.pid) != _PID_1:
        return False
    # vLLM starts components within its session.
    if child.session != stat.session:
        return True
    # What may not be known is not called an orphan: people end orphans.
    program = proc.program(stat.pid)
    return program is not None and not program.startswith(_INTERPRETER)
