"""Which servers there are: those of the configuration, and those that discovery finds.

The one place that says which server a process belongs to, begins and ends the runners, and lets
discovered servers leave.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.config.match import is_at, matches
from vllm_agent.discovered_stay import is_outdated, keep_seconds, surplus
from vllm_agent.expose.api_writes import CannotForgetError
from vllm_agent.host.local_server import LocalServer
from vllm_agent.host.model_environment import read_environ
from vllm_agent.host.pid_file import pid_of
from vllm_agent.host.strays import is_left_by
from vllm_agent.host.vllm_eyes import HttpEyes, target_of
from vllm_agent.host.vllm_http import Target
from vllm_agent.lifecycle.events import Asked, ProcessMissing
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.server_names import name_of
from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.policies import is_other_launch, policy_of, policy_of_memory
from vllm_agent.roster_entry import DOWN_PHASES, Entry, supervised
from vllm_agent.runner_interfaces import Watched
from vllm_agent.server_runner import ServerRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from vllm_agent.config.model import Config, ServerConfig
    from vllm_agent.host.launching.refusal import Refusal
    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.host.proc import ProcessStat
    from vllm_agent.lifecycle.server_life import Memory, Policy
    from vllm_agent.observations import Instant, Sighting
    from vllm_agent.publication import Publication
    from vllm_agent.store import Store

FIRST_LOOKS_AT_ONCE: Final = 64
"""First looks under way at a time: a thousand at once would time out by their own weight."""

LEAVE_CHECK_SECONDS: Final = 10.0
"""How often it is seen whether a discovered server's time is over: the shortest is minutes."""

