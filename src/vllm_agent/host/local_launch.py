"""One launch of a local server: follows it to its end, and gathers what tells how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from vllm_agent.host.launch_log import LaunchLog
from vllm_agent.host.load.watch import LoadWatch
from vllm_agent.host.model_environment import read_environ
from vllm_agent.host.oom_kills import OomKills
from vllm_agent.host.patience import Patience, TooManyHung
from vllm_agent.host.port_holder import port_holder
from vllm_agent.host.process_tree import ComponentGone, MainGone, TreeWatch
from vllm_agent.host.secrets import Secrets
from vllm_agent.host.sockets import is_same_network
from vllm_agent.host.systemd import ask_unit, systemd_sight
from vllm_agent.host.vllm_argv import role_of
from vllm_agent.host.vllm_markers import MarkKind
from vllm_agent.lifecycle.by_process import NEW_PROCESS_SECONDS
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.lifecycle.events import ComponentEnded, EndBegan, EndSettled
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllm_agent.host.local_host import LocalHost
    from vllm_agent.host.log_evidence import LoggedCause
    from vllm_agent.host.proc import ProcessStat
    from vllm_agent.host.process_tree import TreeEvent
    from vllm_agent.lifecycle.events import Event
    from vllm_agent.observations import ProcessTree, Sight, Sighting

SETTLE_SECONDS: Final = 1.8
"""Longest wait, after the main process is gone, for what tells how it ended: an ending is settled
within 2 s."""

HOLDER_SECONDS: Final = 0.5
"""Longest wait for who holds a port: 20 µs for each process of the host."""

_LOGGER: Final = logging.getLogger(__name__)


class LocalLaunch:
    """Follows the processes of one launch until the last has ended.

    `tell` gets `LoadLooked`, `ComponentEnded`, `EndBegan` and, once, `EndSettled`; `changed` is
    called when there may be something new in `tree`. `log_file` is where the operator says that
    its log is.
    """

    def __init__(
        self,
        sighting: Sighting,
        host: LocalHost,
        tell: Callable[[Event], None],
        changed: Callable[[], None],
        log_file: str | None = None,
    ) -> None:
        self.sighting = sighting
        self._host = host
        self._tell = tell
        self._changed = changed
        self._oom = OomKills(host.proc.cgroup(sighting.process.pid) or "")
        # Of one that began under the agent's eyes, what the log held before is of others.
        age_seconds = host.clock().unix_seconds - sighting.start_seconds
        self._log = LaunchLog(
            sighting,
            host.proc,
            host.count_dropped,
            is_new=age_seconds < NEW_PROCESS_SECONDS,
            read_secrets=self._read_secrets,
            log_file=log_file,
            followed=host.log_files,
        )
        self._unit_sight: Sight | None = None
        self._unit_stop_seconds: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._tree = TreeWatch(
            sighting,
            host.proc,
            clock=host.clock,
            tell=self._on_tree,
            role_of=role_of,
            count_dropped=host.count_dropped,
        )
        self._load = LoadWatch(sighting, host, self._tree, self._log, tell)
        self._is_in_this_network = is_same_network(host.proc, sighting.process.pid) is True
        self._port_holder = ""
        self._finding: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to follow; may tell of an end at once."""
        self._log.open()
        if self.sighting.unit is not None:
            self._asking = asyncio.create_task(self._see_unit(self.sighting.unit), name="see unit")
        self._tree.start(self._host.processes())

    def arrived(self, stats: Iterable[ProcessStat]) -> None:
        """Processes that are new on the host."""
        self._tree.arrived(stats)

    def refreshed_tree(self) -> ProcessTree:
        """What runs for this launch now."""
        self._tree.refresh()
        return self._tree.tree()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that are there, the main one first."""
        return self._tree.pids

    @property
    def is_over(self) -> bool:
        """Whether its ending is told of and nothing of it runs any more."""
        return self._tree.is_over and self._settling is not None and self._settling.done()

    def watch_load(self) -> None:
        """Asks the witnesses of its load from now on."""
        self._load.start()

    def leave_load(self) -> None:
        """Asks the witnesses of its load no more."""
        self._load.stop()

    def note_stranger(self) -> None:
        """Another process listens where it wants to."""
        if self._finding is None:
            self._finding = asyncio.create_task(
                self._find_port_holder(self.sighting.process.pid), name="find port holder"
            )

    def note_close(self) -> None:
        """The idle connection was closed by its peer this very moment."""
        self._tree.note_close()
        self._gather(self._now_seconds())

    def note_answer(self, connected_seconds: float, *, is_healthy: bool) -> None:
        """The server answered on a connection made then, so an earlier close meant nothing."""
        self._tree.forget_close(connected_seconds)
        if is_healthy:
            self._log.note_serving(connected_seconds, self._tree.all_pids)

    def sights(self) -> tuple[Sight, ...]:
        """What the agent may see of this launch."""
        others = (self._oom.sight(), self._log.sight, self._unit_sight)
        return (*self._tree.sights(), *(sight for sight in others if sight is not None))

    def close(self) -> None:
        """Follows it no more, and tells nothing more."""
        self._load.stop()
        self._tree.close()
        self._log.close()
        for task in (self._asking, self._looking, self._finding, self._settling):
            if task is not None:
                task.cancel()

    def _on_tree(self, event: TreeEvent) -> None:
        self._gather(event.at_seconds)
        match event:
            case ComponentGone(role=role):
                if role is not None and self._host.gpus is not None:
                    self._host.gpus.look_soon()
                if role is not None and self._settling is None:
                    self._tell(ComponentEnded(self.sighting.process, role))
            case MainGone():
                self._log.note_gone()
                self._load.stop()
                self._tell(EndBegan(self.sighting.process))
                if self._host.gpus is not None:
                    look = self._host.gpus.look_now()
                    self._looking = asyncio.create_task(look, name="look at GPUs")
                self._settling = asyncio.create_task(self._settle(), name="settle")
        self._changed()

    def _gather(self, at_seconds: float) -> None:
        """At each sign of an end: what else may be gone or told differently a moment later."""
        self._oom.read()
        self._log.read_soon(at_seconds, self._tree.all_pids)
        unit = self.sighting.unit
        is_asked = self._asking is not None and not self._asking.done()
        if unit is not None and not is_asked and self._unit_stop_seconds is None:
            self._asking = asyncio.create_task(self._ask_unit(unit, at_seconds), name="ask unit")

    async def _see_unit(self, unit: str) -> None:
        self._unit_sight = await systemd_sight(
            unit, is_user_unit=self.sighting.is_user_unit, uid=self.sighting.uid
        )

    async def _ask_unit(self, unit: str, at_seconds: float) -> None:
        view = await ask_unit(unit, is_user_unit=self.sighting.is_user_unit, uid=self.sighting.uid)
        if view is not None and view.says_stop:
            began = view.stop_seconds
            self._unit_stop_seconds = at_seconds if began is None else min(at_seconds, began)

    async def _settle(self) -> None:
        """Waits for what is still to come, and tells what the end was."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._tree.settled(SETTLE_SECONDS)
                await self._log.finish(self._now_seconds(), self._tree.all_pids)
                for task in (self._asking, self._looking, self._finding):
                    if task is not None:
                        await task
                await self._find_port_holder_late()
        except TimeoutError:
            pass
        except Exception:
            # A fault of ours must not leave the launch without a verdict.
            _LOGGER.exception("could not gather everything about an end")
        self._tell(EndSettled(self.sighting.process, self._evidence()))
        self._log.close()
        self._changed()

    async def _find_port_holder(self, pid: int) -> None:
        patience = Patience(HOLDER_SECONDS)
        command = self.sighting.command
        try:
            found, _ = await patience.map(lambda p: port_holder(self._host.proc, p, command), [pid])
        except TooManyHung:
            return
        finally:
            patience.close()
        self._port_holder = found[0] if found else ""

    async def _find_port_holder_late(self) -> None:
        """Of one that failed before anybody knocked: what listens now was in its way."""
        is_wanted = _is(self._log.cause(), Reason.PORT_IN_USE)
        if is_wanted and not self._port_holder and self._is_in_this_network:
            await self._find_port_holder(os.getpid())

    def _read_secrets(self) -> Secrets:
        """What must not be shown of its log. This blocks as the memory of its process does."""
        proc, pid = self._host.proc, self.sighting.process.pid
        line = proc.command_line(pid)
        environ = read_environ(proc, pid) if self._host.may_read_environ else None
        secrets = Secrets.of(() if line is None else line.arguments, environ or b"")
        if secrets.dropped:
            self._host.count_dropped("secrets")
        return secrets

    def _now_seconds(self) -> float:
        return self._host.clock().monotonic_seconds

    def _evidence(self) -> EndingEvidence:
        tree = self._tree.evidence()
        told = self._log.deciding()
        stops: list[tuple[float, str]] = []
        if self._unit_stop_seconds is not None:
            stops.append(
                (self._unit_stop_seconds, f"systemd was told to stop {self.sighting.unit}")
            )
        death_seconds, death = None, ""
        if told is not None:
            at_seconds, mark = told
            text = f"its log says: {mark.name}"
            if mark.kind is MarkKind.STOP:
                stops.append((at_seconds, text))
            else:
                death_seconds, death = at_seconds, text
        stop_seconds, stop = min(stops, default=(None, ""))
        cause = self._log.cause()
        return EndingEvidence(
            main_wait_status=tree.main_wait_status,
            main_exit_seconds=tree.main_exit_seconds,
            main_was_exiting_at_close=tree.main_was_exiting_at_close,
            close_seconds=tree.close_seconds,
            at_close=tree.at_close,
            exits=tree.exits,
            oom_kills=self._oom.risen(),
            gpu_fault=self._gpu_fault(tree.main_exit_seconds) or "",
            logged_cause=None if cause is None else cause.reason,
            logged_cause_seconds=None if cause is None else cause.at_seconds,
            logged_pattern="" if cause is None else cause.name,
            gpu_holder=self._gpu_holder() if _is(cause, Reason.GPU_MEMORY_TAKEN) else "",
            port_holder=self._port_holder,
            log=self._log.excerpt(),
            stop_sign_seconds=stop_seconds,
            stop_sign=stop,
            engine_death_logged_seconds=death_seconds,
            engine_death=death,
        )

    def _gpu_holder(self) -> str:
        gpus = self._host.gpus
        return "" if gpus is None else gpus.holders(self._tree.all_pids)

    def _gpu_fault(self, main_exit_seconds: float | None) -> str | None:
        if self._host.gpus is None:
            return None
        ended = self._now_seconds() if main_exit_seconds is None else main_exit_seconds
        return self._host.gpus.fault_of(self._tree.all_pids, ended)


def _is(cause: LoggedCause | None, reason: Reason) -> bool:
    return cause is not None and cause.reason is reason
