"""A server that is watched: its owner, who it is, and how it is reached."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.states import LifecycleMode, Phase

if TYPE_CHECKING:
    from vllm_agent.config.model import ServerConfig
    from vllm_agent.host.launching.launcher import ManagedLauncher
    from vllm_agent.host.local_server import LocalServer
    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import ProcessId
    from vllm_agent.server_runner import ServerRunner

FAULT_PAUSE_SECONDS: Final = 5.0
"""Pause before a runner that ended by a fault of ours begins again."""

KILL_SECONDS: Final = 15.0
"""How long a server is waited for after SIGKILL when the agent ends: its driver may hold it."""

DOWN_PHASES: Final = frozenset({Phase.ABSENT, Phase.CRASHED})
"""Phases in which a server that is only watched is not there."""

_ENDING: Final = frozenset({Phase.ENDING, Phase.OVERDUE})
_LOGGER: Final = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Entry:
    """A server that is watched.

    `holder` is the newest process that belongs to it; `is_seen` whether this agent saw one, and
    `remembered` the one that the agent before it saw last.
    """

    runner: ServerRunner
    task: asyncio.Task[None]
    config: ServerConfig | None
    local: LocalServer | None
    launcher: ManagedLauncher | None = None
    remembered: ProcessId | None = None
    holder: ProcessId | None = None
    is_seen: bool = False

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self.runner.snapshot.life.phase

    @property
    def is_to_stop(self) -> bool:
        """Whether it ends with its agent."""
        config = self.config
        if config is None or config.mode is not LifecycleMode.MANAGED:
            return False
        return config.managed.stop_on_exit

    def is_held(self, proc: Proc) -> bool:
        """Whether a process that is not about to end belongs to it."""
        if self.holder is None:
            return False
        if not self.is_seen:
            # Of an agent before this one: it may be gone, or a zombie that nobody reaps.
            return proc.is_alive(self.holder)
        launch = self.runner.snapshot.life.launch
        # What it was given last is in its inbox, if it is not its launch.
        is_new = launch is None or launch.process != self.holder
        return is_new or self.phase not in DOWN_PHASES | _ENDING

    async def stop(self) -> None:
        """Stops a managed server that is watched no more; a hung one keeps nobody for ever."""
        server = self.runner.snapshot
        try:
            async with asyncio.timeout(server.policy.stop_timeout_seconds + KILL_SECONDS):
                await self.runner.leave()
        except TimeoutError:
            text = "could not be stopped in time: it is left to the next agent"
            _LOGGER.error(text, extra={"server": server.name})  # noqa: TRY400 - no fault of ours


async def supervised(name: str, runner: ServerRunner) -> None:
    """Runs a runner for ever: a fault of one must end neither the others nor the watching."""
    while True:
        try:
            await runner.run()
        except Exception:
            _LOGGER.exception("a runner ended by a fault of the agent", extra={"server": name})
        runner.is_faulty = True
        await asyncio.sleep(FAULT_PAUSE_SECONDS)
