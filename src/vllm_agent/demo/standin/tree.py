"""Forks the components of a server and keeps what the API side needs of them."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_agent.demo.standin import engine, process, worker
from vllm_agent.demo.standin.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllm_agent.demo.standin.options import Options

_READ_BYTES = 1 << 12
_RESOURCE_TRACKER = "from multiprocessing.resource_tracker import main;main(7)"
_COORDINATOR = "VLLM::DPCoordinator"


@dataclass(slots=True)
class Component:
    """A process of the tree, held by a pidfd so that a signal never hits another one."""

    title: str
    pid: int
    pidfd: int

    @classmethod
    def of(cls, title: str, pid: int) -> Component:
        """The component with this PID, which must not have been reaped yet."""
        return cls(title, pid, os.pidfd_open(pid))

    @property
    def name(self) -> str:
        """The title as the log writes it."""
        return self.title.removeprefix("VLLM::")

    def send(self, signum: int) -> bool:
        """Sends a signal; False when the process is gone."""
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            return False
        return True

    def reap(self) -> int:
        """Waits for this child; its exit code, or minus its signal."""
        return process.exit_status(os.waitpid(self.pid, 0)[1])


@dataclass(slots=True)
class Engine(Component):
    """An EngineCore as its API servers see it."""

    ready: int = -1  # end of file before a line: it failed to load
    clients: tuple[int, ...] = ()  # the API servers' ends
    workers: list[Component] = field(default_factory=list)

    def read_ready(self, options: Options, index: int) -> bool:
        """Reads the PIDs of its workers; False when it died before it was ready."""
        line = os.read(self.ready, _READ_BYTES)
        os.close(self.ready)
        pids = [int(pid) for pid in line.split()]
        for rank, pid in enumerate(pids):
            self.workers.append(Component.of(worker.title(options, index, rank), pid))
        return bool(line)


class Tree:
    """All processes below the main one."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.engines: list[Engine] = []
        self.api_servers: list[Component] = []
        self.bystanders: list[Component] = []
        # Only the main process keeps the write end: its end of file tells every component.
        self.parent_alive, self._parent = os.pipe()

    def fork_engines(self) -> None:
        """Starts the EngineCores, the coordinator and Python's resource tracker."""
        self._fork_bystander(
            "resource_tracker", lambda: process.set_python_command(_RESOURCE_TRACKER), lifetime=0.0
        )
        if self._options.engines > 1:
            self._fork_bystander(
                _COORDINATOR,
                lambda: process.set_title(_COORDINATOR),
                lifetime=self._options.orphan_lifetime,
            )
        for index in range(self._options.engines):
            self._fork_engine(index)

    def _fork_engine(self, index: int) -> None:
        pairs = [socket.socketpair() for _ in range(self._options.api_servers)]
        ours = tuple(one.detach() for one, _ in pairs)
        theirs = tuple(other.detach() for _, other in pairs)
        ready, ready_write = os.pipe()
        channels = engine.EngineChannels(self.parent_alive, ready_write, theirs)
        pid = process.fork(
            lambda: engine.run(self._options, index, channels),
            keep=[self.parent_alive, ready_write, *theirs],
        )
        for fd in (ready_write, *theirs):
            os.close(fd)
        title = engine.title(self._options, index)
        self.engines.append(Engine(title, pid, os.pidfd_open(pid), ready, ours))

    def _fork_bystander(self, name: str, dress: Callable[[], None], lifetime: float) -> None:
        pid = process.fork(lambda: self._stand_by(dress, lifetime), keep=[self.parent_alive])
        self.bystanders.append(Component.of(name, pid))

    def _stand_by(self, dress: Callable[[], None], lifetime: float) -> int:
        """A process that does nothing until it is told to end or its parent is gone."""
        dress()
        reactor = Reactor()

        def orphaned() -> None:
            reactor.forget(self.parent_alive)
            reactor.call_later(lifetime, lambda: reactor.stop(0))

        reactor.on_readable(self.parent_alive, orphaned)
        reactor.on_signal([signal.SIGTERM, signal.SIGINT], lambda _signum: None)
        return reactor.run()

    def everyone(self) -> Iterable[Component]:
        """Every process below the main one, workers first."""
        for one in self.engines:
            yield from one.workers
        yield from self.engines
        yield from self.api_servers
        yield from self.bystanders

    def kill_engines(self) -> None:
        """Kills engines and workers at once."""
        for one in self.engines:
            one.send(signal.SIGKILL)
            for member in one.workers:
                member.send(signal.SIGKILL)
