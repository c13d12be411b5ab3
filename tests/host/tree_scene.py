"""A tree watch under test: what it is given, and what it has told."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_agent.host.clock import now
from vllm_agent.host.proc import Proc
from vllm_agent.host.process_tree import MainGone, TreeWatch
from vllm_agent.host.vllm_argv import role_of
from vllm_agent.observations import Sighting, VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vllm_agent.host.proc import ProcessStat
    from vllm_agent.host.process_tree import TreeEvent
    from vllm_agent.observations import ComponentRole

PATIENCE_SECONDS = 20.0

ENGINE_AND_WORKER = """
exec 3<&0
(exec -a VLLM::EngineCore cat <&3) &
(exec -a VLLM::Worker_TP0 cat <&3) &
wait
"""
"""For a bash that is a main process: what it starts has a title, and ends with its input."""


def everybody(proc: Proc) -> list[ProcessStat]:
    """Every process of the host, as the first look lists them."""
    return [stat for stat in map(proc.stat, proc.pids()) if stat is not None]


def sighting(proc: Proc, pid: int, command: VllmCommand | None = None) -> Sighting:
    stat = proc.stat(pid)
    assert stat is not None
    return Sighting(
        process=proc.identify(stat),
        start_seconds=proc.start_unix_seconds(stat),
        command=command or VllmCommand(),
        uid=1000,
        session=stat.session,
    )


class Watched:
    """A `TreeWatch`, the events it told and what it dropped."""

    def __init__(
        self,
        pid: int,
        proc: Proc | None = None,
        command: VllmCommand | None = None,
        *,
        seen: Sighting | None = None,
    ) -> None:
        self.proc = Proc() if proc is None else proc
        self.events: list[TreeEvent] = []
        self.dropped: list[str] = []
        self._changed = asyncio.Event()
        self.tree = TreeWatch(
            seen or sighting(self.proc, pid, command),
            self.proc,
            clock=now,
            tell=self._on_event,
            role_of=role_of,
            count_dropped=self.dropped.append,
        )

    def start(self, stats: Iterable[ProcessStat] | None = None) -> Watched:
        self.tree.start(everybody(self.proc) if stats is None else stats)
        return self

    def look(self) -> None:
        """A look at the host: who is new, and what the titles say now."""
        self.tree.arrived(everybody(self.proc))
        self.tree.refresh()

    def _on_event(self, event: TreeEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Waits for an event after which something holds."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_true():
                self._changed.clear()
                await self._changed.wait()

    async def until_gone(self) -> MainGone:
        await self.until(lambda: any(isinstance(e, MainGone) for e in self.events))
        return next(e for e in self.events if isinstance(e, MainGone))

    async def until_seen(self, is_true: Callable[[], bool]) -> None:
        """Looks again and again until something holds: nobody tells of an arrival."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_true():
                self.look()
                await asyncio.sleep(0.01)

    @property
    def roles(self) -> Sequence[tuple[ComponentRole, str]]:
        return [(c.role, c.rank) for c in self.tree.tree().components]


@contextlib.contextmanager
def bash(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads its session; what it starts ends when this is left."""
    command = ["bash", "-c", script]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def tiny_process() -> subprocess.Popen[bytes]:
    """A process that exits with 1."""
    return subprocess.Popen(["/bin/false"])


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
