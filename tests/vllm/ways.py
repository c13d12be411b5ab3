"""The ways to end a vLLM, real or stand-in, and what an agent that watches it must say of each."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vllm_agent.demo.standin.endings import ENDINGS, Target
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import ServerState

if TYPE_CHECKING:
    from collections.abc import Sequence

_ORDERLY_RULES = frozenset({3, 6})
"""A stop is known by its log line, or without one by what is gone when the listener closes."""


class VllmProcesses(Protocol):
    """A running server, as far as a way to end it needs to know."""

    @property
    def pid(self) -> int: ...
    @property
    def port(self) -> int: ...
    @property
    def engine_pids(self) -> list[int]: ...
    @property
    def worker_pids(self) -> list[int]: ...
    @property
    def api_server_pids(self) -> list[int]: ...
    def pids(self, prefix: str = "") -> list[int]: ...
    def signal_group(self, signum: int) -> None: ...


@dataclass(frozen=True)
class Verdict:
    """What the agent must say of an ending.

    `rules` are the ending rules that may decide, `exit_codes` what a vLLM was seen to exit with.
    """

    state: ServerState
    reason: Reason | None
    rules: frozenset[int]
    exit_codes: frozenset[int] = frozenset()
    signal: int | None = None

    def __str__(self) -> str:
        return self.state if self.reason is None else f"{self.state}/{self.reason}"


_STOPPED = Verdict(ServerState.STOPPED, None, _ORDERLY_RULES, exit_codes=frozenset({0}))
_KILLED = Verdict(ServerState.CRASHED, Reason.SIGNAL, frozenset({5}), signal=signal.SIGKILL)


def _died(reason: Reason, *exit_codes: int) -> Verdict:
    return Verdict(ServerState.CRASHED, reason, frozenset({4}), frozenset(exit_codes))


EXPECTED = {
    "term": _STOPPED,
    "term_group": _STOPPED,
    "term_shutdown_timeout_10": _STOPPED,
    "int": _STOPPED,
    "int_group": _STOPPED,
    "kill_engine": _died(Reason.ENGINE_DIED, 0),
    "kill_worker": _died(Reason.ENGINE_DIED, 0),
    # 0 and 1 were both seen: it is a race within vLLM.
    "segv_worker": _died(Reason.ENGINE_DIED, 0, 1),
    "kill_api": _KILLED,
    "kill_group": _KILLED,
    "api2_term": _STOPPED,
    "api2_kill_child": _died(Reason.API_SERVER_DIED, 1),
    "api2_kill_engine": _died(Reason.ENGINE_DIED, 1),
}


@dataclass(frozen=True)
class Way:
    """One way to end a server, idle or with clients that stream."""

    name: str
    has_streams: bool

    @property
    def id(self) -> str:
        """Its name in the recording of a real vLLM."""
        return f"{self.name}-{'streams' if self.has_streams else 'idle'}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the command line of the server needs for it."""
        return ENDINGS[self.name].arguments

    @property
    def expected(self) -> Verdict:
        """What the agent must say."""
        return EXPECTED[self.name]

    def act_on(self, server: VllmProcesses) -> None:
        """Ends the server."""
        act_on(server, self.name)


WAYS = tuple(Way(name, has_streams) for name in ENDINGS for has_streams in (False, True))


def act_on(server: VllmProcesses, name: str) -> None:
    """Sends the signal of the named ending to its target."""
    ending = ENDINGS[name]
    if ending.target is Target.GROUP:
        server.signal_group(ending.signum)
        return
    targets: dict[Target, Sequence[int]] = {
        Target.MAIN: [server.pid],
        Target.ENGINE: server.engine_pids,
        Target.WORKER: server.worker_pids,
        Target.API_SERVER: server.api_server_pids,
    }
    os.kill(targets[ending.target][0], ending.signum)