_LOGGER: Final = logging.getLogger(__name__)


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
        state_dir: Path,
        environ: Mapping[str, str],
        count_dropped: Callable[[str], None],
    ) -> None:
        self._config = config
        self._store = store
        self._publication = publication
        self._host = host
        self._clock = clock
        self._state_dir = state_dir
        self._environ = environ
        self._count_dropped = count_dropped
        self._first_looks = asyncio.Semaphore(FIRST_LOOKS_AT_ONCE)
        self._entries: dict[str, Entry] = {}
        self._leaving: set[str] = set()

    @property
    def runners(self) -> Iterable[ServerRunner]:
        """The runners of all servers."""
        return [entry.runner for entry in self._entries.values()]

    async def begin(self) -> None:
        """Begins to watch what is configured, and what an agent before this one discovered."""
        await self._add_all(self._config.servers)
        if self._config.discovery.enabled:
            forget_after_seconds, now = self._config.discovery.forget_after_seconds, self._clock()
            for name, memory in (await self._store.recall_discovered()).items():
                is_over = is_outdated(memory, forget_after_seconds, now)
                if name not in self._entries and not is_over:
                    self._add_discovered(name, policy_of_memory(memory))
                    self._remember(name, memory)

    async def apply(self, config: Config) -> None:
        """Watches what a new configuration says; a server that it does not change is not touched.

        What of a managed server is not as it was started is started again.
        """
        before = {server.name: server for server in self._config.servers}
        after = {server.name: server for server in config.servers}
        self._config = config
        for name in sorted(before.keys() - after.keys()):
            await self._let_go(name, before[name])
        changed = [server for name, server in after.items() if server != before.get(name)]
        for server in changed:
            await self._end_entry(server.name)
        await self._add_all(changed)
        for server in changed:
            was, memory = before.get(server.name), await self._store.recall(server.name)
            is_up = memory is not None and memory.is_goal_up
            if was is not None and is_up and is_other_launch(was, server):
                # A model that an operator chose stays, unless the file names another one.
                model = server.model if server.model != was.model else None
                self._entries[server.name].runner.tell(Asked(Wish.RESTART, model))

    def is_configured(self, sighting: Sighting) -> bool:
        """Whether a configured server means this process."""
        return self._configured(sighting) is not None

    def found(self, sighting: Sighting) -> None:
        """A main process that was not seen before."""
        if self._is_managed(sighting):
            return
        entry = self._configured(sighting) or self._holder(sighting)
        if entry is None:
            if not self._config.discovery.enabled or self._is_watched_by_url(sighting):
                return
            entry = self._discovered(sighting)
        entry.holder, entry.is_seen = sighting.process, True
        entry.runner.appear(sighting, policy_of(self._config, entry.config, sighting))
        if self._config.discovery.enabled:
            self._make_room()

    def arrived(self, stats: Iterable[ProcessStat]) -> None:
        """Processes that are new on the host."""
        for entry in self._entries.values():
            if entry.local is not None:
                entry.local.arrived(stats)

    def first_look_over(
        self, strays: Sequence[ProcessStat] = (), *, is_blind: bool = False
    ) -> None:
        """Every process of the host was looked at once; `strays` are components without a main one.

        Those of a server that ended while no agent watched are known by their session. `is_blind`:
        the processes of the host cannot be seen from here.
        """
        for entry in self._entries.values():
            if entry.local is None:
                continue
            left = [stat for stat in strays if is_left_by(entry.remembered, stat)]
            if left and entry.remembered is not None:
                entry.local.adopt_orphans(entry.remembered, left, entry.runner.tell)
            # Of a managed one its runner finds out, and tells itself.
            if not entry.is_seen and entry.launcher is None:
                entry.runner.tell(ProcessMissing(is_blind))

    async def wait_first_looks(self) -> None:
        """Waits until every server that is there now was looked at once."""
        for runner in self.runners:
            await runner.first_look_done.wait()

    async def why_not(self, server: str, model: str) -> Refusal | None:
        """Why a managed server would not serve a model. Raises KeyError if there is no server."""
        launcher = self._entries[server].launcher
        return None if launcher is None else await launcher.why_not(model)

    def runner(self, server: str) -> ServerRunner:
        """The owner of a server. Raises KeyError if there is none."""
        return self._entries[server].runner

    async def forget(self, server: str) -> None:
        """Lets a discovered server that ended leave now.

        Raises:
            KeyError: there is no such server.
            CannotForgetError: it is configured, or still there.
        """
        entry = self._entries[server]
        if entry.config is not None:
            raise CannotForgetError(f"{server} is configured: remove it from the configuration")
        if entry.phase not in DOWN_PHASES:
            raise CannotForgetError(f"{server} is {entry.runner.snapshot.life.state}: it is there")
        await self._leave(server)

    async def leave_when_due(self) -> None:
        """Lets discovered servers leave when their time is over, until cancelled."""
        while True:
            await asyncio.sleep(LEAVE_CHECK_SECONDS)
            forget_after_seconds, now = self._config.discovery.forget_after_seconds, self._clock()
            for name, entry in list(self._entries.items()):
                life = entry.runner.snapshot.life
                if entry.config is None and entry.phase in DOWN_PHASES:
                    down_seconds = now.unix_seconds - life.entered.unix_seconds
                    if down_seconds >= keep_seconds(life.state, forget_after_seconds):
                        await self._leave(name)

    async def end(self) -> None:
        """Ends all watching, and the managed servers that are to end with the agent."""
        entries = list(self._entries.values())
        for entry in entries:
            if not entry.is_to_stop:
                # First of all: a signal to the agent and all servers at once, as systemd may send
                # it, must not be taken for somebody's wish that they stay down.
                entry.task.cancel()
        await asyncio.gather(*(entry.stop() for entry in entries if entry.is_to_stop))
        for entry in entries:
            entry.task.cancel()
        for name in list(self._entries):
            await self._end_entry(name)

    def _remember(self, name: str, memory: Memory | None) -> None:
        entry = self._entries[name]
        if memory is not None and not entry.is_seen:
            entry.remembered = entry.holder = memory.process

    # Who is who.

    def _configured(self, sighting: Sighting) -> Entry | None:
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

    def _is_managed(self, sighting: Sighting) -> bool:
        """Whether it is of a launch of the agent's own, of which its launcher tells."""
        launchers = [entry.launcher for entry in self._entries.values() if entry.launcher]
        if not launchers:
            return False
        environ = read_environ(self._host.proc, sighting.process.pid) or b""
        return any(launcher.has_marked(environ) for launcher in launchers)

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

    def _holder(self, sighting: Sighting) -> Entry | None:
        """The discovered server that this very process belonged to under another agent."""
        for entry in self._entries.values():
            if entry.config is None and entry.holder == sighting.process:
                return entry
        return None

    def _discovered(self, sighting: Sighting) -> Entry:
        taken = [
            name
            for name, entry in self._entries.items()
            if entry.config is not None or entry.is_held(self._host.proc)
        ]
        name = name_of(sighting, taken)
        if name not in self._entries:
            self._add_discovered(name, policy_of(self._config, None, sighting))
        return self._entries[name]

    # Comings and goings.

    async def _add_all(self, servers: Iterable[ServerConfig]) -> None:
        for server in servers:
            self._add_configured(server)
            if server.mode is not LifecycleMode.EXTERNAL:
                self._remember(server.name, await self._store.recall(server.name))

    def _launched(self, name: str, sighting: Sighting) -> None:
        """The main process of a managed server is there."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.holder, entry.is_seen = sighting.process, True
            entry.runner.appear(sighting, policy_of(self._config, entry.config, sighting))

    def _add_configured(self, server: ServerConfig) -> None:
        policy = policy_of(self._config, server, None)
        watched = Watched(
            name=server.name,
            mode=server.mode,
            url="" if server.url is None else str(server.url),
            policy=policy,
            interval_seconds=server.probe.interval_seconds,
        )
        if not policy.is_local:
            self._begin(watched, HttpEyes.of(server, self._clock), server)
            return
        log_file = None if server.log_file is None else str(server.log_file)
        # Where a managed one listens its own command line tells: it may be older than the file.
        url = None if server.mode is LifecycleMode.MANAGED else server.url
        local = LocalServer(self._host, lambda url: target_of(url, server), url, log_file)
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
        launcher = None
        if config is not None and config.mode is LifecycleMode.MANAGED:
            # An agent that only watches does not hold what starts servers.
            from vllm_agent.host.launching.launcher import ManagedLauncher  # noqa: PLC0415

            launcher = ManagedLauncher(
                config,
                host=self._host,
                state_dir=self._state_dir,
                launched=partial(self._launched, watched.name),
                agent_environ=self._environ,
            )
        runner = ServerRunner(
            watched,
            eyes=eyes,
            processes=local,
            launcher=launcher,
            recorder=self._store,
            publish=self._publication.publish,
            clock=self._clock,
            first_looks=self._first_looks,
            count_dropped=self._count_dropped,
        )
        task = asyncio.create_task(supervised(watched.name, runner), name=f"server {watched.name}")
        self._entries[watched.name] = Entry(runner, task, config, local, launcher)

    async def _end_entry(self, name: str) -> Entry | None:
        """Ends the watching of a server, which goes on."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.task.cancel()
            await asyncio.gather(entry.task, return_exceptions=True)
            if entry.launcher is not None:
                # Else the next owner would not find what is being started, and start another.
                await entry.launcher.settled()
            entry.runner.close()
        return entry

    async def _let_go(self, name: str, server: ServerConfig) -> None:
        """Watches a server no more that the configuration does not name any more.

        A managed one is stopped: nobody would restart it, and its port could not be used again.
        """
        if server.mode is LifecycleMode.MANAGED:
            text = "removed from the configuration: it is stopped"
            _LOGGER.warning(text, extra={"server": name})
            await self._entries[name].stop()
        await self._end_entry(name)
        self._publication.remove(name)

    async def _leave(self, name: str) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return
        await entry.runner.forget()
        await self._end_entry(name)
        self._publication.remove(name)
        _LOGGER.info("forgotten", extra={"server": name})

    def _make_room(self) -> None:
        """Bounds how many discovered servers that ended are kept."""
        down = [
            entry.runner.snapshot
            for name, entry in self._entries.items()
            if entry.config is None and entry.phase in DOWN_PHASES and name not in self._leaving
        ]
        for name in surplus(down, self._config.discovery.max_servers):
            self._count_dropped("servers")
            self._leaving.add(name)
            task = asyncio.create_task(self._leave(name))
            task.add_done_callback(partial(self._left, name))

    def _left(self, name: str, task: asyncio.Task[None]) -> None:
        self._leaving.discard(name)
        if not task.cancelled() and task.exception() is not None:
            _LOGGER.error("could not forget a server", exc_info=task.exception())
