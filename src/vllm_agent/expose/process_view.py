"""The processes of a local server as the API tells them, and what the agent may see. Pure.

PIDs and titles only: command lines, environments and logs hold secrets and prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from vllm_agent.expose.json_text import duration
from vllm_agent.lifecycle.states import ALIVE_PHASES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_agent.observations import Sight
    from vllm_agent.snapshot import ServerSnapshot


class ComponentView(TypedDict):
    """A part of the newest launch; `up` is false once it has ended."""

    role: str
    rank: str
    pid: int
    up: bool


class SightView(TypedDict):
    """Whether the agent may see one kind of thing; if not, why, and what would change that."""

    kind: str
    visible: bool
    why_not: str
    fix: str


class ProcessView(TypedDict):
    """What runs for a local server, whole tree; null and empty where no process was seen.

    `pid` is that of the main process while it is there. `supervised` is whether a systemd service
    or a container runtime keeps it up. `orphans` outlived their main process.
    """

    pid: int | None
    unit: str | None
    container_id: str | None
    supervised: bool | None
    components: list[ComponentView]
    processes: int | None
    resident_memory_bytes: int | None
    open_fds: int | None
    threads: int | None
    cpu_seconds: float | None
    orphans: int | None
    sights: list[SightView]


def process_view(server: ServerSnapshot) -> ProcessView:
    """What is known of a server's processes."""
    sighting, tree = server.sighting, server.tree
    return ProcessView(
        pid=main_pid(server),
        unit=None if sighting is None else sighting.unit,
        container_id=None if sighting is None else sighting.container_id,
        supervised=None if sighting is None else sighting.is_supervised,
        components=[
            ComponentView(role=part.role, rank=part.rank, pid=part.pid, up=part.is_alive)
            for part in (() if tree is None else tree.components)
        ],
        processes=None if tree is None else tree.processes,
        resident_memory_bytes=None if tree is None else tree.resident_bytes,
        open_fds=None if tree is None else tree.open_fds,
        threads=None if tree is None else tree.threads,
        cpu_seconds=None if tree is None else duration(tree.cpu_seconds),
        orphans=None if tree is None else len(tree.orphans),
        sights=sight_views(server.sights),
    )


def sight_views(sights: Iterable[Sight]) -> list[SightView]:
    """What the agent may see, and what not."""
    return [
        SightView(kind=sight.kind, visible=sight.is_visible, why_not=sight.why_not, fix=sight.fix)
        for sight in sights
    ]


def main_pid(server: ServerSnapshot) -> int | None:
    """The main process, None once it is gone: its number may be another's by now."""
    if server.tree is not None:
        return server.tree.process.pid if server.tree.is_main_alive else None
    if server.sighting is not None and server.life.phase in ALIVE_PHASES:
        return server.sighting.process.pid
    return None
