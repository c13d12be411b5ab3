"""Families on the processes of a local server: its whole tree, and what outlived it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.expose.family import label_value
from vllm_agent.expose.metric_families.declare import LOCAL_MODES, counter, gauge, one

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.expose.family import Family, Samples
    from vllm_agent.observations import ProcessTree
    from vllm_agent.snapshot import ServerSnapshot


def _component_up(server: ServerSnapshot) -> Samples:
    if server.tree is None:
        return ()
    is_up: dict[tuple[str, ...], float] = {}
    for component in server.tree.components:
        # Processes choose their titles, and two equal series would spoil the scrape.
        values = (component.role, label_value(component.rank))
        is_up[values] = max(is_up.get(values, 0.0), float(component.is_alive))
    return tuple(is_up.items())


def _of_tree(
    value: Callable[[ProcessTree], float | None],
) -> Callable[[ServerSnapshot], Samples]:
    def samples(server: ServerSnapshot) -> Samples:
        return () if server.tree is None else one(value(server.tree))

    return samples


PROCESS_FAMILIES: Final[tuple[Family[ServerSnapshot], ...]] = (
    gauge(
        "server_component_up",
        "Whether this part of the newest launch lives; 0 once it has ended. Rank is empty for the "
        "only one of its kind.",
        _component_up,
        *("component", "rank"),
        modes=LOCAL_MODES,
    ),
    gauge(
        "server_processes",
        "Processes of the server, whole tree.",
        _of_tree(lambda tree: tree.processes),
        modes=LOCAL_MODES,
    ),
    gauge(
        "server_resident_memory_bytes",
        "Resident memory of the server's processes, whole tree. Pages that they share count "
        "several times.",
        _of_tree(lambda tree: tree.resident_bytes),
        modes=LOCAL_MODES,
    ),
    gauge(
        "server_open_fds",
        "Open file descriptors of the server's processes, whole tree, as far as the agent may "
        "read them.",
        _of_tree(lambda tree: tree.open_fds),
        modes=LOCAL_MODES,
    ),
    gauge(
        "server_threads",
        "Threads of the server's processes, whole tree.",
        _of_tree(lambda tree: tree.threads),
        modes=LOCAL_MODES,
    ),
    counter(
        "server_cpu_seconds_total",
        "CPU time of the server's processes, whole tree, over all launches.",
        _of_tree(lambda tree: tree.cpu_seconds),
        modes=LOCAL_MODES,
    ),
    gauge(
        "orphan_processes",
        "Components of the server that outlived their main process.",
        _of_tree(lambda tree: len(tree.orphans)),
        modes=LOCAL_MODES,
    ),
)
