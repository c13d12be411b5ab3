"""A local server as its runner uses it: its launches followed, and the newest one looked at."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vllm_agent.config.url import parse_server_url
from vllm_agent.host.idle_connection import IdleConnection
from vllm_agent.host.local_launch import LocalLaunch
from vllm_agent.host.pidfd import ExitWatch
from vllm_agent.host.sockets import Ownership, is_same_network, listening, server_url
from vllm_agent.host.vllm_argv import role_of
from vllm_agent.host.vllm_eyes import HttpEyes
from vllm_agent.lifecycle.events import TreeSeen
from vllm_agent.observations import (
    Knock,
    Listener,
    Orphan,
    ProbeCause,
    ProcessTree,
    Sight,
    SightKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vllm_agent.config.url import ServerUrl
    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.host.proc import ProcessStat
    from vllm_agent.host.vllm_http import Target
    from vllm_agent.lifecycle.events import Event
    from vllm_agent.observations import EngineFacts, ProbeRound, ProcessId, Sighting, VllmCommand

_NETWORK_FIX = "let it listen on an address that this host reaches, and give that as its url"
_NOT_CONNECTED = frozenset({ProbeCause.REFUSED, ProbeCause.TIMEOUT, ProbeCause.DNS})


class LocalServer:
    """One local server through all its launches.

    `target` makes the target of its probes from an URL; `url` is where the operator says it is,
    None where its command line tells, `log_file` where its log is, None where that is found.
    """

    def __init__(
        self,
        host: LocalHost,
        target: Callable[[ServerUrl], Target],
        url: ServerUrl | None = None,
        log_file: str | None = None,
    ) -> None:
        self._host = host
        self._log_file = log_file
        self._is_load_watched = False
        self._target_of = target
        self._configured_url = url
        self._launches: list[LocalLaunch] = []
        self._past_cpu_seconds = 0.0
        self._orphans: dict[Orphan, ExitWatch] = {}
        self._orphaned: ProcessId | None = None
        self._ownership = Ownership(host.proc)
        self._target: Target | None = None
        self._eyes: HttpEyes | None = None
        self._tell: Callable[[Event], None] = _nobody

    # What is asked of its processes.

    def follow(self, sighting: Sighting, tell: Callable[[Event], None]) -> None:
        """Follows a launch, as well as those before it, and tells of it until its last process."""
        self._tell = tell
        if self._launches and self._launches[-1].sighting.process == sighting.process:
            return
        for older in self._launches:
            older.leave_load()
        launch = LocalLaunch(sighting, self._host, tell, self._tell_tree, self._log_file)
        self._launches.append(launch)
        self._ownership = Ownership(self._host.proc)
        self._aim()
        launch.start()
        if self._is_load_watched:
            launch.watch_load()
        self._tell_tree()

    def watch_load(self) -> None:
        """Asks the witnesses of the newest load, and of those that follow, what they see."""
        self._is_load_watched = True
        if self._launches:
            self._launches[-1].watch_load()

    def leave_load(self) -> None:
        """Asks the witnesses of a load no more."""
        self._is_load_watched = False
        for launch in self._launches:
            launch.leave_load()

    def adopt_orphans(
        self, process: ProcessId, stats: Iterable[ProcessStat], tell: Callable[[Event], None]
    ) -> None:
        """Counts what a launch left behind whose end no agent watched."""
        self._tell, self._orphaned = tell, process
        for orphan in self._recognized(stats):
            try:
                self._orphans[orphan] = ExitWatch(
                    orphan.process,
                    self._host.proc,
                    clock=self._host.clock,
                    on_exit=partial(self._orphan_ended, orphan),
                    on_status=_no_matter,
                )
            except OSError:
                # Gone by now, or no descriptor is left: then it is not counted.
                self._host.count_dropped("orphan")
        self._tell_tree()

    def _recognized(self, stats: Iterable[ProcessStat]) -> Iterator[Orphan]:
        proc = self._host.proc
        for stat in stats:
            line = proc.command_line(stat.pid)
            title = None if line is None else role_of(line.arguments)
            if title is not None:
                yield Orphan(proc.identify(stat), *title, proc.start_unix_seconds(stat))

    def _orphan_ended(self, orphan: Orphan, at_seconds: float, wait_status: int | None) -> None:
        del at_seconds, wait_status
        self._orphans.pop(orphan).close()
        self._tell_tree()

    def arrived(self, stats: Iterable[ProcessStat]) -> None:
        """Processes that are new on the host."""
        for launch in self._launches:
            launch.arrived(stats)

    async def knock(self) -> Knock:
        """Connects to the server and sends nothing. Never raises for what a server does."""
        self._tell_tree()
        sighting = self._launches[-1].sighting
        if sighting.command.is_headless:
            return Knock(is_accepted=False)
        if self._target is None:
            self._aim()
        if self._target is None:
            return Knock(is_accepted=False, out_of_reach=self._out_of_reach(sighting))
        if await self._accepts(self._target):
            return self._accepted()
        why_not = self._out_of_reach(sighting)
        # It may have begun to listen right after it refused.
        if why_not is not None and await self._accepts(self._target):
            return self._accepted()
        return Knock(is_accepted=False, out_of_reach=why_not)

    def _accepted(self) -> Knock:
        is_stranger = self._listener() is Listener.STRANGER
        if is_stranger:
            self._launches[-1].note_stranger()
        return Knock(is_accepted=not is_stranger)

    async def _accepts(self, target: Target) -> bool:
        connection = IdleConnection(target, self._host.clock, on_closed=_ignore)
        cause = await connection.connect()
        connection.close()
        is_denied = cause is ProbeCause.RESET and target.url.socket_path is not None
        return cause not in _NOT_CONNECTED and not is_denied

    def sights(self) -> tuple[Sight, ...]:
        """What can be seen of the newest launch, and what cannot."""
        if not self._launches:
            return ()
        launch = self._launches[-1]
        detail = self._out_of_reach(launch.sighting) if self._target is None else None
        fix = "" if detail is None else _NETWORK_FIX
        network = Sight(SightKind.NETWORK, detail is None, detail or "", fix)
        return (*launch.sights(), network)

    def close(self) -> None:
        """Follows nothing any more."""
        self.release()
        for launch in self._launches:
            launch.close()
        self._launches.clear()
        for watch in self._orphans.values():
            watch.close()
        self._orphans.clear()

    # What is asked of its HTTP side.

    async def look(
        self, *, ask_models: bool, ask_metrics: bool = True, ask_version: bool = False
    ) -> ProbeRound:
        """Sends one round of probes. Never raises for what a server does."""
        if self._eyes is None:
            raise RuntimeError("a server without an address was to be looked at")
        look = await self._eyes.look(
            ask_models=ask_models, ask_metrics=ask_metrics, ask_version=ask_version
        )
        self._tell_tree()
        if not look.results or look.results[0].cause in _NOT_CONNECTED or not self._launches:
            return look
        listener = self._listener()
        if listener is not Listener.STRANGER:
            health = look.results[0]
            self._launches[-1].note_answer(
                look.started.monotonic_seconds, is_healthy=health.is_success
            )
        return replace(look, listener=listener)

    async def ask_engine(self) -> EngineFacts | None:
        """What its engine has done so far; None where it does not say, or not in time."""
        return None if self._eyes is None else await self._eyes.ask_engine()

    @property
    def is_holding(self) -> bool:
        """Whether the idle connection is there, or being opened."""
        return self._eyes is not None and self._eyes.is_holding

    async def hold(self, on_close: Callable[[float], None]) -> None:
        """Opens the idle connection if there is none."""
        if self._eyes is None or not self._launches:
            return
        launch = self._launches[-1]

        def note_and_tell(lived_seconds: float) -> None:
            # First of all: what is exiting now is gone in a moment.
            if lived_seconds > 0:
                launch.note_close()
            on_close(lived_seconds)

        await self._eyes.hold(note_and_tell)

    def release(self) -> None:
        """Closes the idle connection, if there is one, without a call of `on_close`."""
        if self._eyes is not None:
            self._eyes.release()

    def _aim(self) -> None:
        """Looks from now on where the newest launch is."""
        sighting = self._launches[-1].sighting
        url = self._configured_url or self._url_of(sighting)
        self.release()
        self._target = None if url is None else self._target_of(url)
        self._eyes = None if self._target is None else HttpEyes(self._target, self._host.clock)

    def _url_of(self, sighting: Sighting) -> ServerUrl | None:
        text = server_url(self._host.proc, sighting.process.pid, sighting.command)
        try:
            return None if text is None else parse_server_url(text)
        except ValueError:
            # A command line may say anything.
            return None

    def _listener(self) -> Listener | None:
        launch = self._launches[-1]
        if self._ownership.is_as_before(launch.pids):
            return Listener.OWN
        if self._is_elsewhere(launch.sighting.command):
            return None
        command, pid = launch.sighting.command, launch.sighting.process.pid
        inodes = listening(self._host.proc, pid, command)
        if not inodes and command.uds is None:
            # Something answered, and in its network nothing listens on its port.
            return Listener.STRANGER
        return self._ownership.whose(launch.pids, inodes)

    def _is_elsewhere(self, command: VllmCommand) -> bool:
        """Whether the operator names another port than its own, such as that of a proxy."""
        url = self._configured_url
        return url is not None and url.port != (None if command.uds is not None else command.port)

    def _out_of_reach(self, sighting: Sighting) -> str | None:
        """A sentence where it listens and cannot be connected to; None where it does not listen."""
        command, pid = sighting.command, sighting.process.pid
        if command.is_headless or not listening(self._host.proc, pid, command):
            return None
        where = "socket" if command.uds is not None else f"port {command.port}"
        if is_same_network(self._host.proc, pid) is False:
            return f"it listens on {where} of another network namespace, out of the agent's reach"
        if command.uds is not None:
            return "it listens on a socket that the agent may not open"
        return f"it listens on {where}, and the agent cannot connect to it"

    def _tell_tree(self) -> None:
        tree = self._tree()
        if tree is not None:
            self._tell(TreeSeen(tree))

    def _tree(self) -> ProcessTree | None:
        if not self._launches:
            if self._orphaned is None:
                return None
            return ProcessTree(
                process=self._orphaned,
                is_main_alive=False,
                pids=tuple(orphan.process.pid for orphan in self._orphans),
                orphans=tuple(self._orphans),
            )
        *older, newest = [(launch, launch.refreshed_tree()) for launch in self._launches]
        tree = newest[1]
        cpu = self._past_cpu_seconds + sum(t.cpu_seconds or 0.0 for _, t in older)
        old_trees = [old_tree for _, old_tree in older]
        orphans = (*self._orphans, *(o for t in (*old_trees, tree) for o in t.orphans))
        pids = (
            *(pid for t in (tree, *old_trees) for pid in t.pids),
            *(orphan.process.pid for orphan in self._orphans),
        )
        for launch, old_tree in older:
            if launch.is_over:
                self._past_cpu_seconds += old_tree.cpu_seconds or 0.0
                launch.close()
                self._launches.remove(launch)
        if tree.cpu_seconds is not None:
            cpu += tree.cpu_seconds
        return replace(
            tree,
            pids=pids,
            orphans=orphans,
            cpu_seconds=None if tree.cpu_seconds is None else cpu,
        )


def _nobody(event: Event) -> None:
    del event


def _no_matter(wait_status: int | None) -> None:
    del wait_status


def _ignore(lived_seconds: float) -> None:
    del lived_seconds
