"""Which servers there are: those of the configuration, and those that discovery finds.

The one place that says which server a process belongs to, begins and ends the runners, and lets
discovered servers leave.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.config.choices import DiscoveryPage
from vllm_agent.config.match import is_at, matches
from vllm_agent.expose.api_writes import CannotForgetError
from vllm_agent.host.local_server import LocalServer
from vllm_agent.host.pid_file import pid_of
from vllm_agent.host.secret_shapes import without_shapes
from vllm_agent.host.strays import is_left_by
from vllm_agent.host.vllm_eyes import HttpEyes, target_of
from vllm_agent.host.vllm_http import Target
from vllm_agent.lifecycle.events import ProcessMissing
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.server_names import name_of
from vllm_agent.lifecycle.states import LifecycleMode, Phase, ServerState
from vllm_agent.server_runner import ServerRunner, Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllm_agent.config.model import Config, ServerConfig
    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.host.proc import Proc, ProcessStat
    from vllm_agent.lifecycle.server_life import Memory
    from vllm_agent.observations import Instant, ProcessId, Sighting
    from vllm_agent.publication import Publication
    from vllm_agent.snapshot import ServerSnapshot
    from vllm_agent.store import Store

FIRST_LOOKS_AT_ONCE: Final = 64
"""First looks under way at a time: a thousand at once would time out by their own weight."""

FAULT_PAUSE_SECONDS: Final = 5.0
"""Pause before a runner that ended by a fault of ours begins again."""

LEAVE_CHECK_SECONDS: Final = 10.0
"""How often it is seen whether a discovered server's time is over: the shortest is minutes."""

KEEP_FAILED_SECONDS: Final = 24 * 3600.0
"""A discovered server that crashed or failed stays this long: its page must not resolve itself."""

MAX_KEPT_PER_LIVING: Final = 1
"""Discovered servers that ended, per one that may live: a crash loop under changing names must not
fill the page for a day. The oldest leave early, counted."""

_LOGGER: Final = logging.getLogger(__name__)
_DOWN: Final = frozenset({Phase.ABSENT, Phase.CRASHED})
_ENDING: Final = frozenset({Phase.ENDING, Phase.OVERDUE})


@dataclass(slots=True)
class _Entry:
    """A server that is watched.

    `holder` is the newest process that belongs to it; `is_seen` whether this agent saw one, and
    `remembered` the one that the agent before it saw last.
    """

    runner: ServerRunner
    task: asyncio.Task[None]
    config: ServerConfig | None
    local: LocalServer | None
    remembered: ProcessId | None = None
    holder: ProcessId | None = None
    is_seen: bool = False

    @property
    def phase(self) -> Phase:
        return self.runner.snapshot.life.phase

    def is_held(self, proc: Proc) -> bool:
        """Whether a process that is not about to end belongs to it."""
        if self.holder is None:
            return False
        if not self.is_seen:
            # Of an agent before this one: it may be gone.
            return proc.is_same(self.holder)
        launch = self.runner.snapshot.life.launch
        # What it was given last is in its inbox, if it is not its launch.
        is_new = launch is None or launch.process != self.holder
        return is_new or self.phase not in _DOWN | _ENDING


