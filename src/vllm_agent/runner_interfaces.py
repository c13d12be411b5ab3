"""What a server's runner needs: what is watched, and a world to look at, to act on, to remember."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.lifecycle.server_life import Ending, Launch, Memory, Policy, Transition
    from vllm_agent.lifecycle.states import LifecycleMode
    from vllm_agent.observations import EngineFacts, Knock, ProbeRound, ProcessId, Sight, Sighting
    from vllm_agent.snapshot import ServerSnapshot


@dataclass(frozen=True, slots=True)
class Watched:
    """What a runner needs to know of a server; `url` is empty where only a process will tell."""

    name: str
    mode: LifecycleMode
    url: str
    policy: Policy
    interval_seconds: float
    is_discovered: bool = False


class Eyes(Protocol):
    """How a server is looked at and held on to; `host.vllm_http` is the real one."""

    async def look(
        self, *, ask_models: bool, ask_metrics: bool = True, ask_version: bool = False
    ) -> ProbeRound:
        """Sends one round of probes. Never raises for what a server does."""

    async def ask_engine(self) -> EngineFacts | None:
        """What its engine has done so far; None where it does not say, or not in time."""

    @property
    def is_holding(self) -> bool:
        """Whether the idle connection is there, or being opened."""

    async def hold(self, on_close: Callable[[float], None]) -> None:
        """Opens the idle connection if there is none, and is content when it cannot.

        `on_close` is called once, with the seconds it lived, when the peer closes it.
        """

    def release(self) -> None:
        """Closes the idle connection, if there is one, without a call of `on_close`."""


class Processes(Protocol):
    """How the processes of a local server are followed; `host.local_server` is the real one."""

    def follow(self, sighting: Sighting, tell: Callable[[Event], None]) -> None:
        """Follows a launch, as well as those before it, and tells of it until its last process."""

    async def knock(self) -> Knock:
        """Connects to the server and sends nothing. Never raises for what a server does."""

    def watch_load(self) -> None:
        """Asks the witnesses of the newest load what they see, and tells of it."""

    def leave_load(self) -> None:
        """Asks the witnesses of a load no more."""

    def sights(self) -> tuple[Sight, ...]:
        """What can be seen of the newest launch, and what cannot."""

    def close(self) -> None:
        """Follows nothing any more."""


class Recorder(Protocol):
    """Where what happened is kept; `store` is the real one."""

    async def recall(self, server: str) -> Memory | None:
        """What the agent before this one knew of the server."""

    async def commit(
        self,
        server: str,
        memory: Memory,
        transition: Transition | None = None,
        ending: Ending | None = None,
        launch: Launch | None = None,
    ) -> None:
        """Keeps a change; never raises."""


class Launcher(Protocol):
    """How a managed server is started and ended; `host.launching.launcher` is the real one.

    Nothing here waits: what came of it is told as an event.
    """

    async def adopt(self, remembered: ProcessId | None) -> bool:
        """Takes over the launch of an agent before, if it lives, and tells of it as of its own.

        `remembered` is its main process, as far as that was written down.
        """

    def start(self, attempt: int, model: str | None, tell: Callable[[Event], None]) -> None:
        """Checks what a start needs and starts the server.

        It ends in a main process, of which whoever made the launcher is told, or in a call of
        `tell` with `StartRefused`.
        """

    def cancel(self) -> None:
        """Gives up a start that has not come to a process yet."""

    def terminate(self, process: ProcessId) -> None:
        """Sends SIGTERM to a main process, if it is still that process."""

    def kill_all(self, process: ProcessId, tell: Callable[[Event], None]) -> None:
        """Kills what is left of a launch, however often that takes, and then tells `Cleared`."""

    def keep_evidence(
        self, ending: Ending, server: ServerSnapshot, tell: Callable[[Event], None]
    ) -> None:
        """Keeps what is known of an end in a file, and tells `EvidenceKept`; never raises."""

    def close(self) -> None:
        """Ends its own tasks. No server is touched."""