class Roster:
    """All servers that are watched. Made and used within one event loop."""

    def __init__(
        self,
        config: Config,
        *,
        store: Store,
        publication: Publication,
        host: LocalHost,
        clock: Callable[[], Instant],
        count_dropped: Callable[[str], None],
    ) -> None:
        self._config = config
        self._store = store
        self._publication = publication
        self._host = host
        self._clock = clock
        self._count_dropped = count_dropped
        self._first_looks = asyncio.Semaphore(FIRST_LOOKS_AT_ONCE)
        self._entries: dict[str, _Entry] = {}
        self._leaving: set[str] = set()

    @property
    def runners(self) -> Iterable[ServerRunner]:
        """The runners of all servers."""
        return [entry.runner for entry in self._entries.values()]

    async def begin(self) -> None:
        """Begins to watch what is configured, and what an agent before this one discovered."""
        for server in self._config.servers:
            self._add_configured(server)
            if server.mode is not LifecycleMode.EXTERNAL:
                self._remember(server.name, await self._store.recall(server.name))
        if self._config.discovery.enabled:
            for name, memory in (await self._store.recall_discovered()).items():
                if name not in self._entries and not self._is_outdated(memory):
                    self._add_discovered(name, self._policy_of_memory(memory))
                    self._remember(name, memory)

    def is_configured(self, sighting: Sighting) -> bool:
        """Whether a configured server means this process."""
        return self._configured(sighting) is not None

    def found(self, sighting: Sighting) -> None:
        """A main process that was not seen before."""
        entry = self._configured(sighting) or self._holder(sighting)
        if entry is None:
            if not self._config.discovery.enabled or self._is_watched_by_url(sighting):
                return
            entry = self._discovered(sighting)
        entry.holder, entry.is_seen = sighting.process, True
        entry.runner.appear(sighting, self._policy(entry.config, sighting))
        if self._config.discovery.enabled:
            self._make_room()

    def arrived(self, stats: Iterable[ProcessStat]) -> None:
        """Processes that are new on the host."""
        for entry in self._entries.values():
            if entry.local is not None:
                entry.local.arrived(stats)

    def first_look_over(self, strays: Sequence[ProcessStat] = ()) -> None:
        """Every process of the host was looked at once; `strays` are components without a main one.

        Those of a server that ended while no agent watched are known by their session.
        """
        for entry in self._entries.values():
            if entry.local is None:
                continue
            left = [stat for stat in strays if is_left_by(entry.remembered, stat)]
            if left and entry.remembered is not None:
                entry.local.adopt_orphans(entry.remembered, left, entry.runner.tell)
            if not entry.is_seen:
                entry.runner.tell(ProcessMissing())

    async def wait_first_looks(self) -> None:
        """Waits until every server that is there now was looked at once."""
        for runner in self.runners:
            await runner.first_look_done.wait()

    async def set_maintenance(self, server: str, until_unix_seconds: float | None) -> None:
        """Begins or ends the maintenance of a server. Raises KeyError if there is none."""
        await self._entries[server].runner.set_maintenance(until_unix_seconds)

    async def forget(self, server: str) -> None:
        """Lets a discovered server that ended leave now.

        Raises:
            KeyError: there is no such server.
            CannotForgetError: it is configured, or still there.
        """
        entry = self._entries[server]
        if entry.config is not None:
            raise CannotForgetError(f"{server} is configured: remove it from the configuration")
        if entry.phase not in _DOWN:
            raise CannotForgetError(f"{server} is {entry.runner.snapshot.life.state}: it is there")
        await self._leave(server)

    async def leave_when_due(self) -> None:
        """Lets discovered servers leave when their time is over, until cancelled."""
        while True:
            await asyncio.sleep(LEAVE_CHECK_SECONDS)
            now = self._clock()
            for name, entry in list(self._entries.items()):
                life = entry.runner.snapshot.life
                if entry.config is None and entry.phase in _DOWN:
                    down_seconds = now.unix_seconds - life.entered.unix_seconds
                    if down_seconds >= self._keep_seconds(life.state):
                        await self._leave(name)

    async def end(self) -> None:
        """Ends all watching; the servers are not touched."""
        tasks = [entry.task for entry in self._entries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _remember(self, name: str, memory: Memory | None) -> None:
        entry = self._entries[name]
        if memory is not None and not entry.is_seen:
            entry.remembered = entry.holder = memory.process

    # Who is who.

    def _configured(self, sighting: Sighting) -> _Entry | None:
        arguments: tuple[str, ...] | None = None
        for entry in self._entries.values():
            server = entry.config
            if server is None or server.mode is not LifecycleMode.MONITORED:
                continue
            if entry.holder != sighting.process and entry.is_held(self._host.proc):
                continue
            if arguments is None:
                line = self._host.proc.command_line(sighting.process.pid)
                arguments = () if line is None else line.arguments
            if matches(server, sighting, arguments, pid_of):
                return entry
        return None

    def _is_watched_by_url(self, sighting: Sighting) -> bool:
        """Whether it is an external server of the configuration: one server has one name."""
        for server in self._config.servers:
            if server.mode is LifecycleMode.EXTERNAL and is_at(server.url, sighting):
                _LOGGER.info(
                    "runs on this host: write mode: monitored to watch its processes too",
                    extra={"server": server.name},
                )
                return True
        return False

    def _holder(self, sighting: Sighting) -> _Entry | None:
        """The discovered server that this very process belonged to under another agent."""
        for entry in self._entries.values():
            if entry.config is None and entry.holder == sighting.process:
                return entry
        return None

    def _discovered(self, sighting: Sighting) -> _Entry:
        taken = [
            name
            for name, entry in self._entries.items()
            if entry.config is not None or entry.is_held(self._host.proc)
        ]
        name = name_of(sighting, taken)
        if name not in self._entries:
            self._add_discovered(name, self._policy(None, sighting))
        return self._entries[name]

    # Comings and goings.

    def _add_configured(self, server: ServerConfig) -> None:
        policy = self._policy(server, None)
        url = "" if server.url is None else str(server.url)
        watched = Watched(
            name=server.name,
            mode=server.mode,
            url=url,
            policy=policy,
            interval_seconds=server.probe.interval_seconds,
        )
        if not policy.is_local:
            self._begin(watched, HttpEyes.of(server, self._clock), server)
            return
        log_file = None if server.log_file is None else str(server.log_file)
        local = LocalServer(self._host, lambda url: target_of(url, server), server.url, log_file)
        self._begin(watched, local, server)

    def _add_discovered(self, name: str, policy: Policy) -> None:
        probe = self._config.default_probe
        watched = Watched(
            name=name,
            mode=LifecycleMode.MONITORED,
            url="",
            policy=policy,
            interval_seconds=probe.interval_seconds,
            is_discovered=True,
        )
        target = partial(Target, timeout_seconds=probe.timeout_seconds)
        self._begin(watched, LocalServer(self._host, target), None)
        _LOGGER.info("discovered", extra={"server": name})

    def _begin(
        self, watched: Watched, eyes: HttpEyes | LocalServer, config: ServerConfig | None
    ) -> None:
        local = eyes if isinstance(eyes, LocalServer) else None
        runner = ServerRunner(
            watched,
            eyes=eyes,
            processes=local,
            recorder=self._store,
            publish=self._publication.publish,
            clock=self._clock,
            first_looks=self._first_looks,
        )
        task = asyncio.create_task(supervised(watched.name, runner), name=f"server {watched.name}")
        self._entries[watched.name] = _Entry(runner, task, config, local)

    async def _leave(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        await entry.runner.forget()
        entry.task.cancel()
        await asyncio.gather(entry.task, return_exceptions=True)
        self._publication.remove(name)
        _LOGGER.info("forgotten", extra={"server": name})

    def _make_room(self) -> None:
        """Bounds how many discovered servers that ended are kept; those that matter stay longest.

        Anybody can start processes that look like a vLLM. They serve nothing, and nobody wants
        them up, so they leave before a server whose crash somebody has to see.
        """
        down = [
            (_importance(entry.runner.snapshot), name)
            for name, entry in self._entries.items()
            if entry.config is None and entry.phase in _DOWN and name not in self._leaving
        ]
        excess = len(down) - MAX_KEPT_PER_LIVING * self._config.discovery.max_servers
        for _, name in sorted(down)[: max(0, excess)]:
            self._count_dropped("servers")
            self._leaving.add(name)
            task = asyncio.create_task(self._leave(name))
            task.add_done_callback(partial(self._left, name))

    def _left(self, name: str, task: asyncio.Task[None]) -> None:
        self._leaving.discard(name)
        if not task.cancelled() and task.exception() is not None:
            _LOGGER.error("could not forget a server", exc_info=task.exception())

    def _keep_seconds(self, state: ServerState) -> float:
        if state is ServerState.STOPPED:
            return self._config.discovery.forget_after_seconds
        return KEEP_FAILED_SECONDS

    def _is_outdated(self, memory: Memory) -> bool:
        if memory.phase not in _DOWN or memory.entered_unix_seconds is None:
            return False
        down_seconds = self._clock().unix_seconds - memory.entered_unix_seconds
        stopped = memory.phase is Phase.ABSENT
        state = ServerState.STOPPED if stopped else ServerState.CRASHED
        return down_seconds >= self._keep_seconds(state)

    # What decisions about a server need to know.

    def _policy(self, server: ServerConfig | None, sighting: Sighting | None) -> Policy:
        probe = self._config.default_probe if server is None else server.probe
        start = self._config.default_start if server is None else server.start
        restart = self._config.default_restart if server is None else server.restart
        model = None if server is None else server.model
        return Policy(
            failure_threshold=probe.failure_threshold,
            max_restarts=restart.max_restarts,
            restart_window_seconds=restart.window_seconds,
            # As the names that it is compared with.
            expected_model=model and without_shapes(model),
            is_local=server is None or server.mode is not LifecycleMode.EXTERNAL,
            has_http=sighting is None or not sighting.command.is_headless,
            is_wanted=server is not None or self._is_wanted(sighting),
            start_timeout_seconds=start.start_timeout_seconds,
            load_timeout_seconds=start.load_timeout_seconds,
        )

    def _is_wanted(self, sighting: Sighting | None) -> bool:
        if self._config.discovery.page is DiscoveryPage.ALL:
            return True
        return sighting is not None and sighting.is_supervised

    def _policy_of_memory(self, memory: Memory) -> Policy:
        return Policy(is_local=True, is_wanted=memory.is_wanted)


async def supervised(name: str, runner: ServerRunner) -> None:
    """Runs a runner for ever: a fault of one must end neither the others nor the watching."""
    while True:
        try:
            await runner.run()
        except Exception:
            _LOGGER.exception("a runner ended by a fault of the agent", extra={"server": name})
        runner.is_faulty = True
        await asyncio.sleep(FAULT_PAUSE_SECONDS)


def _importance(server: ServerSnapshot) -> tuple[bool, bool, bool, float]:
    """What makes a server that ended worth keeping, most of all that its crash pages somebody."""
    life = server.life
    is_paging = life.state is ServerState.CRASHED and bool(server.desired_up)
    return is_paging and life.has_served, life.has_served, is_paging, life.entered.unix_seconds
